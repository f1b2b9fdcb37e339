"""Frames of pairs and votes as the joint model's arrays, and back.

What belongs here: directions, who voted on what, and which trusted pairs stand beside which. What does not: what
follows for a pair (`joint`), and tables of users (`preference_tables`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.joint.answers import Answers, counted
from dt2it_pipeline.curate.joint.solution import Observed, Trusted
from dt2it_pipeline.curate.pair_frames import length_difference, select_rows, with_strength
from dt2it_pipeline.curate.voters import votes as vote_column
from dt2it_pipeline.curate.voters.margins import voter_margins
from dt2it_pipeline.judges.pairwise_votes import LOWER_FIRST

_FOR_CHOSEN = {"chosen": 1.0, "rejected": -1.0}


def observed_of(
    pairs: pd.DataFrame,
    voters: tuple[str, ...],
    votes: pd.DataFrame,
    audit: pd.DataFrame,
    trusted: pd.DataFrame,
) -> Observed:
    """What is known of pairs, turned to the direction of their given labels.

    Args:
        pairs: as step 1 leaves them: pair_id, both ids and texts, `source`, `votes`, and `label`, which is "flipped"
            where the sides were swapped.
        voters: whose margins in `votes` count.
        votes: pair_id, judge, order, verdict of judges, on the present sides, of pairs and of trusted pairs.
        audit: pair_id, better_id, a row per answer.
        trusted: other pairs whose chosen side is the better one, with `votes`.
    """
    given = np.where(pairs["label"].to_numpy(dtype=object) == "flipped", -1.0, 1.0)
    judges = sorted(set(votes["judge"]))
    sources = pairs["source"].to_numpy(dtype=object) if "source" in pairs else np.full(len(pairs), "")
    verdicts, first, asked = _verdicts(pairs, votes, judges)
    answers = _answers(pairs, audit)
    known, first_of_known, _ = _verdicts(trusted, votes, judges) if len(trusted) else (None, None, None)
    return Observed(
        margins=vote_column.to_matrix(pairs["votes"], voters) * given[:, None],
        voters=voters,
        verdicts=verdicts * given[:, None],
        judges=judges,
        length=length_difference(pairs) * given,
        sources=sources,
        checked=(answers.lead * given).astype(int),
        draw=random_draw(pairs),
        same_side=pairs["chosen_id"].to_numpy(dtype=object) == pairs["rejected_id"].to_numpy(dtype=object),
        trusted=Trusted(
            vote_column.to_matrix(trusted["votes"], voters),
            known,
            length_difference(trusted),
            first_of_known,
        )
        if known is not None
        else None,
        shown_first=first * given[:, None],
        asked=asked,
        contradictions=answers.contradictions,
    )


def _verdicts(pairs: pd.DataFrame, votes: pd.DataFrame, judges: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Verdicts, and which side each judge saw first, float64 [n, judges]; whether it gave one, bool [n, judges].

    +1 for the present label, -1 against it, 0 for a tie or none; +1 where the judge saw the chosen side first, -1 where
    last, 0 where both ways or not known.
    """
    found, first = np.zeros((len(pairs), len(judges))), np.zeros((len(pairs), len(judges)))
    rows = pd.Index(pairs["pair_id"]).get_indexer(pd.Index(votes["pair_id"]))
    there = (rows >= 0) & votes["verdict"].isin(_FOR_CHOSEN).to_numpy(dtype=bool)
    columns = pd.Index(judges).get_indexer(pd.Index(votes["judge"]))
    np.add.at(found, (rows[there], columns[there]), votes["verdict"][there].map(_FOR_CHOSEN).to_numpy(dtype=np.float64))
    there = (rows >= 0) & votes["verdict"].notna().to_numpy(dtype=bool)
    lower = votes["order"][there].map(LOWER_FIRST).fillna(0.0).to_numpy(dtype=np.float64)
    chosen_is_lower = np.where((pairs["chosen_id"] < pairs["rejected_id"]).to_numpy(dtype=bool), 1.0, -1.0)
    np.add.at(first, (rows[there], columns[there]), lower * chosen_is_lower[rows[there]])
    asked = np.zeros(found.shape, dtype=bool)
    asked[rows[there], columns[there]] = True
    return found, first, asked


def _answers(pairs: pd.DataFrame, audit: pd.DataFrame) -> Answers:
    """The answers of an audit, for and against the present labels; one that names no side of its pair says nothing."""
    places = pd.Index(pairs["pair_id"]).get_indexer(pd.Index(audit["pair_id"]))
    there = places >= 0
    better, places = audit["better_id"].to_numpy(dtype=object)[there], places[there]
    sides = (pairs[name].to_numpy(dtype=object)[places] == better for name in ("chosen_id", "rejected_id"))
    chosen, rejected = (side.astype(float) for side in sides)
    return counted(places, chosen - rejected, len(pairs))


def random_draw(pairs: pd.DataFrame) -> np.ndarray:
    """A random number for every pair, unsigned [n], by its id alone."""
    return pd.util.hash_array(pairs["pair_id"].to_numpy(dtype=object))


def heard_trusted(
    trusted: pd.DataFrame,
    scores: pd.DataFrame,
    voters: tuple[str, ...],
    pairs: pd.DataFrame,
    margins_of_pairs: np.ndarray,
) -> pd.DataFrame:
    """Trusted pairs with the margins of the voters, in an order drawn at random.

    Those without any margin are left out, and those that are among the pairs to be cleaned.

    All voters may judge a trusted pair, and some pairs only some voters: out-of-fold models judge a part each, and a
    round's model not the pairs that it learned. What one voter is worth beside others depends on who is there. So each
    trusted pair hears the voters of a pair that is drawn at random. The order of rows changes nothing.
    """
    if not len(trusted) or not len(pairs):
        return trusted.iloc[:0]
    trusted = select_rows(trusted, ~trusted["pair_id"].isin(pairs["pair_id"]).to_numpy(dtype=bool))
    trusted = trusted.iloc[np.argsort(random_draw(trusted), kind="stable")].reset_index(drop=True)
    found = voter_margins(trusted, scores)
    margins = np.full((len(trusted), len(voters)), np.nan)
    for place, voter in enumerate(found.voters):
        if voter in voters:
            margins[:, voters.index(voter)] = found.margins[:, place]
    places = np.argsort(random_draw(pairs), kind="stable")
    drawn = places[np.arange(len(trusted)) * len(pairs) // max(len(trusted), 1)]
    margins[~np.isfinite(margins_of_pairs[drawn])] = np.nan
    heard = np.isfinite(margins).any(axis=1)
    kept = with_strength(select_rows(trusted, heard), np.full(int(heard.sum()), np.nan))
    return kept.assign(votes=votes_of(voters, margins[heard]))


def votes_of(voters: tuple[str, ...], margins: np.ndarray) -> pd.Series:
    """The `votes` of pairs with these margins, float64 [n, V]; no vote where one is not finite."""
    where, which = np.nonzero(np.isfinite(margins))
    names = pd.Series(np.array(voters, dtype=object)[which], dtype="str")
    return vote_column.append(None, where, names, margins[where, which], len(margins))


def with_verdicts(pairs: pd.DataFrame, votes: pd.DataFrame) -> pd.Series:
    """The `votes` of pairs, with +1, 0 or -1 of every judge that gave a verdict."""
    usable = votes[votes["verdict"].notna() & votes["pair_id"].isin(pairs["pair_id"])]
    rows = pd.Index(pairs["pair_id"]).get_indexer(pd.Index(usable["pair_id"]))
    values = usable["verdict"].map(_FOR_CHOSEN).fillna(0.0).to_numpy(dtype=np.float64)
    return vote_column.append(pairs["votes"], rows, usable["judge"].astype("str"), values, len(pairs))


def voters_of(pairs: pd.DataFrame, trusted: pd.DataFrame) -> tuple[str, ...]:
    """All that voted on pairs or trusted pairs."""
    names = set(vote_column.voters_in(pairs["votes"]))
    return tuple(sorted(names | (set(vote_column.voters_in(trusted["votes"])) if len(trusted) else set())))


def no_votes() -> pd.DataFrame:
    """A table of votes without a row."""
    return pd.DataFrame({name: pd.Series(dtype="str") for name in ("pair_id", "judge", "order", "verdict")})
