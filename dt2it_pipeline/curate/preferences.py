"""Label cleaning for any table: `clean_preferences`, from Python, with neither a recipe nor Dagster, torch or a GPU.

What belongs here: the function, its result, and the sentences about it. What does not: the model (`joint.model`), what
follows from it (`joint.decisions`) and how tables are read (`preference_tables`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.joint.decisions import (
    DROPPED,
    FLIPPED,
    KEPT,
    Decisions,
    Estimate,
    as_given,
    assumptions,
    decide,
    verdict_gain,
)
from dt2it_pipeline.curate.joint.evidence import JUDGE, NET_VERDICT, VOTER, Evidence, gather_evidence
from dt2it_pipeline.curate.joint.model import LEAST_CHECKED, Anchors, JointModel, fit_joint_model
from dt2it_pipeline.curate.preference_tables import (
    PairTable,
    Unused,
    read_audit,
    read_margins,
    read_pairs,
    read_verdicts,
)
from dt2it_pipeline.curate.voters.margins import CurationError

_NAMES = {KEPT: "kept", FLIPPED: "flipped", DROPPED: "dropped"}
_ASSUMED = (0.7, 0.8, 0.9)  # accuracies of the annotators, of the sensitivity table
_DEAREST = 1e6
_STANDARD_ERRORS = 2.0
_CLEARLY_WORSE = 3.0  # nats; that much worse than answers at random
_FEWEST_TO_DOUBT = 10  # answers; fewer are too few to tell an auditor who guesses
_CHECK_SHARE = 0.1  # of the calls that go to pairs drawn at random
UNSURE, AGAINST = "not sure enough", "the evidence is against the label"


@dataclass(frozen=True)
class LabelAccuracy:
    """Label accuracy of all pairs as given, and of the pairs that stay, each with its interval."""

    before: Estimate
    after: Estimate


@dataclass(frozen=True)
class CleanedPreferences:
    """Result of `clean_preferences`.

    Attributes:
        pairs: a row per input pair, in its order: `pair_id`, `outcome` (kept, flipped, dropped), `probability` (that
            its chosen side after the decision is the better one; of a dropped pair: as given), `reason`.
        label_accuracy: before and after, with intervals of 95% by the model.
        wanted: pairs that are worth a judge call, best first: `pair_id`, `gain` (expected, in right labels; not a
            number for pairs drawn at random to check sure ones) and `why`. Their outcome is the one without a verdict.
        sensitivity: without an anchor, what follows if voters and judges together are right in 70, 80 or 90%:
            `annotator_accuracy`, `label_accuracy`, `accuracy_after`, `weight` (how far the data and the prior allow
            it; the weights of the whole range sum to 1).
        notes: sentences: what is assumed, what was not used, why nothing was flipped.
    """

    pairs: pd.DataFrame
    label_accuracy: LabelAccuracy
    wanted: pd.DataFrame
    sensitivity: pd.DataFrame
    notes: tuple[str, ...]
    _sides: tuple[tuple[str, str], ...] = ()

    def apply(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """The pairs that stay, in their order, with `probability`; flipped ones have their sides swapped.

        Swapped are columns that begin with `chosen` with those that begin with `rejected`, and the columns that were
        named in the call.

        Args:
            pairs: the table that was cleaned, rows in the same order.

        Raises:
            CurationError: it has another number of rows than the table that was cleaned.
        """
        if len(pairs) != len(self.pairs):
            raise CurationError(f"pairs: {len(pairs)} rows, and {len(self.pairs)} were cleaned; give the same table")
        flipped = (self.pairs["outcome"] == "flipped").to_numpy()
        made = pairs.reset_index(drop=True).assign(probability=self.pairs["probability"].to_numpy())
        names = [name for name in map(str, pairs.columns) if name.startswith("chosen")]
        named = [(name, "rejected" + name.removeprefix("chosen")) for name in names]
        for left, right in dict.fromkeys([*named, *self._sides]):
            if left in made and right in made:
                sides = made[left].mask(flipped, made[right]), made[right].mask(flipped, made[left])
                made[left], made[right] = sides
        return made[(self.pairs["outcome"] != "dropped").to_numpy()].reset_index(drop=True)


def clean_preferences(
    pairs: pd.DataFrame,
    scores: pd.DataFrame | None = None,
    votes: pd.DataFrame | None = None,
    audit: pd.DataFrame | None = None,
    *,
    trusted: pd.DataFrame | None = None,
    chosen: str | None = None,
    rejected: str | None = None,
    chosen_scores: Sequence[str] = (),
    rejected_scores: Sequence[str] = (),
    label_accuracy: float | None = None,
    wrong_label_cost: float = 4.0,
    keep_probability: float | None = None,
    call_cost: float = 0.05,
    seed: int = 0,
) -> CleanedPreferences:
    """Keep, flip or drop preference pairs by what voters, judges and checked pairs say about their labels.

    >>> table = pd.DataFrame({"good": [2.0, 1.5, 0.0, 1.0] * 20, "bad": [0.0, 0.0, 2.0, 0.0] * 20})
    >>> result = clean_preferences(table, chosen_scores=["good"], rejected_scores=["bad"])
    >>> result.pairs.groupby("outcome")["pair_id"].count().to_dict()
    {'dropped': 20, 'kept': 60}

    Everything but `pairs` is optional. Texts, prompts and ids are, too: without `pair_id`, the number of the row
    (from 0) is a pair's id, and without ids of responses `better_id` is `chosen` or `rejected`.

    Args:
        pairs: one row per pair: `pair_id`, `chosen_id`, `rejected_id`, texts (`chosen`, `rejected`), `source`.
        scores: `response_id`, `voter`, `score`, of reward models that did not learn these labels.
        votes: `pair_id`, `judge`, and `better_id` or `verdict` (chosen, rejected, tie).
        audit: `pair_id`, `better_id`, of pairs drawn at random and checked. With 15 or more, labels can be flipped.
        trusted: other pairs whose chosen side is the better one, with `chosen_id`, `rejected_id` (their scores stand
            in `scores`) or with the columns of `chosen_scores`; voters must not have learned them. 50 or more are an
            anchor as an audit is.
        chosen: column with the texts of chosen sides, where it is not `chosen`; used for lengths.
        rejected: the same of rejected sides.
        chosen_scores: columns of `pairs` with scores of the chosen sides, one per voter.
        rejected_scores: columns with scores of the rejected sides, in the same order.
        label_accuracy: of the given labels, where it is known from elsewhere: above 0, below 1. Counts as an anchor.
        wrong_label_cost: how many right labels a wrong one that is kept costs.
        keep_probability: least probability of a kept label, 0.5 to 1, in place of wrong_label_cost.
        call_cost: price of one judge call, in right labels.
        seed: of draws of the posterior, and of pairs that are drawn at random.

    Raises:
        CurationError: a malformed table, or a setting out of its range. The message says where.
    """
    for name, frame in (("pairs", pairs), ("scores", scores), ("votes", votes), ("audit", audit), ("trusted", trusted)):
        if not isinstance(frame, pd.DataFrame | None):
            raise CurationError(f"{name} must be a DataFrame, not {type(frame).__name__}")
    numbers = {
        "label_accuracy": label_accuracy,
        "wrong_label_cost": wrong_label_cost,
        "keep_probability": keep_probability,
        "call_cost": call_cost,
        "seed": seed,
    }
    for name, value in numbers.items():
        if not isinstance(value, int | float | np.number | None):
            raise CurationError(f"{name} must be a number, not {value!r}")
    if seed != int(seed) or seed < 0:
        raise CurationError(f"seed must be a whole number from 0 on, not {seed}")
    bound = _bound(wrong_label_cost, keep_probability)
    if not (0 <= call_cost < np.inf):
        raise CurationError(f"call_cost must be 0 or more, not {call_cost}")
    chosen_scores, rejected_scores = _listed(chosen_scores), _listed(rejected_scores)
    if label_accuracy is not None and not 0 < label_accuracy < 1:
        raise CurationError(f"label_accuracy must lie between 0 and 1, not at {label_accuracy}")
    unused = Unused()
    table = read_pairs(pairs, chosen, rejected)
    margins, voters = read_margins(table, pairs, scores, chosen_scores, rejected_scores)
    verdicts, judges = read_verdicts(table, votes, unused)
    checked = read_audit(table, audit, unused)
    own = len(table)
    sources = table.sources
    length = table.length
    if trusted is not None and len(trusted):  # scaled together with the pairs, then taken off again
        theirs = read_pairs(trusted, chosen, rejected, "trusted")
        more, same = read_margins(theirs, trusted, scores, chosen_scores, rejected_scores, "trusted")
        if same != voters:
            raise CurationError(f"trusted: it has the voters {list(same)}, and the pairs have {list(voters)}")
        margins = np.concatenate([margins, more])
        verdicts = np.concatenate([verdicts, np.zeros((len(theirs), verdicts.shape[1]))])
        length, sources = np.append(length, theirs.length), np.append(sources, np.full(len(theirs), ""))
    joined = gather_evidence(margins, voters, verdicts, judges, length, sources)
    evidence = replace(joined, features=joined.features[:own], sources=joined.sources[:own])
    draw = pd.util.hash_array(table.keys.to_numpy(dtype=object), hash_key=f"{seed:016d}"[-16:])
    anchors = Anchors(checked, joined.features[own:], label_accuracy)
    if not anchors.enough:
        evidence = _without_opponents(evidence, unused)
    model = fit_joint_model(evidence, anchors, draw)
    notes = unused.notes
    doubt = _doubt(evidence, anchors, model, draw)
    decisions = as_given(evidence, anchors) if doubt else decide(evidence, anchors, model, bound, seed)
    same_side = table.sides[0] == table.sides[1]
    if same_side.any():
        decisions.outcome[same_side] = DROPPED
    wanted = _wanted(table, evidence, model, decisions, verdicts[:own], anchors, bound, call_cost, draw)
    sensitivity = pd.DataFrame() if anchors.enough else _sensitivity(evidence, model, decisions)
    notes += [doubt] if doubt else _sentences(decisions, anchors, sensitivity)
    result = pd.DataFrame(
        {
            "pair_id": table.ids,
            "outcome": pd.Series([_NAMES[each] for each in decisions.outcome.tolist()], dtype="str"),
            "probability": decisions.probability,
            "reason": pd.Series(_reasons(decisions, anchors, same_side, bound, doubted=doubt is not None), dtype="str"),
        }
    )
    accuracy = LabelAccuracy(decisions.before, decisions.after)
    named = ((chosen or "chosen", rejected or "rejected"), *zip(chosen_scores, rejected_scores, strict=True))
    return CleanedPreferences(result, accuracy, wanted, sensitivity, tuple(notes), named)


def _bound(cost: float, keep_probability: float | None) -> float:
    if keep_probability is not None:
        if not 0.5 <= keep_probability < 1:
            raise CurationError(f"keep_probability must be at least 0.5 and below 1, not {keep_probability}")
        return keep_probability
    if not 1 <= cost <= _DEAREST:
        raise CurationError(f"wrong_label_cost must be at least 1 and at most {_DEAREST:,.0f}, not {cost}")
    return cost / (1 + cost)


def _listed(columns: str | Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _without_opponents(evidence: Evidence, unused: Unused) -> Evidence:
    """Without voters and judges that are against the labels clearly more often than for them.

    Where nothing is checked, labels are taken to be right more often than not, and so such a voter errs more often than
    not. A model could use it the other way round; but more often its columns are swapped.
    """
    against, features = [], evidence.features.copy()
    for place in np.flatnonzero(evidence.of(VOTER, NET_VERDICT, JUDGE)):
        signs = np.sign(features[:, place])
        if signs.sum() < -_STANDARD_ERRORS * np.sqrt(np.count_nonzero(signs)):
            features[:, place] = 0.0
            against.append(
                f"{evidence.kinds[place]} {evidence.names[place]} ({(signs > 0).sum() / (signs != 0).sum():.0%})"
            )
    if against:
        unused.notes.append(
            f"not used, since they agree with fewer than half of the labels: {', '.join(against)}; look whether their "
            "scores or verdicts are the right way round"
        )
    return replace(evidence, features=features)


def _doubt(evidence: Evidence, anchors: Anchors, model: JointModel, draw: np.ndarray) -> str | None:
    """Why an audit and everything else cannot both be believed, so that all pairs stay as they are."""
    count = int(np.count_nonzero(anchors.checked))
    if count < _FEWEST_TO_DOUBT:
        return None
    right = float((anchors.checked > 0).sum()) / count
    if 2 * right - 1 < -_STANDARD_ERRORS / np.sqrt(count):
        found = "that labels are wrong more often than right"
    else:
        random = fit_joint_model(evidence, replace(anchors, auditor_accuracy=0.5), draw)
        if model.log_evidence >= random.log_evidence - _CLEARLY_WORSE:
            return None
        found = "something that does not fit labels, voters and judges: answers at random would fit them better"
    return (
        f"the audit says {found} ({count} answers, {right:.0%} for the label). Either its answers or voters and judges "
        "mislead, so all pairs stay as they are, and the estimate is the audit's alone. Look at the answers, at how "
        "their pair_id and better_id were joined, and whether voters have learned these labels"
    )


def _reasons(
    decisions: Decisions, anchors: Anchors, same_side: np.ndarray, bound: float, *, doubted: bool
) -> np.ndarray:
    outcome = decisions.outcome
    against = np.where(decisions.label_right < 0.5, AGAINST, UNSURE)
    kept = np.where(decisions.label_right < bound, "too little speaks against it", "likely right")
    if doubted:
        kept = np.full(len(outcome), "the audit is in doubt", dtype=object)
    elif not decisions.informative:
        kept = np.full(len(outcome), "nothing speaks for or against it", dtype=object)
    checked = (anchors.checked != 0) & (not doubted)
    reasons = np.select(
        [same_side, checked, outcome == DROPPED, outcome == FLIPPED],
        ["both sides are one response", "checked", against, "the other side is more probably better"],
        kept,
    )
    return np.asarray(reasons, dtype=object)


def _wanted(
    table: PairTable,
    evidence: Evidence,
    model: JointModel,
    decisions: Decisions,
    verdicts: np.ndarray,
    anchors: Anchors,
    bound: float,
    call_cost: float,
    draw: np.ndarray,
) -> pd.DataFrame:
    """Pairs that are worth a call, best first, with sure ones drawn at random among them."""
    asked = (verdicts != 0).any(axis=1) | (anchors.checked != 0)
    cost = bound / (1 - bound)
    gain = verdict_gain(evidence, model, decisions.label_right, asked, cost, may_flip=decisions.anchored)
    order = np.lexsort([draw, -gain])
    best = order[gain[order] > call_cost]
    sure = np.flatnonzero(~asked & (gain <= call_cost))
    count = min(len(sure), int(np.ceil(_CHECK_SHARE * len(best))))
    random = sure[np.argsort(draw[sure], kind="stable")[:count]]
    places = np.concatenate([best, random]).astype(int)
    return pd.DataFrame(
        {
            "pair_id": table.ids.iloc[places].reset_index(drop=True),
            "gain": np.concatenate([gain[best], np.full(count, np.nan)]),
            "why": pd.Series(["may change the outcome"] * len(best) + ["checks a sure pair"] * count, dtype="str"),
        }
    )


def _sensitivity(evidence: Evidence, model: JointModel, decisions: Decisions) -> pd.DataFrame:
    """What follows if annotators are as accurate as _ASSUMED, and the ends of what the data leave open."""
    rows = assumptions(evidence, model, decisions)
    at = np.array([row.annotator_accuracy for row in rows])
    columns = {
        name: np.array([getattr(row, name) for row in rows]) for name in ("label_accuracy", "accuracy_after", "weight")
    }
    open_to = [each for each in _ASSUMED if at.min() <= each <= at.max()]
    wanted = sorted({float(at.min()), *open_to, float(at.max())})
    return pd.DataFrame(
        {"annotator_accuracy": wanted} | {name: np.interp(wanted, at, values) for name, values in columns.items()}
    )


def _sentences(decisions: Decisions, anchors: Anchors, sensitivity: pd.DataFrame) -> list[str]:
    """What a reader must know about the result."""
    found = []
    seen = f"voters and judges agree with {decisions.agreement:.0%} of {decisions.compared:,} labels"
    few = int(np.count_nonzero(anchors.checked))
    if not decisions.compared:
        found.append("no scores and no verdicts: all labels stay as they are")
    elif not decisions.informative:
        found.append(f"{seen}, which is no more than chance: all labels stay as they are")
    elif not decisions.anchored:
        have, other = (f"{few} checked pairs are too few", "other ") if few else ("nothing is checked", "")
        found.append(
            f"{seen}, and {have}, so which of the two is wrong where they differ is not known: no {other}label was "
            f"flipped. Let a person check pairs that are drawn at random: {LEAST_CHECKED} at least, better 50"
        )
    if decisions.retained:
        found.append(
            f"{decisions.retained:,} pairs are not sure enough, and stay: they are too few, or too likely right, to "
            "know that the others are better labelled without them"
        )
    if decisions.compared and len(sensitivity):
        low, high = sensitivity["label_accuracy"].min(), sensitivity["label_accuracy"].max()
        found.append(
            f"the label accuracy is assumed, not measured. It is up to {high:.0%} if voters and judges are less "
            f"accurate than assumed, and down to {low:.0%} if they are more accurate"
        )
    return found
