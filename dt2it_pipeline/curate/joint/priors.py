"""What is assumed of the joint model's parameters before any data.

Normal distributions (mean, spread) about what fits to all true labels of public sets gave (`benchmarks.real_noise`):
sums of voters' weights of 0.1 to 3, leads of one verdict of 0 to 2.3, kappa of 0.2 to 2.5, lambda within 0.5. What
belongs here: the order of the parameters and their prior. What does not: the likelihood (`model`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dt2it_pipeline.curate.joint.evidence import JUDGE, LENGTH, NET_VERDICT, POSITION, VOTER, Evidence

LABEL = (1.0, 1.3)  # a: labels are right in 73%, give or take
_SOURCE_SPREAD = 0.4
_VOTERS, _VOTER_SPREAD = (1.6, 1.5), 1.2  # the sum of voters' weights; single ones
_VERDICT, _PER_LEAD = 0.9, 0.7
_VERDICT_SPREAD = {False: 0.9, True: 1.5}  # with an anchor, data may say that judges are better or worse
_SPREAD = {JUDGE: 0.5, POSITION: 0.6}
_LENGTH_SPREAD = {False: 0.4, True: 1.0}  # without an anchor, labels that favour a length rather have a length bias
_KAPPA, _KAPPA_SPREAD = 0.8, 0.6
_LAMBDA_SPREAD = {False: 0.4, True: 1.5}  # True: beside trusted pairs, since many labels count there
AUDITOR = (3.9, 1.0)  # log-odds that an answer of an audit is right: 98%, 87 to 99.7%


@dataclass(frozen=True)
class Layout:
    """Where each parameter stands: w, kappa, lambda, deviations of sources, that of the auditor, a (last)."""

    features: int
    groups: int

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return self.features + 2 + self.groups + 2

    @property
    def kappa(self) -> int:
        """Where kappa stands."""
        return self.features

    @property
    def length_bias(self) -> int:
        """Where lambda stands."""
        return self.features + 1

    @property
    def deviations(self) -> slice:
        """Where the deviations of sources stand."""
        return slice(self.features + 2, self.features + 2 + self.groups)

    @property
    def auditor(self) -> int:
        """Where the log-odds stands that an answer of an audit is right."""
        return self.size - 2


def prior(layout: Layout, evidence: Evidence, *, anchored: bool, trusted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean, float64 [parameters], and precision matrix, float64 [parameters, parameters], of the prior.

    Args:
        layout: where each parameter stands.
        evidence: whose features the weights are of.
        anchored: whether there is an anchor, beside which data can say more.
        trusted: whether trusted pairs are one.
    """
    mean, precision = np.zeros(layout.size), np.zeros((layout.size, layout.size))

    def put(place: int, at: float, spread: float) -> None:
        mean[place], precision[place, place] = at, spread**-2

    voters = np.flatnonzero(evidence.of(VOTER) & (evidence.features != 0).any(axis=0))  # a silent one takes no share
    if len(voters):  # the sum has a spread of its own; beside it, weights differ freely
        ones = np.full((len(voters), len(voters)), 1 / len(voters))
        precision[np.ix_(voters, voters)] = (np.eye(len(voters)) - ones) / _VOTER_SPREAD**2
        precision[np.ix_(voters, voters)] += ones * len(voters) / _VOTERS[1] ** 2
        mean[voters] = _VOTERS[0] / len(voters)
    for place, kind in enumerate(evidence.kinds):
        if kind == VOTER and place not in voters:
            put(place, 0.0, _VOTER_SPREAD)
        elif kind == NET_VERDICT:
            put(place, _VERDICT + _PER_LEAD * (evidence.levels[place] - 1), _VERDICT_SPREAD[anchored])
        elif kind in _SPREAD:
            put(place, 0.0, _SPREAD[kind])
        elif kind == LENGTH:
            put(place, 0.0, _LENGTH_SPREAD[anchored])
    put(layout.kappa, _KAPPA, _KAPPA_SPREAD)
    put(layout.length_bias, 0.0, _LAMBDA_SPREAD[trusted])
    for place in range(*layout.deviations.indices(layout.size)):
        put(place, 0.0, _SOURCE_SPREAD)
    put(layout.auditor, *AUDITOR)
    put(layout.size - 1, *LABEL)
    return mean, precision
