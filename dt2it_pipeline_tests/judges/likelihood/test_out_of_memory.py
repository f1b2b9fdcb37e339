"""A likelihood judge where memory runs out: PyTorch's own allocator fails, at a pass of more than some sequences."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.demo.rendering import draw
from dt2it_pipeline.engines import device
from dt2it_pipeline.engines.chat import ChatPrompt, chat_prompt
from dt2it_pipeline.judges.likelihood.judges import LikelihoodScores
from dt2it_pipeline.judges.likelihood.model import LikelihoodError, LikelihoodModel
from dt2it_pipeline.judges.protocol import POINTWISE, JudgeRequest
from dt2it_pipeline_tests.support.construct_world import prompt_row
from dt2it_pipeline_tests.support.threads import use_tested_threads

COLORS = ("red", "blue", "green", "teal", "black")
TEXTS = ["no", "It is a circle.", "It is a red circle.", "a", "This is a blue triangle."]


@pytest.fixture
def model() -> LikelihoodModel:
    use_tested_threads()
    return LikelihoodModel(model_path(DEMO_BASE_MODEL), 4096)


@pytest.fixture
def prompts(tmp_path: Path) -> list[ChatPrompt]:
    for color in COLORS:
        Image.fromarray(draw(color, "circle", random.Random(0))).save(tmp_path / f"{color}.png")
    return [chat_prompt(prompt_row(tmp_path, color, "what shape is in the image?"), tmp_path) for color in COLORS]


@pytest.fixture
def passes(model: LikelihoodModel) -> list[int]:
    """Sequences of each pass that is tried."""
    tried: list[int] = []
    model._model.register_forward_pre_hook(
        lambda module, given, named: tried.append(len(named["input_ids"])), with_kwargs=True
    )
    return tried


def fail_above(model: LikelihoodModel, most: int) -> None:
    def allocate(module: Any, given: Any, named: dict[str, Any]) -> None:
        if len(named["input_ids"]) > most:
            torch.empty(2**62, dtype=torch.uint8)

    model._model.register_forward_pre_hook(allocate, with_kwargs=True)


Measure = Callable[[LikelihoodModel, list[ChatPrompt]], list[float]]
MEASURES: dict[str, Measure] = {
    "log_likelihoods": lambda model, prompts: model.log_likelihoods(list(zip(prompts, TEXTS, strict=True))),
    "yes": lambda model, prompts: model.yes_probabilities(prompts),
}


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("measure", MEASURES)
def test_a_pass_that_does_not_fit_is_split_in_halves(
    model: LikelihoodModel,
    prompts: list[ChatPrompt],
    passes: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    measure: str,
    threads: int,
) -> None:
    expected = MEASURES[measure](model, prompts)
    assert passes == [5]
    passes.clear()
    fail_above(model, 2)
    monkeypatch.setattr(device, "threads_for", lambda device: threads)
    values = MEASURES[measure](model, prompts)
    assert passes == [5, 2, 3, 1, 2]
    assert values == pytest.approx(expected, abs=1e-4)
    assert MEASURES[measure](model, prompts) == values
    assert caplog.text.count("split in halves") == 1 and "smaller tokens_per_batch" in caplog.text


def test_one_sequence_that_does_not_fit_ends_with_what_would_help(
    model: LikelihoodModel, prompts: list[ChatPrompt], passes: list[int], tmp_path: Path
) -> None:
    fail_above(model, 0)
    words = (
        r"this machine's memory does not suffice for one sequence of \d+ tokens .*tokens_per_batch.*"
        "lower max_pixels of this judge"
    )
    for measure in MEASURES.values():
        with pytest.raises(LikelihoodError, match=words) as caught:
            measure(model, prompts)
        assert "can't allocate memory" in str(caught.value.__cause__)
    assert passes == [5, 2, 1] * 2
    request = JudgeRequest(prompt_row(tmp_path, "red"), ("a",), POINTWISE)
    with pytest.raises(LikelihoodError, match=words):
        list(LikelihoodScores("l", "m", model, tmp_path, "yes").judge([request]))


def test_other_errors_split_nothing(model: LikelihoodModel, prompts: list[ChatPrompt], passes: list[int]) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("device-side assert triggered")

    model._model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        model.yes_probabilities(prompts)
    assert passes == [5]


def test_halves_are_never_prepared_while_the_next_pass_is(
    model: LikelihoodModel, prompts: list[ChatPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer cannot be used by two threads at once."""
    inputs, busy, seen = model._inputs, threading.Lock(), set()

    def slow(some: list[ChatPrompt]) -> dict[str, Any]:
        seen.add(threading.current_thread().name)
        assert busy.acquire(blocking=False), "two threads prepare inputs"
        try:
            time.sleep(0.02)
            return inputs(some)
        finally:
            busy.release()

    monkeypatch.setattr(model, "_inputs", slow)
    monkeypatch.setattr(model, "_tokens_per_batch", 160)
    monkeypatch.setattr(device, "threads_for", lambda device: 1)
    fail_above(model, 1)
    assert len(model.yes_probabilities(prompts * 4)) == 20
    assert len(seen) == 2
