"""Sampling answers, with an engine that answers from a list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from dt2it_pipeline.engines.vllm_engine import Decoding, EngineError, Sample, SampleRequest
from dt2it_pipeline.evaluate.best_of.sampling import SampledAnswers, sample_answers

DECODING = Decoding(0.7, 0.9, 5)


class Engine:
    """Gives the same four samples to every prompt, and refuses one that says so."""

    def __init__(self) -> None:
        self.requests: list[SampleRequest] = []

    def sample(self, requests: Sequence[SampleRequest], decoding: Decoding) -> list[list[Sample] | EngineError]:
        self.requests += requests
        assert decoding == DECODING
        four = [Sample(" yes ", 2, True), Sample("yes", 1, True), Sample("cut", 5, False), Sample(" ", 1, True)]
        return [EngineError("too long") if "refuse" in str(request.prompt.messages) else four for request in requests]


def sampled(tmp_path: Path, rows: list[dict[str, object]], engine: Engine, seed: int = 0) -> SampledAnswers:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return sample_answers("model", file, tmp_path, tmp_path / "media", 4, decoding=DECODING, seed=seed,
                          make_engine=lambda most_images: engine)  # fmt: skip


def test_equal_answers_are_kept_and_unusable_ones_counted(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    rows: list[dict[str, object]] = [
        {"id": 3, "prompt": "what", "images": ["a.png"], "topic": "colour", "responses": ["an earlier one"]},
        {"prompt": "refuse"},
        {"prompt": "gone", "images": ["gone.png"]},
    ]
    engine = Engine()
    made = sampled(tmp_path, rows, engine)
    assert made.rows == [{**rows[0], "responses": ["yes", "yes"]}]
    assert (made.sampled, made.cut, made.empty) == (4, 1, 1)
    assert [(name, reason) for name, reason, _ in made.faults] == [
        ("line 3", "missing image"), ("line 2", "refused by the engine"),
    ]  # fmt: skip
    assert {len(request.prompt.images) for request in engine.requests} == {0, 1}
    assert all(request.n == 4 for request in engine.requests)


def test_a_prompt_has_its_own_draw_which_the_seed_changes(tmp_path: Path) -> None:
    seeds = {}
    for order, seed in ((("a", "b"), 0), (("b", "a"), 0), (("a", "b"), 1)):
        engine = Engine()
        sampled(tmp_path, [{"prompt": text} for text in order], engine, seed)
        seeds[order, seed] = {r.prompt.prompt_id: r.seed for r in engine.requests}
    assert seeds[("a", "b"), 0] == seeds[("b", "a"), 0] != seeds[("a", "b"), 1]
    assert len(set(seeds[("a", "b"), 0].values())) == 2


def test_where_nothing_is_usable_it_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="model gave no usable answer; line 1: refused by the engine"):
        sampled(tmp_path, [{"prompt": "refuse"}], Engine())
