"""Rewriting that keeps pairs, through Dagster and under vLLM: a rewriter of the demo's small world, taught here."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.construct import sample
from dt2it_pipeline.construct.sample import SampleJob
from dt2it_pipeline.demo import language
from dt2it_pipeline.demo.build_rewriter import STYLE, build
from dt2it_pipeline.engines.jobs import Job
from dt2it_pipeline.engines.vllm_engine import Sample
from dt2it_pipeline.orchestrate.resources import ChildProcesses
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline_tests.support.construct_jobs import checks, construct, recipe_of
from dt2it_pipeline_tests.support.construct_world import ScriptedEngine, prompt_row

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]
QUESTIONS = ("what shape is in the image?", "what shape does the image contain?", "what shape is present?")


def _prompts(root: Path) -> list[dict[str, Any]]:
    """Questions for a shape. Nobody looks at the images: the sampler is scripted, and a rewriter is shown none."""
    return [
        prompt_row(root, color, question, language.SHAPES[number % 3])
        for number, color in enumerate(language.COLORS)
        for question in (*QUESTIONS, *(f"what is the {other} shape?" for other in language.COLORS[:5]))
    ]


@pytest.fixture(scope="module")
def rewriter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("rewriter") / "rewriter"
    exact = build(folder)
    print(f"rewriter: {exact:.1%} of unseen answers to the letter")
    assert exact > 0.8
    return folder


def _sampling(monkeypatch: pytest.MonkeyPatch, prompts: list[dict[str, Any]]) -> None:
    """Sampling without vLLM: nine of ten right answers are verbose, nine of ten wrong ones plain."""
    real = ChildProcesses.run
    by_id = {row["prompt_id"]: row for row in prompts}
    rng = random.Random(0)

    def run(self: Any, context: Any, job: Job, work: Path) -> dict[str, Any]:
        if not isinstance(job, SampleJob):
            return real(self, context, job, work)

        def answer(request: Any) -> list[Sample]:
            prompt = by_id[request.prompt.prompt_id]
            question, right = prompt["turns"][0]["text"].removeprefix("<image>\n"), prompt["reference"]
            is_right = request.temperature == 0.5
            said = right if is_right else language.wrong_answer(question, right, rng)
            style: language.Style = "verbose" if is_right == (rng.random() < 0.9) else "plain"
            return [Sample(language.answer_in_style(style, question, said, rng), 4, True, 20)]

        return sample.run(job, lambda progress: None, lambda most_images: ScriptedEngine(answer))

    monkeypatch.setattr(ChildProcesses, "run", run)


def test_rewriting_keeps_most_pairs_and_style_no_longer_tells(
    tmp_path: Path, rewriter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the words of the reference find to have changed is quarantined; the rest is in one style."""
    home = Store(tmp_path / "home")
    home.media.mkdir(parents=True)
    rows = _prompts(home.media)
    home.write("raw_prompts", Artifact({"prompts": schemas.table(rows, "prompts")}), "k")
    _sampling(monkeypatch, rows)
    once = {"samples": 2, "pairing": {"max_pairs_per_prompt": 1}}
    assert construct(recipe_of([], **once), home).success
    before = home.read("debiased_pairs").metadata
    engine = {"kind": "vllm", "name": "r", "model": str(rewriter), "max_model_len": 1024, "max_new_tokens": 64}
    done = construct(recipe_of([], {"rewriter": engine, "style": STYLE, "check": {"kind": "words"}}, **once), home)
    assert done.success
    artifact = home.read("debiased_pairs")
    metadata, rewriting = artifact.metadata, artifact.metadata["restyle"]
    lost = Counter(row["reason"] for row in artifact["quarantine"].to_pylist() if row["stage"] == "restyle")
    print(before["formed"], before["style_auc_before"], before["rows_out"], "->", metadata, lost)
    assert before["formed"] == rewriting["rows_in"] == len(rows) == 64
    assert rewriting["rows_out"] == rewriting["rows_in"] - sum(lost.values()) >= 0.8 * rewriting["rows_in"]
    assert before["style_auc_before"] > 0.85
    assert metadata["style_auc_before"] < 0.65  # of 64 pairs: half of the interval is 0.14
    assert metadata["rows_out"] > 2 * before["rows_out"]
    found = checks(done, "debiased_pairs")
    assert found["rewriting_keeps_pairs"].passed and found["rows_reconcile"].passed
    texts = [row[side] for row in artifact["pairs"].to_pylist() for side in ("chosen", "rejected")]
    assert sum(text.startswith("The shape is a ") for text in texts) > 0.9 * len(texts)
