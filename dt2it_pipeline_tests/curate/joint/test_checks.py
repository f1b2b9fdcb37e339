"""Voters and judges that are against the labels, where nothing is checked."""

from __future__ import annotations

import numpy as np
import pytest

from dt2it_pipeline.curate.joint.checks import opponents
from dt2it_pipeline.curate.joint.evidence import gather_evidence


def found(margins: np.ndarray, verdicts: np.ndarray) -> tuple[list[bool], str | None]:
    """What `opponents` finds of voters v0, v1 ... and judges j0, j1 ..."""
    count = len(verdicts)
    voters, judges = ([f"{name}{k}" for k in range(each.shape[1])] for name, each in (("v", margins), ("j", verdicts)))
    evidence = gather_evidence(margins, voters, verdicts, judges, np.zeros(count), np.full(count, ""))
    against, note = opponents(evidence, verdicts, judges)
    return against.tolist(), note


def signs(in_favour: int, against: int, ties: int = 0) -> np.ndarray:
    """float64 [n, 1]: so many for the label, against it and neither."""
    return np.repeat([1.0, -1.0, 0.0], [in_favour, against, ties])[:, None]


@pytest.mark.parametrize(("against", "is_one"), [(59, False), (61, True)])
def test_whoever_is_clearly_more_often_against_labels_than_for_them_is_an_opponent(against: int, is_one: bool) -> None:
    """Two standard errors of 100 are 20: 60 against 40 is the bound."""
    some, none = signs(100 - against, against), np.empty((100, 0))
    by_voter, about_voter = found(some * np.linspace(1, 2, 100)[:, None], none)
    by_judge, about_judge = found(none, some)
    assert by_voter == by_judge == [is_one]
    if is_one:
        assert about_voter is not None and "agree with fewer than half of the labels: voter v0 (39%)" in about_voter
        assert about_judge is not None and "agree with fewer than half of the labels: judge j0 (39%)" in about_judge


@pytest.mark.parametrize(("judged", "is_one"), [(79, False), (80, True)])
def test_judges_that_saw_a_part_of_the_pairs_are_no_opponents(judged: int, is_one: bool) -> None:
    found_ones, note = found(np.empty((100, 0)), signs(0, judged, 100 - judged))
    assert found_ones == [is_one] and (note is not None) is is_one


def test_a_voter_that_saw_a_part_of_the_pairs_is_named_apart() -> None:
    margins = np.where(np.arange(100) < 50, -1.0 - np.arange(100), np.nan)[:, None]
    ones, note = found(np.concatenate([margins, -margins], axis=1), np.empty((100, 0)))
    assert ones == [True, False]
    assert (
        note is not None and "a part of the pairs alone and agree with fewer than half of its labels: voter v0" in note
    )
