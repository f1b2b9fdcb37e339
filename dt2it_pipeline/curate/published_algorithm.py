"""Part 3 of the published method (arXiv 2604.19544): vote and flip, verify, annotate, merge, as pure functions.

Every function takes and returns pandas frames, changes none of its inputs, keeps the order of the rows and loses none:
rows in = rows of the returned parts. Two things hold for every row that comes back:

- `strength` and the margins in `votes` read in the row's present direction, chosen over rejected;
- the parts that curation takes out (`unscored`, `dropped`) also have `reason` (a short fixed phrase) and `detail`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.id_index import IdIndex
from dt2it_pipeline.curate.pair_frames import select_rows, stack, swap_sides, with_strength
from dt2it_pipeline.curate.voters import votes as vote_column
from dt2it_pipeline.curate.voters.margins import CurationError, Margins, check_columns, check_pairs, voter_margins

WRONG_COUNT = {1: "votes do not sum to one", 2: "votes do not sum to two", None: "no vote"}
TIED = "votes are tied"
_FOR_CHOSEN = {"chosen": 1.0, "tie": 0.5, "rejected": 0.0}


@dataclass(frozen=True)
class VoteResult:
    """Step 1. `voted`: the scored pairs, some flipped; `unscored`: dropped; `negative`: how many disagreed."""

    voted: pd.DataFrame
    unscored: pd.DataFrame
    negative: int
    flipped: int
    voters: tuple[str, ...]


@dataclass(frozen=True)
class VerifyResult:
    """Step 2. `verified`: the model agrees; `contested`: it does not, or it is a tie; `unscored`: dropped."""

    verified: pd.DataFrame
    contested: pd.DataFrame
    unscored: pd.DataFrame
    voters: tuple[str, ...]


@dataclass(frozen=True)
class AnnotationResult:
    """Step 3. `annotated`: a majority of two votes decided; `dropped`: none did; `swapped`: how many changed sides."""

    annotated: pd.DataFrame
    dropped: pd.DataFrame
    swapped: int


def vote_and_flip(pairs: pd.DataFrame, scores: pd.DataFrame, flip_fraction: float = 0.5) -> VoteResult:
    """Step 1, multi-model voting and label flipping.

    A voter's margin of a pair is r(chosen) - r(rejected); a pair's strength is the mean over all voters in `scores`. Of
    the n pairs with a negative mean, the floor(n * flip_fraction) most negative have their sides swapped and carry the
    label "flipped". Equal means at the edge are taken in the order of pair_id, so the result does not depend on the
    order of the rows.

    Args:
        pairs: pair_id, chosen_id, rejected_id and anything else. Every column `chosen<x>` that has a partner
            `rejected<x>` changes sides with it. `label` is "original" where the column is absent.
        scores: response_id, voter, score.
        flip_fraction: share of the negative pairs that is flipped, 0 to 1; the paper's is 0.5.

    Returns:
        `voted` and `unscored`. `votes` of a voted pair holds this step's margins and replaces earlier ones. A pair for
        which any voter lacks a finite score of either side is unscored: see `margins.voter_margins`.

    Raises:
        CurationError: malformed tables, repeated pair ids or contradicting scores.
        ValueError: flip_fraction is out of range.
    """
    margins = voter_margins(pairs, scores)
    flips = choose_flips(margins, pairs["pair_id"], flip_fraction)
    voted = voted_frame(pairs, margins, flips)
    return VoteResult(voted, unscored_frame(pairs, margins), flips.negative, flips.count, margins.voters)


@dataclass(frozen=True)
class Flips:
    """Which of n pairs change sides (bool [n]), how many those are, and of how many that voters disagree with."""

    where: np.ndarray
    count: int
    negative: int

    def rows(self, start: int, stop: int) -> Flips:
        """The flips among the pairs from `start` up to `stop`; the counts remain those of all pairs."""
        return Flips(self.where[start:stop], self.count, self.negative)


def choose_flips(margins: Margins, pair_ids: pd.Series, flip_fraction: float) -> Flips:
    """The flips of `vote_and_flip`, from the margins alone.

    Raises:
        ValueError: flip_fraction is out of range.
    """
    if not 0 <= flip_fraction <= 1:
        raise ValueError(f"flip_fraction must lie between 0 and 1, not {flip_fraction}")
    mean = np.where(margins.scored, margins.mean, np.inf)
    negative = int((mean < 0).sum())
    # The decimal that was written, not its binary neighbour: 0.29 of 100 is 29.
    count = math.floor(Fraction(str(float(flip_fraction))) * negative)
    return Flips(_most_negative(mean, pair_ids, count), count, negative)


def voted_frame(pairs: pd.DataFrame, margins: Margins, flips: Flips) -> pd.DataFrame:
    """The scored ones of `pairs` after step 1; all three arguments have the same rows."""
    scored = margins.scored
    voted = with_strength(select_rows(pairs, scored), margins.mean[scored])
    voted["votes"] = vote_column.from_matrix(margins.voters, margins.margins[scored])
    flipped = flips.where[scored]
    voted = swap_sides(voted, flipped)
    voted["label"] = voted["label"].mask(flipped, "flipped")
    return voted


def verify(pairs: pd.DataFrame, scores: pd.DataFrame) -> VerifyResult:
    """Step 2, the consistency check: a model trained on the step-1 data keeps what it agrees with.

    r(chosen) > r(rejected) keeps a pair; everything else that has a score is contested, ties included. With several
    voters in `scores` their mean margin decides. Labels stay as they are; `strength` becomes the mean margin and the
    verifier's margins are added to `votes`.

    Raises:
        CurationError: malformed tables, repeated pair ids or contradicting scores.
    """
    margins = voter_margins(pairs, scores)
    verified, contested = checked_frames(pairs, margins)
    return VerifyResult(verified, contested, unscored_frame(pairs, margins), margins.voters)


def checked_frames(pairs: pd.DataFrame, margins: Margins) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The verified and the contested ones of `pairs` after step 2; both arguments have the same rows."""
    scored = margins.scored
    checked = with_strength(select_rows(pairs, scored), margins.mean[scored])
    checked["votes"] = vote_column.append(
        checked.get("votes"),
        np.repeat(np.arange(len(checked)), len(margins.voters)),
        pd.Series(np.tile(np.array(margins.voters, dtype=object), len(checked)), dtype="str"),
        margins.margins[scored].ravel(),
        len(checked),
    )
    agrees = margins.mean[scored] > 0
    return select_rows(checked, agrees), select_rows(checked, ~agrees)


def resolve_annotations(contested: pd.DataFrame, votes: pd.DataFrame, judges: int | None = 2) -> AnnotationResult:
    """Step 3, annotation: two judges decide each contested pair; or one, which is not the published way.

    Each usable verdict is one vote; a tie gives half a vote to each side; null, and anything that is not a verdict,
    gives none. A pair whose votes do not sum to exactly `judges` is dropped, so is a tied pair. Otherwise the majority
    side becomes chosen and the label is "annotated", whether or not the sides changed. `strength` becomes the
    difference of votes (1 or 2) and the judges are added to `votes` (+1, 0 or -1).

    Args:
        contested: pairs as `verify` returns them; may be empty.
        votes: pair_id, judge, order, verdict. "chosen" means the pair's present chosen side, whatever the order.
            Each row counts: one judge asked in both orders and another asked in both give four votes, hence a drop.
            Votes on other pairs are not looked at.
        judges: 1 or 2, the votes that decide a pair; None: as many as there are.

    Raises:
        CurationError: malformed tables or repeated pair ids.
    """
    check_pairs(contested, "contested")
    check_columns(votes, ("pair_id", "judge", "verdict"), "votes")
    rows = IdIndex(contested["pair_id"]).positions(votes["pair_id"])  # ids are unique, so a code is a row
    return resolved_frames(contested, votes, rows, judges)


def resolved_frames(
    contested: pd.DataFrame, votes: pd.DataFrame, rows: np.ndarray, judges: int | None = 2
) -> AnnotationResult:
    """Step 3 where it is known already which row of `contested` each vote is on.

    Args:
        contested: as for `resolve_annotations`.
        votes: judge and verdict.
        rows: int [len(votes)], -1 for a vote on none of them.
        judges: as for `resolve_annotations`.
    """
    count = len(contested)
    for_chosen = _votes_for_chosen(votes["verdict"])
    relevant = rows >= 0
    usable = relevant & ~np.isnan(for_chosen)
    chosen_votes = np.bincount(rows[usable], weights=for_chosen[usable], minlength=count)
    total = np.bincount(rows[usable], minlength=count)
    unusable = np.bincount(rows[relevant & ~usable], minlength=count)
    difference = 2 * chosen_votes - total

    complete = total == judges if judges else total > 0
    decided = complete & (difference != 0)
    swap = difference < 0
    everything = with_strength(contested.reset_index(drop=True), difference)
    everything["votes"] = vote_column.append(
        everything.get("votes"),
        rows[usable],
        votes["judge"][usable].astype("str"),
        2 * for_chosen[usable] - 1,
        count,
    )
    annotated = swap_sides(select_rows(everything, decided), swap[decided])
    annotated["label"] = pd.Series("annotated", index=annotated.index, dtype="str")

    dropped = select_rows(contested, ~decided)
    dropped["reason"] = pd.Series(np.where(complete[~decided], TIED, WRONG_COUNT[judges]), dtype="str")
    dropped["detail"] = pd.Series(
        [
            f"votes for chosen {a:g}, for rejected {b:g}, unusable {c}"
            for a, b, c in zip(
                chosen_votes[~decided], (total - chosen_votes)[~decided], unusable[~decided], strict=True
            )
        ],
        dtype="str",
    )
    return AnnotationResult(annotated, dropped, int(swap[decided].sum()))


def _votes_for_chosen(verdicts: pd.Series) -> np.ndarray:
    """What each verdict gives the chosen side, float64 [n]; NaN for what is none."""
    codes, names = pd.factorize(verdicts)  # a null has the code -1, hence the last value
    return np.array([*(_FOR_CHOSEN.get(name, np.nan) for name in names), np.nan])[codes]


def decide_by_people(
    contested: pd.DataFrame, votes: pd.DataFrame, strength_per_vote: float = 1.0
) -> tuple[AnnotationResult, pd.DataFrame]:
    """Settle the pairs that people have voted on: the majority decides, a tie drops the pair.

    Args:
        contested: pairs as step 2 returns them.
        votes: pair_id, judge, order, verdict, of people alone, any number on a pair.
        strength_per_vote: `strength` becomes the difference of people's votes times this.

    Returns:
        Their part, and the pairs without a usable vote of theirs.
    """
    usable = votes[votes["verdict"].notna()]
    theirs = contested["pair_id"].isin(set(usable["pair_id"])).to_numpy(dtype=bool)
    settled = resolve_annotations(select_rows(contested, theirs), usable, None)
    annotated = settled.annotated.assign(strength=settled.annotated["strength"] * strength_per_vote)
    return AnnotationResult(annotated, settled.dropped, settled.swapped), select_rows(contested, np.logical_not(theirs))


def merge(verified: pd.DataFrame, annotated: pd.DataFrame, round_number: int | None = None) -> pd.DataFrame:
    """The curated set of a round: what step 2 kept, then what step 3 annotated.

    `round_number`, if given, is written to the column `round`.

    Raises:
        CurationError: a pair occurs in both or twice, or the two frames have different columns.
    """
    check_pairs(verified, "verified")
    check_pairs(annotated, "annotated")
    if set(verified.columns) != set(annotated.columns):
        differing = sorted(set(verified.columns) ^ set(annotated.columns))
        raise CurationError(f"verified and annotated differ in columns {differing}")
    curated = stack(verified, annotated[verified.columns])
    check_pairs(curated, "curated (verified + annotated)")
    if round_number is not None:
        curated["round"] = np.full(len(curated), round_number, dtype=np.int32)
    return curated


def unscored_frame(pairs: pd.DataFrame, margins: Margins) -> pd.DataFrame:
    """Those of `pairs` without a margin, with reason and detail; both arguments have the same rows."""
    unscored = select_rows(pairs, ~margins.scored)
    return unscored.assign(
        reason=pd.Series(margins.reason[~margins.scored], dtype="str"),
        detail=pd.Series(margins.detail[~margins.scored], dtype="str"),
    )


def _most_negative(mean: np.ndarray, pair_ids: pd.Series, count: int) -> np.ndarray:
    """Bool [n]: the `count` smallest means; equal means in the order of pair_id."""
    marked = np.zeros(len(mean), dtype=bool)
    if count == 0:
        return marked
    edge = np.partition(mean, count - 1)[count - 1]
    marked = mean < edge
    tied = np.flatnonzero(mean == edge)
    wanted = count - int(marked.sum())
    if wanted < len(tied):
        tied = tied[np.argsort(pair_ids.iloc[tied].to_numpy(dtype=object), kind="stable")]
    marked[tied[:wanted]] = True
    return marked
