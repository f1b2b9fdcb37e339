"""Reading ahead gives what reading in turn gives, no more of it at once than was asked, and errors in their place."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dt2it_pipeline.engines.device import read_ahead, threads_for
from dt2it_pipeline.reward.data import vision_features
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.scoring import scorer as scorer_module
from dt2it_pipeline.reward.scoring.scorer import Scorer
from dt2it_pipeline_tests.support.tiny import make_images, make_prompt


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order(threads: int) -> None:
    def read(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(read_ahead(range(20), read, threads)) == [(item, item * item) for item in range(20)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_threads_are_those_of_the_cores_that_this_process_may_use() -> None:
    """As in a container, or under `taskset`: the machine may have many more."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert threads_for(torch.device("cuda")) == 1 and threads_for(torch.device("cpu")) == 0
    finally:
        os.sched_setaffinity(0, before)


def test_no_more_is_read_ahead_than_threads_say() -> None:
    read: list[int] = []
    taken = read_ahead(range(100), read.append, 2)
    next(taken)
    time.sleep(0.05)
    assert len(read) == 3
    taken.close()
    assert threading.active_count() < 20


def test_an_error_comes_where_its_item_would() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise ValueError("damaged")
        return item

    taken = read_ahead(range(9), read, 3)
    assert [next(taken), next(taken)] == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="damaged"):
        next(taken)


@pytest.mark.parametrize("at_once", [True, False])
def test_scores_do_not_depend_on_threads(
    base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    images = make_images(tmp_path, 6)
    (tmp_path / images[2]["path"]).write_bytes((tmp_path / images[2]["path"]).read_bytes()[:-40])
    prompts = {f"p{n}": make_prompt(images[n : n + 1], "what colour") for n in range(6)}
    responses = [(f"{key}.{n}", key, text) for key in prompts for n, text in enumerate(["red", "a blue circle"])]
    model = RewardModel.from_pretrained(base(), new_head_seed=0).eval()
    if not at_once:
        monkeypatch.setattr(scorer_module, "_FEATURE_BYTES", 0)
    found: list[Any] = []
    for threads in (0, 3):
        for module in (scorer_module, vision_features):
            monkeypatch.setattr(module, "threads_for", lambda device, threads=threads: threads)
        made = Scorer(model, tmp_path, max_length=512, max_pixels=65536, tokens_per_batch=300)
        found.append(made.score(prompts, responses))
    assert found[0] == found[1]
    assert set(found[0][1]) == {"p2.0", "p2.1"}
    assert len(found[0][0]) == 10


def test_a_cpu_reads_in_turn() -> None:
    assert threads_for(torch.device("cpu")) == 0
    assert threads_for(torch.device("cuda")) >= 1
