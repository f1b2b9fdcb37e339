"""What the report says became of pairs, which it calls suspicious, and what it counts as cost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd

from dt2it_pipeline.config.sections.annotation import AnnotationSettings
from dt2it_pipeline.config.sections.judging import JudgingSettings
from dt2it_pipeline.construct import judge
from dt2it_pipeline.curate.annotation import annotate
from dt2it_pipeline.orchestrate.report.outcomes import cost_of, outcomes_of, suspects_of
from dt2it_pipeline.orchestrate.report.round import _rests_on
from dt2it_pipeline.storage import atomic, records, schemas
from dt2it_pipeline.storage.artifacts import Artifact
from dt2it_pipeline_tests.support.construct_world import COLORS, judging_job, prompt_row, response_rows


def pair(n: int, *, swapped: bool = False, source: str = "mine", margin: float = 1.0) -> dict[str, Any]:
    """Pair `n`; `margin` of its two voters is that of the side that stands as chosen."""
    sides = ("bad", "good") if swapped else ("good", "bad")
    votes = [{"voter": "a", "margin": margin}, {"voter": "b", "margin": margin}]
    return records.make_pair(f"p{n}", *sides, source=source, votes=votes, row_id=f"row {n}")


def sources() -> Any:
    """Pair 0 is kept; 1 flipped by the vote; 2 contested, judged and flipped; 3, of another source, dropped."""
    raw = [pair(0), pair(1), pair(2), pair(3, source="other")]
    voted = [pair(0), pair(1, swapped=True), pair(2, margin=-1.0), pair(3, source="other", margin=-0.5)]
    curated = [pair(0), pair(1, swapped=True), pair(2, swapped=True)]
    vote = {"pair_id": raw[2]["pair_id"], "judge": "j", "order": "forward", "verdict": "rejected"}
    person = vote | {"judge": "person: x", "order": "people"}
    prompts = [
        {"prompt_id": f"p{n}", "system": None, "turns": [{"role": "user", "text": f"What is {n}?"}], "media": []}
        for n in range(4)
    ]
    gone = [records.quarantine_pair(raw[3], "annotated_pairs", "not sure enough")]
    contested = [records.quarantine_pair(raw[2], "verified_pairs", "contested")]

    def made(**tables: tuple[list[dict[str, Any]], str]) -> Artifact:
        return Artifact({name: schemas.table(rows, kind) for name, (rows, kind) in tables.items()})

    found = {
        "voted_pairs": made(pairs=(voted, "pairs"), quarantine=([], "quarantine")),
        "verified_pairs": made(quarantine=(contested, "quarantine")),
        "contested_pairs": made(pairs=([voted[2]], "pairs")),
        "annotated_pairs": made(quarantine=(gone, "quarantine"), votes=([vote, person], "votes")),
        "curated_pairs": made(pairs=(curated, "pairs")),
    }
    before = {"raw_preferences": Artifact({"pairs": schemas.table(raw, "pairs"), "prompts": _prompts(prompts)})}
    return cast(Any, SimpleNamespace(before=before, rounds=[found]))


def _prompts(rows: list[dict[str, Any]]) -> Any:
    return SimpleNamespace(to_pylist=lambda: rows)


def test_outcomes_by_source_add_up() -> None:
    mine, other = outcomes_of(sources(), 0)
    assert (mine.source, mine.pairs, mine.kept, mine.flipped, mine.contested) == ("mine", 3, 1, 2, 1)
    assert (other.source, other.pairs, dict(other.dropped)) == ("other", 1, {"not sure enough": 1})


def test_suspicious_pairs_are_those_with_the_least_probable_labels_as_they_came() -> None:
    given = sources()
    ids = [row["pair_id"] for row in given.before["raw_preferences"]["pairs"].to_pylist()]
    sure = pd.DataFrame({"pair_id": ids, "probability": [0.9, 0.2, 0.1, 0.4]})
    found = suspects_of(given, 0, cast(Any, SimpleNamespace(label_right=sure)))
    assert [(one.pair_id, one.probability, one.outcome) for one in found] == [
        (ids[2], 0.1, "flipped"), (ids[1], 0.2, "flipped"), (ids[3], 0.4, "dropped"),
    ]  # fmt: skip
    assert found[0].why == "against the label: 2 of 2 voters, 1 of 1 judge verdicts, 1 of 1 people"
    assert found[1].why == "against the label: 2 of 2 voters"  # its voters agree with the side that stands now
    assert (found[0].chosen, found[0].rejected, found[0].row_id) == ("good", "bad", "row 2")
    assert found[0].question == "What is 2?"


def test_without_probabilities_voters_name_the_suspicious_pairs() -> None:
    given = sources()
    ids = [row["pair_id"] for row in given.before["raw_preferences"]["pairs"].to_pylist()]
    empty = pd.DataFrame({"pair_id": [], "probability": []})
    found = suspects_of(given, 0, cast(Any, SimpleNamespace(label_right=empty)))
    assert [one.pair_id for one in found] == [ids[1], ids[2], ids[3]]
    assert {one.probability for one in found} == {None}


def test_cost_counts_calls_tokens_and_time_of_what_was_made() -> None:
    judged = Artifact(
        {},
        {
            "judges": {"a": {"calls": 12, "asked": 10, "looked_up": 2, "prompt_tokens": 100, "completion_tokens": 7}},
            "seconds": 5,
        },
    )
    judging = [{"asked": {"a": {"asked": 4, "looked_up": 5, "prompt_tokens": 40}}}]
    asked = Artifact({}, {"judging": judging, "judge_calls": 4, "cached_replies": 5, "seconds": 2.5})
    trained = Artifact({}, {"seconds": 60, "gpu_seconds": 400.0})
    left = Artifact({}, {"not_trained": "why", "seconds": 9})
    cost = cost_of("round 0", [judged, asked, trained, left])
    assert (cost.judge_calls, cost.cached_replies) == (14, 7)
    assert (cost.prompt_tokens, cost.completion_tokens) == (140, 7)
    assert (cost.seconds, cost.gpu_seconds) == (67.5, 400.0)


class _FirstIsLikelier:
    """The likelihoods that a judge without a model decides by."""

    def evidence(self, questions: Any) -> list[list[float]]:
        return [[float(-place) for place in range(len(question.responses))] for question in questions]


def test_cost_counts_calls_of_every_judge_that_asks_a_model_and_of_no_other(tmp_path: Path) -> None:
    rows = [prompt_row(tmp_path, color) for color in COLORS]
    texts = [response for row in rows for response in response_rows(row, "It is red.", "It is blue.")]
    scored = judge.run(judging_job(tmp_path, rows, texts, JudgingSettings()), lambda progress: None)
    assert scored["judges"]["reference"]["calls"] > 0
    atomic.write_parquet(
        schemas.table([records.make_pair(row["prompt_id"], "red", "blue", source="test") for row in rows], "pairs"),
        tmp_path / "pairs.parquet",
    )
    job = annotate.AnnotateJob(
        pairs=tmp_path / "pairs.parquet",
        prompts=tmp_path / "prompts.parquet",
        media_root=tmp_path,
        output=tmp_path / "votes.parquet",
        work=tmp_path / "work",
        settings=AnnotationSettings.model_validate({"judges": [{"name": "likely"}]}),
        seed=0,
    )
    summary = annotate.run(job, lambda progress: None, lambda judge: _FirstIsLikelier())
    annotated = {"judging": [summary], "judge_calls": summary["calls"], "cached_replies": summary["cached"]}
    assert cost_of("before the rounds", [Artifact({}, scored)]).judge_calls == 0
    assert cost_of("round 0", [Artifact({}, annotated)]).judge_calls == len(rows)


def test_what_an_estimate_rests_on() -> None:
    voted = {"audited_pairs": 1200, "trusted_pairs": 60}
    assert _rests_on(voted, anchored=True).startswith("an audit of 1,200 pairs and 60 trusted pairs")
    few = _rests_on({"audited_pairs": 3, "trusted_pairs": 0}, anchored=False)
    assert few.startswith("the assumption") and few.endswith("an audit of 3 pairs are too few to replace it")
    assert "few" not in _rests_on({"audited_pairs": 0, "trusted_pairs": 0}, anchored=False)
