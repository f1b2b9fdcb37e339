"""Two machines with one object store: what the first has made, the second fetches; and what goes wrong with a store."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest
import yaml

from dt2it_pipeline.config.recipe import Recipe, load_recipe
from dt2it_pipeline.media.damage import source_hash
from dt2it_pipeline.orchestrate.assets import raw
from dt2it_pipeline.orchestrate.resources import StoreResource
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.home.object_store import ObjectStore, ObjectStoreError
from dt2it_pipeline_tests.support.ingest_world import numbered_image
from dt2it_pipeline_tests.support.s3_server import BUCKET, s3_server


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The demo's recipe with two pairs of preferences."""
    demo = load_recipe(Path(__file__).resolve().parents[2] / "configs/recipes/demo.yaml")
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    (tmp_path / "configs/datasets").mkdir(parents=True)
    rows = [{"image": f"{n}.png", "question": "q", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(2)]
    for n in range(2):
        numbered_image(tmp_path / f"root/{n}.png", n)
    (tmp_path / "ours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"name": "ours", "kind": "preferences", "path": "ours.jsonl", "media_root": "root", "licence": "MIT"}
    (tmp_path / "configs/datasets/ours.yaml").write_text(yaml.safe_dump(fields))
    fields |= {"name": "asked", "kind": "prompts", "path": "asked.jsonl"}  # a recipe without one has no round 0
    (tmp_path / "configs/datasets/asked.yaml").write_text(yaml.safe_dump(fields))
    return demo.model_copy(update={"datasets": ("ours", "asked"), "demo": None})


def run(recipe: Recipe, home: Path) -> list[str]:
    """Make raw_preferences in a home; the lines of its log."""
    assets = raw.build_raw_assets(
        recipe.name, recipe.datasets, recipe.cleaning, recipe.landing, recipe.demo, recipe.seed
    )
    (wanted,) = [asset for asset in assets if asset.key.to_user_string() == "raw_preferences"]
    lines: list[str] = []

    @dg.logger()
    def kept(context: dg.InitLoggerContext):  # type: ignore[no-untyped-def]
        import logging

        class Kept(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                lines.append(str(getattr(record, "dagster_meta", {}).get("orig_message") or record.getMessage()))

        logger = logging.Logger("kept", logging.INFO)
        logger.addHandler(Kept())
        return logger

    job = dg.Definitions(
        assets=[wanted], resources={"store": StoreResource(home=str(home))}, loggers={"kept": kept},
        jobs=[dg.define_asset_job("make", "*")],
    ).resolve_job_def("make")  # fmt: skip
    assert job.execute_in_process(run_config={"loggers": {"kept": {}}}).success
    return [line for line in lines if line.startswith("raw_preferences")]


def test_a_second_machine_fetches_what_the_first_has_made(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as variables:
        for name, value in (variables | {"DT2IT_OBJECT_STORE": f"s3://{BUCKET}/fetched"}).items():
            monkeypatch.setenv(name, value)
        made, copied = run(recipe, tmp_path / "first")
        assert made.endswith(" s") and copied.endswith("files copied to s3://team/fetched")
        assert run(recipe, tmp_path / "first") == [made.rpartition(", ")[0] + ", reused, inputs and settings unchanged"]
        (fetched,) = run(recipe, tmp_path / "second")
        assert fetched == made.rpartition(", ")[0] + ", fetched from s3://team/fetched"
    first, second = (Store(tmp_path / home).read("raw_preferences") for home in ("first", "second"))
    assert first.digest == second.digest and first["pairs"].equals(second["pairs"])
    assert {p.name for p in Store(tmp_path / "second").media.rglob("*.png")} == {
        Path(medium["path"]).name for media in first["prompts"]["media"].to_pylist() for medium in media
    }


def test_the_entry_says_where_media_came_from(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DT2IT_OBJECT_STORE", (tmp_path / "shared").as_uri())
    run(recipe, tmp_path / "first")
    (place,) = (tmp_path / "shared/artifacts/raw_preferences").glob("*.json")
    origins = json.loads(place.read_text())["origins"]
    assert origins.keys() == {source_hash(file) for file in Store(tmp_path / "first").media.rglob("*.png")}
    assert {(origin["root"], origin["name"]) for origin in origins.values()} == {("root", "0.png"), ("root", "1.png")}


def test_what_was_made_without_a_store_is_copied_by_the_next_run(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(run(recipe, tmp_path / "first")) == 1
    monkeypatch.setenv("DT2IT_OBJECT_STORE", (tmp_path / "shared").as_uri())
    reused, copied = run(recipe, tmp_path / "first")
    assert "reused" in reused and "files copied to file://" in copied
    entry = next((tmp_path / "shared/artifacts/raw_preferences").glob("*.json"))
    entry.write_text(entry.read_text()[:-9])  # cut off
    damaged, again, copied = run(recipe, tmp_path / "second")
    assert "is damaged" in damaged and again.endswith(" s") and "copied" in copied
    assert run(recipe, tmp_path / "third")[0].endswith(f"fetched from {(tmp_path / 'shared').as_uri()}")


def test_a_store_that_takes_nothing_costs_no_result_and_one_that_cannot_be_read_ends_the_run(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DT2IT_OBJECT_STORE", (tmp_path / "shared").as_uri())

    def refused(*given: object) -> int:
        raise ObjectStoreError("object store: access denied")

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "store", refused)
        made, warned = run(recipe, tmp_path / "first")
    assert made.endswith(" s")
    assert warned.endswith("is finished here, but other machines cannot fetch it: object store: access denied")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DT2IT_OBJECT_STORE", (tmp_path / "file/within").as_uri())
    with pytest.raises(Exception, match="unset DT2IT_OBJECT_STORE to go on without it"):
        run(recipe, tmp_path / "second")
    monkeypatch.setenv("DT2IT_OBJECT_STORE", "s5://bucket")
    with pytest.raises(Exception, match="name a URL that fsspec knows"):
        run(recipe, tmp_path / "second")
