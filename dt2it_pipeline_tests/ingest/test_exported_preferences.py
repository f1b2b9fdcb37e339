"""Exports of this project, read as preferences again: the same pairs, lists and ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from dt2it_pipeline import read_preferences
from dt2it_pipeline.export import export_pairs
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.rows import SourceError
from dt2it_pipeline.ingest.sources import read_source
from dt2it_pipeline.storage import schemas
from dt2it_pipeline_tests.support.export_world import world
from dt2it_pipeline_tests.support.list_worlds import flipped
from dt2it_pipeline_tests.support.preference_rows import read_rows_as_pairs


def test_exports_are_read(tmp_path: Path) -> None:
    pairs, prompts = world(tmp_path / "media")
    for name in ("trl", "huggingface", "llamafactory"):
        export_pairs(pairs, prompts, tmp_path / "media", tmp_path / name, name)
        read, quarantine = read_preferences(tmp_path / name)
        assert (read["chosen"].tolist(), read["rejected"].tolist()) == (
            pairs["chosen"].to_pylist(),
            pairs["rejected"].to_pylist(),
        )
        assert read["prompt_id"].nunique() == 4 and quarantine.empty
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no data file"):
        read_preferences(tmp_path / "empty")


@pytest.mark.parametrize("format", ["trl", "huggingface", "llamafactory"])
def test_an_export_comes_back_as_the_same_pairs(tmp_path: Path, format: str) -> None:
    pairs, prompts = world(tmp_path / "media")
    export_pairs(pairs, prompts, tmp_path / "media", tmp_path / "out", format)
    manifest = Manifest(
        name="back", kind="preferences", path=str(tmp_path / "out"), media_root=str(tmp_path / "out"), licence="x"
    )
    back = read_source(manifest, tmp_path, tmp_path / "again")
    assert back["quarantine"].num_rows == 0
    columns = ["pair_id", "prompt_id", "chosen_id", "chosen", "rejected"]
    assert back["pairs"].select(columns).to_pylist() == pairs.select(columns).to_pylist()
    if format != "llamafactory":  # whose format has no strength
        assert back["pairs"]["strength"].to_pylist() == pairs["strength"].to_pylist()


LISTS = ["list_id", "chosen_rank", "rejected_rank"]


@pytest.mark.parametrize("format", ["trl", "huggingface", "llamafactory"])
def test_lists_come_back_from_an_export_as_they_were(tmp_path: Path, format: str) -> None:
    """Read, imported, flipped in part and dropped in part as by curation, exported, read and imported again."""
    rows = [
        {"id": "one", "question": "q?", "responses": ["a", "b", "c", "d"], "ratings": [9, 5, 5, 1]},
        {"id": 2, "question": "what?", "responses": ["e", "f", "g"], "ranks": [1, 2, 3]},
        {"id": "alone", "question": "how?", "responses": None, "chosen": "h", "rejected": "i"},
    ]
    read, _ = read_rows_as_pairs(tmp_path, rows)
    manifest = Manifest(name="mine", kind="preferences", path=str(tmp_path / "pairs.json"), licence="x")
    raw = read_source(manifest, tmp_path, tmp_path / "media")
    made = raw["pairs"].to_pylist()
    assert [row["list_id"] for row in made] == ["mine/one"] * 5 + ["mine/2"] * 3 + [None]
    known = read[LISTS].astype(object).where(read[LISTS].notna(), None)
    ranks = [[row["chosen_rank"], row["rejected_rank"]] for row in made]
    assert ranks == known[LISTS[1:]].to_numpy().tolist()
    assert [1.0, 2.5] in ranks and ranks[-1] == [None, None]

    del made[2]
    made[5] = flipped(made[5])
    pairs = schemas.table(made, "pairs")
    export_pairs(pairs, raw["prompts"], tmp_path / "media", tmp_path / "out", format)
    back, quarantine = read_preferences(tmp_path / "out")
    assert quarantine.empty
    assert back[LISTS].astype(object).where(back[LISTS].notna(), None).to_numpy().tolist() == [
        [row[name] for name in LISTS] for row in made
    ]
    assert [back["chosen_rank"][5], back["rejected_rank"][5]] == [3.0, 1.0]  # of a flipped pair
    again = Manifest(name="back", kind="preferences", path=str(tmp_path / "out"), licence="x")
    imported = read_source(again, tmp_path, tmp_path / "media")["pairs"]
    assert imported["list_id"].to_pylist() == [row["list_id"] and f"back/{row['list_id']}" for row in made]
    assert imported.select(LISTS[1:]).equals(pairs.select(LISTS[1:]))


def test_places_in_a_list_that_are_no_numbers_cost_their_row(tmp_path: Path) -> None:
    row = {"prompt": "q?", "chosen": "good", "rejected": "bad", "list_id": "x", "chosen_rank": 1, "rejected_rank": 2}
    changes = ({}, {"rejected_rank": None}, {"list_id": None}, {"list_id": ""}, {"chosen_rank": "first"})
    changes += ({"chosen_rank": "inf"}, {"list_id": 7})
    pairs, quarantine = read_rows_as_pairs(tmp_path, [row | change for change in changes])
    found = pairs[LISTS].astype(object).where(pairs[LISTS].notna(), None).to_numpy().tolist()
    assert found == [["x", 1, 2], ["x", None, None], [None] * 3, [None] * 3, ["7", 1, 2]]
    assert quarantine["reason"].tolist() == ["not a number", "rank is not finite"]
