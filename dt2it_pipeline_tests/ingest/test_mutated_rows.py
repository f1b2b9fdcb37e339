"""Rows of every schema with something wrong somewhere in them: whatever it is, it costs that row alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.evaluate.benchmarks.metrics import score_benchmark
from dt2it_pipeline.evaluate.benchmarks.rows import load_rows
from dt2it_pipeline.evaluate.benchmarks.spec import BenchmarkError, get_entry
from dt2it_pipeline.ingest import pieces, sources
from dt2it_pipeline.ingest.adapters import ADAPTERS
from dt2it_pipeline.ingest.rows import Unparsed
from dt2it_pipeline_tests.support.ingest_world import image, source
from dt2it_pipeline_tests.support.mutation import mutated_value
from dt2it_pipeline_tests.support.preference_forms import FORMS
from dt2it_pipeline_tests.support.published_rows import IMAGES, ROWS, rated

MUTATIONS = 200
MULTIMODAL = {"ID": "1", "Text": "q", "Image": "a", "Output1": "x", "Output2": "y", "Better": "Output2"}
SCHEMAS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    **{name: [("preferences", row)] for name, row in ROWS.items()},
    "vlfeedback": [
        (
            "preferences",
            {"id": "1", "prompt": "q", "image": "a", "completions": [rated("x", "5", "5", "4"), rated("y", *"355")]},
        )
    ],
    "image_reward_db": [("t2i", {"image_path": "a", "prompt_id": "p", "prompt": "c", "rank": 1})],
    "vl_rewardbench": [
        ("benchmark", {"id": "mmmu_1", "query": "q", "image": "a", "response": ["x", "y"], "human_ranking": [0, 1]})
    ],
    "multimodal_rewardbench": [
        ("benchmark", MULTIMODAL | {"Category": "vqa"}),
        ("benchmark", MULTIMODAL | {"Meta": {"Category": "reasoning"}}),
    ],
    "mm_rlhf_rewardbench": [
        ("benchmark", {"id": "1", "image": "mcq/a", "prompt": "q", "chosen": "x", "rejected": "y"}),
        ("benchmark", {"id": "1", "video": "video/a", "prompt": "q", "chosen": "x", "rejected": "y"}),
    ],
}
SCHEMAS["auto"] += [("preferences", row) for row in FORMS.values()]
for _name, _row, _ in IMAGES:
    SCHEMAS.setdefault(_name, []).extend([("t2i", _row), ("t2i_benchmark", _row)])

ODD: list[Any] = [
    None, True, 0, -1, 7, 0.5, float("nan"), float("inf"), 10**400, "", " ", "x", "<image>", "<video><image>",
    "\ud800", "\ud800.png", "a\0.png", "loop.png", "round/a", "../a", "/etc/passwd", "x" * 300, "x/" * 3000,
    "data:image/png;base64,A", "[1", '{"role": 1}', "[" * 5000, "1" * 5000, b"", b"x", b"\xff\xd8\xff", [], [[]],
    [None], ["a", "\ud800"], ["a", b"b"], [0, 1.0], [1, [2]], {}, {"bytes": "x"}, {"bytes": b"xx"}, {"path": 5},
    {"path": "a\0"}, {"value": b"x"}, {"from": []}, {"a": {"b": {}}}, {1: 2}, (1, 2), {"Rating": {}},
    [{"from": "human", "value": "\ud800"}], object(),
]  # fmt: skip


ODDEST = ("\ud800", "x/" * 3000, "a\0.png", b"x", [b"x"])  # in every column


def numbered(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row itself, or its like where one row holds half of a pair."""
    if "prompt_id" not in row:
        return row
    return row | {"prompt_id": number // 2, "image_path": "ab"[number % 2], "rank": number % 2}


def test_every_adapter_has_rows_here() -> None:
    assert set(SCHEMAS) == set(ADAPTERS)


@pytest.mark.parametrize(("name", "number"), [(name, n) for name in sorted(SCHEMAS) for n in range(len(SCHEMAS[name]))])
def test_whatever_is_wrong_with_a_row_costs_that_row_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    kind, row = SCHEMAS[name][number]
    root = tmp_path / "root"
    for file, colour in (("a", "red"), ("b", "blue"), ("a.png", "red"), ("mcq/a", "red"), ("video/a/1.png", "red")):
        image(root / file, colour)
    (root / "loop.png").symlink_to("loop.png")
    (root / "round").symlink_to("round")
    rng = random.Random(f"{name} {number}")
    sound = [numbered(row, number) for number in range(MUTATIONS)]
    odd = [row | {column: value} for column in ("id", *row) for value in ODDEST]
    rows = [*sound[:2], *odd, *(mutated_value(rng, one, ODD) for one in sound[2:]), *sound[:2]]

    def read_unparsed(manifest: Any, _: Path) -> Iterator[Unparsed]:
        return ((f"row {place}", values) for place, values in enumerate(rows))

    monkeypatch.setattr(pieces, "read_unparsed", read_unparsed)
    made = source(tmp_path, [], name, kind, group="g" if kind == "t2i_benchmark" else None)
    artifact = sources.read_source(made, tmp_path, tmp_path / "media")
    metadata = artifact.metadata
    assert metadata["rows_in"] == metadata["rows_out"] + metadata["rows_quarantined"]
    assert metadata["rows_out"] > 0 and metadata["rows_quarantined"] == artifact["quarantine"].num_rows > 0
    assert all(artifact["quarantine"]["reason"].to_pylist())


@pytest.mark.parametrize("name", [name for name in SCHEMAS if SCHEMAS[name][0][0] == "benchmark"])
def test_published_rows_of_a_benchmark_raise_nothing_but_their_own_error(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    for file in ("a", "mcq/a", "video/a/1.png"):
        image(root / file)
    (root / "loop.png").symlink_to("loop.png")
    rng = random.Random(name)
    rows = [row | {column: value} for _, row in SCHEMAS[name] for column in row for value in ODDEST]
    rows += [mutated_value(rng, rng.choice(SCHEMAS[name])[1], ODD) for _ in range(MUTATIONS)]
    read = 0
    for row in rows:
        with contextlib.suppress(BenchmarkError):
            load_rows(get_entry(name), [row], root, tmp_path / "media")
            read += 1
        with contextlib.suppress(BenchmarkError):
            score_benchmark(name, [row], [1], [0], repeats=0)
    assert 0 < read < len(rows)
