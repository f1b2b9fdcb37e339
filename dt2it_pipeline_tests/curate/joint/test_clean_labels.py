"""Clean labels are not flipped for the errors of annotators; wrong ones are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline import clean_preferences
from dt2it_pipeline.curate.joint.clean_labels import clean_probabilities
from dt2it_pipeline.curate.joint.evidence import Evidence, gather_evidence
from dt2it_pipeline.curate.joint.model import Anchors, fit_joint_model
from dt2it_pipeline_tests.support.noisy_world import noisy_world

SHAPES = ("normal", "binary", "heavy", "rounded")


@pytest.mark.parametrize("label", [1.0, 0.7])
@pytest.mark.parametrize(("place", "voter"), enumerate([0.6, 0.8, 0.9, 0.99]))
@pytest.mark.parametrize("kind", ["audit", "trusted"])
def test_clean_labels_are_left_alone_and_wrong_ones_flipped(label: float, place: int, voter: float, kind: str) -> None:
    world = noisy_world(1100, label, voter, judges=1, judge=0.85, shape=SHAPES[place], seed=int(100 * voter))
    known: dict[str, Any] = {}
    if kind == "audit":
        known["audit"] = world.audit(60)
    else:
        world, known["trusted"] = world.with_trusted(1000)
    found = clean_preferences(world.pairs, world.scores, world.votes, **known).pairs["outcome"]
    if label == 1.0:
        assert not (found == "flipped").any()
    else:
        assert world.accuracy(found) > world.right.mean() + 0.05
        assert voter < 0.8 or (found == "flipped").sum() > 50  # poor voters leave little that is sure enough


def disputing(wrong: np.ndarray, known_errors: int, known: int = 100) -> tuple[Evidence, Anchors, np.ndarray]:
    """Two sources of 500 labels of which so many are disputed, trusted pairs with errors of voters, draws of a fit."""
    margins = np.ones((1000 + known, 1)) + np.linspace(0, 1, 1000 + known)[:, None]
    for source, count in enumerate(wrong):
        margins[500 * source : 500 * source + count] *= -1
    margins[1000 : 1000 + known_errors] *= -1
    sources = np.where(np.arange(len(margins)) < 500, "a", "b")
    none = np.empty((len(margins), 0))
    joined = gather_evidence(margins, ["v"], none, [], np.zeros(len(margins)), sources)
    own = joined.rows(slice(1000))
    anchors = Anchors(np.zeros(1000, dtype=int), joined.features[1000:])
    return own, anchors, fit_joint_model(own, anchors, np.arange(1000)).draws(32)


@pytest.mark.parametrize(
    ("wrong", "known_errors", "clean"),
    [
        ((10, 10), 2, (True, True)),  # as many as the errors of voters explain
        ((150, 150), 2, (False, False)),
        ((0, 150), 2, (True, False)),  # all pairs together, of which 15% are disputed, count for the second, too
        ((4, 4), 0, (True, True)),  # none of 100 known pairs: the share may still be 3%
        ((50, 50), 5, (True, True)),  # twice as many: these pairs may be harder than the trusted ones
    ],
)
def test_labels_are_clean_where_errors_explain_what_is_disputed(
    wrong: tuple[int, int], known_errors: int, clean: tuple[bool, bool]
) -> None:
    evidence, anchors, draws = disputing(np.array(wrong), known_errors)
    found = clean_probabilities(evidence, anchors, draws, evidence.features[:, 0] < 0)
    for probability, expected in zip(found[evidence.sources[[0, -1]]], clean, strict=True):
        assert probability > 0.6 if expected else probability < 0.15


def test_an_audit_that_finds_wrong_labels_is_enough() -> None:
    evidence, anchors, draws = disputing(np.array([8, 8]), 0)
    disputed = evidence.features[:, 0] < 0
    checked = np.zeros(1000, dtype=int)
    checked[100:140] = checked[600:640] = 1
    found = []
    for errors in (0, 4, 10):  # four of forty may be the auditor's own errors
        checked[100 : 100 + errors] = checked[600 : 600 + errors] = -1
        found.append(clean_probabilities(evidence, Anchors(checked, anchors.trusted), draws, disputed))
    assert found[0].min() > 0.9 and found[1].min() > 0.2 and found[2].max() < 0.05


def test_answers_and_annotators_that_are_against_the_same_labels_show_that_these_are_wrong() -> None:
    """A tenth of the answers may be the auditor's errors, and a tenth of the disputes the voter's; not on one tenth."""
    rows = range(200)
    table = pd.DataFrame(
        {
            "chosen": [f"answer {n}" for n in rows],
            "rejected": [f"other {n}" for n in rows],
            "good": [2.0 if n % 10 else -2.0 for n in rows],
            "bad": 0.0,
        }
    )
    order = np.random.default_rng(0).permutation(200)
    for count in (60, 120, 150):  # each audit is a part of the next
        answers = [{"pair_id": n, "better_id": "chosen" if n % 10 else "rejected"} for n in order[:count]]
        found = clean_preferences(
            table, audit=pd.DataFrame(answers), chosen_scores=["good"], rejected_scores=["bad"]
        ).pairs
        disputed = np.array([n % 10 == 0 for n in rows])
        assert (found["outcome"][disputed] == "flipped").all() and (found["outcome"][~disputed] == "kept").all()


def test_all_may_be_flipped_where_only_the_label_accuracy_is_known() -> None:
    evidence, anchors, draws = disputing(np.array([8, 8]), 0)
    known = Anchors(np.zeros(1000, dtype=int), anchors.trusted[:0], label_accuracy=0.9)
    assert not clean_probabilities(evidence, known, draws, evidence.features[:, 0] < 0).any()


def test_labels_that_are_not_flipped_are_dropped_and_counted() -> None:
    world, trusted = noisy_world(2100, 0.98, 0.95, judges=1, judge=0.95, seed=2).with_trusted(2000)
    found = clean_preferences(world.pairs, world.scores, world.votes, trusted=trusted)
    outcome = found.pairs["outcome"]
    assert not (outcome == "flipped").any()
    assert world.accuracy(outcome) > 0.99
    counted = found.pairs["probability"][outcome == "dropped"].le(0.2).sum()
    assert counted and any(note.startswith(f"{counted} labels are more probably wrong") for note in found.notes)
