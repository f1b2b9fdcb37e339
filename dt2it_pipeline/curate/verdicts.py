"""What judges' verdicts are worth, and what they teach about the voters: the judged side of the policy `posterior`.

The vote gives every pair the log-odds s_i >= 0 that its present label is right (`posterior`). They are fitted without a
single true label, so what voters and labels get wrong together looks like agreement: where noisy labels prefer the
longer side and a voter is more often wrong where the shorter one is better, s_i is too great. Judges see neither, and
what they say of the contested pairs tells how far s_i can be trusted. With t_i the difference
log(1 + length of chosen) - log(1 + length of rejected) in characters, the log-odds are read as

    u_i = slope s_i + style t_i,    0 <= slope <= 1,

and a verdict, right with the share a, agrees with the label with a sigmoid(u_i) + (1 - a) sigmoid(-u_i). Slope, style
and a have the greatest posterior under the priors N(1, 0.25^2), N(0, 0.5^2) and Beta(17, 5), whose mode is 0.8: without
verdicts the vote is taken at its word. There is no intercept: the same pair with its sides swapped must have -u_i.
Verdicts teach doubt alone, min(u_i, s_i) counts: judges are asked about doubtful pairs, which is no reason to trust
any more than the vote did, and a coin's verdicts make no pair surer.

A verdict adds log(a / (1 - a)) to its side. Pairs of which the vote was sure and u_i is not are judged as well
(`doubtful`); what noise that goes with style leaves behind is found there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit, log_expit, logit

from dt2it_pipeline.curate.frames import length_difference, select_rows, stack, swap_sides
from dt2it_pipeline.curate.steps import AnnotationResult, resolve_annotations

UNSURE = "not sure enough after the judges' votes"
_RIGHT, _WRONG = 16.0, 4.0  # exponents of the prior on the share of right verdicts
_SLOPE_SPREAD, _STYLE_SPREAD = 0.25, 0.5


@dataclass(frozen=True)
class Trust:
    """What voters' log-odds and judges' verdicts are worth.

    Attributes:
        slope: nats per nat of the vote's log-odds, 0 to 1.
        style: nats per unit of the difference of log lengths, chosen over rejected.
        accuracy: share of right verdicts.
    """

    slope: float
    style: float
    accuracy: float

    def log_odds(self, pairs: pd.DataFrame) -> np.ndarray:
        """min(u_i, s_i) of pairs with `strength` s_i >= 0, in nats; without texts there is no style."""
        strength = _strength(pairs)
        return np.minimum(self.slope * strength + self.style * length_difference(pairs), strength)


@dataclass(frozen=True)
class WeighedResult(AnnotationResult):
    """As `steps.AnnotationResult`; `trust` is what was fitted."""

    trust: Trust


def weigh_judges(
    contested: pd.DataFrame, votes: pd.DataFrame, keep_probability: float, judges: int = 2
) -> WeighedResult:
    """Decide contested pairs by the voters' log-odds and the judges' verdict together.

    The judges' votes make one verdict, as in `steps.resolve_annotations`; pairs without one are dropped as there. The
    side with the greater log-odds becomes chosen. The pair is kept if they reach those of `keep_probability`, else
    dropped with the reason "not sure enough". Verdicts that are wrong more often than right add nothing.

    Args:
        contested: pairs as `posterior.split_confident` returns them: `strength` is s_i in nats.
        votes: pair_id, judge, order, verdict.
        keep_probability: 0.5 or more; at 0.5 every pair with a verdict is kept.
        judges: 1 or 2, the votes that make a verdict.

    Returns:
        `annotated` with `strength` = log-odds (nats) that the label is right after the judges' votes.

    Raises:
        CurationError: malformed tables or repeated pair ids.
    """
    decided = resolve_annotations(contested, votes, judges)
    before, agrees = _beside(contested, decided)
    trust = fit_trust(before, agrees)
    log_odds = trust.log_odds(before)
    # In the direction of the verdict, which is that of the rows of `annotated`.
    after = np.where(agrees, log_odds, -log_odds) + max(float(logit(trust.accuracy)), 0.0)
    overruled = after < 0  # the vote says more than the judges
    annotated = swap_sides(decided.annotated.assign(strength=after), overruled)
    probability = expit(annotated["strength"].to_numpy())
    sure = probability >= keep_probability
    unsure = select_rows(contested, contested["pair_id"].isin(annotated["pair_id"][~sure]).to_numpy())
    detail = pd.Series(probability[~sure], index=annotated["pair_id"][~sure]).reindex(unsure["pair_id"])
    unsure = unsure.assign(
        reason=pd.Series(UNSURE, index=unsure.index, dtype="str"),
        detail=pd.Series([f"the better side is right with {p:.2f}" for p in detail], index=unsure.index, dtype="str"),
    )
    swapped = int(((agrees == overruled) & sure).sum())
    return WeighedResult(select_rows(annotated, sure), stack(decided.dropped, unsure), swapped, trust)


def doubtful(
    sure: pd.DataFrame, judged: pd.DataFrame, votes: pd.DataFrame, keep_probability: float, judges: int = 2
) -> np.ndarray:
    """Which of the pairs that the vote was sure of are less sure than `keep_probability`, given the verdicts on others.

    Args:
        sure: pairs as `posterior.split_confident` keeps them.
        judged: other pairs that the vote left contested, about which judges were asked.
        votes: on `judged`, as for `weigh_judges`.
        keep_probability: as for `split_confident`.
        judges: as for `weigh_judges`.

    Returns:
        Bool [sure pairs]; none where there is no verdict.
    """
    trust = fit_trust(*_beside(judged, resolve_annotations(judged, votes, judges)))
    return trust.log_odds(sure) < logit(keep_probability)


def fit_trust(pairs: pd.DataFrame, agrees: np.ndarray) -> Trust:
    """The trust that verdicts on these pairs teach; `agrees`, bool [pairs], says which verdicts are the label's."""
    from scipy.optimize import minimize  # half a second, which the many programs that fit nothing are spared

    strength, style = _strength(pairs), length_difference(pairs)

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log posterior of (slope, style, logit accuracy), and its gradient."""
        slope, bias, log_odds_right = at
        right, accuracy = expit(slope * strength + bias * style), expit(log_odds_right)
        agreement = accuracy * right + (1 - accuracy) * (1 - right)
        value = -np.log(np.where(agrees, agreement, 1 - agreement)).sum()
        value += ((slope - 1) / _SLOPE_SPREAD) ** 2 / 2 + (bias / _STYLE_SPREAD) ** 2 / 2
        value -= _RIGHT * log_expit(log_odds_right) + _WRONG * log_expit(-log_odds_right)
        by_agreement = np.where(agrees, -1 / agreement, 1 / (1 - agreement))
        by_odds = by_agreement * (2 * accuracy - 1) * right * (1 - right)
        return float(value), np.array([
            by_odds @ strength + (slope - 1) / _SLOPE_SPREAD**2,
            by_odds @ style + bias / _STYLE_SPREAD**2,
            (by_agreement @ (2 * right - 1)) * accuracy * (1 - accuracy)
            - _RIGHT * (1 - accuracy) + _WRONG * accuracy,
        ])  # fmt: skip

    start = np.array([1.0, 0.0, logit(_RIGHT / (_RIGHT + _WRONG))])
    bounds = [(0.0, 1.0), (-10.0, 10.0), (-10.0, 10.0)]
    slope, bias, log_odds_right = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Trust(float(slope), float(bias), float(expit(log_odds_right)))


def _beside(contested: pd.DataFrame, decided: AnnotationResult) -> tuple[pd.DataFrame, np.ndarray]:
    """The contested pairs that have a verdict, in the order of `decided.annotated`, and whether it is their label's."""
    before = contested.set_index("pair_id").reindex(decided.annotated["pair_id"])
    agrees = decided.annotated["chosen_id"].to_numpy(dtype=object) == before["chosen_id"].to_numpy(dtype=object)
    return before, agrees


def _strength(pairs: pd.DataFrame) -> np.ndarray:
    return pairs["strength"].to_numpy(dtype=np.float64)
