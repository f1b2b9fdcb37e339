"""Preparation of pairs as a plain loop over Python objects: what the prepared table must agree with."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from dt2it_pipeline.reward.data.collation import PackedExample
from dt2it_pipeline.reward.data.encoding import EncodedPrompt, PromptEncoder
from dt2it_pipeline.reward.data.preparation import encode_prompts, fault_of, prompt_rows
from dt2it_pipeline.storage import records


def prepare_pairs(
    pairs: pa.Table, prompts: pa.Table, prompt_encoder: PromptEncoder, max_length: int, use_strength: bool
) -> tuple[list[PackedExample], list[dict[str, Any]], list[dict[str, Any]]]:
    """Examples of the pairs that can be used, their rows of the pairs table, and rows of quarantine."""
    rows = pairs.to_pylist()
    encoded = encode_prompts(prompt_encoder, prompt_rows(prompts, {row["prompt_id"] for row in rows}))
    examples, usable, quarantine = [], [], []
    for row in rows:
        prompt = encoded.get(row["prompt_id"])
        responses = tuple(prompt_encoder.responses([row["chosen"], row["rejected"]]))
        fault = fault_of(prompt, row["prompt_id"], max(map(len, responses)), max_length)
        if fault is None and use_strength and row["strength"] is not None and math.isinf(row["strength"]):
            fault = "strength is infinite", str(row["strength"])
        if fault:
            quarantine.append(records.quarantine_pair(row, "training", *fault))
            continue
        assert isinstance(prompt, EncodedPrompt)
        examples.append(PackedExample(prompt, responses))
        usable.append(row)
    return examples, usable, quarantine
