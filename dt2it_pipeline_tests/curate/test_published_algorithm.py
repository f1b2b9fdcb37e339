from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dt2it_pipeline.curate import CurationError, merge, resolve_annotations, verify, vote_and_flip
from dt2it_pipeline.curate.tables import quarantine_table, to_frame, to_table
from dt2it_pipeline.storage import records, schemas


def make_pairs(count: int, seed: int = 0) -> pd.DataFrame:
    order = np.random.default_rng(seed).permutation(count)
    return pd.DataFrame(
        [
            {
                "pair_id": f"p{i:04d}",
                "prompt_id": f"q{i:04d}",
                "chosen": f"good {i}",
                "rejected": f"bad {i}",
                "chosen_id": f"g{i:04d}",
                "rejected_id": f"b{i:04d}",
                "chosen_model": f"model of good {i}",
                "rejected_model": f"model of bad {i}",
                "source": f"s{i % 3}",
                "label": "original",
            }
            for i in order
        ]
    )


def make_scores(pairs: pd.DataFrame, voters: tuple[str, ...], seed: int, grid: int | None = None) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    ids = np.concatenate([pairs["chosen_id"], pairs["rejected_id"]])
    parts = []
    for voter in voters:
        # A coarse grid makes ties and equal means.
        values = random.normal(size=len(ids)) if grid is None else random.integers(-grid, grid + 1, len(ids)) / 2
        parts.append(pd.DataFrame({"response_id": ids, "voter": voter, "score": values.astype("float32")}))
    return pd.concat(parts, ignore_index=True).sample(frac=1, random_state=seed, ignore_index=True)


def score_of(pair: dict, margin: float, voter: str = "v") -> list[dict]:
    return [
        {"response_id": pair["chosen_id"], "voter": voter, "score": margin},
        {"response_id": pair["rejected_id"], "voter": voter, "score": 0.0},
    ]


def scores_with(pairs: pd.DataFrame, margins: list[float], voter: str = "v") -> pd.DataFrame:
    rows = pairs.to_dict("records")
    return pd.DataFrame(
        [row for pair, margin in zip(rows, margins, strict=True) for row in score_of(pair, margin, voter)]
    )


def brute_vote_and_flip(pairs: pd.DataFrame, scores: pd.DataFrame) -> tuple[list[dict], list[str]]:
    """The published vote and flip (arXiv 2604.19544, part 3, step 1), row by row."""
    table = {(row.response_id, row.voter): float(row.score) for row in scores.itertuples()}
    voters = sorted({row.voter for row in scores.itertuples()})
    kept, unscored = [], []
    for pair in pairs.to_dict("records"):
        margins = []
        for voter in voters:
            a, b = table.get((pair["chosen_id"], voter)), table.get((pair["rejected_id"], voter))
            if a is not None and b is not None and math.isfinite(a) and math.isfinite(b):
                margins.append(a - b)
        if len(margins) < len(voters) or not voters:
            unscored.append(pair["pair_id"])
        else:
            kept.append(pair | {"strength": sum(margins) / len(margins), "margins": margins})
    negative = sorted((p for p in kept if p["strength"] < 0), key=lambda p: (p["strength"], p["pair_id"]))
    for pair in negative[: len(negative) // 2]:
        for name in ("", "_id", "_model"):
            pair["chosen" + name], pair["rejected" + name] = pair["rejected" + name], pair["chosen" + name]
        pair["strength"], pair["label"] = -pair["strength"], "flipped"
        pair["margins"] = [0.0 - m for m in pair["margins"]]
    return kept, unscored


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("grid", [None, 1, 4])
def test_vote_and_flip_agrees_with_a_row_loop(seed: int, grid: int | None) -> None:
    random = np.random.default_rng(seed)
    pairs = make_pairs(int(random.integers(1, 80)), seed)
    scores = make_scores(pairs, ("b", "a", "c")[: 1 + seed % 3], seed, grid)
    scores = scores[random.random(len(scores)) > 0.03]  # some responses lack a score
    scores.loc[scores.sample(frac=0.02, random_state=seed).index, "score"] = [np.nan, np.inf, -np.inf][seed % 3]
    before = pairs.copy(deep=True)
    result = vote_and_flip(pairs, scores)
    expected, unscored = brute_vote_and_flip(pairs, scores)
    pd.testing.assert_frame_equal(pairs, before)
    assert result.unscored["pair_id"].tolist() == unscored
    assert len(result.voted) + len(result.unscored) == len(pairs)
    got = result.voted.to_dict("records")
    for row, want in zip(got, expected, strict=True):
        assert row["strength"] == pytest.approx(want["strength"], abs=1e-12)
        assert [vote["margin"] for vote in row["votes"]] == pytest.approx(want["margins"])
        for name in pairs.columns:
            assert row[name] == want[name], name
    assert result.flipped == sum(row["label"] == "flipped" for row in got) == result.negative // 2


def test_equal_means_are_flipped_in_the_order_of_pair_id_whatever_the_order_of_rows() -> None:
    pairs = make_pairs(7)
    scores = scores_with(pairs, [-1.0] * 7)
    for seed in range(5):
        shuffled = pairs.sample(frac=1, random_state=seed)
        voted = vote_and_flip(shuffled, scores.sample(frac=1, random_state=seed)).voted
        assert sorted(voted.loc[voted["label"] == "flipped", "pair_id"]) == ["p0000", "p0001", "p0002"]


@pytest.mark.parametrize(
    ("negative", "fraction", "flips"),
    [(1, 0.5, 0), (5, 0.5, 2), (100, 0.29, 29), (10, 1.0, 10), (10, 0.0, 0), (0, 0.5, 0)],
)
def test_number_of_flips_is_the_floor(negative: int, fraction: float, flips: int) -> None:
    pairs = make_pairs(negative + 3)
    margins = [-1.0 - i for i in range(negative)] + [0.0, 1.0, 2.0]
    result = vote_and_flip(pairs, scores_with(pairs, margins), fraction)
    assert (result.negative, result.flipped) == (negative, flips)
    flipped = result.voted["label"] == "flipped"
    assert flipped.sum() == flips
    assert (result.voted.loc[flipped, "strength"] > 0).all()


def test_a_pair_that_any_voter_did_not_score_is_unscored_with_the_reason() -> None:
    pairs = make_pairs(4)
    rows = pairs.to_dict("records")
    a = pd.DataFrame([r for p in rows for r in score_of(p, 1.0, "a")])
    b = pd.DataFrame([r for p in rows[1:] for r in score_of(p, 1.0, "b")])
    scores = pd.concat([a, b], ignore_index=True)
    scores.loc[(scores["response_id"] == rows[1]["rejected_id"]) & (scores["voter"] == "a"), "score"] = np.nan
    scores.loc[(scores["response_id"] == rows[2]["chosen_id"]) & (scores["voter"] == "b"), "score"] = -np.inf
    unscored = vote_and_flip(pairs, scores).unscored.set_index("pair_id")
    assert unscored.loc[rows[0]["pair_id"], "reason"] == "score missing"
    assert unscored.loc[rows[0]["pair_id"], "detail"] == "b: chosen missing; b: rejected missing"
    assert unscored.loc[rows[1]["pair_id"], ["reason", "detail"]].tolist() == [
        "score not finite",
        "a: rejected not finite",
    ]
    assert unscored.loc[rows[2]["pair_id"], "detail"] == "b: chosen not finite"
    assert len(unscored) == 3


def test_without_any_score_everything_is_unscored() -> None:
    pairs = make_pairs(3)
    scores = pd.DataFrame({"response_id": [], "voter": [], "score": []}).astype({"response_id": "str", "voter": "str"})
    result = vote_and_flip(pairs, scores)
    assert len(result.voted) == 0
    assert result.unscored["detail"].tolist() == ["no voter scored anything"] * 3
    assert result.voters == ()


def test_a_constant_voter_flips_nothing_and_contests_everything() -> None:
    pairs = make_pairs(5)
    scores = make_scores(pairs, ("v",), 0).assign(score=0.25)
    assert vote_and_flip(pairs, scores).flipped == 0
    assert len(verify(pairs, scores).contested) == 5


def test_malformed_tables_give_clear_errors() -> None:
    pairs = make_pairs(3)
    scores = make_scores(pairs, ("v",), 0)
    twice = pd.concat([pairs, pairs.iloc[:1]])
    for call in (vote_and_flip, verify):
        with pytest.raises(CurationError, match="1 rows repeat a pair_id"):
            call(twice, scores)
        with pytest.raises(CurationError, match=r"pairs: missing columns \['rejected_id'\]"):
            call(pairs.drop(columns="rejected_id"), scores)
        with pytest.raises(CurationError, match=r"scores: missing columns \['voter'\]"):
            call(pairs, scores.drop(columns="voter"))
        with pytest.raises(CurationError, match="two different scores"):
            call(pairs, pd.concat([scores, scores.iloc[:1].assign(score=99.0)]))
        with pytest.raises(CurationError, match="no response_id"):
            call(pairs, pd.concat([scores, scores.iloc[:1].assign(response_id=None)]))
    assert len(vote_and_flip(pairs, pd.concat([scores, scores])).voted) == 3  # repeated to the letter: counts once
    with pytest.raises(CurationError, match="repeat a pair_id"):
        resolve_annotations(twice, pd.DataFrame({"pair_id": [], "judge": [], "order": [], "verdict": []}))
    with pytest.raises(ValueError, match="between 0 and 1"):
        vote_and_flip(pairs, scores, 1.5)


def test_verify_keeps_agreement_and_contests_the_rest_ties_included() -> None:
    pairs = make_pairs(4)
    first = vote_and_flip(pairs, scores_with(pairs, [3.0, 2.0, 1.0, 1.0], "a")).voted
    rows = pairs.to_dict("records")
    scores = pd.DataFrame(
        [r for p, m in zip(rows[:3], [0.5, 0.0, -0.5], strict=True) for r in score_of(p, m, "verifier")]
    )
    result = verify(first, scores)
    assert result.verified["pair_id"].tolist() == [rows[0]["pair_id"]]
    assert result.contested["pair_id"].tolist() == [rows[1]["pair_id"], rows[2]["pair_id"]]
    assert result.unscored["pair_id"].tolist() == [rows[3]["pair_id"]]
    assert result.contested["strength"].tolist() == [0.0, -0.5]
    assert result.contested["chosen"].tolist() == [rows[1]["chosen"], rows[2]["chosen"]]
    assert result.verified["votes"].iloc[0] == [{"voter": "a", "margin": 3.0}, {"voter": "verifier", "margin": 0.5}]


VERDICTS = {
    "two for chosen": (["chosen", "chosen"], "kept", 2.0),
    "two for rejected": (["rejected", "rejected"], "swapped", 2.0),
    "one and a tie": (["chosen", "tie"], "kept", 1.0),
    "one against and a tie": (["tie", "rejected"], "swapped", 1.0),
    "split": (["chosen", "rejected"], "votes are tied", None),
    "two ties": (["tie", "tie"], "votes are tied", None),
    "one unusable": (["chosen", None], "votes do not sum to two", None),
    "nonsense": (["chosen", "A is better"], "votes do not sum to two", None),
    "none": ([], "votes do not sum to two", None),
    "three": (["chosen", "chosen", "chosen"], "votes do not sum to two", None),
    "two and an unusable": (["chosen", None, "chosen"], "kept", 2.0),
}


def test_resolve_annotations() -> None:
    contested = make_pairs(len(VERDICTS)).sort_values("pair_id", ignore_index=True)
    votes = pd.DataFrame(
        [
            {"pair_id": pair, "judge": f"j{i}", "order": ["forward", "reversed"][i % 2], "verdict": verdict}
            for pair, (verdicts, _, _) in zip(contested["pair_id"], VERDICTS.values(), strict=True)
            for i, verdict in enumerate(verdicts)
        ]
        + [{"pair_id": "another pair", "judge": "j0", "order": "forward", "verdict": "chosen"}]
    )
    result = resolve_annotations(contested, votes.sample(frac=1, random_state=0))
    assert len(result.annotated) + len(result.dropped) == len(contested)
    annotated = result.annotated.set_index("pair_id")
    dropped = result.dropped.set_index("pair_id")
    for pair, (name, (_, outcome, strength)) in zip(contested.to_dict("records"), VERDICTS.items(), strict=True):
        if strength is None:
            assert dropped.loc[pair["pair_id"], "reason"] == outcome, name
            assert dropped.loc[pair["pair_id"], "chosen_id"] == pair["chosen_id"], name
            continue
        row = annotated.loc[pair["pair_id"]]
        side = "chosen" if outcome == "kept" else "rejected"
        assert (row["chosen_id"], row["chosen"], row["label"]) == (pair[f"{side}_id"], pair[side], "annotated"), name
        assert row["strength"] == strength, name
        assert sum(vote["margin"] for vote in row["votes"]) == strength, name
    assert result.swapped == 2
    detail = dropped.loc[contested["pair_id"].iloc[list(VERDICTS).index("one unusable")], "detail"]
    assert detail == "votes for chosen 1, for rejected 0, unusable 1"


def test_empty_contested_set_and_empty_votes() -> None:
    pairs = make_pairs(3)
    scores = scores_with(pairs, [1.0, 1.0, 1.0])
    checked = verify(vote_and_flip(pairs, scores).voted, scores)
    assert len(checked.contested) == 0
    votes = schemas.table([], "votes")
    result = resolve_annotations(checked.contested, to_frame(votes))
    assert len(result.annotated) == len(result.dropped) == 0
    curated = merge(checked.verified, result.annotated, 1)
    assert curated["round"].tolist() == [1, 1, 1]
    dropped = resolve_annotations(verify(vote_and_flip(pairs, scores).voted, scores).verified, to_frame(votes)).dropped
    assert len(dropped) == 3


def test_all_contested() -> None:
    pairs = make_pairs(2)
    checked = verify(pairs, scores_with(pairs, [-1.0, -2.0]))
    votes = pd.DataFrame(
        [{"pair_id": p, "judge": j, "order": "forward", "verdict": "rejected"} for p in pairs["pair_id"] for j in "ab"]
    )
    curated = merge(checked.verified, resolve_annotations(checked.contested, votes).annotated)
    assert curated["chosen_id"].tolist() == pairs["rejected_id"].tolist()


def test_merge_refuses_a_pair_twice_and_differing_columns() -> None:
    pairs = make_pairs(3)
    with pytest.raises(CurationError, match="1 rows repeat"):
        merge(pairs, pairs.iloc[:1])
    with pytest.raises(CurationError, match="differ in columns"):
        merge(pairs, pairs.drop(columns="source"))


def test_arrow_tables_pass_through_every_step() -> None:
    rows = [
        records.make_pair(f"q{i}", f"chosen {i}", f"rejected {i}", source="s", votes=[{"voter": "old", "margin": 9.0}])
        for i in range(6)
    ]
    pairs = to_frame(schemas.table(rows, "pairs"))
    scores = scores_with(pairs, [-3.0, -2.0, -1.0, -0.5, 1.0, 2.0], "a")
    scores = to_frame(to_table(scores[scores["response_id"] != rows[5]["chosen_id"]], "scores"))
    step1 = vote_and_flip(pairs, scores)
    voted = to_table(step1.voted, "pairs")
    assert voted.schema.equals(schemas.SCHEMAS["pairs"])
    assert voted.column("label").to_pylist() == ["flipped", "flipped", "original", "original", "original"]
    assert voted.column("votes").to_pylist()[0] == [{"voter": "a", "margin": 3.0}]
    aside = quarantine_table(step1.unscored, "voted_pairs")
    assert aside.to_pylist() == [records.quarantine_pair(rows[5], "voted_pairs", "score missing", "a: chosen missing")]
    step2 = verify(to_frame(voted), scores)
    contested = to_table(step2.contested, "pairs")
    votes = [
        {"pair_id": p, "judge": j, "order": "forward", "verdict": "rejected"}
        for p in contested.column("pair_id").to_pylist()
        for j in ("x", "y")
    ]
    step3 = resolve_annotations(to_frame(contested), to_frame(schemas.table(votes, "votes")))
    curated = to_table(merge(step2.verified, step3.annotated, 1), "pairs")
    assert curated.num_rows == 5
    assert sorted(curated.column("label").to_pylist()) == ["annotated"] * 2 + ["flipped"] * 2 + ["original"]
    assert curated.column("votes").to_pylist()[-1] == [
        {"voter": "a", "margin": 0.5},
        {"voter": "a", "margin": 0.5},
        {"voter": "x", "margin": 1.0},
        {"voter": "y", "margin": 1.0},
    ]
    assert isinstance(to_table(step2.unscored, "pairs"), pa.Table)
    # The same frames as a plain `to_pandas()` makes them.
    plain = verify(voted.to_pandas(), scores.copy())
    assert plain.contested["votes"].tolist() == step2.contested["votes"].tolist()
