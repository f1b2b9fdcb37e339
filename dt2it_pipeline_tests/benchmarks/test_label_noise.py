"""`benchmarks.label_noise`: the steps of a round on pairs whose labels are made wrong."""

import numpy as np
import pandas as pd

from benchmarks.label_noise import curate, decided_by, mislabelled, verdicts_on
from dt2it_pipeline.config.sections.curation import CurationSettings
from dt2it_pipeline.curate import Anchor, make_policy
from dt2it_pipeline.curate.pair_frames import swap_sides
from dt2it_pipeline_tests.support.label_worlds import World, judged_with

COUNT, TRUSTED = 300, 80


def world() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, Anchor]:
    """Pairs with the truly better side chosen, scores of two voters, verdicts on all pairs, and trusted pairs."""
    made = World(COUNT + TRUSTED, 0.0)
    scores = pd.concat([made.voter("a"), made.voter("b")], ignore_index=True)
    pairs = made.pairs.assign(strength=0.0, votes=None)
    known, trusted = pairs.iloc[:COUNT], pairs.iloc[COUNT:].reset_index(drop=True)
    return known, scores, judged_with(0.95, made, known), Anchor(trusted)


def test_wrong_labels_are_found_by_the_joint_policy_and_the_anchor() -> None:
    pairs, scores, verdicts, anchor = world()
    policy, wrong = make_policy(CurationSettings(policy="joint")), mislabelled(pairs, 0.3, "even", 0)
    made = curate(policy, pairs, scores, verdicts, wrong, 2, anchor)
    assert list(made) == ["paper", "alone right", "alone kept", "right", "kept", "asked"]
    assert made["right"] > 0.95 > made["paper"]
    assert 0.5 < made["alone kept"] < made["kept"] and 0 < made["asked"] < 1


def test_a_decision_has_all_pairs_and_no_call_where_there_may_be_none() -> None:
    pairs, scores, verdicts, anchor = world()
    policy = make_policy(CurationSettings(policy="joint"))
    better = dict(zip(pairs["pair_id"], pairs["chosen_id"], strict=True))
    given = swap_sides(pairs, mislabelled(pairs, 0.3, "even", 0))
    voted, checked, decided = decided_by(policy, given, scores, better, verdicts, 2, anchor, 0)
    assert len(voted) == len(checked.verified) + len(checked.contested) == COUNT
    assert len(decided.kept) + len(decided.annotated) + len(decided.dropped) == COUNT
    assert decided.metadata["anchored"] and not len(decided.asked) and not len(decided.votes)


def test_verdicts_follow_the_sides_that_a_pair_has() -> None:
    pairs, _, verdicts, _ = world()
    better = dict(zip(pairs["pair_id"], pairs["chosen_id"], strict=True))
    turned = swap_sides(pairs.iloc[:2], np.array([True, False]))
    found, before = verdicts_on(turned, better, verdicts)["verdict"], verdicts["verdict"].iloc[:4]
    assert list(found.iloc[2:]) == list(before.iloc[2:])
    assert all(
        {one, other} == {"chosen", "rejected"} for one, other in zip(found.iloc[:2], before.iloc[:2], strict=True)
    )
