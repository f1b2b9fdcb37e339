"""The published curation of a user's own tables: cleaned pairs and the outcome of every pair.

One call does what a round does from `voted_pairs` to `curated_pairs` under the policy `paper`, with scores and votes
that are there already. What belongs here: the order of the steps and the account of every pair. What does not: any
decision about a pair (`policies.paper`), and the joint model (`preferences`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dt2it_pipeline.curate.evidence_table import FILE, PairEvidence, verdict_rows
from dt2it_pipeline.curate.out_of_core.published_steps import (
    MARKER,
    curate_files,
    margins_of_files,
    vote_and_flip_files,
)
from dt2it_pipeline.curate.pair_frames import OTHER_SIDE, stack, swap_verdicts
from dt2it_pipeline.curate.policies.paper import PaperPolicy
from dt2it_pipeline.curate.policies.policy import Anchor
from dt2it_pipeline.curate.published_algorithm import WRONG_COUNT
from dt2it_pipeline.curate.tables import to_frame
from dt2it_pipeline.curate.voters.margins import CurationError, Margins, check_columns, check_pairs, voter_margins
from dt2it_pipeline.storage.atomic import atomic_directory, write_parquet
from dt2it_pipeline.storage.output_folder import OutputFolderError, mark, replaceable
from dt2it_pipeline.storage.schemas import ADDED_COLUMNS, SCHEMAS
from dt2it_pipeline.storage.table_files import key_strings, no_file

KEPT, FLIPPED, DROPPED = "kept", "flipped", "dropped"
_OUTCOMES = ("pair_id", "outcome", "stage", "reason", "detail")
_JUDGED = "annotated_pairs"  # stage of what judges' votes decided; pairs that end there without a label are dropped
_JUDGES = 2
_NO_JUDGE = "contested, and no judge voted"


@dataclass(frozen=True)
class CleanedPairs:
    """Result of `clean_pairs`.

    Attributes:
        pairs: the kept and the flipped pairs in the order given, with all their columns, `strength`, `label` and
            `votes`.
        outcomes: one row per given pair, in the order given: `pair_id`, `source` and `row_id` where there are such
            columns, `outcome` (kept, flipped, dropped), and the `stage`, `reason` and `detail` of it.
        summary: counts.
    """

    pairs: pd.DataFrame
    outcomes: pd.DataFrame
    summary: dict[str, Any]


def clean_pairs(
    pairs: pd.DataFrame,
    scores: pd.DataFrame,
    votes: pd.DataFrame | None = None,
    verifier_scores: pd.DataFrame | None = None,
    flip_fraction: float = 0.5,
    judges: Sequence[str] = (),
) -> CleanedPairs:
    """Clean the labels of pairs by the published policy, from scores and votes that are there already.

    Args:
        pairs: pair_id, chosen_id, rejected_id and anything else.
        scores: response_id, voter, score of reward models.
        votes: pair_id, judge, verdict of the judges (`chosen`, `rejected`, `tie` or null), on the sides as `pairs` has
            them; without votes, contested pairs are dropped.
        verifier_scores: as `scores`, of a model that was trained on the voted pairs. Without them it ends with step 1:
            pairs are voted and flipped, and none is contested.
        flip_fraction: share of the negatively voted pairs that is flipped.
        judges: the two judges whose votes count; all that voted when empty.

    Raises:
        CurationError: malformed tables, repeated ids, contradicting scores, or other than two judges.
    """
    policy = PaperPolicy(flip_fraction)
    check_pairs(pairs)
    votes = _votes_that_count(votes, judges)
    if len(pairs) and not scores["response_id"].isin(pd.concat([pairs["chosen_id"], pairs["rejected_id"]])).any():
        raise CurationError(
            "scores: no response_id is a chosen_id or rejected_id of the pairs; are they of these pairs?"
        )
    voted = policy.vote(pairs, scores, {}, Anchor()).result
    aside, contested = [voted.unscored.assign(stage="voted_pairs")], {}
    if verifier_scores is None:
        curated = voted.voted
    else:
        checked = policy.check(voted.voted, verifier_scores)
        given = dict(zip(pairs["pair_id"], pairs["chosen_id"], strict=True))

        def ask(asked: pd.DataFrame) -> pd.DataFrame:
            return _on_present_sides(votes[votes["pair_id"].isin(asked["pair_id"])], asked, given)

        people = pd.DataFrame({name: pd.Series(dtype="str") for name in ("pair_id", "judge", "order", "verdict")})
        decision = policy.decide(checked.verified, checked.contested, people, ask, _JUDGES, None, Anchor())
        curated = stack(decision.kept, decision.annotated)
        aside += [checked.unscored.assign(stage="verified_pairs"), decision.dropped.assign(stage=_JUDGED)]
        contested = {"contested": len(checked.contested)}
    curated = curated.set_index("pair_id", drop=False)
    curated = curated.loc[[key for key in pairs["pair_id"] if key in curated.index]].reset_index(drop=True)
    outcomes = _outcomes(pairs, curated, pd.concat([part[list(_columns_of(part))] for part in aside]))
    if not len(votes):
        outcomes["reason"] = outcomes["reason"].replace(list(filter(None, WRONG_COUNT.values())), _NO_JUDGE)
    summary = _counts(outcomes) | {
        "policy": policy.name,
        "voters": list(voted.voters),
        "flipped_by_vote": voted.flipped,
    }
    return CleanedPairs(curated, outcomes, summary | contested)


def clean_files(
    pairs: Path,
    scores: Sequence[Path],
    output: Path,
    votes: Path | None = None,
    verifier_scores: Sequence[Path] = (),
    flip_fraction: float = 0.5,
    judges: Sequence[str] = (),
    *,
    out_of_core: bool = False,
) -> dict[str, Any]:
    """`clean_pairs` on Parquet files: writes `output`/pairs.parquet, outcomes.parquet and cleaning_evidence.parquet.

    Returns the summary.

    Args:
        pairs: file of pairs; out of core it must be a table of kind `pairs`.
        scores: files of scores.
        output: folder to make, which appears whole or not at all; an earlier output there is replaced, nothing else is.
        votes: file of votes.
        verifier_scores: files of scores.
        flip_fraction: as for `clean_pairs`.
        judges: as for `clean_pairs`.
        out_of_core: texts pass through in batches, so that memory grows with the number of pairs alone, about 250 bytes
            each. It writes quarantine.parquet, too.

    Raises:
        CurationError: as `clean_pairs`; a file cannot be read; or `output` holds something else.
    """
    for file in (pairs, *scores, *([] if votes is None else [votes]), *verifier_scores):
        if not file.is_file():
            raise CurationError(no_file(file))
    try:
        target = replaceable(output, MARKER, "output of curation")
    except OutputFolderError as error:
        raise CurationError(str(error)) from error
    with atomic_directory(target) as folder:
        if out_of_core:
            summary = _stream(pairs, scores, votes, verifier_scores, flip_fraction, judges, folder)
        else:
            given, heard = _read([pairs]), None if votes is None else _read([votes])
            voted = [_read(scores), *([_read(verifier_scores)] if verifier_scores else [])]
            cleaned = clean_pairs(given, voted[0], heard, voted[1] if verifier_scores else None, flip_fraction, judges)
            write_parquet(cleaned.pairs, folder / "pairs.parquet")
            write_parquet(cleaned.outcomes, folder / "outcomes.parquet")
            margins = [voter_margins(given, each) for each in voted]
            _evidence(given, cleaned.outcomes, margins, _votes_that_count(heard, judges)).write(folder / FILE)
            summary = cleaned.summary
        mark(folder, MARKER)
    return summary


def _stream(
    pairs: Path,
    scores: Sequence[Path],
    votes: Path | None,
    verifier_scores: Sequence[Path],
    flip_fraction: float,
    judges: Sequence[str],
    folder: Path,
) -> dict[str, Any]:
    """The policy `paper` from files to files."""
    there = _schema(pairs).names
    may_lack = ("strength", "label", "votes", *ADDED_COLUMNS["pairs"])
    missing = [name for name in SCHEMAS["pairs"].names if name not in (*there, *may_lack)]
    if missing:
        raise CurationError(f"{pairs}: out of core, a table of kind `pairs` is needed; columns {missing} are missing")
    work = folder / "work"
    counted = _votes_that_count(None, judges)
    if verifier_scores:
        chosen = work.with_suffix(".votes.parquet")
        counted = _votes_that_count(None if votes is None else _read([votes]), judges)
        write_parquet(counted, chosen)
        counts = curate_files(pairs, scores, verifier_scores, chosen, work, flip_fraction, votes_on_given_sides=True)
        chosen.unlink()
    else:
        counts = vote_and_flip_files(pairs, scores, work, flip_fraction)
    for name in ("pairs.parquet", "quarantine.parquet"):
        (work / name).rename(folder / name)
    (work / MARKER).unlink()
    work.rmdir()
    names = [name for name in ("pair_id", "chosen_id", "rejected_id", "source", "row_id") if name in there]
    curated = to_frame(pq.read_table(folder / "pairs.parquet", columns=["pair_id", "chosen_id", "label"]))
    aside = to_frame(pq.read_table(folder / "quarantine.parquet", columns=["pair_id", "stage", "reason", "detail"]))
    given = to_frame(pq.read_table(pairs, columns=names))
    outcomes = _outcomes(given, curated, aside)
    write_parquet(outcomes, folder / "outcomes.parquet")
    margins = [margins_of_files(pairs, files)[0] for files in (scores, verifier_scores) if files]
    _evidence(given, outcomes, margins, counted).write(folder / FILE)
    contested = {"contested": counts["contested"]} if "contested" in counts else {}
    summary = {"policy": PaperPolicy.name, "voters": _voters(scores), "flipped_by_vote": counts["flipped"]}
    return _counts(outcomes) | summary | contested


def _voters(scores: Sequence[Path]) -> list[str]:
    """Names of all that gave scores."""
    columns = (pq.read_table(file, columns=["voter"], read_dictionary=["voter"])["voter"] for file in scores)
    return sorted({str(name) for column in columns for name in pc.unique(column).to_pylist()})


def _outcomes(given: pd.DataFrame, curated: pd.DataFrame, aside: pd.DataFrame) -> pd.DataFrame:
    """The outcome of every given pair; `aside` has pair_id, stage, reason and detail of those that are not curated."""
    made = given[[name for name in ("pair_id", "source", "row_id") if name in given]].reset_index(drop=True)
    ended = curated.set_index("pair_id").reindex(made["pair_id"])
    left = aside.set_index("pair_id").reindex(made["pair_id"])
    stays = ended["chosen_id"].notna().to_numpy(dtype=bool)
    same = ended["chosen_id"].to_numpy(dtype=object) == given["chosen_id"].to_numpy(dtype=object)
    outcome = np.select([stays & same, stays], [KEPT, FLIPPED], DROPPED)
    made["outcome"] = pd.Series(outcome, dtype="str")
    for name, kept in (("stage", "curated_pairs"), ("reason", None), ("detail", "")):
        of_kept = ended["label"].to_numpy(dtype=object) if kept is None else np.full(len(made), kept, dtype=object)
        made[name] = pd.Series(np.where(stays, of_kept, left[name].to_numpy(dtype=object)), dtype="str")
    return made


def _evidence(
    given: pd.DataFrame, outcomes: pd.DataFrame, margins: Sequence[Margins], votes: pd.DataFrame
) -> PairEvidence:
    """What was known of every given pair: the margins of voters, and then of the verifier; and the votes that count."""
    voters: list[str] = []
    for each in margins:
        voters += [f"{name} (verifier)" if name in voters else name for name in each.voters]
    places = pd.Index(given["pair_id"]).get_indexer(pd.Index(votes["pair_id"]))
    about = votes[places >= 0]
    verdict = about["verdict"].astype("str").reset_index(drop=True)
    verdicts = verdict_rows(places[places >= 0], verdict, about, about["judge"])
    return PairEvidence(
        key_strings(given["pair_id"]),
        (key_strings(given["chosen_id"]), key_strings(given["rejected_id"])),
        outcomes["outcome"],
        np.full(len(given), np.nan),  # the policy `paper` has no probabilities
        voters,
        np.concatenate([each.margins for each in margins], axis=1),
        verdicts,
    )


def _counts(outcomes: pd.DataFrame) -> dict[str, Any]:
    found = outcomes["outcome"].value_counts()
    return {"pairs": len(outcomes)} | {name: int(found.get(name, 0)) for name in (KEPT, FLIPPED, DROPPED)}


def _columns_of(part: pd.DataFrame) -> Sequence[str]:
    return [name for name in _OUTCOMES if name in part]


def _votes_that_count(votes: pd.DataFrame | None, judges: Sequence[str]) -> pd.DataFrame:
    """The votes of the judges that count.

    Raises:
        CurationError: a column or a judge is missing, a verdict is none that there is, or there are not two judges.
    """
    if votes is None:
        return pd.DataFrame({name: pd.Series(dtype="str") for name in ("pair_id", "judge", "order", "verdict")})
    check_columns(votes, ("pair_id", "judge", "verdict"), "votes")
    there = sorted(votes["judge"].dropna().astype(str).unique())
    if unknown := sorted(set(judges) - set(there)):
        raise CurationError(f"votes: there is no judge {', '.join(map(repr, unknown))}; there are: {', '.join(there)}")
    counted = sorted(set(judges) or set(there))
    if len(counted) != _JUDGES:
        raise CurationError(
            f"votes: the policy `paper` takes the votes of two judges, and these are of {len(counted)}: "
            f"{', '.join(counted)}; name the judges whose votes count"
        )
    verdicts = votes["verdict"]
    odd = verdicts.notna() & ~verdicts.isin(OTHER_SIDE)
    if odd.any():
        row = votes[odd].iloc[0]
        raise CurationError(
            f"votes: {int(odd.sum())} verdicts are none of {', '.join(OTHER_SIDE)} or null; the first, of pair "
            f"{row['pair_id']}, is {row['verdict']!r}"
        )
    return votes[votes["judge"].isin(counted)].reset_index(drop=True)


def _on_present_sides(votes: pd.DataFrame, pairs: pd.DataFrame, given: dict[str, str]) -> pd.DataFrame:
    """Votes on the sides that pairs had when they were `given`, turned to the sides that they have now."""
    turned = {pair: given[pair] != chosen for pair, chosen in zip(pairs["pair_id"], pairs["chosen_id"], strict=True)}
    where = votes["pair_id"].map(turned).to_numpy(dtype=bool)
    return swap_verdicts(votes, where)


def _read(files: Sequence[Path]) -> pd.DataFrame:
    """The rows of Parquet files, one after the other.

    Raises:
        CurationError: a file cannot be read, or their columns differ.
    """
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file, partitioning=None).replace_schema_metadata(None))
        except (OSError, pa.ArrowException) as error:
            raise CurationError(f"{file} cannot be read: {error}; give a Parquet file") from error
    try:
        return to_frame(pa.concat_tables(tables, promote_options="permissive"))
    except pa.ArrowException as error:
        raise CurationError(f"{', '.join(map(str, files))} have different columns: {error}") from error


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise CurationError(f"{file} cannot be read: {error}; give a Parquet file") from error
