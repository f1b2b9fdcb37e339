"""Simple ways to clean labels: a sign, a majority, a regression on checked pairs.

Each takes `Evidence` and returns `evidence.answer`; each raises `NotApplicable` where its evidence is not there.
"Margin" is the mean over voters of margins divided by each voter's root mean square.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from benchmarks.real_noise.evidence import Evidence, NotApplicable, answer, by_probability

KEEP_PROBABILITY = 0.8  # from which methods with probabilities keep a pair, as the project's policies do


def nothing(evidence: Evidence) -> pd.DataFrame:
    """Every label stays."""
    return answer(evidence)


def margin_sign(evidence: Evidence) -> pd.DataFrame:
    """Relabel by the sign of the margin; surest where it is largest. A margin of 0 leaves the label."""
    evidence.need_voters()
    return answer(evidence, None, evidence.margin < 0, np.abs(evidence.margin))


def drop_voters(evidence: Evidence) -> pd.DataFrame:
    """Drop pairs whose margin is against the label; surest where it is most for it."""
    evidence.need_voters()
    return answer(evidence, evidence.margin >= 0, None, evidence.margin)


def drop_judges(evidence: Evidence) -> pd.DataFrame:
    """Drop pairs whose label the judges' majority is against; surest where most are for it."""
    evidence.need_judges()
    return answer(evidence, evidence.net >= 0, None, evidence.net, None, evidence.calls)


def drop_both(evidence: Evidence) -> pd.DataFrame:
    """Drop pairs whose label the judges' majority or the margin is against; then surest by net verdict plus margin."""
    evidence.need_judges()
    evidence.need_voters()
    keep = (evidence.net >= 0) & (evidence.margin >= 0)
    together = evidence.net + evidence.margin
    return answer(evidence, keep, None, together + np.where(keep, 1e3, 0.0), None, evidence.calls)


def judges_majority(evidence: Evidence) -> pd.DataFrame:
    """Relabel by the judges' majority; a draw leaves the label. Surest where the majority is largest."""
    evidence.need_judges()
    return answer(evidence, None, evidence.net < 0, np.abs(evidence.net), None, evidence.calls)


def audit_regression(evidence: Evidence) -> pd.DataFrame:
    """Logistic regression of "the label is right" on the audited pairs alone.

    Features: every voter's margin (0 where missing), net verdict, difference of log lengths; L2 penalty 1. The more
    likely label is kept from a probability of 0.8 on. Where all audited labels are right, or none, every pair has the
    rule of succession's share, (right + 1) / (audited + 2).
    """
    if evidence.audit is None:
        raise NotApplicable("needs an audit")
    known, right = evidence.audited, evidence.audited_right
    calls = evidence.calls if evidence.judges else None
    if right.all() or not right.any():
        share = (right.sum() + 1) / (len(right) + 2)
        return by_probability(evidence, np.full(len(known), share), KEEP_PROBABILITY, calls)
    features = np.column_stack([np.nan_to_num(evidence.margins), evidence.net, evidence.longer])
    model = LogisticRegression(C=1.0).fit(features[known], right)
    return by_probability(evidence, model.predict_proba(features)[:, 1], KEEP_PROBABILITY, calls)


def side_regression(evidence: Evidence) -> pd.DataFrame:
    """Logistic regression of the better side of the audited pairs, without their labels; it relabels all others.

    Features: as `audit_regression`, in the direction of the label; no intercept, since neither side is better before
    anything is known of it. So it knows what trusted pairs show, and not how right labels are. Surest where its
    probability is farthest from one half.

    Raises:
        NotApplicable: there is no audit.
    """
    if evidence.audit is None:
        raise NotApplicable("needs an audit")
    features = np.column_stack([np.nan_to_num(evidence.margins), evidence.net, evidence.longer])
    known = features[evidence.audited] * np.where(evidence.audited_right, 1.0, -1.0)[:, None]
    sides = np.concatenate([np.ones(len(known)), np.zeros(len(known))])
    both, once = np.concatenate([known, -known]), np.full(2 * len(known), 0.5)  # a pair in both directions counts once
    model = LogisticRegression(C=1.0, fit_intercept=False).fit(both, sides, once)
    odds = features @ model.coef_[0]
    return answer(evidence, None, odds < 0, np.abs(odds), None, evidence.calls if evidence.judges else None)
