"""Files to files gives what the frames give, whatever the batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.curate import CurationError, merge, resolve_annotations, verify, vote_and_flip
from dt2it_pipeline.curate.out_of_core import published_steps, streaming
from dt2it_pipeline.curate.tables import quarantine_table, to_frame, to_table
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.atomic import write_parquet


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, list[Path], Path]:
    """Files of 101 pairs, of scores by two voters (some lacking), and of a verifier's scores."""
    random = np.random.default_rng(0)
    pairs = schemas.table(
        (records.make_pair(f"q{i}", f"chosen {i}", f"rejected {i}", source=f"s{i % 3}") for i in range(101)), "pairs"
    )
    write_parquet(pairs, tmp_path / "pairs.parquet")
    ids = np.array([*pairs["chosen_id"].to_pylist(), *pairs["rejected_id"].to_pylist(), "0" * 32, "of no pair"])
    made = []
    for voter in ("a", "b", "verifier"):
        here = ids[random.random(len(ids)) > 0.02]
        scores = random.integers(-9, 10, len(here)) / 4  # coarse: ties, and equal means at the edge
        table = to_table(pd.DataFrame({"response_id": here, "voter": voter, "score": scores}), "scores")
        made.append(tmp_path / f"{voter}.parquet")
        write_parquet(table, made[-1])
    return tmp_path / "pairs.parquet", made[:2], made[2]


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_every_step_agrees_with_the_frames(
    tables: tuple[Path, list[Path], Path], tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BATCH_PAIRS", batch)
    monkeypatch.setattr(published_steps, "_SCORE_ROWS", 10 * batch)
    pairs, voters, verifier = tables
    frame = to_frame(pq.read_table(pairs))
    scores = to_frame(pa.concat_tables([pq.read_table(voter) for voter in voters]))

    expected = vote_and_flip(frame, scores, 0.3)
    counts = published_steps.vote_and_flip_files(pairs, voters, tmp_path / "voted", 0.3)
    same(tmp_path / "voted/pairs.parquet", to_table(expected.voted, "pairs"))
    same(tmp_path / "voted/quarantine.parquet", quarantine_table(expected.unscored, "voted_pairs"))
    assert counts == {
        "rows_in": 101,
        "rows_out": len(expected.voted),
        "rows_quarantined": len(expected.unscored),
        "negative": expected.negative,
        "flipped": expected.flipped,
    }
    assert 0 < expected.flipped < expected.negative and len(expected.unscored)

    checked = verify(to_frame(pq.read_table(tmp_path / "voted/pairs.parquet")), to_frame(pq.read_table(verifier)))
    counts = published_steps.verify_files(tmp_path / "voted/pairs.parquet", [verifier], tmp_path / "checked")
    same(tmp_path / "checked/verified.parquet", to_table(checked.verified, "pairs"))
    same(tmp_path / "checked/contested.parquet", to_table(checked.contested, "pairs"))
    same(tmp_path / "checked/quarantine.parquet", quarantine_table(checked.unscored, "verified_pairs"))
    assert counts["rows_in"] == counts["verified"] + counts["contested"] + counts["rows_quarantined"]

    random = np.random.default_rng(1)
    verdicts = ("chosen", "rejected", "tie", None)
    votes = schemas.table(
        (
            {"pair_id": pair, "judge": judge, "order": "forward", "verdict": verdicts[random.integers(4)]}
            for judge in "xy"
            for pair in [*checked.contested["pair_id"], "another"]
        ),
        "votes",
    )
    write_parquet(votes, tmp_path / "votes.parquet")
    resolved = resolve_annotations(checked.contested, to_frame(votes))
    counts = published_steps.resolve_annotations_files(
        tmp_path / "checked/contested.parquet", tmp_path / "votes.parquet", tmp_path / "resolved"
    )
    same(tmp_path / "resolved/annotated.parquet", to_table(resolved.annotated, "pairs"))
    same(tmp_path / "resolved/quarantine.parquet", quarantine_table(resolved.dropped, "annotated_pairs"))
    assert counts["annotated"] and counts["rows_quarantined"]

    published_steps.merge_files(
        tmp_path / "checked/verified.parquet", tmp_path / "resolved/annotated.parquet", tmp_path / "curated", 2
    )
    merged = to_table(merge(checked.verified, resolved.annotated, 2), "pairs")
    same(tmp_path / "curated/pairs.parquet", merged)

    counts = published_steps.curate_files(
        pairs, voters, [verifier], tmp_path / "votes.parquet", tmp_path / "at once", 0.3, 2
    )
    rows = {row["pair_id"]: row for row in merged.to_pylist()}
    ids = [key for key in pq.read_table(pairs)["pair_id"].to_pylist() if key in rows]
    same(tmp_path / "at once/pairs.parquet", pa.Table.from_pylist([rows[key] for key in ids], merged.schema))
    aside = [tmp_path / name / "quarantine.parquet" for name in ("voted", "checked", "resolved")]
    expected = [row for file in aside for row in pq.read_table(file).to_pylist()]
    found = pq.read_table(tmp_path / "at once/quarantine.parquet").to_pylist()
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert counts["rows_in"] == counts["rows_out"] + counts["rows_quarantined"]
    assert (counts["verified"], counts["contested"]) == (len(checked.verified), len(checked.contested))


def same(file: Path, expected: pa.Table) -> None:
    assert pq.read_table(file).to_pylist() == expected.to_pylist()


def test_malformed_files_give_the_errors_of_the_frames(tables: tuple[Path, list[Path], Path], tmp_path: Path) -> None:
    pairs, voters, _ = tables
    twice = tmp_path / "twice.parquet"
    write_parquet(pa.concat_tables([pq.read_table(pairs)] * 2), twice)
    with pytest.raises(CurationError, match="101 rows repeat a pair_id"):
        published_steps.vote_and_flip_files(twice, voters, tmp_path / "out")
    with pytest.raises(CurationError, match="repeat a pair_id"):
        published_steps.merge_files(pairs, pairs, tmp_path / "out")
    other = tmp_path / "other.parquet"
    table = pq.read_table(voters[0]).slice(0, 3)
    write_parquet(table.set_column(2, table.schema.field("score"), pa.array([99.0] * 3, pa.float32())), other)
    with pytest.raises(CurationError, match=r"voter 'a' gives response .* two different scores"):
        published_steps.vote_and_flip_files(pairs, [*voters, other], tmp_path / "out")
    write_parquet(pq.read_table(pairs).drop_columns("rejected_id"), other)
    with pytest.raises(CurationError, match="no column 'rejected_id'"):
        published_steps.verify_files(other, voters, tmp_path / "out")
    for name, file in (("chosen", pairs), ("prompt_id", pairs), ("voter", voters[0]), ("response_id", voters[0])):
        write_parquet(pq.read_table(file).drop_columns(name), other)
        given = (other, voters) if file == pairs else (pairs, [other])
        with pytest.raises(CurationError, match=rf"other\.parquet: there is no column '{name}', only "):
            published_steps.verify_files(*given, tmp_path / "out")
    write_parquet(pa.table({"pair_id": ["p"], "verdict": ["chosen"]}), other)
    with pytest.raises(CurationError, match=r"other\.parquet: there is no column 'judge', only "):
        published_steps.resolve_annotations_files(pairs, other, tmp_path / "out")
    other.write_text("no Parquet")
    for given in ((other, voters), (pairs, [other]), (pairs, [tmp_path / "nowhere"])):
        with pytest.raises(CurationError, match=r"(other\.parquet|nowhere) cannot be read: "):
            published_steps.verify_files(*given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [pa.dictionary(pa.int32(), pa.string()), pa.large_string(), pa.string_view()])
def test_strings_may_be_stored_as_other_writers_do(
    tables: tuple[Path, list[Path], Path], tmp_path: Path, kind: pa.DataType
) -> None:
    def stored(file: Path) -> Path:
        table = pq.read_table(file)
        fields = [field.with_type(kind) if field.type == pa.string() else field for field in table.schema]
        other = file.with_suffix(".other.parquet")
        pq.write_table(table.cast(pa.schema(fields)), other)
        return other

    pairs, voters, _ = tables
    published_steps.vote_and_flip_files(pairs, voters, tmp_path / "plain")
    published_steps.vote_and_flip_files(stored(pairs), [stored(voter) for voter in voters], tmp_path / "other")
    for name in ("pairs", "quarantine"):
        same(tmp_path / f"other/{name}.parquet", pq.read_table(tmp_path / f"plain/{name}.parquet"))


def test_an_empty_file_gives_empty_files(tables: tuple[Path, list[Path], Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    write_parquet(schemas.table([], "pairs"), empty)
    assert published_steps.vote_and_flip_files(empty, tables[1], tmp_path / "voted")["rows_out"] == 0
    assert pq.read_table(tmp_path / "voted/pairs.parquet").schema.equals(schemas.SCHEMAS["pairs"])


def test_an_output_replaces_an_earlier_one_and_nothing_else(
    tables: tuple[Path, list[Path], Path], tmp_path: Path
) -> None:
    pairs, voters, _ = tables
    out = tmp_path / "out"
    for fraction in (0.3, 0.5):
        published_steps.vote_and_flip_files(pairs, voters, out, fraction)
    written = sorted(path.name for path in out.iterdir())
    (out / "notes.txt").write_text("mine")
    with pytest.raises(CurationError, match=r"holds more than was written there, .* \(notes\.txt\)"):
        published_steps.vote_and_flip_files(pairs, voters, out)
    (out / "notes.txt").unlink()
    (out / published_steps.MARKER).unlink()
    with pytest.raises(CurationError, match="is not empty and no output of curation"):
        published_steps.vote_and_flip_files(pairs, voters, out)
    assert sorted(path.name for path in out.iterdir()) == [name for name in written if name != published_steps.MARKER]


@pytest.mark.parametrize("index", ["pair_id", "judge", "verdict"])
def test_a_column_that_pandas_wrote_as_the_index_is_a_column(tmp_path: Path, index: str) -> None:
    pair = records.make_pair("q", "a longer answer", "no", source="s")
    write_parquet(schemas.table([pair], "pairs"), tmp_path / "contested.parquet")
    votes = [
        {"pair_id": pair["pair_id"], "judge": judge, "order": "forward", "verdict": "rejected"} for judge in ("x", "y")
    ]
    to_frame(schemas.table(votes, "votes")).set_index(index).to_parquet(tmp_path / "votes.parquet")
    counts = published_steps.resolve_annotations_files(
        tmp_path / "contested.parquet", tmp_path / "votes.parquet", tmp_path / "out"
    )
    assert counts == {"rows_in": 1, "annotated": 1, "rows_quarantined": 0}
