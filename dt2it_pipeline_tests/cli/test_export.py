"""`dt2it export` and `dt2it review export`: a round, an asset, and the pairs that nobody has decided."""

from __future__ import annotations

import json
import re
from pathlib import Path

from dt2it_pipeline.export import DATASETS, FORMATS
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline_tests.support.commands import dt2it, failing
from dt2it_pipeline_tests.support.export_world import world


def test_the_command_exports_a_round(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    pairs, prompts = world(store.media)
    store.write("curated_pairs", Artifact({"pairs": pairs, "prompts": prompts}), "k", "0")
    given = ["export", "--home", store.home, "--format", "trl", "--output", tmp_path / "out"]
    assert "4 pairs" in dt2it(*given, "--round", 0)
    (tmp_path / "file").write_text("mine")
    assert "is a file; name a folder" in failing(*given[:-1], tmp_path / "file", "--round", 0)
    counted = json.loads(dt2it(*given, "--round", 0, "--json"))
    assert counted == {"output": str(tmp_path / "out"), "pairs": 4, "rows_quarantined": 0}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| voters | reward_model/0 |" in card
    message = failing(*given, "--round", 1)
    assert re.fullmatch(r"curated_pairs of round 1 has not been materialised in .* it: 0. Run it first: .*", message)
    assert "`dt2it run round --round 1`" in message
    for name in ("10", "2"):
        store.write("curated_pairs", Artifact({"pairs": pairs, "prompts": prompts}), "k", name)
    message = failing(*given)
    assert re.fullmatch(r"curated_pairs is made for each round, and none is named; in .*: 0, 2, 10", message)
    message = failing(*given, "--asset", "t2i_pairs")
    assert re.fullmatch(r"t2i_pairs has not been materialised in .*; run the job that makes it first .*", message)
    message = failing(*given, "--asset", "curated_pair")
    assert re.fullmatch(r"curated_pair has not been materialised in .*; did you mean curated_pairs\?", message)
    store.write("debiased_pairs", Artifact({"pairs": pairs, "prompts": prompts}), "k")
    assert store.partitions("debiased_pairs") == []
    message = failing(*given, "--asset", "debiased_pairs", "--round", 0)
    assert message.endswith("debiased_pairs is not made by rounds; leave round 0 out")


def test_the_formats_are_those_of_the_package() -> None:
    for call, formats in (("export", FORMATS.keys()), ("review export", FORMATS.keys() - DATASETS.keys())):
        message = failing(*call.split(), "--round", 0, "--output", "out", "--format", "none", code=2)
        assert set(re.findall(r"'(\w+)'", message.partition("is not one of")[2])) == set(formats)


def test_undecided_pairs_are_found_by_their_own_ids_also_in_tables_of_before_there_was_a_row(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "home")
    pairs, prompts = world(store.media)
    rows = [row | {"row_id": "one row"} for row in pairs.to_pylist()]
    for name, part in (("contested_pairs", rows[:1]), ("verified_pairs", rows[1:])):  # one that verdicts shook
        store.write(name, Artifact({"pairs": schemas.table(part, "pairs"), "prompts": prompts}), "k", "0")
    given = ["review", "export", "--home", store.home, "--round", 0, "--format", "argilla", "--output"]
    aside = schemas.table(
        [records.quarantine_pair(row, "annotated_pairs", "no vote") for row in rows[:1]], "quarantine"
    )
    old = [records.quarantine_row(row["pair_id"], "annotated_pairs", "no vote") for row in rows[:2]]
    for name, table in (("new", aside), ("old", schemas.table(old, "quarantine"))):
        store.write("annotated_pairs", Artifact({"quarantine": table}), name, "0")
        dt2it(*given, tmp_path / name)
        tasks = json.loads((tmp_path / name / "records.json").read_text(encoding="utf-8"))
        assert [task["id"] for task in tasks] == [row["pair_id"] for row in rows[: table.num_rows]]
        assert tasks[0]["metadata"]["row_id"] == "one row"
    message = failing(*given[:-3], "--format", "trl", "--output", tmp_path / "no", code=2)
    assert "'trl' is not one of 'label_studio', 'argilla'" in message  # nobody has said which side is better
