"""What a cleaning knew of each pair: margins and votes as they were given, on the sides as they were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline import clean_preferences
from dt2it_pipeline.curate import evidence_table
from dt2it_pipeline.curate.preferences import CleanedPreferences
from dt2it_pipeline.curate.voters.margins import CurationError
from dt2it_pipeline.storage.atomic import read_parquet

COUNT, CHECKED = 60, 40


def cleaned(votes: pd.DataFrame | None = None, wrong: int = 6) -> CleanedPreferences:
    """Pairs with ids, of which every `wrong`th label is wrong; an audit lets labels be flipped."""
    rows = np.arange(COUNT)
    truth = rows % wrong != 0
    pairs = pd.DataFrame({
        **{name: [f"{name[0]}{n}" for n in rows] for name in ("pair_id", "chosen_id", "rejected_id")},
        "good": np.where(truth, 3.0, -3.0), "bad": 0.0, "gap": np.where(rows == 1, np.nan, 1.0), "zero": 0.0,
    })  # fmt: skip
    audit = pd.DataFrame(
        {"pair_id": pairs["pair_id"], "better_id": np.where(truth, pairs["chosen_id"], pairs["rejected_id"])}
    )
    names = {"chosen_scores": ["good", "gap"], "rejected_scores": ["bad", "zero"]}
    return clean_preferences(pairs, votes=votes, audit=audit.iloc[:CHECKED], **names)


def rows_of(result: CleanedPreferences, folder: Path) -> list[dict[str, Any]]:
    result.evidence().write(folder / "evidence.parquet")
    return list(read_parquet(folder / "evidence.parquet", evidence_table.EVIDENCE).to_pylist())


def test_labels_probabilities_and_margins_are_those_of_the_given_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_table, "_ROWS", 7)  # pieces that do not divide the pairs
    result = cleaned()
    rows = rows_of(result, tmp_path)
    assert [row["pair_id"] for row in rows] == result.pairs["pair_id"].tolist()
    flipped = [row for row in rows if row["outcome"] == "flipped"]
    assert {row["pair_id"] for row in flipped} == {f"p{n}" for n in range(0, COUNT, 6)}
    for row, probability in zip(rows, result.pairs["probability"], strict=True):
        number = row["pair_id"][1:]
        turned = row["outcome"] == "flipped"
        after = None if row["outcome"] == "dropped" else f"{'r' if turned else 'c'}{number}"
        assert (row["chosen_before"], row["chosen_after"]) == (f"c{number}", after)
        assert row["given_probability"] == pytest.approx(1 - probability if turned else probability)
        assert row["margins"][0] == {"voter": "good", "margin": -3.0 if int(number) % 6 == 0 else 3.0}
    assert [len(row["margins"]) for row in rows[:3]] == [2, 1, 2]  # a margin that is not known is none


def test_every_vote_stands_there_as_it_was_given(tmp_path: Path) -> None:
    votes = pd.DataFrame([
        {"pair_id": "p4", "judge": "one", "verdict": "rejected", "order": "forward", "words": "No."},
        {"pair_id": "p0", "judge": "one", "verdict": "chosen", "order": None, "words": None},
        {"pair_id": "p4", "judge": "one", "verdict": "chosen", "order": "reversed", "words": 3},
        {"pair_id": "p4", "judge": "two", "verdict": None, "order": "forward", "words": None},
        {"pair_id": "nowhere", "judge": "one", "verdict": "tie", "order": None, "words": None},
    ])  # fmt: skip
    rows = rows_of(cleaned(votes), tmp_path)
    assert [(vote["judge"], vote["verdict"], vote["order"], vote["words"]) for vote in rows[4]["verdicts"]] == [
        ("one", "rejected", "forward", "No."), ("one", "chosen", "reversed", "3"), ("two", None, "forward", None)
    ]  # fmt: skip
    assert [vote["verdict"] for vote in rows[0]["verdicts"]] == ["chosen"]
    assert sum(len(row["verdicts"]) for row in rows) == 4
    by_id = pd.DataFrame({"pair_id": ["p4", "p5"], "better_id": ["r4", None]})  # an empty better_id is a tie
    rows = rows_of(cleaned(by_id), tmp_path)
    assert [vote["verdict"] for row in rows[4:6] for vote in row["verdicts"]] == ["rejected", "tie"]


def test_an_order_that_is_not_given_follows_from_what_was_shown_first() -> None:
    shown = ["c0", "r1", "chosen", None, "c4"]
    votes = pd.DataFrame({"pair_id": [f"p{n}" for n in range(5)], "verdict": "chosen", "shown_first": shown})
    orders = cleaned(votes).evidence().verdicts["order"]
    assert orders.fillna("").tolist() == ["forward", "reversed", "forward", "", "forward"]
    both = votes.assign(order=["reversed", "", None, "forward", "alone"])
    orders = cleaned(both).evidence().verdicts["order"]
    assert orders.tolist() == ["reversed", "reversed", "forward", "forward", "alone"]
    bare = pd.DataFrame({"chosen": ["a", "b"], "rejected": ["c", "d"]})
    votes = pd.DataFrame({"pair_id": [0, 1], "verdict": "chosen", "shown_first": ["rejected", "chosen"]})
    assert clean_preferences(bare, votes=votes).evidence().verdicts["order"].tolist() == ["reversed", "forward"]


def test_a_result_that_was_made_by_hand_has_no_evidence() -> None:
    given = cleaned()
    bare = CleanedPreferences(given.pairs, given.label_accuracy, given.wanted, given.sensitivity, given.notes)
    with pytest.raises(CurationError, match="no evidence with it"):
        bare.evidence()
