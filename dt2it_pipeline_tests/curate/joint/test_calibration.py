"""Claimed against observed, on pairs whose truth the fit has not seen."""

from __future__ import annotations

import numpy as np
import pytest

from dt2it_pipeline.curate.joint import calibration
from dt2it_pipeline.curate.joint.calibration import claimed_and_observed
from dt2it_pipeline.curate.joint.evidence import Evidence
from dt2it_pipeline.curate.joint.model import Anchors, JointModel
from dt2it_pipeline.curate.joint.solution import Observed, Prices, Solution, Trusted, solve


def world(checked: int, trusted: int, judge_right: float = 0.9, seed: int = 0) -> tuple[Observed, Solution]:
    """600 pairs with labels that are right in 75%, a voter and a judge, of which some are checked; and trusted ones."""
    rng = np.random.default_rng(seed)
    count = 600 + trusted
    truth = np.where(rng.random(count) < 0.75, 1, -1)
    truth[600:] = 1
    margins = (truth * (1.0 + rng.standard_normal(count)))[:, None]
    verdicts = (truth * np.where(rng.random(count) < judge_right, 1, -1)).astype(float)[:, None]
    answers = np.where(np.arange(600) < checked, truth[:600], 0)
    draw = rng.integers(0, 2**63, 600).astype(np.uint64)
    observed = Observed(
        margins[:600], ["v"], verdicts[:600], ["j"], np.zeros(600), np.full(600, ""), answers, draw,
        np.zeros(600, dtype=bool), Trusted(margins[600:], verdicts[600:], np.zeros(trusted)) if trusted else None,
    )  # fmt: skip
    return observed, solve(observed, Prices(0.8, 0.05))


@pytest.mark.parametrize(("checked", "trusted", "kinds"), [(200, 0, {"audited"}), (0, 200, {"trusted"})])
def test_what_is_claimed_is_so(checked: int, trusted: int, kinds: set[str]) -> None:
    found = claimed_and_observed(*world(checked, trusted))
    assert set(found["kind"]) == kinds and found["pairs"].sum() == checked + trusted
    assert found["claimed"].between(0.5, 1).all() and found["observed"].between(0, 1).all()
    claimed, seen = (np.average(found[name], weights=found["pairs"]) for name in ("claimed", "observed"))
    assert claimed == pytest.approx(seen, abs=0.04)


@pytest.mark.parametrize("place", [3, 150])
def test_a_pair_is_predicted_by_a_fit_that_did_not_see_it(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    observed, solution = world(0, 200)
    seen: list[np.ndarray] = []
    fit = calibration.fit_joint_model

    def remember(evidence: Evidence, anchors: Anchors, draw: np.ndarray) -> JointModel:
        seen.append(anchors.trusted)
        return fit(evidence, anchors, draw)

    monkeypatch.setattr(calibration, "fit_joint_model", remember)
    claimed_and_observed(observed, solution)
    row = solution.anchors.trusted[place]
    assert len(seen) == 5 and [len(part) for part in seen] == [160] * 5
    assert sum((part == row).all(axis=1).any() for part in seen) == 4


def test_without_known_truth_there_is_nothing_to_compare() -> None:
    assert not len(claimed_and_observed(*world(0, 0)))
    assert not len(claimed_and_observed(*world(14, 0)))  # too few to anchor anything


def test_answers_at_random_are_not_called_a_calibration() -> None:
    observed, solution = world(100, 0)
    rng = np.random.default_rng(1)
    guessed = np.where(observed.checked != 0, rng.choice([-1, 1], 600), 0)
    again = solve(Observed(**{**vars(observed), "checked": guessed}), Prices(0.8, 0.05))
    assert again.doubt is not None and solution.doubt is None
    assert not len(claimed_and_observed(observed, again))
