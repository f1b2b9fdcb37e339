"""`clean_preferences` where pairs have no `pair_id`: votes and audits that count rows in another way are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline import clean_preferences
from dt2it_pipeline.curate.preference_files import clean_preference_files
from dt2it_pipeline.curate.preferences import CleanedPreferences
from dt2it_pipeline.curate.voters.margins import CurationError
from dt2it_pipeline.human_review.own_tables import blind_id

COUNT = 200
WRONG = np.arange(COUNT) % 10 == 0
TABLE = pd.DataFrame(
    {
        "chosen": [f"c{n}" for n in range(COUNT)],
        "rejected": [f"r{n}" for n in range(COUNT)],
        "good": np.where(WRONG, -2.0, 2.0),
        "bad": 0.0,
    }
)
AUDIT = pd.DataFrame({"pair_id": range(COUNT), "better_id": np.where(WRONG, "rejected", "chosen")}).iloc[::3]


def cleaned(pairs: pd.DataFrame, audit: pd.DataFrame = AUDIT) -> CleanedPreferences:
    return clean_preferences(pairs, audit=audit, chosen_scores=["good"], rejected_scores=["bad"])


@pytest.mark.parametrize("rows", [slice(None, None, 2), slice(None, None, -1)])
def test_an_index_that_may_be_meant_is_an_error_and_serves_as_pair_id(rows: slice) -> None:
    part = TABLE.iloc[rows]
    with pytest.raises(CurationError, match=r"its index is not 0 to .* pair_id of audit may mean the index or"):
        cleaned(part)
    with pytest.raises(CurationError, match="pair_id of votes may mean the index or"):
        clean_preferences(part, votes=AUDIT)
    found = cleaned(part.assign(pair_id=part.index)).pairs.set_index("pair_id")["outcome"]
    assert found[WRONG[found.index]].eq("flipped").all() and found[~WRONG[found.index]].eq("kept").all()
    assert len(clean_preferences(part, chosen_scores=["good"], rejected_scores=["bad"]).pairs) == len(part)


@pytest.mark.parametrize("name", ["uid", "row_id", "Unnamed: 0"])
def test_another_column_that_may_be_meant_is_an_error(name: str) -> None:
    shuffled = TABLE.assign(**{name: range(COUNT)}).sample(frac=1, random_state=0).reset_index(drop=True)
    with pytest.raises(CurationError, match=f"pair_id of audit may mean its column '{name}' or the number of the row"):
        cleaned(shuffled)
    with pytest.raises(CurationError, match=f"may mean its column '{name}'"):
        cleaned(shuffled[:100])
    with pytest.raises(CurationError, match=f"may mean its column '{name}'"):
        cleaned(shuffled.assign(**{name: "u" + shuffled[name].astype(str)}), AUDIT.assign(pair_id="u0"))
    found = cleaned(TABLE.assign(**{name: range(COUNT)}, model_id="m"))  # both mean the same
    pd.testing.assert_frame_equal(found.pairs, cleaned(TABLE).pairs)


def test_a_column_of_ids_that_is_there_twice_is_an_error() -> None:
    ids = TABLE.assign(uid=range(COUNT))
    with pytest.raises(CurationError, match="the column 'uid' is there twice"):
        cleaned(pd.concat([ids, ids[["uid"]]], axis=1))


def test_rows_that_match_nothing_are_noted_with_the_way_of_counting_and_many_are_an_error() -> None:
    counted = r"\(it has no column pair_id, so its rows are counted from 0\)"
    with pytest.raises(CurationError, match=f"no pair_id is one of the table's {counted}; the first is 'u0'"):
        cleaned(TABLE, AUDIT.assign(pair_id="u0"))
    few = cleaned(TABLE[:150]).notes
    assert any(note.startswith("17 rows of audit are about pairs that are not in the table (it has no") for note in few)
    with pytest.raises(CurationError, match=f"audit: 47 rows of audit are about pairs .* {counted}, for example '60'"):
        cleaned(TABLE[:60])
    from_1 = AUDIT.assign(pair_id=AUDIT["pair_id"] + 1)
    with pytest.raises(CurationError, match=f"audit: 1 row of audit is about a pair .* {counted}, for example '200'"):
        cleaned(TABLE, pd.concat([from_1, from_1[-1:].assign(pair_id=COUNT)]))
    keyed = TABLE.assign(pair_id=range(COUNT))  # nothing else can be meant
    assert any("rows of audit are about pairs that are not" in note for note in cleaned(keyed[:20]).notes)


def test_a_file_in_another_order_than_its_sample_is_an_error_that_names_the_cause(tmp_path: Path) -> None:
    names = np.where(WRONG, TABLE["rejected"], TABLE["chosen"])
    blind = [blind_id(str(row), names[row]) for row in AUDIT["pair_id"]]
    AUDIT.assign(better_id=blind).to_csv(tmp_path / "audit.csv", index=False)
    TABLE.to_csv(tmp_path / "same.csv", index=False)
    TABLE.sample(frac=1, random_state=0).to_csv(tmp_path / "shuffled.csv", index=False)
    scores = {"chosen_scores": ["good"], "rejected_scores": ["bad"], "audit": tmp_path / "audit.csv"}
    found = clean_preference_files(tmp_path / "same.csv", tmp_path / "cleaned", **scores)
    assert (found.pairs["outcome"] == "flipped").sum() == WRONG.sum()
    with pytest.raises(CurationError, match="the table was re-ordered or changed since the sample was drawn"):
        clean_preference_files(tmp_path / "shuffled.csv", tmp_path / "cleaned", **scores)
