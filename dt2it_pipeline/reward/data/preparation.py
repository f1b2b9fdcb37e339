"""Preference pairs on their way into training: they become packed examples, or are quarantined with the reason."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.reward.data.collation import PackedExample
from dt2it_pipeline.reward.data.encoding import EncodedPrompt, PromptEncoder
from dt2it_pipeline.reward.too_long import too_long
from dt2it_pipeline.storage import records

if TYPE_CHECKING:
    import pyarrow as pa

_SPLIT_STREAM = 7_919  # keeps the draw of the held-out prompts apart from those of the epochs


@dataclass
class PreparedPairs:
    """Pairs that training can use, in table order, and those that it cannot."""

    ids: list[str] = field(default_factory=list)
    rows: list[PackedExample] = field(default_factory=list)  # responses: chosen, rejected
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    prompt_ids: list[str] = field(default_factory=list)
    strengths: list[float | None] = field(default_factory=list)

    def add(self, pair_id: str, example: PackedExample, prompt_id: str, strength: float | None) -> None:
        """Append a pair that can be used."""
        self.ids.append(pair_id)
        self.rows.append(example)
        self.prompt_ids.append(prompt_id)
        self.strengths.append(strength)


def prompt_rows(table: pa.Table, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Rows of a prompts table by id, only the wanted ones (text becomes Python objects, so ask for few)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = table.filter(pc.is_in(table.column("prompt_id"), value_set=pa.array(sorted(wanted), type=pa.string())))
    return {row["prompt_id"]: row for row in found.to_pylist()}


def encode_prompts(
    prompt_encoder: PromptEncoder, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, EncodedPrompt | RowError]:
    """Encode rows of a prompts table by id; an error stands in the place of a prompt that cannot be encoded."""
    return dict(zip(rows, prompt_encoder.prompts(list(rows.values())), strict=True))


def prepare_pairs(
    pairs: pa.Table, prompts: pa.Table, prompt_encoder: PromptEncoder, max_length: int, *, use_strength: bool = False
) -> PreparedPairs:
    """Encode pairs. Nothing is truncated: a pair whose prompt and longer response exceed `max_length` is quarantined.

    Args:
        pairs: a pairs table.
        prompts: the prompts table that has their prompts.
        prompt_encoder: of the model and its system prompt.
        max_length: tokens of a prompt with one response.
        use_strength: quarantine pairs of infinite strength too; null and NaN mean that the strength is unknown.
    """
    out = PreparedPairs()
    columns = ("pair_id", "prompt_id", "chosen", "rejected", "strength")
    ids, prompt_ids, chosen, rejected, strengths = (pairs.column(name).to_pylist() for name in columns)
    encoded = encode_prompts(prompt_encoder, prompt_rows(prompts, set(prompt_ids)))
    unique = list(dict.fromkeys(chosen + rejected))
    tokens = dict(zip(unique, prompt_encoder.responses(unique), strict=True))
    named = pairs.select(["pair_id", "source", "row_id"])
    rows = zip(ids, prompt_ids, chosen, rejected, strengths, strict=True)
    for place, (pair_id, prompt_id, good, bad, strength) in enumerate(rows):
        prompt = encoded.get(prompt_id)
        fault = fault_of(prompt, prompt_id, max(len(tokens[good]), len(tokens[bad])), max_length)
        if fault is None and use_strength and strength is not None and math.isinf(strength):
            fault = "strength is infinite", str(strength)
        if fault:
            pair = named.slice(place, 1).to_pylist()[0]
            out.quarantine.append(records.quarantine_pair(pair, "training", *fault))
            continue
        assert isinstance(prompt, EncodedPrompt)
        out.add(pair_id, PackedExample(prompt, (tokens[good], tokens[bad])), prompt_id, strength)
    return out


def fault_of(
    prompt: EncodedPrompt | RowError | None, prompt_id: str, response_tokens: int, max_length: int
) -> tuple[str, str] | None:
    """Reason and detail why a response to this prompt cannot be used, or None."""
    if prompt is None:
        return "prompt not in the table", prompt_id
    if isinstance(prompt, RowError):
        return prompt.reason, str(prompt)
    return too_long(len(prompt.tokens) + response_tokens, max_length)


def drop_images(prepared: PreparedPairs, faults: Mapping[int, MediaError], pairs: pa.Table) -> PreparedPairs:
    """Quarantine those of `pairs` that show an image which turned out to be unreadable."""
    if not faults:
        return prepared
    named = {row["pair_id"]: row for row in pairs.select(["pair_id", "source", "row_id"]).to_pylist()}
    out = PreparedPairs(quarantine=list(prepared.quarantine))
    usable = zip(prepared.ids, prepared.rows, prepared.prompt_ids, prepared.strengths, strict=True)
    for pair_id, example, prompt_id, strength in usable:
        broken = next((faults[p] for p in example.prompt.images if p in faults), None)
        if broken is None:
            out.add(pair_id, example, prompt_id, strength)
        else:
            out.quarantine.append(records.quarantine_pair(named[pair_id], "training", broken.reason, str(broken)))
    return out


def split_by_prompt(prompt_ids: Sequence[str], pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs to hold out, all pairs of a prompt together, so that no prompt is on both sides.

    Prompts are taken in an order drawn from `seed` until they bring at least `pairs` pairs.

    Args:
        prompt_ids: prompt of every pair.
        pairs: how many to hold out; the last prompt may bring more.
        seed: of the recipe.

    Returns:
        Pairs to train on and pairs to hold out, int64, each in ascending order; the first is empty where the prompts do
        not suffice.
    """
    prompts, prompt_of, counts = np.unique(np.asarray(prompt_ids), return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, _SPLIT_STREAM]).permutation(len(prompts))
    taken = int(np.searchsorted(np.cumsum(counts[order]), pairs)) + 1 if pairs else 0
    held_out = np.isin(prompt_of, order[:taken])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def stopwatch() -> Callable[[], float]:
    """A function that gives the seconds since it was made."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start
