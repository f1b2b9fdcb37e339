import json
import os
import re
import subprocess
import sys

import dagster as dg
import pytest

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.config.recipe import load_recipe
from dt2it_pipeline.definitions import build_defs
from dt2it_pipeline.orchestrate.assets.report import _round_artifacts, report_settings
from dt2it_pipeline.orchestrate.partitions import earlier_round
from dt2it_pipeline.orchestrate.sections import ReportSections
from dt2it_pipeline.orchestrate.stage.cached_stage import stage_key
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store

# asset -> what it is made from, group by group: the asset graph of the README
GRAPH = {
    "demo_sources": [],
    "raw_prompts": ["demo_sources"],
    "raw_preferences": ["demo_sources"],
    "raw_t2i_preferences": ["demo_sources"],
    "raw_benchmarks": ["demo_sources"],
    "demo_truth": ["demo_sources"],
    "candidate_responses": ["raw_prompts"],
    "judged_responses": ["candidate_responses", "raw_prompts"],
    "debiased_pairs": ["candidate_responses", "judged_responses", "raw_prompts"],
    "t2i_pairs": ["raw_t2i_preferences"],
    "feedback_pairs": [],
    "training_pairs": ["debiased_pairs", "feedback_pairs", "raw_benchmarks", "t2i_pairs"],
    "reward_model": ["training_pairs"],
    "response_scores": ["raw_preferences", "reward_model", "training_pairs"],
    "ensemble_scores": ["raw_preferences", "training_pairs"],
    "voted_pairs": ["ensemble_scores", "raw_preferences", "response_scores", "training_pairs"],
    "verifier_model": ["debiased_pairs", "raw_benchmarks", "reward_model", "t2i_pairs", "voted_pairs"],
    "verified_pairs": ["reward_model", "verifier_model", "voted_pairs"],
    "contested_pairs": ["reward_model", "verifier_model", "voted_pairs"],
    "annotated_pairs": ["contested_pairs", "training_pairs", "verified_pairs", "voted_pairs"],
    "curated_pairs": ["annotated_pairs", "verified_pairs"],
    "benchmark_scores": ["raw_benchmarks", "reward_model"],
    "control_model": ["debiased_pairs", "raw_benchmarks", "raw_preferences", "t2i_pairs"],
    "control_scores": ["control_model", "raw_benchmarks"],
    "checkpoint_scores": ["raw_benchmarks"],
    "exported_pairs": ["curated_pairs"],
}


@pytest.fixture(scope="module")
def defs(tmp_path_factory):
    return build_defs(load_recipe("configs/recipes/demo.yaml"), tmp_path_factory.mktemp("home"))


def graph(defs):
    return {
        key.to_user_string(): sorted(
            parent.to_user_string() for parent in defs.resolve_asset_graph().get(key).parent_keys
        )
        for key in defs.resolve_all_asset_keys()
    }


def test_the_graph_is_the_one_that_is_documented(defs):
    found = graph(defs)
    assert {name: found[name] for name in GRAPH} == GRAPH
    assert set(found) - set(GRAPH) == {"round_report"}


def test_every_asset_that_is_computed_says_which_version_of_its_code_made_it(defs):
    without = [spec.key.to_user_string() for spec in defs.resolve_all_asset_specs() if not spec.code_version]
    assert without == ["feedback_pairs"]


def test_only_the_report_reads_the_hidden_truth(defs):
    assert [name for name, parents in graph(defs).items() if "demo_truth" in parents] == ["round_report"]


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": 3},
        {"name": "other"},
        {"seed": 9},
        {"annotation": {"budget_calls": 10**6}},
        {"curation": {"keep_probability": 0.9}},
        {"evaluation": {"examples": 0}},
    ],
)
def test_the_report_is_made_anew_where_the_recipe_says_something_else_of_it(change):
    recipe = load_recipe("configs/recipes/demo.yaml")
    given = {key: getattr(recipe, key).model_copy(update=v) if isinstance(v, dict) else v for key, v in change.items()}
    both = (recipe, recipe.model_copy(update=given))
    keys = [stage_key("report", "1", {}, report_settings(ReportSections.of(each))) for each in both]
    assert keys[0] != keys[1]


def test_the_ceiling_arm_is_there_on_request(tmp_path):
    found = graph(build_defs(load_recipe("configs/recipes/smoke.yaml"), tmp_path))
    assert "demo_truth" in found["ceiling_model"]


def test_jobs_hold_every_asset_once(defs):
    held = [
        key.to_user_string()
        for name in ("construct", "round", "benchmark", "export")
        for key in defs.resolve_job_def(name).asset_layer.executable_asset_keys
    ]
    assert sorted(held) == sorted(set(graph(defs)) - {"feedback_pairs"})


ENGINES = {"torch", "transformers", "vllm", "deepspeed"}
# What the report's asset imports when it is made, in the process of the round.
REPORT = "dt2it_pipeline.evaluate.report.html, dt2it_pipeline.reward.training.tracking"


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [("dt2it_pipeline.definitions", ENGINES | {"sklearn", "matplotlib.pyplot"}), (REPORT, ENGINES)],
)
def test_the_process_of_a_run_loads_no_engine(modules, heavy):
    script = f"import sys, json, {modules}\nprint(json.dumps(sorted({heavy} & set(sys.modules))))"
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert json.loads(out.splitlines()[-1]) == []


def test_a_round_without_its_predecessor_says_which_command_to_run(tmp_path):
    with pytest.raises(dg.Failure) as caught:
        earlier_round(Store(tmp_path), "curated_pairs", 0, needed_by=1)
    assert "dt2it run round --round 0" in str(caught.value.description)
    assert not caught.value.allow_retries


def test_a_report_of_rounds_that_another_version_made_says_which_command_makes_them_anew(tmp_path):
    store, table = Store(tmp_path), schemas.table([], "pairs")
    store.write("annotated_pairs", Artifact({"pairs": table}, {"judge_calls": 3}), "old", "0")
    with pytest.raises(dg.Failure) as caught:
        _round_artifacts(store, 0, 1, ["annotated_pairs"])
    assert "round 0" in (words := str(caught.value.description)) and "another version" in words
    assert words.endswith("dt2it run round --round 0") and not caught.value.allow_retries
    store.write("annotated_pairs", Artifact({"pairs": table}, {"judge_calls": 0, "cached_replies": 3}), "new", "0")
    assert set(_round_artifacts(store, 0, 1, ["annotated_pairs"])) == {"annotated_pairs"}


JUDGES = "annotation: {judges: [{name: a}, {name: b}]}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"name: x\nroundz: 1\n{JUDGES}",
            r"error: \S+wrong\.yaml has 1 wrong setting\(s\):\n  roundz: unknown key; did you mean rounds\?\n",
        ),
        (f"name: x\ndatasets: [absent]\n{JUDGES}", r"error: datasets: there is no manifest \S+absent\.yaml; .+\n"),
        (None, r"error: cannot read recipe \S+wrong\.yaml: No such file or directory; \S+recipes has: .+\n"),
    ],
)
def test_a_wrong_recipe_stops_before_any_work_and_is_all_that_is_said(tmp_path, text, said):
    if text is not None:
        (tmp_path / "wrong.yaml").write_text(text)
    settings = {"DT2IT_RECIPE": str(tmp_path / "wrong.yaml"), "DT2IT_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "job", "execute", "-m", "dt2it_pipeline.definitions", "-j", "construct"],
        env=os.environ | settings | {"DAGSTER_HOME": str(project_root())},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert re.fullmatch(said, done.stderr)


def test_a_fault_of_the_code_keeps_its_traceback():
    script = "import dt2it_pipeline.definitions\nraise KeyError('ours')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.startswith("Traceback")
