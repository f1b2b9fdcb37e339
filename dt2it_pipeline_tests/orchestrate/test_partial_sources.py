"""Recipes that name only some kinds of sources."""

import json
import shutil

import pytest
from PIL import Image

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.config.recipe import parse_recipe
from dt2it_pipeline.config.sections.cleaning import DecontaminationSettings
from dt2it_pipeline.definitions import build_defs
from dt2it_pipeline.ingest.manifest import ManifestError
from dt2it_pipeline.orchestrate.assets.rounds import joined_pairs
from dt2it_pipeline.storage.artifacts import Store

RECIPE = "name: own\nrounds: 1\ndatasets: [{names}]\nannotation: {{judges: [{{name: a}}, {{name: b}}]}}\n"
ROWS = {
    "preferences": {"image": "red.png", "question": "what?", "chosen": "red", "rejected": "blue"},
    "t2i": {"caption": "a red image", "preferred": "red.png", "other": "blue.png"},
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose configs/datasets describe one source of each kind in ROWS, named like its kind."""
    datasets = tmp_path / "configs/datasets"
    datasets.mkdir(parents=True)
    for folder in ("deepspeed", "prompts"):
        shutil.copytree(project_root() / "configs" / folder, tmp_path / "configs" / folder)
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
    for kind, row in ROWS.items():
        (tmp_path / f"{kind}.jsonl").write_text(json.dumps(row) + "\n")
        manifest = f"name: {kind}\nkind: {kind}\npath: {kind}.jsonl\nmedia_root: .\nlicence: MIT\n"
        (datasets / f"{kind}.yaml").write_text(manifest)
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    return tmp_path


def definitions(project, *names):
    return build_defs(parse_recipe(RECIPE.format(names=", ".join(names))), project / "home")


@pytest.mark.parametrize("names", [(), ("preferences",)])
def test_without_a_source_for_round_0_the_missing_kinds_are_named(project, names):
    with pytest.raises(ManifestError, match=r"no source of kind `prompts` or `t2i`.*configs/datasets"):
        definitions(project, *names)


def test_what_is_not_given_is_an_empty_table_and_the_rest_is_made(project):
    job = definitions(project, "t2i").resolve_job_def("construct")
    assert job.execute_in_process().success
    store = Store(project / "home")
    assert store.read("t2i_pairs")["pairs"].num_rows == 1
    for name, kind in (
        ("raw_prompts", "prompts"),
        ("raw_preferences", "pairs"),
        ("raw_benchmarks", "benchmark_items"),
        ("candidate_responses", "responses"),
        ("debiased_pairs", "pairs"),
    ):
        assert store.read(name)[kind].num_rows == 0, name
    parts = {name: store.read(name) for name in ("debiased_pairs", "t2i_pairs")}
    assert (
        joined_pairs(parts, store.read("raw_benchmarks"), DecontaminationSettings(), store.media)["pairs"].num_rows == 1
    )
