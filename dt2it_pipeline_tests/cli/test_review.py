"""`dt2it review sample` and `review import`: from a table or a round to answers that an artifact home keeps."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from dt2it_pipeline.human_review.audit import AUDIT_FORMATS, audit_file, audit_of_home, read_audit
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline_tests.support.commands import dt2it, failing, invoke
from dt2it_pipeline_tests.support.export_world import world


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An artifact home with a finished round of four pairs."""
    store = Store(tmp_path / "home")
    pairs, prompts = world(store.media)
    for name, number in (("voted_pairs", "0"), ("contested_pairs", "0"), ("raw_preferences", None)):
        store.write(name, Artifact({"pairs": pairs, "prompts": prompts}), "k", number)
    return store.home


def fill(file: Path, answers: list[str]) -> Path:
    """Write the answers into a spreadsheet, one per row."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    filled = file.parents[1] / "filled.csv"
    with filled.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "better": said} for row, said in zip(rows, answers, strict=True))
    return filled


def test_a_sample_of_a_table_is_drawn_filled_and_read(tmp_path: Path) -> None:
    ids = {name: [f"{name[0]}{n}" for n in range(20)] for name in ("pair_id", "chosen_id", "rejected_id")}
    texts = {"chosen": ["yes"] * 20, "rejected": ["no"] * 20, "prompt": ["what?"] * 20}
    pd.DataFrame({**ids, **texts}).to_csv(tmp_path / "pairs.csv", index=False)
    given = ["review", "sample", "--pairs", tmp_path / "pairs.csv", "--output", tmp_path / "out", "--count", 5]
    assert dt2it(*given).rstrip() == f"{tmp_path / 'out'}: 5 of 20 pairs; README.md there says what to do"
    counted = json.loads(dt2it(*given, "--seed", 3, "--json"))
    assert counted == {"output": str(tmp_path / "out"), "drawn": 5, "population": 20, "rows_quarantined": 0}
    readme = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "drawn at random from 20 pairs" in readme and "read_audit(FILE, sample)" in readme
    filled = fill(tmp_path / "out/audit.csv", ["first"] * 4 + [""])
    assert read_audit(filled, tmp_path / "out/sample.parquet")["weight"].tolist() == [5.0] * 4
    (tmp_path / "out/mine.txt").write_text("mine")
    assert "holds more than was written there" in failing(*given)


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.csv.gz", "pairs.csv.xz", "pairs.parquet"])
def test_a_wide_table_is_drawn_from_checked_and_cleaned_with_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """No ids of responses, numbers as ids, texts under other names, and a probability of the user's own."""
    monkeypatch.chdir(tmp_path)
    wide = pd.DataFrame({"pair_id": range(100, 140), "good": [f"yes {n}" for n in range(40)]})
    wide["bad"], wide["probability"] = [f"no {n}" for n in range(40)], [round(n / 40, 3) for n in range(40)]
    wide["up"], wide["down"] = [n % 5 * 1.0 for n in range(40)], [2.0] * 40
    if ".jsonl" in name:
        wide.to_json(name, orient="records", lines=True)
    else:
        wide.to_parquet(name) if name.endswith(".parquet") else wide.to_csv(name, index=False)
    columns = ("--chosen", "good", "--rejected", "bad")
    dt2it("review", "sample", "--pairs", name, *columns, "--output", "audit", "--count", 20)
    with Path("audit/audit.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {int(row["pair_id"].lstrip("'")) for row in rows} <= set(range(100, 140)) and len(rows) == 20
    first_is_good = [row["first"].startswith("yes") for row in rows]
    assert {True, False} == set(first_is_good) and not {"chosen", "rejected"} & set(rows[0].values())
    filled = fill(Path("audit/audit.csv").absolute(), ["first" if good else "second" for good in first_is_good])
    audit = read_audit(filled, "audit/sample.parquet")
    assert len(audit) == 20 and audit["weight"].sum() == 40
    audit[["pair_id", "better_id"]].to_json("checked.jsonl.gz", orient="records", lines=True)
    given = ("clean", name, *columns, "--chosen-score", "up", "--rejected-score", "down", "--output", "out", "--json")
    from_sheet = json.loads(dt2it(*given, "--audit", filled))
    from_lines = json.loads(dt2it(*given, "--audit", "checked.jsonl.gz"))
    assert from_sheet["label_accuracy"] == from_lines["label_accuracy"]
    assert from_sheet["label_accuracy"]["before"]["estimate"] > 0.9  # every checked label was said to be right
    assert any("`probability` of its own, which is kept; the model's is `label_probability`" in note
               for note in from_lines["notes"])  # fmt: skip
    kept, outcomes = pd.read_parquet("out/pairs.parquet"), pd.read_parquet("out/outcomes.parquet")
    kept["pair_id"], outcomes["pair_id"] = (table["pair_id"].astype(int) for table in (kept, outcomes))
    assert kept["probability"].tolist() == wide.set_index("pair_id")["probability"].loc[kept["pair_id"]].tolist()
    assert kept["label_probability"].tolist() == (
        outcomes.set_index("pair_id")["probability"].loc[kept["pair_id"]].tolist()
    )
    dt2it("review", "sample", "--pairs", name, *columns, "--cleaned", "out", "--output", "again", "--count", 8)


def test_pairs_without_ids_are_known_by_the_number_of_their_row(tmp_path: Path) -> None:
    rows = [{"chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(6)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"chosen": "alone"}])))
    given = ["review", "sample", "--pairs", tmp_path / "pairs.jsonl", "--output", tmp_path / "out"]
    printed = json.loads(dt2it(*given, "--json"))
    assert (printed["drawn"], printed["population"], printed["rows_quarantined"]) == (6, 7, 1)
    sample = pd.read_parquet(tmp_path / "out/sample.parquet")
    assert sorted(sample["pair_id"]) == [str(n) for n in range(6)]
    assert "name columns of --pairs" in failing(
        "review", "sample", "--round", 0, "--chosen", "x", "--output", tmp_path / "o", code=2
    )


def test_a_table_that_cannot_be_drawn_from_is_refused_with_its_help_page(tmp_path: Path) -> None:
    pd.DataFrame({"pair_id": ["a"]}).to_parquet(tmp_path / "pairs.parquet")
    given = ["review", "sample", "--pairs", tmp_path / "pairs.parquet", "--output", tmp_path / "out"]
    message = failing(*given)
    assert "has no column chosen, rejected" in message and "--chosen COLUMN --rejected COLUMN" in message
    assert "More: docs/troubleshooting.md#audit" in invoke(*given).stderr
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    given = ["review", "sample", "--output", tmp_path / "out"]
    assert "give either --pairs or --round" in failing(*given, code=2)
    assert "give either --pairs or --round" in failing(*given, "--pairs", "p.csv", "--round", 0, code=2)
    assert "--cleaned is for --pairs" in failing(*given, "--round", 0, "--cleaned", "c", code=2)
    assert "--home is for --round" in failing(*given, "--pairs", "p.csv", "--home", tmp_path, code=2)
    printed = failing(*given, "--round", 0, "--format", "none", code=2)
    assert set(re.findall(r"'(\w+)'", printed.partition("is not one of")[2])) == set(AUDIT_FORMATS)


def test_a_round_is_sampled_and_its_answers_are_kept_as_an_audit(home: Path, tmp_path: Path) -> None:
    given = ["review", "sample", "--round", 0, "--home", home, "--output", tmp_path / "out", "--count", 3]
    assert "3 of 4 pairs" in dt2it(*given)
    assert audit_file(home).is_file()
    assert "`dt2it review import FILE`" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    filled = fill(tmp_path / "out/audit.csv", ["first", "secnd", "tie"])
    printed = dt2it("review", "import", filled, "--home", home)
    assert "2 votes of 1 person on 2 pairs" in printed
    assert re.search(r"no vote: row 3, line \d+: `better` is 'secnd', which is none of first, second, tie", printed)
    assert "audit: 2 of the 3 pairs that were drawn at random have an answer" in printed
    counted = json.loads(dt2it("review", "import", filled, "--home", home, "--json"))
    assert (counted["kept_votes"], counted["audit"]) == (2, {"drawn": 3, "answered": 2})
    audit = audit_of_home(home)
    assert (len(audit), audit["better_id"].isna().sum(), round(audit["weight"].sum())) == (2, 1, 4)
    for words in (
        failing(*given[:3], 1, *given[4:]),
        failing("review", "serve", "--round", 1, "--home", home, "--port", 0),
    ):
        assert words.startswith("voted_pairs of round 1 has not been materialised in ") and "it: 0. Run it" in words
        assert "`dt2it run round --round 1`" in words
    words = failing("review", "export", "--round", 1, "--home", home, "--output", tmp_path / "tasks")
    assert words.startswith("contested_pairs of round 1 ") and "`dt2it run round --round 1`" in words


def test_a_damaged_table_of_draws_does_not_stop_an_import(home: Path, tmp_path: Path) -> None:
    dt2it("review", "sample", "--round", 0, "--home", home, "--output", tmp_path / "out")
    audit_file(home).write_bytes(b"garbage")
    filled = fill(tmp_path / "out/audit.csv", ["first"] * 4)
    result = invoke("review", "import", filled, "--home", home)
    assert result.exit_code == 0 and "4 votes of 1 person" in result.stdout
    assert "which pairs were drawn at random is not known" in result.stderr
