"""The raw assets as Dagster runs them: several sources with their faults, cleaning across them, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from dt2it_pipeline.config.recipe import Recipe, load_recipe
from dt2it_pipeline.definitions import build_defs
from dt2it_pipeline.export.lineage import sources_of
from dt2it_pipeline.ingest.provenance import Provenance, recorded
from dt2it_pipeline.media.damage import TEMPORARY
from dt2it_pipeline.orchestrate.assets import raw
from dt2it_pipeline.orchestrate.resources import StoreResource
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline_tests.support.commands import dt2it, invoke
from dt2it_pipeline_tests.support.ingest_world import numbered_image
from dt2it_pipeline_tests.support.processes import name_of_a_dead_process


def manifest(project: Path, name: str, rows: list[dict[str, Any]] | None, **more: Any) -> str:
    if rows is not None:
        (project / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"name": name, "kind": "preferences", "path": f"{name}.jsonl", "media_root": "root", "licence": "MIT"}
    folder = project / "configs/datasets"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(fields | more))
    return name


def row(chosen: str, rejected: str, image: str = "0.png") -> dict[str, Any]:
    return {"image": image, "question": "q", "chosen": chosen, "rejected": rejected}


def reading(*names: str) -> Recipe:
    """The demo's recipe with other sources."""
    demo = load_recipe(Path(__file__).resolve().parents[2] / "configs/recipes/demo.yaml")
    return demo.model_copy(update={"datasets": names, "demo": None})


def raw_assets(recipe: Recipe) -> list[dg.AssetsDefinition]:
    return raw.build_raw_assets(recipe.name, recipe.datasets, recipe.cleaning, recipe.landing, recipe.demo, recipe.seed)


def materialised(recipe: Recipe, home: Path) -> dg.ExecuteInProcessResult:
    assets = [asset for asset in raw_assets(recipe) if asset.key.to_user_string() == "raw_preferences"]
    return dg.materialize(assets, resources={"store": StoreResource(home=str(home))})


def test_sources_are_read_cleaned_and_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    for number in range(2):
        numbered_image(tmp_path / f"root/{number}.png", number)
    names = [
        manifest(tmp_path, "first", [row("a", "b"), row("c", "d"), row("e", "f", "gone.png")]),
        manifest(tmp_path, "second", [row("B", "a"), row("c", "d"), row("g", "h", "1.png")]),
        manifest(tmp_path, "absent", None),
        manifest(tmp_path, "elsewhere", None, path=None, hub="someone/something"),
        manifest(tmp_path, "captions", None, kind="t2i"),
    ]
    recipe = reading(*names)
    result = materialised(recipe, tmp_path / "home")
    artifact = Store(tmp_path / "home").read("raw_preferences")
    assert sorted(artifact["pairs"]["chosen"].to_pylist()) == ["c", "g"]
    assert artifact["prompts"].num_rows == 2
    aside = [(r["reason"], r["source"]) for r in artifact["quarantine"].to_pylist()]
    assert aside == [
        ("missing image", "first"),
        ("contradictory pair", "first"),
        ("contradictory pair", "second"),
        ("duplicate pair", "second"),
        ("unreadable source", "absent"),
        ("unreadable source", "elsewhere"),
    ]
    assert {key: artifact.metadata[key] for key in ("rows_in", "rows_out", "rows_quarantined")} == {
        "rows_in": 6, "rows_out": 2, "rows_quarantined": 4
    }  # fmt: skip
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert checks["rows_reconcile"].passed
    assert not checks["sources_readable"].passed
    assert "`revision` is not set" in str(checks["sources_readable"].metadata["elsewhere"].value)


def logged(recipe: Recipe, home: Path) -> tuple[dict[str, list[str]], dict[str, dg.AssetCheckEvaluation]]:
    """Materialise the raw assets: what each says above the level DEBUG, and its check `sources_readable`."""
    said: dict[str, list[str]] = {}
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            raw_assets(recipe),
            resources={"store": StoreResource(home=str(home))},
            instance=instance,
            raise_on_error=False,
        )
        for entry in instance.all_logs(result.run_id):
            if entry.dagster_event is None and entry.step_key is not None and entry.level >= 20:
                said.setdefault(entry.step_key, []).append(entry.user_message)
    checks = {check.asset_key.to_user_string(): check for check in result.get_asset_check_evaluations()
              if check.check_name == "sources_readable"}  # fmt: skip
    return said, checks


def test_faults_of_landed_manifests_are_told_once_where_they_belong_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    numbered_image(tmp_path / "root/0.png", 0)
    names = (manifest(tmp_path, "mine", [row("a", "b")]), manifest(tmp_path, "captions", [], kind="t2i"))
    recipe = reading(*names)
    landing = tmp_path / "home/landing"
    landing.mkdir(parents=True)
    (landing / "two.yaml").write_text("name: two\nkind: t2i\npath: two.jsonl\nlicence: MIT\n")
    (landing / "three.yaml").write_text("name: three\nkind: t2i\npath: three.jsonl\n")
    (landing / "four.yaml").write_text("name: [\n")
    said, checks = logged(recipe, tmp_path / "home")
    missing = (
        "landing/three.yaml is not read: manifest three.yaml: licence: Field required; "
        "landing/two.yaml is not read: there is no two.jsonl beside it"
    )
    assert checks["raw_t2i_preferences"].description == missing
    assert set(checks["raw_t2i_preferences"].metadata) == {"three.yaml", "two.yaml"}
    assert str(checks["raw_preferences"].description).startswith(
        "landing/four.yaml is not read: manifest four.yaml is not valid YAML: while parsing"
    )
    assert set(checks["raw_preferences"].metadata) == {"four.yaml"}
    assert {name for name, check in checks.items() if check.passed} == {"raw_prompts", "raw_benchmarks"}
    everything = [line for lines in said.values() for line in lines]
    assert f"check sources_readable did not pass: {missing}" in said["raw_t2i_preferences"]
    for name in ("two.yaml is", "three.yaml is", "landing/four.yaml"):
        assert sum(name in line for line in everything) == 1, name
    assert not [line for line in everything if "MetadataValue" in line]
    aside = Store(tmp_path / "home").read("raw_t2i_preferences")["quarantine"]
    assert aside["source"].to_pylist() == ["three.yaml", "two.yaml"]


def test_a_stage_that_is_reused_tells_its_counts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    numbered_image(tmp_path / "root/0.png", 0)
    names = (manifest(tmp_path, "mine", [row("a", "b"), row("c", "d"), row("e", "e")]),
             manifest(tmp_path, "captions", [], kind="t2i"))  # fmt: skip
    recipe = reading(*names)
    made, again = (logged(recipe, tmp_path / "home")[0]["raw_preferences"] for _ in range(2))
    counts = "raw_preferences: 3 in, 2 out, 1 quarantined (identical sides: 1), "
    assert [line.startswith(counts) and line.endswith(" s") for line in made] == [True]
    assert again == [f"{counts}reused, inputs and settings unchanged"]


def test_what_a_manifest_says_reaches_the_cards_and_no_shipped_one_of_its_name_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    numbered_image(tmp_path / "root/0.png", 0)
    own, place = {"licence": "ours alone", "citation": "Us, 2026"}, "mine/povid.yaml"  # named by its path
    (tmp_path / "mine").mkdir()

    def written(**said: str) -> None:
        manifest(tmp_path, "povid", [row("a", "b")], path="../povid.jsonl", media_root="../root", **said)
        (tmp_path / "configs/datasets/povid.yaml").replace(tmp_path / place)

    written(**own)
    home, recipe = Store(tmp_path / "home"), reading(place, manifest(tmp_path, "captions", [], kind="t2i"))
    materialised(recipe, tmp_path / "home")
    made = home.read("raw_preferences")
    assert sources_of(made["pairs"], home) == {"povid": Provenance(**own)}
    written(**own | {"licence": "CC0-1.0"})
    materialised(recipe, tmp_path / "home")
    assert sources_of(made["pairs"], home)["povid"].licence == "CC0-1.0"
    assert home.read("raw_preferences").digest == made.digest  # another licence makes no other pairs
    (home.home / "artifacts/raw_preferences" / str(home.current("raw_preferences")) / "manifest.json").write_text("{")
    assert recorded(home) == {}


def test_a_source_of_which_no_row_can_be_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    numbered_image(tmp_path / "root/0.png", 0)
    rows = [row(f"a{number}", "b") for number in range(2)]
    names = (manifest(tmp_path, "right", [row("c", "d")]), manifest(tmp_path, "wrong", rows, media_root="roots"),
             manifest(tmp_path, "captions", [], kind="t2i"))  # fmt: skip
    recipe = reading(*names)
    said, checks = logged(recipe, tmp_path / "home")
    why = (
        "source 'wrong': not one of its 2 rows can be used; the first, line 1: missing image "
        f"(0.png: there is no media_root {tmp_path / 'roots'})"
    )
    check = checks["raw_preferences"]
    assert (check.passed, check.description) == (False, why)
    assert f"check sources_readable did not pass: {why}" in said["raw_preferences"]
    assert "3 in, 1 out, 2 quarantined (missing image: 2), " in said["raw_preferences"][0]
    assert checks["raw_t2i_preferences"].passed  # a source without rows is no wrong one
    assert check.severity is dg.AssetCheckSeverity.WARN  # others can be used


def test_nothing_follows_where_no_row_of_any_source_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    names = (manifest(tmp_path, "wrong", [row("a", "b")], media_root="roots"),
             manifest(tmp_path, "captions", [], kind="t2i"))  # fmt: skip
    recipe = reading(*names)
    _, checks = logged(recipe, tmp_path / "home")
    check = checks["raw_preferences"]
    assert (check.passed, check.severity, check.blocking) == (False, dg.AssetCheckSeverity.ERROR, True)
    assert Store(tmp_path / "home").read("raw_preferences")["quarantine"].num_rows == 1  # the reasons can be read


def test_images_that_no_column_names_and_repeated_ids_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    numbered_image(tmp_path / "root/0.png", 0)
    rows = [{"id": "same", "scan": "0.png", **{key: text for key, text in row(side, "b").items() if key != "image"}}
            for side in ("a", "c")]  # fmt: skip
    names = (manifest(tmp_path, "mine", rows), manifest(tmp_path, "captions", [], kind="t2i"))
    recipe = reading(*names)
    said, checks = logged(recipe, tmp_path / "home")
    assert "`media_root` is given, and no row names an image" in str(checks["raw_preferences"].description)
    assert any(line.startswith("repeated ids: 1 ") for line in said["raw_preferences"])


def test_prompts_without_an_image_are_told_where_others_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    numbered_image(tmp_path / "root/0.png", 0)
    first, second = ({**row(*sides), "image": None} for sides in ("ab", "ef"))
    names = (manifest(tmp_path, "mixed", [row("c", "d"), first]), manifest(tmp_path, "texts", [second]),
             manifest(tmp_path, "captions", [], kind="t2i"))  # fmt: skip
    said, _ = logged(reading(*names), tmp_path / "home")
    warnings = [line for line in said["raw_preferences"] if "as text alone" in line]
    assert len(warnings) == 1 and warnings[0].startswith("source 'mixed': 1 of its 2 prompts have no image")


def test_contamination_blocks_what_follows(tmp_path: Path) -> None:
    defs = build_defs(load_recipe("configs/recipes/demo.yaml"), tmp_path)
    specs = {spec.name: spec for spec in defs.resolve_assets_def("training_pairs").check_specs}
    assert specs["no_contamination"].blocking


def test_a_damaged_image_is_found_by_the_doctor_and_read_again_from_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    numbered_image(tmp_path / "root/0.png", 0)
    recipe, home = (
        reading(manifest(tmp_path, "own", [row("a", "b")]), manifest(tmp_path, "captions", [], kind="t2i")),
        Store(tmp_path / "home"),
    )
    materialised(recipe, home.home)
    made = home.read("raw_preferences")
    (image,) = home.media.glob("*/*.png")
    whole = image.read_bytes()
    image.write_bytes(whole[:-20])
    (image.parent / f"{name_of_a_dead_process(TEMPORARY)}left").write_bytes(b"")

    found = json.loads(invoke("doctor", "--home", home.home, "--json").stdout)
    assert [finding["place"] for finding in found["damaged"]] == [f"media/{image.parent.name}/{image.name}"]
    assert len(found["leftovers"]) == 1 and image.exists()
    assert "the next run reads it from its source again" in dt2it("doctor", "--home", home.home, "--mend")
    assert not list(home.media.glob("*/*"))
    found = json.loads(dt2it("doctor", "--home", home.home, "--json"))
    assert (found["damaged"], found["leftovers"]) == ([], [])  # nothing in force names the image any more
    materialised(recipe, home.home)
    assert image.read_bytes() == whole and home.read("raw_preferences").digest == made.digest

    made = home.read("raw_preferences")
    made.table_path("pairs").write_bytes(b"PAR1")
    (home.home / "history").mkdir()
    (home.home / "history" / "runs.db").write_bytes(b"no database")
    image.unlink()
    ended = invoke("doctor", "--home", home.home)
    said = ended.stdout
    assert ended.exit_code == 1
    assert "raw_preferences is damaged" in said and "pairs.parquet: its content is not what was written" in said
    assert f"media/{image.parent.name}/{image.name}: it is missing" in said
    assert "history/runs.db: file is not a database\n  -> stop Dagster and move it away" in said
    assert said.rstrip().endswith("3 damaged")
