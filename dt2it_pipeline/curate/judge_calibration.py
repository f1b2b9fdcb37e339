"""What judges' verdicts are worth, and what they teach about the voters: the judged side of the policy `posterior`.

The vote gives every pair the log-odds s_i >= 0 that its present label is right (`posterior`). They are fitted without a
single true label, so what voters and labels get wrong together looks like agreement: where noisy labels prefer the
longer side and a voter is more often wrong where the shorter one is better, s_i is too great. Judges have not seen
them, and what they say of the contested pairs tells how far s_i can be trusted. With t_i the difference
log(1 + length of chosen) - log(1 + length of rejected) in characters, the log-odds are read as

    u_i = slope s_i + style t_i,    0 <= slope <= 1.

Judges have a taste of their own, many for the longer answer. With a the share of right verdicts on two sides of one
length, the verdict is the label where the label is right with the probability p_i, and where it is wrong with q_i:

    p_i = sigmoid(logit a + judge_style t_i),    q_i = sigmoid(-logit a + judge_style t_i),

so that it agrees with the label with p_i sigmoid(u_i) + q_i sigmoid(-u_i). What the vote got wrong shows least where
s_i is great, what judges get wrong shows everywhere: that tells the two apart. Slope, style, a and judge_style have the
greatest posterior under the priors N(1, 0.25^2), N(0, 0.5^2), Beta(17, 5), whose mode is 0.8, and N(0, 0.5^2): without
verdicts the vote is taken at its word. There is no intercept: the same pair with its sides swapped must have -u_i.
Verdicts teach doubt alone, min(u_i, s_i) counts: judges are asked about doubtful pairs, which is no reason to trust
any more than the vote did, and a coin's verdicts make no pair surer.

A verdict for the label adds log(p_i / q_i) to its side, one against it log((1 - q_i) / (1 - p_i)) to the other: little
where it is to the judges' taste. Pairs of which the vote was sure and u_i is not are judged as well (`doubtful`); what
noise that goes with style leaves behind is found there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit, log_expit, logit

from dt2it_pipeline.curate.pair_frames import length_difference, select_rows, stack, swap_sides
from dt2it_pipeline.curate.published_algorithm import AnnotationResult, resolve_annotations

UNSURE = "not sure enough after the judges' votes"
_RIGHT, _WRONG = 16.0, 4.0  # exponents of the prior on the share of right verdicts
_SLOPE_SPREAD, _STYLE_SPREAD, _TASTE_SPREAD = 0.25, 0.5, 0.5
_STARTS = ((0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 2.0), (0.0, -2.0))  # of style and judge_style
_LEAST = 1e-12  # a probability; smaller ones have no logarithm worth adding
_ROUNDING = 1e-9  # nats; a probability that equals the bound is enough


@dataclass(frozen=True)
class Trust:
    """What voters' log-odds and judges' verdicts are worth.

    Attributes:
        slope: nats per nat of the vote's log-odds, 0 to 1.
        style: nats per unit of the difference of log lengths, chosen over rejected.
        accuracy: share of right verdicts on two sides of one length.
        judge_style: nats per unit of the difference of log lengths that judges give to the longer side.
    """

    slope: float
    style: float
    accuracy: float
    judge_style: float

    def log_odds(self, pairs: pd.DataFrame) -> np.ndarray:
        """min(u_i, s_i) of pairs with `strength` s_i >= 0, in nats; without texts there is no style."""
        strength = _strength(pairs)
        return np.minimum(self.slope * strength + self.style * length_difference(pairs), strength)

    def evidence(self, longer: np.ndarray) -> np.ndarray:
        """What a verdict adds to its side, in nats >= 0; `longer` is that side's log length minus the other's.

        Nothing where verdicts are wrong more often than right.
        """
        log_odds = max(float(logit(self.accuracy)), 0.0)
        return log_expit(log_odds + self.judge_style * longer) - log_expit(self.judge_style * longer - log_odds)


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
    # In the direction of the verdict, which is that of the rows of `annotated`.
    sign = np.where(agrees, 1.0, -1.0)
    after = sign * trust.log_odds(before) + trust.evidence(sign * length_difference(before))
    overruled = after < 0  # the vote says more than the judges
    annotated = swap_sides(decided.annotated.assign(strength=after), overruled)
    probability = expit(annotated["strength"].to_numpy())
    sure = annotated["strength"].to_numpy() >= logit(keep_probability) - _ROUNDING
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
    """Which of the pairs that the vote was sure of are less sure than `keep_probability`, given verdicts on others.

    Args:
        sure: pairs as `posterior.split_confident` keeps them.
        judged: other pairs, about which judges were asked.
        votes: on `judged`, as for `weigh_judges`.
        keep_probability: as for `split_confident`.
        judges: as for `weigh_judges`.

    Returns:
        Bool [sure pairs]; none where there is no verdict.
    """
    trust = fit_trust(*_beside(judged, resolve_annotations(judged, votes, judges)))
    return trust.log_odds(sure) < logit(keep_probability) - _ROUNDING


def fit_trust(pairs: pd.DataFrame, agrees: np.ndarray) -> Trust:
    """The trust that verdicts on these pairs teach; `agrees`, bool [pairs], says which verdicts are the label's."""
    from scipy.optimize import minimize  # half a second, which the many programs that fit nothing are spared

    strength, longer = _strength(pairs), length_difference(pairs)

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log posterior of (slope, style, logit accuracy, judge_style), and its gradient."""
        slope, style, log_odds_right, taste = at
        right, accuracy = expit(slope * strength + style * longer), expit(log_odds_right)
        if_right, if_wrong = expit(log_odds_right + taste * longer), expit(taste * longer - log_odds_right)
        agreement = np.clip(if_right * right + if_wrong * (1 - right), _LEAST, 1 - _LEAST)
        value = -np.log(np.where(agrees, agreement, 1 - agreement)).sum()
        value += ((slope - 1) / _SLOPE_SPREAD) ** 2 / 2 + (style / _STYLE_SPREAD) ** 2 / 2
        value += (taste / _TASTE_SPREAD) ** 2 / 2
        value -= _RIGHT * log_expit(log_odds_right) + _WRONG * log_expit(-log_odds_right)
        by_agreement = np.where(agrees, -1 / agreement, 1 / (1 - agreement))
        by_odds = by_agreement * (if_right - if_wrong) * right * (1 - right)
        by_right, by_wrong = right * if_right * (1 - if_right), (1 - right) * if_wrong * (1 - if_wrong)
        return float(value), np.array([
            by_odds @ strength + (slope - 1) / _SLOPE_SPREAD**2,
            by_odds @ longer + style / _STYLE_SPREAD**2,
            by_agreement @ (by_right - by_wrong) - _RIGHT * (1 - accuracy) + _WRONG * accuracy,
            (by_agreement * longer) @ (by_right + by_wrong) + taste / _TASTE_SPREAD**2,
        ])  # fmt: skip

    # Two minima are possible: the vote follows style, or the judges do.
    usual = logit(_RIGHT / (_RIGHT + _WRONG))
    starts = (np.array([1.0, style, usual, taste]) for style, taste in _STARTS)
    bounds = [(0.0, 1.0), (-10.0, 10.0), (-10.0, 10.0), (-10.0, 10.0)]
    found = [minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds) for start in starts]
    slope, style, log_odds_right, taste = min(found, key=lambda each: float(each.fun)).x
    return Trust(float(slope), float(style), float(expit(log_odds_right)), float(taste))


def _beside(contested: pd.DataFrame, decided: AnnotationResult) -> tuple[pd.DataFrame, np.ndarray]:
    """The contested pairs that have a verdict, in the order of `decided.annotated`, and whether it is their label's."""
    before = contested.set_index("pair_id").reindex(decided.annotated["pair_id"])
    agrees = decided.annotated["chosen_id"].to_numpy(dtype=object) == before["chosen_id"].to_numpy(dtype=object)
    return before, agrees


def _strength(pairs: pd.DataFrame) -> np.ndarray:
    return pairs["strength"].to_numpy(dtype=np.float64)
