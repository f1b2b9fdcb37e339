"""Judge calibration: how reliable verdicts are, and what they show about the voters (policy `posterior`).

The vote gives every pair the log-odds s_i >= 0 that its present label is right (`posterior`). They are fitted without a
single true label, so mistakes that voters and labels share look like agreement. Where noisy labels prefer the longer
side, and a voter errs more often where the shorter side is better, s_i is too large. Judges have not seen the labels.
Their verdicts on the contested pairs show how reliable s_i is. With t_i the difference
log(1 + length of chosen) - log(1 + length of rejected) in characters, the calibrated log-odds are

    u_i = slope s_i + style t_i,    0 <= slope <= 1.

Judges have a length bias of their own; many prefer the longer answer. Let a be their accuracy on two sides of one
length. The verdict is the label with the probability p_i where the label is right, and q_i where it is wrong:

    p_i = sigmoid(logit a + judge_length_bias t_i),    q_i = sigmoid(-logit a + judge_length_bias t_i),

so a verdict agrees with the label with the probability p_i sigmoid(u_i) + q_i sigmoid(-u_i). Mistakes of the vote show
least where s_i is large, those of judges show everywhere: that separates the two. Slope, style, a and judge_length_bias
are the mode of the posterior under the priors N(1, 0.25^2), N(0, 0.5^2), Beta(17, 5), whose mode is 0.8, and
N(0, 0.5^2). So without verdicts, the vote stands as it is. There is no intercept: the same pair with its sides swapped
must have -u_i. Verdicts can only lower the log-odds of the vote, min(u_i, s_i) counts: judges are asked about uncertain
pairs, which is no reason to believe the vote more than it believes itself, and verdicts at chance (50%) make no pair
more certain.

A verdict for the label adds log(p_i / q_i) to its side, one against it log((1 - q_i) / (1 - p_i)) to the other: little
where it follows the judges' length bias. Pairs that the vote was sure of, and whose u_i is not, are judged as well
(`reopened`). Noise that goes with style is found there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit, log_expit, logit

from dt2it_pipeline.curate.pair_frames import length_difference, select_rows, stack, swap_sides
from dt2it_pipeline.curate.published_algorithm import AnnotationResult, resolve_annotations

UNSURE = "not sure enough after the judges' votes"
_RIGHT, _WRONG = 16.0, 4.0  # exponents of the prior on the accuracy of verdicts
_SLOPE_SPREAD, _STYLE_SPREAD, _LENGTH_BIAS_SPREAD = 0.25, 0.5, 0.5
_STARTS = ((0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 2.0), (0.0, -2.0))  # of style and judge_length_bias
_LEAST = 1e-12  # a probability; smaller ones have no logarithm worth adding
_ROUNDING = 1e-9  # nats; a probability that equals the bound is enough


@dataclass(frozen=True)
class JudgeCalibration:
    """How reliable the voters' log-odds and the judges' verdicts are.

    Attributes:
        slope: nats per nat of the vote's log-odds, 0 to 1.
        style: nats per unit of the difference of log lengths, chosen over rejected.
        accuracy: of verdicts on two sides of one length, 0 to 1.
        judge_length_bias: nats per unit of the difference of log lengths, in favour of the longer side.
    """

    slope: float
    style: float
    accuracy: float
    judge_length_bias: float

    def log_odds(self, pairs: pd.DataFrame) -> np.ndarray:
        """min(u_i, s_i) of pairs with `strength` s_i >= 0, float64 [n], nats; without texts there is no style."""
        strength = _strength(pairs)
        return np.minimum(self.slope * strength + self.style * length_difference(pairs), strength)

    def evidence(self, longer: np.ndarray) -> np.ndarray:
        """What a verdict adds to its side, float64 [n], nats >= 0; `longer`: its log length minus the other side's.

        0 where verdicts are wrong more often than right.
        """
        log_odds = max(float(logit(self.accuracy)), 0.0)
        return log_expit(log_odds + self.judge_length_bias * longer) - log_expit(
            self.judge_length_bias * longer - log_odds
        )


@dataclass(frozen=True)
class CalibratedResult(AnnotationResult):
    """As `published_algorithm.AnnotationResult`; `calibration` is what was fitted."""

    calibration: JudgeCalibration


def calibrate_judges(
    contested: pd.DataFrame, votes: pd.DataFrame, keep_probability: float, judges: int = 2
) -> CalibratedResult:
    """Decide contested pairs by the voters' log-odds and the judges' verdict together.

    The judges' votes make one verdict, as in `published_algorithm.resolve_annotations`, which also drops pairs without
    one. The side that is more probably better becomes chosen. The pair is kept if that is at least `keep_probability`
    likely, else dropped with the reason UNSURE. Verdicts that are wrong more often than right add nothing.

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
    before, agrees = _with_verdicts(contested, decided)
    calibration = fit_judge_calibration(before, agrees)
    # In the direction of the verdict, which is that of the rows of `annotated`.
    sign = np.where(agrees, 1.0, -1.0)
    after = sign * calibration.log_odds(before) + calibration.evidence(sign * length_difference(before))
    overruled = after < 0  # the vote outweighs the verdict
    annotated = swap_sides(decided.annotated.assign(strength=after), overruled)
    probability = expit(annotated["strength"].to_numpy())
    sure = annotated["strength"].to_numpy() >= logit(keep_probability) - _ROUNDING
    unsure = select_rows(contested, contested["pair_id"].isin(annotated["pair_id"][~sure]).to_numpy())
    detail = pd.Series(probability[~sure], index=annotated["pair_id"][~sure]).reindex(unsure["pair_id"])
    unsure = unsure.assign(
        reason=pd.Series(UNSURE, index=unsure.index, dtype="str"),
        detail=pd.Series([f"the better side is {p:.0%} likely right" for p in detail], index=unsure.index, dtype="str"),
    )
    swapped = int(((agrees == overruled) & sure).sum())
    return CalibratedResult(select_rows(annotated, sure), stack(decided.dropped, unsure), swapped, calibration)


def reopened(
    sure: pd.DataFrame, judged: pd.DataFrame, votes: pd.DataFrame, keep_probability: float, judges: int = 2
) -> np.ndarray:
    """Verified pairs that are less than `keep_probability` likely right once verdicts on other pairs are in.

    Args:
        sure: pairs as `posterior.split_confident` keeps them.
        judged: other pairs, about which judges were asked.
        votes: on `judged`, as for `calibrate_judges`.
        keep_probability: as for `split_confident`.
        judges: as for `calibrate_judges`.

    Returns:
        Bool [sure pairs]; all False where there is no verdict.
    """
    calibration = fit_judge_calibration(*_with_verdicts(judged, resolve_annotations(judged, votes, judges)))
    return calibration.log_odds(sure) < logit(keep_probability) - _ROUNDING


def fit_judge_calibration(pairs: pd.DataFrame, agrees: np.ndarray) -> JudgeCalibration:
    """Fit the calibration to the verdicts on pairs; `agrees`, bool [pairs]: the verdict is the label."""
    from scipy.optimize import minimize  # half a second, which programs that fit nothing save

    strength, longer = _strength(pairs), length_difference(pairs)

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log posterior of (slope, style, logit accuracy, judge_length_bias), and its gradient."""
        slope, style, log_odds_right, length_bias = at
        right, accuracy = expit(slope * strength + style * longer), expit(log_odds_right)
        if_right, if_wrong = expit(log_odds_right + length_bias * longer), expit(length_bias * longer - log_odds_right)
        agreement = np.clip(if_right * right + if_wrong * (1 - right), _LEAST, 1 - _LEAST)
        value = -np.log(np.where(agrees, agreement, 1 - agreement)).sum()
        value += ((slope - 1) / _SLOPE_SPREAD) ** 2 / 2 + (style / _STYLE_SPREAD) ** 2 / 2
        value += (length_bias / _LENGTH_BIAS_SPREAD) ** 2 / 2
        value -= _RIGHT * log_expit(log_odds_right) + _WRONG * log_expit(-log_odds_right)
        by_agreement = np.where(agrees, -1 / agreement, 1 / (1 - agreement))
        by_odds = by_agreement * (if_right - if_wrong) * right * (1 - right)
        by_right, by_wrong = right * if_right * (1 - if_right), (1 - right) * if_wrong * (1 - if_wrong)
        return float(value), np.array([
            by_odds @ strength + (slope - 1) / _SLOPE_SPREAD**2,
            by_odds @ longer + style / _STYLE_SPREAD**2,
            by_agreement @ (by_right - by_wrong) - _RIGHT * (1 - accuracy) + _WRONG * accuracy,
            (by_agreement * longer) @ (by_right + by_wrong) + length_bias / _LENGTH_BIAS_SPREAD**2,
        ])  # fmt: skip

    # Two minima are possible: the vote follows style, or the judges do.
    usual = logit(_RIGHT / (_RIGHT + _WRONG))
    starts = (np.array([1.0, style, usual, length_bias]) for style, length_bias in _STARTS)
    bounds = [(0.0, 1.0), (-10.0, 10.0), (-10.0, 10.0), (-10.0, 10.0)]
    found = [minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds) for start in starts]
    slope, style, log_odds_right, length_bias = min(found, key=lambda each: float(each.fun)).x
    return JudgeCalibration(float(slope), float(style), float(expit(log_odds_right)), float(length_bias))


def _with_verdicts(contested: pd.DataFrame, decided: AnnotationResult) -> tuple[pd.DataFrame, np.ndarray]:
    """The contested pairs that have a verdict, in the order of `decided.annotated`, and whether it is their label."""
    before = contested.set_index("pair_id").reindex(decided.annotated["pair_id"])
    agrees = decided.annotated["chosen_id"].to_numpy(dtype=object) == before["chosen_id"].to_numpy(dtype=object)
    return before, agrees


def _strength(pairs: pd.DataFrame) -> np.ndarray:
    return pairs["strength"].to_numpy(dtype=np.float64)
