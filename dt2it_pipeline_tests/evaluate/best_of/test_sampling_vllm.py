"""Answers of a real engine: drawn, kept beside the output, and chosen from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dt2it_pipeline_tests.support.commands import dt2it


@pytest.mark.heavy
def test_answers_of_the_demo_model_are_sampled_and_chosen_from(tmp_path: Path) -> None:
    from dt2it_pipeline.config.paths import model_path
    from dt2it_pipeline.reward.reward_model import RewardModel

    model = RewardModel.from_pretrained(model_path("demo"), new_head_seed=0)
    (tmp_path / "checkpoint").mkdir()
    model.save_pretrained(tmp_path / "checkpoint")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    questions = ("What color is the shape?", "Is there a red shape?")
    rows = [{"prompt": text, "images": ["red.png"]} for text in questions]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    call = ["best-of", tmp_path / "prompts.jsonl", "--sample", "demo", "--answers", 6, "--max-new-tokens", 48]
    found = json.loads(dt2it(*call, "--model", tmp_path / "checkpoint", "--output", tmp_path / "best.jsonl", "--json"))
    drawn = [json.loads(line) for line in (tmp_path / "best.answers.jsonl").read_text().splitlines()]
    best = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    assert found["prompts"] == 2 and [row["prompt"] for row in drawn] == list(questions)
    for row, chosen in zip(drawn, best, strict=True):
        assert 0 < len(row["responses"]) <= 6
        assert chosen["best"]["text"] == row["responses"][chosen["best"]["place"]]
