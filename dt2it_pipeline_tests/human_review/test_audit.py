"""The audit: a random sample with weights, handed out in three formats, read back, and kept by an artifact home."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dt2it_pipeline.human_review.answers import AnswersError
from dt2it_pipeline.human_review.audit import (
    AUDIT_FORMATS,
    AuditError,
    draw_audit,
    export_table_audit,
    load_audit,
    read_audit,
    read_votes,
)
from dt2it_pipeline.human_review.spreadsheet import cell_text, id_cell, text_cell
from dt2it_pipeline.storage.atomic import read_parquet
from dt2it_pipeline_tests.support.audits import filled, rows_of_sheet, tool_answers


def own_table(folder: Path, count: int = 12, suffix: str = ".parquet", **columns: Any) -> Path:
    """Pairs whose ids tell the label, as those of other people's tables may."""
    rows = range(count)
    frame = pd.DataFrame(
        {
            "pair_id": [f"p{n}" for n in rows],
            "chosen_id": [f"c{n}" for n in rows],
            "rejected_id": [f"r{n}" for n in rows],
            "chosen": [f"=good {n}" for n in rows],
            "rejected": [f'bad, "{n}"\nnext' for n in rows],
            "prompt": [f"<image> & what {n}?" for n in rows],
            "source": [("a", "b", None)[n % 3] for n in rows],
        }
    ).assign(**columns)
    file = folder / f"pairs{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(file)
    else:
        frame.to_csv(file, index=False, sep="\t" if suffix == ".tsv" else ",")
    return file


@settings(deadline=None, max_examples=50)
@given(st.text() | st.from_regex(r"\A['=+\-@\t]{1,3}.{0,5}\Z"))
def test_cells_read_back_as_they_were_and_begin_no_formula(text: str) -> None:
    for cell in (text_cell(text), id_cell(text)):
        assert cell_text(cell) == text
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


@pytest.mark.parametrize("name", ["0012", "1e5", "12e45", "2024-01-02", "MAR1", "true", "=1+1", "-x", "+4", "'quoted"])
def test_ids_that_a_program_would_change_are_marked_as_text(name: str) -> None:
    assert id_cell(name) == f"'{name}"
    assert cell_text(name) == name or name.startswith("'")  # a program that takes the mark away does no harm
    assert id_cell("3f" * 16) == "3f" * 16


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv"])
def test_a_spreadsheet_shows_both_answers_and_no_label_and_comes_back(tmp_path: Path, suffix: str) -> None:
    done = export_table_audit(own_table(tmp_path, suffix=suffix), tmp_path / "out", count=9)
    assert (done.sample.num_rows, done.quarantine.num_rows, done.population) == (9, 0, 12)
    content = (tmp_path / "out/audit.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    rows = rows_of_sheet(tmp_path / "out/audit.csv")
    assert list(rows[0]) == [
        "pair_id", "prompt", "first", "second", "better", "auditor", "first_id", "second_id", "source", "weight",
        "audit",
    ]  # fmt: skip
    firsts = {row["first_id"][0] for row in rows}
    assert firsts == {"c", "r"}  # the order is not that of the ids, which tell the label here
    for row in rows:
        number = row["pair_id"][1:]
        texts = {f"c{number}": f"=good {number}", f"r{number}": f'bad, "{number}"\nnext'}
        assert {row[f"{side}_id"]: cell_text(row[side]) for side in ("first", "second")} == texts
        assert not row["first"].startswith("=") and not row["second"].startswith("=")
        assert row["prompt"] == f"<image> & what {number}?"
    answers = ["first", " SECOND. ", "1", "2", "Left", "b", "tie", "", rows[8]["second_id"]]
    read = load_audit(filled(tmp_path / "out/audit.csv", answers), tmp_path / "out/sample.parquet")
    sides = [0, 1, 0, 1, 0, 1, None, 1]
    rows.pop(7)
    assert read.table["pair_id"].tolist() == [row["pair_id"] for row in rows]
    better = [
        None if side is None else row[("first_id", "second_id")[side]] for side, row in zip(sides, rows, strict=True)
    ]
    assert [None if pd.isna(name) else name for name in read.table["better_id"]] == better
    assert read.table["weight"].sum() == pytest.approx(12)
    assert read.table["auditor"].nunique() == 1 and "Ann" not in read.table.to_csv()
    assert read.counts == {
        "answers": 8, "pairs": 8, "ties": 1, "disagreements": 0, "unanswered": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(";", "cp1252"), ("\t", "utf-16"), (",", "utf-8"), ("\t", "utf-8-sig")]
)
def test_a_spreadsheet_is_read_however_a_program_saves_it(tmp_path: Path, delimiter: str, encoding: str) -> None:
    export_table_audit(own_table(tmp_path, prompt="Wörter"), tmp_path / "out")
    file = filled(tmp_path / "out/audit.csv", ["first"] * 12, "Jörg", delimiter, encoding)
    assert len(read_audit(file)) == 12
    if encoding == "utf-8":
        file.write_text(f"sep={delimiter}\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
        assert len(read_audit(file)) == 12
    assert read_audit(file)["weight"].tolist() == [1.0] * 12


def test_malformed_cells_cost_themselves_and_are_reported_with_their_row_and_line(tmp_path: Path) -> None:
    file = tmp_path / "answers.csv"
    file.write_text(
        "Pair ID,prompt,First_ID,second_id,Better,auditor,weight\n"
        'p0,"two\nlines",a,b,first,x,2\n'
        "p1,,a,b,frist,x,2\n"
        ",,a,b,first,x,2\n"
        ",,,,,,\n"
        "p2,,a,,second,x,2\n"
        "p3,,a,b,first,x,much\n"
        "p4,,a,b\n"
        'p5,,a,b,2,,"2,5"\n'
    )
    read = load_audit(file)
    assert read.unusable == [
        ("row 3, line 4", "`better` is 'frist', which is none of first, second, tie"),
        ("row 4, line 5", "there is no pair_id"),
        ("row 6, line 7", "first_id or second_id is missing"),
        ("row 7, line 8", "weight is 'much', which is no positive number"),
    ]
    assert read.table["pair_id"].tolist() == ["p0", "p5"]
    assert read.table["weight"].tolist() == [2, 2.5]
    assert read.counts["unanswered"] == 1
    file.write_text("pair_id,first_id,second_id,better\np1,a,b,frist\n")
    with pytest.raises(AuditError, match=r"no answer in .* can be used; the first, row 2, line 2: `better` is 'frist'"):
        read_audit(file)


def test_the_majority_of_answers_counts_whoever_gave_them(tmp_path: Path) -> None:
    file = tmp_path / "answers.csv"
    said = [
        *(("p0", name, better) for name, better in (("x", "1"), ("y", "2"), ("Z ", "1"))),
        *(("p1", name, better) for name, better in (("x", "1"), ("y", "2"))),
        *(("p2", name, better) for name, better in (("x", "1"), ("y", "tie"))),
        *(("p3", name, better) for name, better in (("x", "1"), ("X", "2"))),
    ]
    lines = [f"{pair},a,b,{better},{name}" for pair, name, better in said]
    file.write_text("pair_id,first_id,second_id,better,auditor\n" + "\n".join(lines))
    read = load_audit(file)
    assert read.table["better_id"].fillna("-").tolist() == ["a", "-", "a", "-"]
    assert read.table["answers"].tolist() == [3, 2, 2, 2] and read.table["auditor"].str.count(r"\+")[3] == 0
    assert read.answers["pair_id"].tolist() == [pair for pair, *_ in said]
    assert read.answers["better_id"].fillna("-").tolist()[-3:] == ["-", "a", "b"]
    votes = read_votes(file).votes  # as an artifact home keeps them
    assert len(votes) == 8 and votes[-1]["preferred_id"] == "b"
    assert read.counts == {
        "answers": 9, "pairs": 4, "ties": 2, "disagreements": 4, "unanswered": 0,
    }  # fmt: skip
    # What was read can be stored and read again.
    for kept in (tmp_path / "kept.parquet", tmp_path / "kept.csv"):
        read.table.to_parquet(kept) if kept.suffix == ".parquet" else read.table.to_csv(kept, index=False)
        pd.testing.assert_frame_equal(
            read_audit(kept)[["pair_id", "better_id", "auditor"]], read.table[["pair_id", "better_id", "auditor"]]
        )


def test_a_table_of_answers_is_read_with_its_ids_and_weights(tmp_path: Path) -> None:
    frame = pd.DataFrame({"pair_id": ["p0", "p1"], "better_id": ["c0", None], "weight": [3.0, np.nan]})
    for suffix in (".parquet", ".csv"):
        file = tmp_path / f"answers{suffix}"
        frame.to_parquet(file) if suffix == ".parquet" else frame.to_csv(file, index=False)
        read = read_audit(file)
        assert read["pair_id"].tolist() == ["p0", "p1"]
        assert read["better_id"].fillna("-").tolist() == ["c0", "-"]
        assert read["weight"].fillna(0).tolist() == [3, 0]
    for numbers in ([0, 2], [0.0, 2.0]):  # the rows of a table without ids
        frame.assign(pair_id=numbers).to_parquet(tmp_path / "answers.parquet")
        assert read_audit(tmp_path / "answers.parquet")["pair_id"].tolist() == ["0", "2"]
    frame.assign(pair_id=[1.5, 2.5]).to_parquet(tmp_path / "answers.parquet")
    with pytest.raises(AuditError, match=r"row 1: pair_id must be text or a whole number, found 1\.5"):
        read_audit(tmp_path / "answers.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "has no column pair_id, better_id; .* It has: nothing"),
        ("a.csv", b"pair_id,better\np0,first\n", "has no column first_id, second_id"),
        ("a.csv", b'pair_id,better_id\np0,"c0\n', r"line \d: .*is a quotation mark missing\?"),
        ("a.xlsx", b"PK\x03\x04" + bytes(9), "is a workbook; save it as CSV"),
        ("a.parquet", b"PAR1" + bytes(40) + b"PAR1", "cannot be read"),
        ("a.csv", bytes(range(256)), "has no column"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AuditError, match=message):
        read_audit(tmp_path / name)
    with pytest.raises(AuditError, match=r"there is no file \S+; name the file of answers"):
        read_audit(tmp_path / "missing.csv")


def test_json_of_neither_tool_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(AnswersError, match="holds no list of tasks"):
        read_audit(tmp_path / "a.json")


@pytest.mark.parametrize("format_name", ["label_studio", "argilla"])
def test_tools_show_the_sample_and_give_the_same_answers_back(tmp_path: Path, format_name: str) -> None:
    done = export_table_audit(own_table(tmp_path), tmp_path / "out", 4, format_name)
    text = (tmp_path / "out" / AUDIT_FORMATS[format_name].files).read_text()
    assert "&lt;image&gt; &amp; what" in text and "chosen" not in text
    read = read_audit(
        tool_answers(tmp_path / "out", format_name, ["first", "second", "tie", "first"]),
        tmp_path / "out/sample.parquet",
    )
    sample = done.sample.to_pandas()
    assert read["pair_id"].tolist() == sample["pair_id"].tolist()
    expected = [sample["first_id"][0], sample["second_id"][1], "-", sample["first_id"][3]]
    assert read["better_id"].fillna("-").tolist() == expected
    assert read["weight"].sum() == pytest.approx(12)


def test_answers_about_other_pairs_or_other_answers_are_reported(tmp_path: Path) -> None:
    export_table_audit(own_table(tmp_path), tmp_path / "out", 5)
    sample = read_parquet(tmp_path / "out/sample.parquet", "audit_pairs").to_pandas()
    first = sample.iloc[0]
    file = tmp_path / "answers.csv"
    rows = [(first["pair_id"], first["first_id"]), (sample["pair_id"][1], "other"), ("gone", "c0")]
    pd.DataFrame(rows, columns=["pair_id", "better_id"]).to_csv(file, index=False)
    read = load_audit(file, sample)
    assert read.table["weight"].tolist() == [12]
    assert [reason for _, reason in read.unusable] == [
        f"'other' is no answer of pair {sample['pair_id'][1]}", "pair gone was not drawn",
    ]  # fmt: skip
    with pytest.raises(AuditError, match=r"no answer in .* is about a drawn pair; .* is it this audit\?"):
        load_audit(file, sample.iloc[2:])
    with pytest.raises(AuditError, match="cannot be read"):
        load_audit(file, file)


def test_own_tables_with_wrong_contents_are_refused_or_cost_a_row(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = export_table_audit(
        own_table(tmp_path, chosen=[None, *["x"] * 11], rejected_id=["r0", "c1", *[f"r{n}" for n in range(2, 12)]]), out
    )
    assert (done.sample.num_rows, sorted(done.quarantine["reason"].to_pylist())) == (
        10, ["both sides are one answer", "chosen is no text"],
    )  # fmt: skip
    messages = [
        (
            own_table(tmp_path, prompt=[[{"role": "user"}]] * 12),
            "none of the 12 drawn pairs can be shown; the first: prompt is no text",
        ),
    ]
    for file, message in messages:
        with pytest.raises(AuditError, match=message):
            export_table_audit(file, out)
    pd.DataFrame({"pair_id": ["p"], "chosen": ["c"]}).to_parquet(tmp_path / "short.parquet")
    pd.DataFrame({"rejected_id": ["r"], "chosen": ["c"], "rejected": ["d"]}).to_parquet(tmp_path / "id.parquet")
    (tmp_path / "text.parquet").write_text("text")
    empty = own_table(tmp_path, 0)
    for file, message in (
        (tmp_path / "short.parquet", r"has no column rejected; it has: pair_id, chosen\. Name .*--rejected COLUMN"),
        (tmp_path / "id.parquet", "has no column chosen_id; it has: rejected_id, chosen, rejected$"),
        (tmp_path / "text.parquet", "cannot be read"),
        (tmp_path / "missing.csv", "there is no file .*missing.csv$"),
        (tmp_path / "missing.parquet", "there is no file .*missing.parquet$"),
        (empty, "has no pair"),
    ):
        with pytest.raises(AuditError, match=message):
            export_table_audit(file, out)
    with pytest.raises(AuditError, match=r"there is no format 'excel'; known: spreadsheet, label_studio, argilla"):
        export_table_audit(own_table(tmp_path), out, format_name="excel")
    assert len(rows_of_sheet(out / "audit.csv")) == 10  # the last good one is still there


def test_a_categorical_table_without_prompts_is_shown(tmp_path: Path) -> None:
    table = (
        pd.read_parquet(own_table(tmp_path))
        .drop(columns="prompt")
        .astype({"pair_id": "category", "source": "category"})
    )
    table.to_parquet(tmp_path / "pairs.parquet")
    export_table_audit(tmp_path / "pairs.parquet", tmp_path / "out")
    rows = rows_of_sheet(tmp_path / "out/audit.csv")
    assert len(rows) == 12 and {row["prompt"] for row in rows} == {"(The table has no prompt.)"}


def test_a_long_answer_is_cut_where_a_spreadsheet_would_spill_it(tmp_path: Path) -> None:
    export_table_audit(own_table(tmp_path, 1, chosen="x" * 40_000), tmp_path / "out")
    row = rows_of_sheet(tmp_path / "out/audit.csv")[0]
    assert {len(row["first"]), len(row["second"])} & set(range(32_000, 32_767))
    assert "[... 8,000 more characters]" in row["first"] + row["second"]


@pytest.mark.parametrize("with_column", [True, False])
def test_the_probability_of_a_cleaning_result_is_that_of_the_given_label(tmp_path: Path, with_column: bool) -> None:
    file = own_table(tmp_path)
    (tmp_path / "cleaned").mkdir()
    outcomes = pd.DataFrame(
        {"pair_id": [f"p{n}" for n in range(12)], "outcome": ["kept"] * 8 + ["flipped"] * 2 + ["dropped"] * 2}
    )
    if with_column:
        outcomes["probability"] = [0.9] * 10 + [np.nan] * 2
    outcomes.to_parquet(tmp_path / "cleaned/outcomes.parquet")
    sides = [f"c{n}" for n in range(8)] + ["r8", "r9"]
    pairs = pd.DataFrame({"pair_id": outcomes["pair_id"][:10], "chosen_id": sides, "strength": np.log(9)})
    pairs.to_parquet(tmp_path / "cleaned/pairs.parquet")
    done = export_table_audit(file, tmp_path / "out", 4, cleaned=tmp_path / "cleaned")
    frame = pd.read_parquet(file)[["pair_id", "source"]]
    wanted = draw_audit(frame, 4, probability=[0.9] * 8 + [0.1] * 2 + [np.nan] * 2)
    assert done.sample["pair_id"].to_pylist() == wanted["pair_id"].tolist()
    outcomes.assign(pair_id="other").to_parquet(tmp_path / "cleaned/outcomes.parquet")
    with pytest.raises(AuditError, match="is about none of these pairs"):
        export_table_audit(file, tmp_path / "out", cleaned=tmp_path / "cleaned")
    with pytest.raises(AuditError, match="is no readable output of `dt2it clean`"):
        export_table_audit(file, tmp_path / "out", cleaned=tmp_path)
