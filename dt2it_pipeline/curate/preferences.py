"""Label cleaning for any table: `clean_preferences`, from Python, with neither a recipe nor Dagster, torch or a GPU.

What belongs here: the function and its result. What does not: what follows from what was observed (`joint.solution`),
and how tables are read (`preference_tables`, `preference_verdicts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.evidence_table import PairEvidence
from dt2it_pipeline.curate.given_pairs import CHOSEN, REJECTED, GivenPairs, GivenScores, PairFrame, ScoreFrame
from dt2it_pipeline.curate.id_index import IdIndex
from dt2it_pipeline.curate.joint.decisions import DROPPED, FLIPPED, KEPT
from dt2it_pipeline.curate.joint.sensitivity import Assumption
from dt2it_pipeline.curate.joint.solution import REASONS, Observed, Prices, Trusted, reason_codes, solve
from dt2it_pipeline.curate.joint.sums import UNKNOWN, Estimate
from dt2it_pipeline.curate.pair_frames import phrases, row_hashes, swapped_columns
from dt2it_pipeline.curate.preference_tables import Unused, read_margins, read_pairs, refuse_doubtful_ids
from dt2it_pipeline.curate.preference_verdicts import Votes, given_verdicts, read_audit, read_verdicts, split_votes
from dt2it_pipeline.curate.voters.margins import CurationError
from dt2it_pipeline.human_review.own_tables import NAME_TEXTS
from dt2it_pipeline.storage.table_files import key_strings

_NAMES = {KEPT: "kept", FLIPPED: "flipped", DROPPED: "dropped"}
_HASHED = 1 << 16  # ids that are Python objects at a time
_DEAREST = 1e6
DOUBTFUL, SURE = "may change the outcome", "checks a sure pair"


@dataclass(frozen=True)
class LabelAccuracy:
    """Label accuracy of all pairs as given, and of the pairs that stay, each with its interval."""

    before: Estimate
    after: Estimate


@dataclass(frozen=True)
class _Known:
    """What `evidence` is made of: ids of pairs and sides, voters and their margins [n, V], and votes on these pairs."""

    keys: pd.Series
    sides: tuple[pd.Series, pd.Series]
    voters: tuple[str, ...]
    margins: np.ndarray
    votes: Votes | None


@dataclass(frozen=True)
class CleanedPreferences:
    """Result of `clean_preferences`.

    Attributes:
        pairs: a row per input pair, in its order: `pair_id`, `outcome` (kept, flipped, dropped), `probability` (that
            its chosen side after the decision is the better one; of a dropped pair: as given), `reason`.
        label_accuracy: before and after, with intervals of 95% by the model; not a number where nothing can be used.
        wanted: pairs that are worth a judge call, best first: `pair_id`, `gain` (expected, in right labels; not a
            number for pairs drawn at random to check sure ones) and `why`. Their outcome is the one without a verdict.
        sensitivity: without an anchor, what follows if voters and judges together are right in 50, 60, 70, 80, 90 or
            99%: `annotator_accuracy`; `label_accuracy` and `accuracy_after`, as the model expects them; `after_low` and
            `after_high`, between which the latter lies however often both err on the same pair, if labels that they
            leave open are right in a half of the pairs at least.
        notes: sentences: what is assumed, what was not used, why nothing was flipped.
        assumption: without an anchor, what `label_accuracy` assumes: `annotator_accuracy`, how often voters and judges
            together prefer the better side, and `right_where_they_err`, how often a label is right where they do not;
            `sides` has which side they prefer in each pair. None: measured, or nothing can be used.
    """

    pairs: pd.DataFrame
    label_accuracy: LabelAccuracy
    wanted: pd.DataFrame
    sensitivity: pd.DataFrame
    notes: tuple[str, ...]
    assumption: Assumption | None = field(default=None, repr=False)
    _sides: tuple[tuple[str, str], ...] = ()
    _known: _Known | None = field(default=None, repr=False, compare=False)
    _order: tuple[tuple[str, ...], np.ndarray] | None = field(default=None, repr=False, compare=False)

    def evidence(self) -> PairEvidence:
        """Every voter's margin and every judge's verdict, as given, with what followed from them; made when asked for.

        Raises:
            CurationError: this result was not made by `clean_preferences`.
        """
        known = self._known
        if known is None:
            raise CurationError("this result has no evidence with it; take the one that clean_preferences gave")
        flipped = (self.pairs["outcome"] == "flipped").to_numpy()
        probability = self.pairs["probability"].to_numpy(dtype=np.float64)
        return PairEvidence(
            known.keys,
            known.sides,
            self.pairs["outcome"],
            np.where(flipped, 1 - probability, probability),
            known.voters,
            known.margins,
            given_verdicts(known.votes, known.sides),
        )

    def swapped(self, columns: Iterable[str]) -> list[tuple[str, str]]:
        """Which columns of the table that was cleaned change sides where a pair is flipped."""
        return swapped_columns(columns, self._sides)

    @staticmethod
    def probability_column(columns: Iterable[str]) -> str:
        """The name of the column that `apply` adds to a table of these columns."""
        ours, taken = "probability", set(columns)
        while ours in taken:
            ours = f"label_{ours}"
        return ours

    def apply(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """The pairs that stay, in their order, with `probability`; flipped ones have their sides swapped.

        A table that has a column `probability` keeps it; then the last column is `label_probability`.

        Swapped are columns whose names differ in `chosen` and `rejected` alone (`chosen_x` and `rejected_x`, `x_chosen`
        and `x_rejected`), and the columns that were named in the call.

        Args:
            pairs: the table that was cleaned. Its rows are found by `pair_id`; without that column they must be in the
                same order.

        Raises:
            CurationError: it has not the rows of the table that was cleaned.
        """
        if len(pairs) != len(self.pairs):
            raise CurationError(f"pairs: {len(pairs)} rows, and {len(self.pairs)} were cleaned; give the same table")
        found = self.pairs.iloc[self._rows_of(pairs)]
        flipped = (found["outcome"] == "flipped").to_numpy()
        made = pairs.reset_index(drop=True)
        made[self.probability_column(pairs.columns)] = found["probability"].to_numpy()
        for left, right in self.swapped(pairs.columns):
            sides = made[left].mask(flipped, made[right]), made[right].mask(flipped, made[left])
            made[left], made[right] = sides
        return made[(found["outcome"] != "dropped").to_numpy()].reset_index(drop=True)

    def _rows_of(self, pairs: pd.DataFrame) -> np.ndarray:
        """int64 [n], the row of `self.pairs` that is about each row of a table of as many rows."""
        by = ("pair_id",) if self._order is None else self._order[0]
        if missing := [name for name in by if name not in pairs]:
            raise CurationError(f"pairs: the table that was cleaned had the column {missing[0]!r}; give the same table")
        if self._order is None:
            keys = key_strings(pairs["pair_id"])
            rows = IdIndex(key_strings(self.pairs["pair_id"])).positions(keys)
            if others := keys[(rows < 0) | keys.duplicated().to_numpy()].tolist():
                raise CurationError(
                    f"pairs: {len(others)} values of pair_id are not those of the table that was cleaned, or are there "
                    f"twice; the first is {others[0]!r}"
                )
            return rows
        if differ := int((row_hashes(pairs, by) != self._order[1]).sum()):
            raise CurationError(
                f"pairs: {differ} rows differ from those of the table that was cleaned, in {' or '.join(by)}; give the "
                "same table, rows in the same order, or clean one with a column pair_id, by which rows are found"
            )
        return np.arange(len(pairs))


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

    Examples:
        >>> table = pd.DataFrame({"good": [2.0, 1.5, 0.0, 1.0] * 20, "bad": [0.0, 0.0, 2.0, 0.0] * 20})
        >>> result = clean_preferences(table, chosen_scores=["good"], rejected_scores=["bad"])
        >>> result.pairs.groupby("outcome")["pair_id"].count().to_dict()
        {'dropped': 20, 'kept': 60}

    Everything but `pairs` is optional. Texts, prompts and ids are, too: without `pair_id`, the number of the row
    (from 0) is a pair's id, and without ids of responses `better_id` is `chosen` or `rejected`.

    Args:
        pairs: one row per pair: `pair_id`, `chosen_id`, `rejected_id`, texts (`chosen`, `rejected`), `source`.
        scores: `response_id`, `voter`, `score`, of reward models that did not learn these labels.
        votes: `pair_id`, `judge`, and `better_id` or `verdict` (chosen, rejected, tie); if known, which side the judge
            saw first: `shown_first` (an id, chosen, rejected), or `order` (forward or AB: the lower id as text).
        audit: `pair_id`, `better_id`, of pairs drawn at random and checked, a row per answer. The majority decides a
            pair, and as many answers for either side decide nothing. With 15 or more pairs, labels can be flipped.
        trusted: other pairs whose chosen side is the better one, with `chosen_id`, `rejected_id` (their scores stand
            in `scores`) or with the columns of `chosen_scores`; voters must not have learned them. `votes` may have
            verdicts on them. 50 or more are an anchor as an audit is.
        chosen: column with the texts of chosen sides, where it is not `chosen`; used for lengths.
        rejected: the same of rejected sides.
        chosen_scores: columns of `pairs` with scores of the chosen sides, one per voter.
        rejected_scores: columns with scores of the rejected sides, in the same order.
        label_accuracy: of the given labels, where it is known from elsewhere: 0.5 or more, below 1. It is an anchor.
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
    refuse_doubtful_ids(pairs, votes=None if trusted is not None and "pair_id" in trusted else votes, audit=audit)
    return clean_given(
        PairFrame(pairs),
        None if scores is None else ScoreFrame(scores),
        votes,
        audit,
        trusted=trusted,
        chosen=chosen,
        rejected=rejected,
        chosen_scores=chosen_scores,
        rejected_scores=rejected_scores,
        label_accuracy=label_accuracy,
        wrong_label_cost=wrong_label_cost,
        keep_probability=keep_probability,
        call_cost=call_cost,
        seed=seed,
    )


def clean_given(
    given: GivenPairs,
    scores: GivenScores | None = None,
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
    """`clean_preferences` on tables that may lie in files; what it takes else is described there.

    Raises:
        CurationError: as `clean_preferences`; or a file cannot be read.
    """
    numbers = {
        "label_accuracy": label_accuracy,
        "wrong_label_cost": wrong_label_cost,
        "keep_probability": keep_probability,
        "call_cost": call_cost,
        "seed": seed,
    }
    for name, value in numbers.items():
        may_lack = value is None and name in ("label_accuracy", "keep_probability")
        if not may_lack and not isinstance(value, int | float | np.number):
            raise CurationError(f"{name} must be a number, not {value!r}")
    if not (0 <= seed < np.inf and seed == int(seed)):
        raise CurationError(f"seed must be a whole number from 0 on, not {seed}")
    bound = _bound(wrong_label_cost, keep_probability)
    if not (0 <= call_cost < np.inf):
        raise CurationError(f"call_cost must be 0 or more, not {call_cost}")
    chosen_scores, rejected_scores = listed(chosen_scores), listed(rejected_scores)
    if label_accuracy is not None and not 0.5 <= label_accuracy < 1:
        raise CurationError(
            f"label_accuracy must be at least 0.5 and below 1, not {label_accuracy}; where more labels are wrong than "
            "right, swap the sides"
        )
    nothing = not chosen_scores and all(table is None or not len(table) for table in (scores, votes, audit))
    if nothing and chosen is None and not {"chosen_id", "pair_id", CHOSEN} & set(given.columns):
        shown = ", ".join(map(str, given.columns[:12]))
        raise CurationError(
            "pairs: nothing says that its rows are pairs: it has neither ids (pair_id, chosen_id) nor the texts chosen "
            f"and rejected, and no columns of scores are named; it has {shown}. Name the columns that hold the texts: "
            f"{NAME_TEXTS}. `read_preferences` reads other forms, such as lists of answers, and gives this table"
        )
    unused = Unused()
    table = read_pairs(given, chosen, rejected)
    margins, voters = read_margins(table, given, scores, chosen_scores, rejected_scores, unused=unused)
    known_true = None if trusted is None or not len(trusted) else PairFrame(trusted)
    theirs = None if known_true is None else read_pairs(known_true, chosen, rejected, "trusted")
    of_trusted = None
    if theirs is not None and known_true is not None and "pair_id" in known_true.columns:
        of_trusted, votes = split_votes(table, theirs, votes)
    heard = read_verdicts(table, votes, unused)
    answers = read_audit(table, audit, unused)
    more = None
    names_of_texts = chosen or CHOSEN, rejected or REJECTED
    if theirs is not None and known_true is not None:
        margins_of, same = read_margins(theirs, known_true, scores, chosen_scores, rejected_scores, "trusted")
        if same != voters:
            raise CurationError(f"trusted: it has the voters {list(same)}, and the pairs have {list(voters)}")
        of_them = read_verdicts(theirs, of_trusted, unused, heard.judges)
        more = Trusted(margins_of, of_them.signs, known_true.lengths(*names_of_texts), of_them.shown_first)
    ids, keys, sides, sources = table.ids, table.keys, table.sides, table.sources
    del table, theirs, votes  # the indices of their ids are as large as the ids
    draw = _draw(keys, f"{seed:016d}"[-16:])
    same_side = ((sides[0] == sides[1]) | (sides[0].isna() & sides[1].isna())).to_numpy(dtype=bool)
    length = given.lengths(*names_of_texts)
    observed = Observed(
        margins,
        voters,
        heard.signs,
        heard.judges,
        length,
        sources,
        answers.lead,
        draw,
        same_side,
        more,
        heard.shown_first,
        heard.asked,
        answers.contradictions,
    )
    solution = solve(observed, Prices(bound, call_cost), label_accuracy, seed)
    decisions, wanted = solution.decisions, solution.wanted
    result = pd.DataFrame(
        {
            "pair_id": ids,
            "outcome": phrases(list(_NAMES.values()), _places(decisions.outcome)),
            "probability": decisions.probability,
            "reason": phrases(REASONS, reason_codes(solution, same_side)),
        }
    )
    asked = pd.DataFrame(
        {
            "pair_id": ids.iloc[wanted].reset_index(drop=True),
            "gain": solution.gain,
            "why": phrases((DOUBTFUL, SURE), np.isnan(solution.gain).astype(np.int8)),
        }
    )
    # With nothing for or against any label, the estimate would be the prior's.
    known = bool(decisions.compared) or bool(np.any(answers.lead)) or label_accuracy is not None
    accuracy = LabelAccuracy(decisions.before, decisions.after) if known else LabelAccuracy(UNKNOWN, UNKNOWN)
    sensitivity = solution.sensitivity if known else solution.sensitivity.iloc[:0]
    named = (names_of_texts, *zip(chosen_scores, rejected_scores, strict=True))
    return CleanedPreferences(
        result,
        accuracy,
        asked,
        sensitivity,
        (*unused.notes, *solution.notes),
        solution.assumption if known else None,
        named,
        _Known(keys, sides, voters, margins, heard.votes),
        None if "pair_id" in given.columns else _order_of(given.frame, named),
    )


def _order_of(pairs: pd.DataFrame, named: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], np.ndarray]:
    """Columns that tell the rows of a table without pair_id apart, and a number for each row."""
    texts = [*(("chosen_id", "rejected_id") if "chosen_id" in pairs else ()), *named[0]]
    scores = [name for sides in named[1:] for name in sides]
    by = [name for name in texts if name in pairs] or [name for name in scores if name in pairs]
    return tuple(by), row_hashes(pairs, by)


def _draw(keys: pd.Series, hash_key: str) -> np.ndarray:
    """uint64 [n], a random number for every id that does not depend on its place."""
    parts = (keys.iloc[start : start + _HASHED] for start in range(0, len(keys), _HASHED))
    hashed = [pd.util.hash_array(part.to_numpy(dtype=object), hash_key=hash_key, categorize=False) for part in parts]
    return np.concatenate(hashed) if hashed else np.empty(0, dtype=np.uint64)


def _places(outcome: np.ndarray) -> np.ndarray:
    """int8 [n], places among _NAMES."""
    return np.select([outcome == each for each in _NAMES], list(range(len(_NAMES)))).astype(np.int8)


def _bound(cost: float, keep_probability: float | None) -> float:
    if keep_probability is not None:
        if not 0.5 <= keep_probability < 1:
            raise CurationError(f"keep_probability must be at least 0.5 and below 1, not {keep_probability}")
        return keep_probability
    if not 1 <= cost <= _DEAREST:
        raise CurationError(f"wrong_label_cost must be at least 1 and at most {_DEAREST:,.0f}, not {cost}")
    return Prices.of_wrong_label(cost, 0.0).bound


def listed(columns: str | Sequence[str]) -> tuple[str, ...]:
    """Names of columns, where a single one may stand for itself."""
    return (columns,) if isinstance(columns, str) else tuple(columns)
