"""Judges on published rows: one that writes, behind an endpoint, and one whose likelihoods are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dt2it_pipeline.evaluate.benchmarks.judge_benchmark import benchmark_judge, load_judge
from dt2it_pipeline.evaluate.benchmarks.spec import BenchmarkError
from dt2it_pipeline_tests.support.commands import dt2it, failing
from dt2it_pipeline_tests.support.fault_server import FaultServer, serving
from dt2it_pipeline_tests.support.tiny import make_images

IDS = ("RLAIF-V-1", "mathverse_2", "mmmu_3", "wildvision-4")


@pytest.fixture
def world(tmp_path: Path) -> dict[str, Any]:
    """Eight rows; the judge of the server finds the better side of six."""
    images = make_images(tmp_path / "images", 3)
    rows = []
    for number in range(8):
        sides = (f"item-{number} worth-{9 if number < 6 else 1}", f"item-{number} worth-3")
        turned = number % 2
        rows.append(
            {
                "id": IDS[number % 4],
                "query": f"what is it, {number}?",
                "image": images[number % 3]["path"],
                "response": list(sides[::-1] if turned else sides),
                "human_ranking": [1, 0] if turned else [0, 1],
            }
        )
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"rows": tmp_path / "rows.jsonl", "images": tmp_path / "images", "out": tmp_path / "out"}


def first_is_better(words: str, responses: list[str]) -> str:
    return json.dumps({"reference": "", "analysis": "", "better": 1})


def written(folder: Path, **judge: Any) -> Path:
    file = folder / "judge.yaml"
    file.write_text(yaml.safe_dump(judge))
    return file


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with serving(FaultServer({"item-5": ("prose", 99)})) as found:
        yield found


def test_a_judge_behind_an_endpoint_is_asked_in_both_orders(
    world: dict[str, Any], server: FaultServer, tmp_path: Path
) -> None:
    file = written(tmp_path, kind="endpoint", name="remote", base_url=server.url, model="m", attempts=1)
    call = ["benchmark", file, "--benchmark", "vl_rewardbench", "--rows", world["rows"], "--media", world["images"]]
    found = json.loads(dt2it(*call, "--output", world["out"], "--json"))
    (counts,) = found["benchmarks"]
    assert (counts["pairs"], counts["unscored"], counts["ties"], counts["order_consistency"]) == (8, 1, 0, 1.0)
    figures = {row["figure"]: row["value"] for row in found["figures"]}
    assert figures["overall"] == 5 / 8 and counts["accuracy_by_order"] == {"forward": 5 / 7, "reversed": 5 / 7}
    asked = len(server.bodies)
    assert asked == 2 * 8
    text = dt2it(*call, "--output", world["out"])
    assert "the verdicts of both orders agree on 100.0% of 7 pairs" in text
    assert len(server.bodies) == asked  # replies and verdicts are kept


def test_a_judge_that_prefers_a_place_is_consistent_with_nothing(world: dict[str, Any], tmp_path: Path) -> None:
    with serving(FaultServer({}, first_is_better)) as server:
        judge = load_judge(written(tmp_path, kind="endpoint", name="remote", base_url=server.url, model="m"))
        found = benchmark_judge(judge, "vl_rewardbench", world["rows"], world["images"], world["out"])
    assert (found.consistency, found.compared, found.result.ties, found.result.overall) == (0.0, 8, 8, 0.0)
    assert sum(found.orders.values()) == pytest.approx(1)


def test_a_judge_of_no_use_is_corrected_in_its_file(world: dict[str, Any], tmp_path: Path) -> None:
    with serving(FaultServer({f"item-{number}": ("prose", 99) for number in range(8)})) as server:
        file = written(tmp_path, kind="endpoint", name="remote", base_url=server.url, model="m", attempts=1)
        said = failing("benchmark", file, "--benchmark", "vl_rewardbench", "--rows", world["rows"], "--media",
                       world["images"], "--output", world["out"])  # fmt: skip
    assert "the judge remote gave no usable reply" in said and f"Correct the settings in {file} and run" in said
    assert "recipe" not in said and "dt2it check" not in said


def test_a_judge_whose_likelihoods_are_read_has_one_order(world: dict[str, Any], tmp_path: Path) -> None:
    judge = load_judge(written(tmp_path, kind="likelihood", name="seeing", baseline="blank"))
    found = benchmark_judge(judge, "vl_rewardbench", world["rows"], world["images"], world["out"])
    assert (found.consistency, found.compared, list(found.orders)) == (None, 0, ["alone"])
    assert found.result.pairs == 8 and found.result.unscored == 0
    assert 0 < found.result.overall < 1


def test_a_pair_that_two_rows_prefer_both_ways_is_judged_once(
    world: dict[str, Any], server: FaultServer, tmp_path: Path
) -> None:
    row = json.loads(world["rows"].read_text().splitlines()[0])
    world["rows"].write_text("\n".join(json.dumps(row | {"human_ranking": r}) for r in ([0, 1], [1, 0])))
    judge = load_judge(written(tmp_path, kind="endpoint", name="remote", base_url=server.url, model="m"))
    found = benchmark_judge(judge, "vl_rewardbench", world["rows"], world["images"], world["out"])
    assert found.result.results["outcome"].tolist() == ["correct", "wrong"] and len(server.bodies) == 2


def test_what_describes_no_judge_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"judge\.yaml describes no judge: base_url"):
        load_judge(written(tmp_path, kind="endpoint", name="remote", model="m"))
    with pytest.raises(
        BenchmarkError, match=r"judge\.yaml describes no judge: kind: 'bogus' is none of 'likelihood', "
    ):
        load_judge(written(tmp_path, kind="bogus", name="remote"))
    (tmp_path / "judge.yaml").write_text("[]")
    with pytest.raises(BenchmarkError, match=r"judge\.yaml describes no judge: the file holds no settings"):
        load_judge(tmp_path / "judge.yaml")
    with pytest.raises(BenchmarkError, match="cannot read the judge"):
        load_judge(tmp_path / "none.yaml")
