"""What people said of audited pairs, from any file that holds it: one answer per pair, by the majority of its auditors.

What belongs here: which kind of file it is, whose answer counts, and what each answered pair weighs. What does not:
the formats (answers.py, spreadsheet.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dt2it_pipeline.human_review.answers import Answers, read_answers
from dt2it_pipeline.human_review.spreadsheet import AuditError, is_json_table, read_sheet
from dt2it_pipeline.storage.atomic import read_parquet
from dt2it_pipeline.storage.schemas import RecordError
from dt2it_pipeline.storage.table_files import kind_of_file, plain_bytes, unreadable

COLUMNS = ("pair_id", "better_id", "auditor", "answers", "weight")
_UNANSWERED = "rows without an answer"


@dataclass(frozen=True)
class Audit:
    """Answers about audited pairs.

    Attributes:
        table: one row per answered pair: `pair_id`, `better_id` (null: neither), `auditor` (pseudonyms, joined by `+`),
            `answers` (how many there are), `weight` (number of pairs that it stands for; NaN where not known).
        answers: one row per answer: `pair_id`, `better_id`, `auditor`.
        unusable: place and reason of each answer that cannot be used.
        counts: answers; pairs; ties (pairs of which neither answer is better); disagreements (pairs whose answers are
            not all the same); unanswered.
    """

    table: pd.DataFrame
    answers: pd.DataFrame
    unusable: list[tuple[str, str]]
    counts: Mapping[str, int]


def read_votes(file: str | Path) -> Answers:
    """Read what people did: Label Studio's JSON, Argilla's records.json, a filled spreadsheet, or a table of answers.

    Votes are those that an artifact home keeps: of each person about each pair the last.

    A table of answers is CSV, Parquet, JSON Lines or JSON; any of these files may be compressed (.gz, .zst, .bz2, .xz).

    Raises:
        AnswersError: a JSON file that is not one of the two.
        AuditError: another file that cannot be read.
    """
    votes = _read(Path(file))[0]
    last = {(vote["pair_id"], vote["person"]): vote for vote in votes.votes}
    return replace(votes, votes=list(last.values()))


def load_audit(file: str | Path, sample: str | Path | pd.DataFrame | None = None) -> Audit:
    """Read the answers about audited pairs, with an account of what could not be used.

    Args:
        file: as for `read_votes`.
        sample: the drawn pairs (table kind `audit_pairs`, which is sample.parquet of `dt2it review sample`). With it,
            answers about other pairs, or for a response that is no side of the pair, are unusable, and `weight` comes
            from it: the answered pairs stand for all pairs that were drawn from.

    Raises:
        AnswersError, AuditError: as `read_votes`; or the sample cannot be read.
    """
    votes, weights = _read(Path(file))
    usable, unusable = list(votes.votes), list(votes.unusable)
    if sample is not None:
        drawn = sample if isinstance(sample, pd.DataFrame) else _sample(Path(sample))
        usable, foreign = of_sample(usable, drawn)
        unusable += foreign
        if foreign and not usable:
            raise AuditError(
                f"no answer in {file} is about a drawn pair; the first: {foreign[0][1]}; is it this audit?"
            )
    table = by_majority(usable)
    if sample is not None:
        table["weight"] = answered_weights(table["pair_id"], drawn)
    else:
        table["weight"] = table["pair_id"].map(weights).astype("float64")
    said = defaultdict(set)
    for vote in usable:
        said[vote["pair_id"]].add(vote["preferred_id"])
    counts = {
        "answers": len(usable),
        "pairs": len(table),
        "ties": int(table["better_id"].isna().sum()),
        "disagreements": sum(len(choices) > 1 for choices in said.values()),
        "unanswered": votes.unfinished.get(_UNANSWERED, 0),
    }
    return Audit(table, single_answers(usable), unusable, counts)


def read_audit(file: str | Path, sample: str | Path | pd.DataFrame | None = None) -> pd.DataFrame:
    """The table of `load_audit`: pair_id, better_id (null: neither), auditor, answers, weight.

    Several answers about a pair, by one auditor or more: the majority, and null where they are tied. In a tool's file,
    the answer is the one that an auditor gave last. Rows that nobody answered are left out.

    Raises:
        AnswersError, AuditError: as `load_audit`.
    """
    return load_audit(file, sample).table


def by_majority(votes: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per pair, in the order of its first vote: pair_id, better_id, auditor, answers, weight (NaN).

    Args:
        votes: rows with pair_id, person, preferred_id (null: neither).
    """
    by_pair: dict[str, list[Mapping[str, Any]]] = {}
    for vote in votes:
        by_pair.setdefault(vote["pair_id"], []).append(vote)
    rows = []
    for pair, given in by_pair.items():
        ranked = Counter(vote["preferred_id"] for vote in given if vote["preferred_id"] is not None).most_common(2)
        tied = not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1])
        people = "+".join(sorted({vote["person"] for vote in given}))
        rows.append((pair, None if tied else ranked[0][0], people, len(given), np.nan))
    kinds = {"pair_id": "str", "better_id": "str", "auditor": "str", "answers": "int64", "weight": "float64"}
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(kinds)


def single_answers(votes: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per vote, in the order given: pair_id, better_id (null: neither), auditor; votes as for `by_majority`."""
    rows = [(vote["pair_id"], vote["preferred_id"], vote["person"]) for vote in votes]
    return pd.DataFrame(rows, columns=["pair_id", "better_id", "auditor"]).astype("str")


def of_sample(
    votes: Sequence[Mapping[str, Any]], sample: pd.DataFrame
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Votes on drawn pairs, for one of their sides or neither; and place and reason of the others.

    Args:
        votes: rows with pair_id and preferred_id.
        sample: pair_id, first_id, second_id.
    """
    sides = {
        pair: (None, first, second) for pair, first, second in
        zip(sample["pair_id"], sample["first_id"], sample["second_id"], strict=True)
    }  # fmt: skip
    usable, foreign = [], []
    for vote in votes:
        pair, preferred = vote["pair_id"], vote["preferred_id"]
        if pair not in sides:
            foreign.append((f"pair {pair}", f"pair {pair} was not drawn"))
        elif preferred not in sides[pair]:
            foreign.append((f"pair {pair}", f"{preferred!r} is no answer of pair {pair}"))
        else:
            usable.append(dict(vote))
    return usable, foreign


def answered_weights(pair_ids: pd.Series, draws: pd.DataFrame) -> np.ndarray:
    """What each answered pair weighs, float64 [pairs]: how many of the pairs that were drawn from it stands for.

    Within a draw, the answered pairs share the weight of those that nobody answered. Draws count in proportion to their
    answered pairs, so that each draw estimates the same, and so does their mean. NaN for a pair of no draw.

    Args:
        pair_ids: answered pairs, each once.
        draws: pair_id, weight and, where there are several draws, `audit`.
    """
    names = draws["audit"] if "audit" in draws else [""] * len(draws)
    known = set(pair_ids)
    drawn: Counter[str] = Counter()  # sums of weights, by draw
    answered: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    rows = list(zip(names, draws["pair_id"], draws["weight"].tolist(), strict=True))
    for name, pair, weight in rows:
        drawn[name] += weight
        answered[name] += weight * (pair in known)
        pairs[name] += pair in known
    combined: Counter[str] = Counter()
    for name, pair, weight in rows:
        if pair in known:
            combined[pair] += weight * drawn[name] / answered[name] * pairs[name] / pairs.total()
    return np.array([combined.get(pair, np.nan) for pair in pair_ids], dtype=np.float64)


def _read(file: Path) -> tuple[Answers, Mapping[str, float]]:
    """Votes, and the weights by pair that the file has."""
    try:
        content = plain_bytes(file)
    except OSError as error:
        raise AuditError(f"{unreadable(file, error)}; name the file of answers") from error
    start, kind = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip(), kind_of_file(file)
    if kind != ".jsonl" and (kind == ".json" or start.startswith((b"[", b"{"))) and not is_json_table(content):
        return read_answers(file), {}
    sheet = read_sheet(file)
    unfinished = {_UNANSWERED: sheet.unanswered} if sheet.unanswered else {}
    return Answers(list(sheet.answers), sheet.unusable, unfinished), sheet.weights


def _sample(file: Path) -> pd.DataFrame:
    try:
        return read_parquet(file, "audit_pairs").to_pandas()
    except (OSError, pa.ArrowException, RecordError) as error:
        raise AuditError(f"{file} cannot be read: {error}; give sample.parquet of `dt2it review sample`") from error
