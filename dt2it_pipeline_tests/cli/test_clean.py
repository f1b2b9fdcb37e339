"""`dt2it clean --policy paper`: every pair of a user's own tables ends kept, flipped or dropped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline.curate.cleaning import clean_pairs
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.atomic import write_parquet
from dt2it_pipeline_tests.support.commands import dt2it, failing

COUNT, WRONG = 400, 100


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A folder: pairs of which the first hundred are labelled wrongly, scores, a verifier's scores, judges' votes.

    Voters and judges know the truth, with noise where they are unsure. Of the last pair nobody scored a side.
    """
    random = np.random.default_rng(0)
    rows = []
    for number in range(COUNT):
        texts = (f"right {number}", f"wrong {number}")
        chosen, rejected = texts[::-1] if number < WRONG else texts
        rows.append(records.make_pair(f"p{number}", chosen, rejected, source=f"s{number % 2}"))
    pairs = schemas.table(rows, "pairs")
    write_parquet(pairs, tmp_path / "pairs.parquet")
    sides = [(row[f"{side}_id"], row[side].startswith("right")) for row in rows[:-1] for side in ("chosen", "rejected")]
    for file, voters in (("scores", ("a", "b")), ("verifier", ("v",))):
        scores = [
            {"response_id": key, "voter": voter, "score": float(1.5 * right + random.normal(0, 0.7))}
            for voter in voters
            for key, right in sides
        ]
        write_parquet(schemas.table(scores, "scores"), tmp_path / f"{file}.parquet")
    votes = [
        {"pair_id": row["pair_id"], "judge": judge, "order": "forward",
         "verdict": "chosen" if row["chosen"].startswith("right") == (random.random() < 0.95) else "rejected"}
        for judge in ("x", "y", "z")
        for row in rows
    ]  # fmt: skip
    write_parquet(schemas.table(votes, "votes"), tmp_path / "votes.parquet")
    return tmp_path


def cleaned(folder: Path, *more: object) -> tuple[dict[str, object], pd.DataFrame, pd.DataFrame]:
    """Summary, pairs and outcomes of the command on the fixture's tables."""
    given = ["clean", folder / "pairs.parquet", "--scores", folder / "scores.parquet", "--output", folder / "out"]
    summary = json.loads(dt2it(*given, "--policy", "paper", *more, "--json"))
    return summary, *(pd.read_parquet(folder / "out" / f"{name}.parquet") for name in ("pairs", "outcomes"))


VOTES = ("--votes", "votes.parquet", "--judge", "x", "--judge", "y")


@pytest.mark.parametrize(
    ("options", "least"),
    [
        (("--flip-fraction", 1), 0.9),
        (("--verifier-scores", "verifier.parquet"), 0.9),
        (("--verifier-scores", "verifier.parquet", *VOTES), 0.95),
        (("--verifier-scores", "verifier.parquet", *VOTES, "--out-of-core"), 0.95),
    ],
)
def test_labels_are_cleaned_and_every_pair_is_accounted_for(
    tables: Path, options: tuple[object, ...], least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tables)
    summary, pairs, outcomes = cleaned(tables, *options)
    assert pairs["chosen"].str.startswith("right").mean() >= least > 1 - WRONG / COUNT
    given = pd.read_parquet("pairs.parquet").set_index("pair_id")
    assert outcomes["pair_id"].tolist() == given.index.tolist()
    counts = {name: int((outcomes["outcome"] == name).sum()) for name in ("kept", "flipped", "dropped")}
    assert counts == {name: summary[name] for name in counts} and summary["pairs"] == COUNT == sum(counts.values())
    evidence = pd.read_parquet("out/cleaning_evidence.parquet").set_index("pair_id")
    assert evidence.index.tolist() == given.index.tolist() and evidence["given_probability"].isna().all()
    assert (evidence["chosen_before"] == given["chosen_id"]).all()
    left = evidence["chosen_after"].dropna()
    assert (left == pairs.set_index("pair_id")["chosen_id"].loc[left.index]).all() and len(left) == len(pairs)
    heard = evidence[["margins", "verdicts"]].map(len)
    voters = 3 if "--verifier-scores" in options else 2
    assert (heard["margins"].iloc[:-1] == voters).all() and heard["margins"].iloc[-1] == 0  # nobody scored the last
    assert (heard["verdicts"] == (2 if "--votes" in options else 0)).all()
    assert (
        counts["flipped"] > WRONG / 3
        and (outcomes["reason"] == "score missing").sum() == 1
        and len(pairs) == counts["kept"] + counts["flipped"]
    )
    assert outcomes.iloc[-1][["outcome", "stage", "reason"]].tolist() == ["dropped", "voted_pairs", "score missing"]
    ended = pairs.set_index("pair_id")
    assert ended.index.tolist() == [key for key in given.index if key in ended.index]
    same = ended["chosen_id"] == given["chosen_id"].reindex(ended.index)
    by_id = outcomes.set_index("pair_id")
    assert (by_id["outcome"].reindex(ended.index) == np.where(same, "kept", "flipped")).all()
    assert (by_id["reason"].reindex(ended.index) == ended["label"]).all()
    dropped = by_id[by_id["outcome"] == "dropped"]
    assert set(dropped["stage"]) <= {"annotated_pairs", "voted_pairs"} and (dropped["reason"] != "").all()


def test_out_of_core_decides_as_in_memory(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tables)
    options = ("--verifier-scores", "verifier.parquet", *VOTES)
    inside = cleaned(tables, *options)
    outside = cleaned(tables, *options, "--out-of-core")
    assert inside[2].drop(columns="detail").equals(outside[2][inside[2].columns].drop(columns="detail"))
    assert inside[0] == outside[0] and outside[0]["voters"] == ["a", "b"]
    names = ["pair_id", "chosen_id", "rejected_id", "chosen", "strength", "label"]
    pd.testing.assert_frame_equal(inside[1][names], outside[1][names])
    voted = ("--flip-fraction", 0.3)
    inside, outside = cleaned(tables, *voted), cleaned(tables, *voted, "--out-of-core")
    assert inside[2]["outcome"].tolist() == outside[2]["outcome"].tolist() and inside[0] == outside[0]


def test_own_columns_are_kept_and_texts_may_be_absent(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tables)
    whole = cleaned(tables)
    bare = pd.read_parquet("pairs.parquet")[["pair_id", "chosen_id", "rejected_id"]].assign(mine=range(COUNT))
    bare.to_parquet("pairs.parquet")
    summary, pairs, outcomes = cleaned(tables)
    assert summary["pairs"] == COUNT and "source" not in outcomes
    assert pairs["mine"].tolist() == [n for n, kept in enumerate(outcomes["outcome"]) if kept in ("kept", "flipped")]
    assert outcomes["outcome"].tolist() == whole[2]["outcome"].tolist()


def test_votes_are_on_the_sides_that_the_file_has(tables: Path) -> None:
    """Votes against the given label must not be taken for votes against the flipped one."""
    pairs, scores, votes = (pd.read_parquet(tables / f"{name}.parquet") for name in ("pairs", "scores", "votes"))
    perfect = votes.assign(verdict=np.where(votes["pair_id"].isin(set(pairs["pair_id"][:WRONG])), "rejected", "chosen"))
    found = clean_pairs(pairs, scores, perfect, scores.assign(score=0.0, voter="unsure"), judges=["x", "y"])
    kept = found.outcomes["outcome"].isin(["kept", "flipped"]).to_numpy()
    assert found.summary["contested"] > 0 and kept.mean() > 0.95
    assert found.pairs["chosen"].str.startswith("right").mean() > 0.99


def test_what_is_wrong_is_one_line(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tables)
    given = ["clean", "pairs.parquet", "--scores", "scores.parquet", "--output", "out", "--policy", "paper"]
    message = failing(*given, "--votes", "votes.parquet")
    assert "takes the votes of two judges, and these are of 3: x, y, z; name the judges whose votes count" in message
    message = failing(*given, "--votes", "votes.parquet", "--judge", "w")
    assert message == "votes: there is no judge 'w'; there are: x, y, z"
    assert "--out-of-core is for --policy paper" in failing(*given[:-2], "--out-of-core", code=2)
    assert "--verifier-scores are for --policy paper" in failing(*given[:-2], "--verifier-scores", "x", code=2)
    given[1] = "none.parquet"
    assert failing(*given) == "there is no file none.parquet"
    assert failing(*given, "--out-of-core") == "there is no file none.parquet"
    (tables / "none.parquet").write_text("no Parquet")
    assert failing(*given).startswith("none.parquet cannot be read: ")
    pd.DataFrame({"pair_id": ["p"]}).to_parquet(tables / "none.parquet")
    assert "missing columns ['chosen_id', 'rejected_id']" in failing(*given)
    given[1] = "pairs.parquet"
    pd.read_parquet("pairs.parquet").drop(columns="prompt_id").to_parquet("none.parquet")
    message = failing("clean", "none.parquet", *given[2:], "--out-of-core")
    assert "columns ['prompt_id'] are missing" in message
    assert not (tables / "out").exists()
    dt2it(*given)
    (tables / "out" / "notes.txt").write_text("mine")
    assert "holds more than was written there" in failing(*given)
