"""The joint model applied to what was observed of pairs: decisions, pairs worth asking about, and sentences.

What belongs here: the order of the steps, and what a reader must know of their result. What does not: the steps
(`evidence`, `checks`, `model`, `decisions`), and how tables are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.joint.checks import doubt_about_audit, opponents
from dt2it_pipeline.curate.joint.decisions import (
    DROPPED,
    FLIPPED,
    SURE,
    TOLERABLE,
    Decisions,
    as_given,
    decide,
    verdict_gain,
)
from dt2it_pipeline.curate.joint.evidence import Evidence, balanced_positions, gather_evidence
from dt2it_pipeline.curate.joint.model import (
    LEAST_CHECKED,
    LEAST_TRUSTED,
    Anchors,
    JointModel,
    fit_joint_model,
)
from dt2it_pipeline.curate.joint.sensitivity import NOTED, Assumption, assumption, sensitivity
from dt2it_pipeline.curate.joint.sums import UNKNOWN

UNSURE, AGAINST = "not sure enough", "the evidence is against the label"
REASONS = (
    "both sides are one response",
    "checked",
    UNSURE,
    AGAINST,
    "the other side is more probably better",
    "too little speaks against it",
    "likely right",
    "the audit is in doubt",
    "nothing speaks for or against it",
    "what was answered and the other evidence are against each other",
)
_SAME, _CHECKED, _UNSURE, _AGAINST, _FLIPPED, _TOO_LITTLE, _LIKELY, _IN_DOUBT, _NOTHING, _OPPOSED = range(len(REASONS))
_CHECK_SHARE = 0.1  # of the calls that go to pairs drawn at random


@dataclass(frozen=True)
class Trusted:
    """What was observed of m other pairs whose better side is known, in its direction.

    Attributes:
        margins: float64 [m, V], of the same voters as those of the pairs to be cleaned, which did not learn these.
        verdicts: float64 [m, J], of the same judges, for the better side positive; 0 for a tie or no verdict.
        length: float64 [m], log length of the better side minus that of the other.
        shown_first: float64 [m, J], as in `Observed`, of the better side; None: not known.
    """

    margins: np.ndarray
    verdicts: np.ndarray
    length: np.ndarray
    shown_first: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.length)


@dataclass(frozen=True)
class Observed:
    """What was observed of n pairs, in the direction of their given labels.

    Attributes:
        margins: float64 [n, V], score of chosen minus score of rejected; not finite where a voter has none.
        voters: V names.
        verdicts: float64 [n, J], for the label positive, against it negative, 0 for a tie or no verdict.
        judges: J names.
        length: float64 [n], log length of chosen minus that of rejected.
        sources: n names of data sources.
        checked: int [n]: answers of an audit for the label minus those against it.
        draw: unsigned [n], a random number for every pair that does not depend on the order of pairs.
        same_side: bool [n], both sides are one response.
        trusted: other pairs, whose better side is known.
        shown_first: float64 [n, J], positive where the judge saw the chosen side first, negative where last, 0 where
            that is not known or both ways; None: not known.
        asked: bool [n, J], a judge was asked, with ties; None: where its verdict is no tie.
        contradictions: as in `Anchors`.
    """

    margins: np.ndarray
    voters: Sequence[str]
    verdicts: np.ndarray
    judges: Sequence[str]
    length: np.ndarray
    sources: np.ndarray
    checked: np.ndarray
    draw: np.ndarray
    same_side: np.ndarray
    trusted: Trusted | None = None
    shown_first: np.ndarray | None = None
    asked: np.ndarray | None = None
    contradictions: int = 0

    def without(self, unused: np.ndarray) -> Observed:
        """The same as if some had not been there: bool [V + J], voters and then judges."""
        voters, judges = np.split(~unused, [len(self.voters)])
        trusted = self.trusted
        return replace(
            self,
            margins=self.margins[:, voters],
            voters=[name for name, used in zip(self.voters, voters, strict=True) if used],
            verdicts=self.verdicts[:, judges],
            judges=[name for name, used in zip(self.judges, judges, strict=True) if used],
            trusted=None
            if trusted is None
            else replace(
                trusted,
                margins=trusted.margins[:, voters],
                verdicts=trusted.verdicts[:, judges],
                shown_first=None if trusted.shown_first is None else trusted.shown_first[:, judges],
            ),
            shown_first=None if self.shown_first is None else self.shown_first[:, judges],
            asked=None if self.asked is None else self.asked[:, judges],
        )


@dataclass(frozen=True)
class Prices:
    """What mistakes and questions cost.

    Attributes:
        bound: least probability of a kept label, 0.5 to 1.
        call: price of asking the judges about one pair, in right labels.
    """

    bound: float
    call: float

    @classmethod
    def of_wrong_label(cls, cost: float, call: float) -> Prices:
        """Prices under which a wrong label that is kept costs as much as `cost` right ones bring."""
        return cls(cost / (1 + cost), call)


@dataclass(frozen=True)
class Solution:
    """What follows from the joint model for n pairs.

    Attributes:
        evidence, anchors, model: what was fitted to what.
        decisions: what becomes of every pair.
        prices: as given.
        doubt: why the audit is not believed, in which case all pairs stay as they are; None: it is, or there is none.
        wanted: int, pairs that are worth asking about, best first, then sure ones that are drawn at random.
        gain: float64 [wanted], expected right labels per question; not a number for those drawn at random.
        sensitivity: without an anchor, what follows if annotators are as accurate as `annotator_accuracy`; columns of
            `joint.sensitivity`; no row where no pair stays.
        notes: sentences for the reader.
        assumption: without an anchor, what the estimate assumes of annotators; None: with one, or nothing to go by.
    """

    evidence: Evidence
    anchors: Anchors
    model: JointModel
    decisions: Decisions
    prices: Prices
    doubt: str | None
    wanted: np.ndarray
    gain: np.ndarray
    sensitivity: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()
    assumption: Assumption | None = None


def solve(observed: Observed, prices: Prices, label_accuracy: float | None = None, seed: int = 0) -> Solution:
    """Fit the joint model and decide about all pairs.

    Args:
        observed: what is known of the pairs.
        prices: of a wrong label and of a question.
        label_accuracy: of the given labels, where it is known from elsewhere; an anchor.
        seed: of draws of the posterior.
    """
    joined, known = _evidence(observed)
    anchors = Anchors(observed.checked, known, label_accuracy, observed.contradictions)
    used, evidence, anchors, unused = _usable(observed, joined, anchors)
    trusted, notes = anchors.trusted, [unused] if unused else []
    model = fit_joint_model(evidence, anchors, observed.draw)
    doubt = doubt_about_audit(evidence, anchors, observed.draw)
    if doubt:
        decisions = as_given(evidence, anchors)
    else:
        without = _without_audit(observed, joined, anchors, prices.bound, seed)
        decisions = decide(evidence, anchors, model, prices.bound, seed, without)
    decisions.outcome[observed.same_side] = DROPPED
    if not (decisions.outcome != DROPPED).any():
        decisions = replace(decisions, after=UNKNOWN)
    wanted, gain = _wanted(used, evidence, model, decisions, prices)
    table, assumed = pd.DataFrame(), None
    if not anchors.enough:
        table = sensitivity(evidence, anchors, model, decisions, observed.draw).dropna(ignore_index=True)
        if decisions.compared and not doubt:
            assumed = assumption(evidence, model, decisions.label_right)
    notes += [doubt] if doubt else _sentences(decisions, anchors, table, assumed)
    if len(trusted):
        notes.append(_likeness(evidence, model, decisions, trusted, audited=bool(np.any(anchors.checked))))
    return Solution(evidence, anchors, model, decisions, prices, doubt, wanted, gain, table, tuple(notes), assumed)


def reasons_of(solution: Solution, same_side: np.ndarray) -> np.ndarray:
    """Why every pair was kept, flipped or dropped: n short phrases (object)."""
    return np.array(REASONS, dtype=object)[reason_codes(solution, same_side)]


def reason_codes(solution: Solution, same_side: np.ndarray) -> np.ndarray:
    """The same as int8 [n], places in REASONS: phrases of millions of pairs would fill the memory."""
    decisions, bound = solution.decisions, solution.prices.bound
    outcome = decisions.outcome
    against = np.where(decisions.label_right < 0.5, np.int8(_AGAINST), np.int8(_UNSURE))
    kept = np.where(decisions.label_right < bound, np.int8(_TOO_LITTLE), np.int8(_LIKELY))
    if solution.doubt:
        kept = np.full(len(outcome), _IN_DOUBT, dtype=np.int8)
    elif not decisions.informative:
        kept = np.full(len(outcome), _NOTHING, dtype=np.int8)
    checked = (solution.anchors.checked != 0) & (solution.doubt is None)
    return np.select(
        [same_side, checked & (outcome == DROPPED), checked, outcome == DROPPED, outcome == FLIPPED],
        [np.int8(_SAME), np.int8(_OPPOSED), np.int8(_CHECKED), against, np.int8(_FLIPPED)],
        kept,
    )


def _without_audit(observed: Observed, joined: Evidence, anchors: Anchors, bound: float, seed: int) -> Decisions | None:
    """What is decided without the answers of an audit; None where there are none."""
    if not np.any(anchors.checked):
        return None
    others = replace(anchors, checked=np.zeros_like(anchors.checked), contradictions=0)
    _, evidence, others, _ = _usable(observed, joined, others)
    return decide(evidence, others, fit_joint_model(evidence, others, observed.draw), bound, seed)


def _usable(observed: Observed, joined: Evidence, anchors: Anchors) -> tuple[Observed, Evidence, Anchors, str | None]:
    """What counts of the pairs: without an anchor nothing of opponents of the labels; and a sentence on these."""
    if anchors.enough:
        return observed, joined, anchors, None
    against, note = opponents(joined, observed.verdicts, observed.judges)
    if note is None:
        return observed, joined, anchors, None
    used = observed.without(against)
    evidence, trusted = _evidence(used)
    return used, evidence, replace(anchors, trusted=trusted), note


def _evidence(observed: Observed) -> tuple[Evidence, np.ndarray]:
    """Evidence of the pairs, and features of the trusted ones, scaled together."""
    margins, verdicts, length, sources = observed.margins, observed.verdicts, observed.length, observed.sources
    own, trusted = len(length), observed.trusted
    first = None if observed.shown_first is None else balanced_positions(observed.shown_first)
    if trusted is not None:  # those that nobody said anything about show nothing
        heard = np.isfinite(trusted.margins).any(axis=1) | (trusted.verdicts != 0).any(axis=1)
        margins = np.concatenate([margins, trusted.margins[heard]])
        verdicts = np.concatenate([verdicts, trusted.verdicts[heard]])
        length = np.append(length, trusted.length[heard])
        sources = np.append(sources, np.full(int(heard.sum()), ""))
        if first is not None and trusted.shown_first is not None:
            first = np.concatenate([first, balanced_positions(trusted.shown_first[heard])])
        elif first is not None:
            first = np.concatenate([first, np.zeros((int(heard.sum()), first.shape[1]))])
    joined = gather_evidence(margins, observed.voters, verdicts, observed.judges, length, sources, first)
    mine = joined.rows(slice(own))
    if observed.asked is not None:
        mine = replace(mine, seen=mine.seen | observed.asked.any(axis=1))
    return mine, joined.features[own:]


def _wanted(
    observed: Observed, evidence: Evidence, model: JointModel, decisions: Decisions, prices: Prices
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that are worth asking about, best first, then sure ones drawn at random, and the expected gains."""
    asked = (observed.verdicts != 0).any(axis=1) | (observed.checked != 0) | observed.same_side
    cost = prices.bound / (1 - prices.bound)
    gain = verdict_gain(evidence, model, decisions.label_right, asked, cost, may_flip=decisions.anchored)
    best = np.flatnonzero(gain > prices.call)
    best = best[np.lexsort([observed.draw[best], -gain[best]])]
    sure = np.flatnonzero(~asked & (gain <= prices.call))
    count = min(len(sure), int(np.ceil(_CHECK_SHARE * len(best))))
    if 0 < count < len(sure):  # the lowest ones need no order of all
        drawn = observed.draw[sure]
        sure = sure[drawn <= np.partition(drawn, count - 1)[count - 1]]
    random = sure[np.argsort(observed.draw[sure], kind="stable")[:count]]
    return np.concatenate([best, random]).astype(int), np.concatenate([gain[best], np.full(count, np.nan)])


def _likeness(
    evidence: Evidence, model: JointModel, decisions: Decisions, trusted: np.ndarray, *, audited: bool
) -> str:
    """How right annotators are on trusted pairs, and how far these are like the pairs to be cleaned."""
    w = model.mean[: trusted.shape[1]]
    known, own = trusted @ w, evidence.features @ w
    right = float((known > 0).mean())
    text = f"on {len(trusted):,} trusted pairs, voters and judges together prefer the better side in {right:.0%}"
    usual = float(np.median(np.abs(known)))
    if usual > 0 and len(own):
        ratio = float(np.median(np.abs(own))) / usual
        text += (
            f". On the pairs to be cleaned their evidence is {ratio:.1f} times as strong, and it agrees with "
            f"{decisions.agreement:.0%} of the labels"
        )
    return text if audited else f"{text}. That it is as right there is assumed; fifty checked pairs would measure it"


def _sentences(decisions: Decisions, anchors: Anchors, table: pd.DataFrame, assumed: Assumption | None) -> list[str]:
    """What a reader must know about the result."""
    found = []
    seen = f"voters and judges agree with {decisions.agreement:.0%} of {decisions.compared:,} labels"
    few = int(np.count_nonzero(anchors.checked))
    stay = f"all {'labels that nobody checked' if few else 'labels'} stay as they are"
    if not decisions.compared:
        found.append(f"no score and no verdict that can be used: {stay}")
    elif not decisions.informative:
        text = f"{seen}, which is no more than chance: {stay}"
        if len(anchors.trusted) >= LEAST_TRUSTED:
            text += (
                ". Trusted pairs cannot tell whether these labels are wrong that often or scores and verdicts say "
                f"nothing here: let a person check {LEAST_CHECKED} or more pairs that are drawn at random"
            )
        found.append(text)
    elif not decisions.anchored:
        have, other = (f"{few} checked pairs are too few", "other ") if few else ("nothing is checked", "")
        found.append(
            f"{seen}, and {have}, so which of the two is wrong where they differ is not known: no {other}label was "
            f"flipped. Let a person check pairs that are drawn at random: {LEAST_CHECKED} at least, better 50"
        )
    elif not anchors.pairs_known and not (decisions.outcome == FLIPPED).any():
        found.append(
            "no other side is sure enough for a flip: a known label accuracy says how many labels are wrong, and not "
            f"which. Let a person check pairs that are drawn at random: {LEAST_CHECKED} at least, better 50"
        )
    if decisions.as_without_audit:
        found.append(
            f"{few} checked pairs do not show with a probability of {SURE:.0%} that deciding by them costs no more "
            f"than {TOLERABLE} right labels per other pair, if any: the other pairs are decided as without them. The "
            "estimates are those with them. More checked pairs would help"
        )
    if decisions.not_flipped:
        found.append(
            f"{decisions.not_flipped:,} {'label is' if decisions.not_flipped == 1 else 'labels are'} more probably "
            "wrong than right and dropped, not flipped: pairs whose better side is known do not show clearly enough "
            "that their source has wrong labels, so voters and judges may err there instead. More checked pairs of "
            "that source, drawn at random, would show it"
        )
    if decisions.retained:
        found.append(
            f"{decisions.retained:,} pairs below the bound stay: it cannot be shown that the others would be better "
            "labelled without them"
        )
    if assumed is not None:
        between = ""
        for noted in table.to_dict("records"):
            if noted["annotator_accuracy"] == NOTED:
                between = (
                    f" If they preferred the better one in {NOTED:.0%}, between {noted['after_low']:.0%} and "
                    f"{noted['after_high']:.0%} of the labels that stay would be right, depending on how often they "
                    "and the label err on the same pair."
                )
        found.append(
            "the label accuracy is assumed, not measured: the estimate assumes that of two answers, voters and judges "
            f"together prefer the better one in {assumed.annotator_accuracy:.0%} of the pairs, and that where they "
            f"prefer the other one, {assumed.right_where_they_err:.0%} of the labels are right.{between} Fifty pairs "
            "that a person checks, drawn at random, would measure both"
        )
    return found
