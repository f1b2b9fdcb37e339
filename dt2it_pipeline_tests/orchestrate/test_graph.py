"""The graph as Dagster sees it, against a text that a person reads; and that nothing in it goes unexplained.

`python -m pytest dt2it_pipeline_tests/orchestrate/test_graph.py --snapshot-update` writes the text anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

import dt2it_pipeline
from dt2it_pipeline.config.recipe import load_recipe
from dt2it_pipeline.definitions import build_defs
from dt2it_pipeline.orchestrate.stage.stage_asset import OWNERS, PART, STAGE


@pytest.fixture(scope="module")
def defs(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    """Every asset that there can be: the smoke recipe has both arms, and here also further voters."""
    recipe = load_recipe("configs/recipes/smoke.yaml")
    more = {"policy": "joint", "out_of_fold": {"folds": 2}, "ensemble": {"seeds": 1}}
    curation = type(recipe.curation).model_validate(recipe.curation.model_dump() | more)
    landing = recipe.landing.model_copy(update={"stale_hours": 48.0})
    return build_defs(
        recipe.model_copy(update={"curation": curation, "landing": landing}), tmp_path_factory.mktemp("home")
    )


class Text(SingleFileSnapshotExtension):
    """One readable file per snapshot."""

    _write_mode = WriteMode.TEXT
    file_extension = "txt"


def listed(names: Iterable[Any]) -> str:
    return ", ".join(sorted(str(name) for name in names)) or "-"


def described(defs: dg.Definitions) -> str:
    """The whole graph, a line per asset, check, job, sensor and schedule."""
    graph, lines = defs.resolve_asset_graph(), []
    jobs = {job.name: job for job in defs.resolve_all_job_defs() if not job.name.startswith("__")}
    for spec in sorted(defs.resolve_all_asset_specs(), key=lambda spec: (spec.group_name or "", str(spec.key))):
        node = graph.get(spec.key)
        what = f"{spec.group_name}/{spec.key.to_user_string()} v{spec.code_version}"
        what += f" [{listed(spec.kinds)}] {spec.tags[PART]}/{spec.tags[STAGE]}"
        pools = listed(node.pools or ())
        lines.append(what + (" rounds" if spec.partitions_def else "") + ("" if pools == "-" else f" pool {pools}"))
        if (policy := spec.freshness_policy) is not None:
            lines.append(f"    late after {policy.fail_window.to_timedelta()}")
        lines.append(f"    from {listed(key.to_user_string() for key in node.parent_keys)}")
        checks = [graph.get(key) for key in sorted(node.check_keys)]
        if checks:
            lines.append(f"    checks {', '.join(c.key.name + ('!' if c.blocking else '') for c in checks)}")
    for name, job in sorted(jobs.items()):
        keys = listed(key.to_user_string() for key in job.asset_layer.executable_asset_keys)
        lines.append(f"job {name}: {keys}")
    lines += [f"sensor {sensor.name}: {listed(t.job_name for t in sensor.targets)}" for sensor in defs.sensors or ()]
    lines += [f"schedule {each.name}: {each.job_name} {each.cron_schedule}" for each in defs.schedules or ()]
    return "\n".join(lines) + "\n"


def test_nothing_is_used_that_dagster_will_take_away(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        jobs = build_defs(load_recipe("configs/recipes/smoke.yaml"), tmp_path).resolve_all_job_defs()
    assert {job.name for job in jobs if job.partitions_def is not None} >= {"round", "export"}


def test_the_graph_is_the_one_on_record(defs: dg.Definitions, snapshot: SnapshotAssertion) -> None:
    assert described(defs) == snapshot(extension_class=Text)


def test_every_asset_says_what_it_is_who_answers_for_it_and_where_its_source_stands(defs: dg.Definitions) -> None:
    for spec in defs.resolve_all_asset_specs():
        name = spec.key.to_user_string()
        assert spec.description and spec.kinds and {PART, STAGE} <= set(spec.tags), name
        assert tuple(spec.owners) == OWNERS, name
        if name == "feedback_pairs":  # no code makes it
            continue
        (place,) = spec.metadata["dagster/code_references"].code_references
        source = Path(place.file_path).read_text(encoding="utf-8").splitlines()[place.line_number - 1]
        assert Path(place.file_path).parent.name == "assets" and source.lstrip().startswith(("@stage_asset", "def ")), (
            name
        )


def test_every_table_that_an_asset_is_about_shows_its_columns(defs: dg.Definitions) -> None:
    without = [spec.key.to_user_string() for spec in defs.resolve_all_asset_specs()
               if "dagster/column_schema" not in spec.metadata]  # fmt: skip
    # What is made of files: sources, checkpoints, datasets; and what nothing here makes.
    files = ["ceiling_model", "control_model", "demo_sources", "exported_pairs", "feedback_pairs", "reward_model"]
    assert sorted(without) == [*files, "verifier_model"]


def test_checks_jobs_sensors_schedules_resources_and_configuration_are_described(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    named = {str(key): graph.get(key).description for key in graph.asset_check_keys}
    named |= {job.name: job.description for job in defs.resolve_all_job_defs() if not job.name.startswith("__")}
    named |= {each.name: each.description for each in (*(defs.sensors or ()), *(defs.schedules or ()))}
    repository = defs.get_repository_def()
    for name, resource in repository.get_top_level_resources().items():
        named[name] = resource.description
        fields = resource.config_schema.config_type.fields  # type: ignore[union-attr]
        named |= {f"{name}.{field}": found.description for field, found in fields.items()}
    for asset in ("checkpoint_scores", "exported_pairs"):
        fields = defs.resolve_assets_def(asset).op.config_schema.config_type.fields  # type: ignore[union-attr]
        named |= {f"{asset}.{field}": found.description for field, found in fields.items()}
    assert {"store.home", "checkpoint_scores.model", "exported_pairs.formats", "round_sensor"} <= set(named)
    assert [name for name, text in named.items() if not text] == []


def test_private_names_of_dagster_are_used_in_one_module() -> None:
    package = Path(dt2it_pipeline.__file__).parent
    users = [path.name for path in sorted(package.rglob("*.py")) if "dagster._" in path.read_text(encoding="utf-8")]
    assert users == ["dagster_internals.py"]
