"""Part 1 through Dagster: pools of models, and pairs rewritten into one style, as a recipe asks for them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.construct import sample
from dt2it_pipeline.construct.sample import SampleJob
from dt2it_pipeline.engines.vllm_engine import Sample
from dt2it_pipeline.orchestrate.resources import ChildProcesses
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline_tests.support.construct_jobs import STAGES, checks, construct, recipe_of
from dt2it_pipeline_tests.support.construct_world import COLORS, ScriptedEngine, color_of, prompt_row
from dt2it_pipeline_tests.support.fault_server import FaultServer, serving


@pytest.fixture
def home(tmp_path: Path) -> Store:
    """A home in which the prompts are ingested: five questions about an image of each colour."""
    store = Store(tmp_path / "home")
    store.media.mkdir(parents=True)
    rows = [prompt_row(store.media, color, f"what color is shape {n}?") for color in COLORS for n in range(5)]
    store.write("raw_prompts", Artifact({"prompts": schemas.table(rows, "prompts")}), "k")
    return store


@pytest.fixture
def pool(tmp_path: Path) -> list[str]:
    """Two folders with a model."""
    return [shutil.copytree(model_path(DEMO_BASE_MODEL), tmp_path / name).as_posix() for name in ("first", "second")]


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in event.metadata.items()}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sampling without vLLM: `first` writes plainly, `second` with markup; one answer of each model is wrong.

    Returns the models that were started.
    """
    started: list[str] = []

    def run(_: Any, context: Any, job: SampleJob, work: Path) -> dict[str, Any]:
        name = Path(job.model).name
        started.append(name)

        def answer(request: Any) -> list[Sample]:
            right = color_of(request)
            said = right if request.temperature == 0.5 else COLORS[(COLORS.index(right) + 1) % len(COLORS)]
            return [Sample(f"It is {said}." if name == "first" else f"- **{said}**", 4, True, 20)]

        return sample.run(job, lambda progress: None, lambda most_images: ScriptedEngine(answer))

    monkeypatch.setattr(ChildProcesses, "run", run)
    return started


def rewriter(answer: Any) -> FaultServer:
    """An endpoint that answers about the blocks of the templates `restyle` and `same_content`."""

    def said(words: str, _: list[str]) -> str:
        blocks = [block.split("\n", 1)[1].strip() for block in words.split("=== ") if block[:4] in ("ANSW", "TEXT")]
        return json.dumps({"difference": "", "same": True}) if '"same"' in words else answer(blocks[0])

    return FaultServer({}, said)


def settings_of(server: FaultServer) -> dict[str, Any]:
    endpoint = {"kind": "endpoint", "name": "rewriter", "base_url": server.url, "model": "m", "attempts": 1}
    return {"rewriter": endpoint, "style": "one plain sentence"}


def plain(text: str) -> str:
    """A rewriter that spoils what is said of teal."""
    said = text.removeprefix("It is ").strip("-* .")
    return json.dumps({"text": f"It is {'red' if said == 'teal' else said}."})


def test_answers_of_a_pool_become_pairs_and_the_asset_says_who_wrote_them(home, pool, scripted):
    done = construct(recipe_of(pool), home)
    assert done.success
    assert scripted == ["first", "second"]
    writers = Counter(row["generator"] for row in home.read("candidate_responses")["responses"].to_pylist())
    assert writers == {f"{name}|t={t}": 30 for name in ("first", "second") for t in ("0.5", "1")}
    shown = metadata(done, "candidate_responses")
    assert "| first | 60 |" in shown["answers_by_model"] and shown["samples_per_second"] > 0
    found = home.read("debiased_pairs")
    assert "rewriting" not in metadata(done, "debiased_pairs") and "responses" not in found.tables
    assert "rewriting_keeps_pairs" not in checks(done, "debiased_pairs")
    assert set(found["pairs"]["chosen_id"].to_pylist()) <= set(
        home.read("judged_responses")["responses"]["response_id"].to_pylist()
    )


def test_of_one_model_alone_nothing_is_said(home, pool, scripted):
    done = construct(recipe_of(pool[:1]), home)
    assert done.success
    shown = metadata(done, "debiased_pairs")
    assert not [name for name in shown if name.startswith("source_model")]
    assert "by first" not in shown["style_leaks"]


def test_a_model_that_always_wins_is_balanced_unless_the_recipe_says_otherwise(home, pool, monkeypatch):
    """Both write alike, but all that `second` says is wrong."""

    def run(_: Any, context: Any, job: SampleJob, work: Path) -> dict[str, Any]:
        def answer(request: Any) -> list[Sample]:
            right = color_of(request)
            wrong = COLORS[(COLORS.index(right) + 1) % len(COLORS)]
            return [Sample(f"It is {right if Path(job.model).name == 'first' else wrong}.", 4, True, 20)]

        return sample.run(job, lambda progress: None, lambda most_images: ScriptedEngine(answer))

    monkeypatch.setattr(ChildProcesses, "run", run)
    free = recipe_of(pool, pairing={"balance_models": False})
    assert construct(free, home).success
    unbalanced = home.read("debiased_pairs")
    assert unbalanced["pairs"].num_rows == unbalanced.metadata["formed"] == 30
    done = construct(recipe_of(pool), home)
    found = home.read("debiased_pairs")
    assert found.metadata["style_auc_before"] == 1 and found["pairs"].num_rows == 0  # `second` never wins
    assert found["quarantine"].num_rows >= 30
    assert done.success and not checks(done, "debiased_pairs")["style_probe"].passed  # nothing is left to measure


def test_pairs_are_rewritten_on_request_and_what_changed_is_quarantined(home, pool, scripted):
    with serving(rewriter(plain)) as server:
        done = construct(recipe_of(pool, settings_of(server)), home)
        asked = len(server.bodies)
        again = construct(recipe_of(pool, settings_of(server)), home)
        assert done.success and again.success
        assert len(server.bodies) == asked > 0
    artifact = home.read("debiased_pairs")
    pairs, about = artifact["pairs"].to_pylist(), artifact.metadata
    assert pairs and all(row[side].startswith("It is ") for row in pairs for side in ("chosen", "rejected"))
    assert not any("teal" in row[side] for row in pairs for side in ("chosen", "rejected"))
    # every candidate pair is kept or quarantined, and says why
    assert (
        about["rows_in"]
        == len(pairs) + artifact["quarantine"].num_rows
        == about["rows_out"] + about["rows_quarantined"]
    )
    reasons = Counter(row["reason"] for row in artifact["quarantine"].to_pylist() if row["stage"] == "restyle")
    assert set(reasons) == {"rewriting changed the answer", "became the same as another pair"}
    rewriting = about["restyle"]
    assert rewriting["rows_in"] == rewriting["rows_out"] + sum(reasons.values())
    # who wrote the sides is known still
    generators = {row["response_id"]: row["generator"] for row in artifact["responses"].to_pylist()}
    assert all(generators[row[side]].endswith("|restyled") for row in pairs for side in ("chosen_id", "rejected_id"))
    shown = metadata(done, "debiased_pairs")
    assert "same_content" in shown["rewriting"]
    assert "rewriting changed the answer" in shown["quarantine_by_reason"]
    found = checks(done, "debiased_pairs")
    assert found["rows_reconcile"].passed
    assert found["rewriting_keeps_pairs"].severity == dg.AssetCheckSeverity.WARN
    assert not found["rewriting_keeps_pairs"].passed  # two pairs of three became the same


def test_a_rewriter_of_no_use_ends_the_run_and_the_raw_text_is_kept(home, pool, scripted):
    with serving(rewriter(lambda text: "I would rather not.")) as server:
        failed = construct(recipe_of(pool, settings_of(server)), home)
    assert not failed.success
    artifact = home.read("debiased_pairs")
    assert artifact["pairs"].num_rows == 0
    lost = [row for row in artifact["quarantine"].to_pylist() if row["stage"] == "restyle"]
    assert {(row["reason"], row["detail"]) for row in lost} == {("could not be rewritten", "I would rather not.")}
    check = checks(failed, "debiased_pairs")["rewriting_keeps_pairs"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)


def test_what_was_made_without_a_rewriter_is_found_again_after_a_run_with_one(home, pool, scripted):
    assert construct(recipe_of(pool), home).success
    kept = {name: home.read(name).folder for name in STAGES}
    with serving(rewriter(plain)) as server:
        assert construct(recipe_of(pool, settings_of(server)), home).success
    assert construct(recipe_of(pool), home).success
    assert {name: home.read(name).folder for name in STAGES} == kept
