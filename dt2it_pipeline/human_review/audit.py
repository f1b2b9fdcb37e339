"""The audit: a random sample of pairs that people check, so that label accuracy is measured and not only estimated.

    dt2it review sample --round 1 --output audit
    dt2it review import audit/audit.csv

What belongs here: how people get the pairs, and what an artifact home keeps of it. What does not: which pairs are drawn
(audit_sample.py), which draws are kept (audit_draws.py), the formats (tasks.py, spreadsheet.py), the answers
(audit_answers.py), and what curation makes of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dt2it_pipeline.human_review.answers import kept_votes
from dt2it_pipeline.human_review.audit_answers import (
    Audit,
    answered_weights,
    by_majority,
    load_audit,
    of_sample,
    read_audit,
    read_votes,
    single_answers,
)
from dt2it_pipeline.human_review.audit_draws import (
    AUDIT_PAIRS,
    audit_file,
    draw_id,
    keep_sample,
    kept_sample,
    sample_row,
)
from dt2it_pipeline.human_review.audit_sample import draw_audit
from dt2it_pipeline.human_review.own_tables import cleaned_probability, read_own_pairs, sigmoid
from dt2it_pipeline.human_review.spreadsheet import AuditError, Spreadsheet
from dt2it_pipeline.human_review.tasks import AUDIT, GUIDELINES, Argilla, LabelStudio
from dt2it_pipeline.media.pair_rows import Row, RowFault, rows_of
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.atomic import atomic_directory, write_parquet
from dt2it_pipeline.storage.output_folder import OutputFolderError, mark, replaceable

__all__ = [
    "AUDIT_FORMATS",
    "Audit",
    "AuditError",
    "AuditExport",
    "answers_of_home",
    "audit_file",
    "audit_of_home",
    "draw_audit",
    "export_round_audit",
    "export_table_audit",
    "load_audit",
    "read_audit",
    "read_votes",
    "unanswered_of_home",
]

AUDIT_FORMATS: Mapping[str, Any] = {"spreadsheet": Spreadsheet, "label_studio": LabelStudio, "argilla": Argilla}
MARKER = ".dt2it_audit.json"
_IDS = ("pair_id", "chosen_id", "rejected_id")
_NO_PROMPT = "(The table has no prompt.)"


@dataclass(frozen=True)
class AuditExport:
    """A folder of pairs to check.

    Attributes:
        folder: where it lies.
        sample: the pairs in it (table kind `audit_pairs`), in the order in which people see them.
        quarantine: drawn pairs that cannot be shown (table kind `quarantine`); the weights do not stand for such pairs.
        population: number of pairs that were drawn from.
    """

    folder: Path
    sample: pa.Table
    quarantine: pa.Table
    population: int


def export_table_audit(
    pairs: Path,
    folder: Path,
    count: int = 50,
    format_name: str = "spreadsheet",
    seed: int = 0,
    cleaned: Path | None = None,
    chosen: str | None = None,
    rejected: str | None = None,
) -> AuditExport:
    """Draw from a table of one's own, and write a folder of pairs to check.

    Args:
        pairs: Parquet, CSV or JSON Lines with the texts `chosen` and `rejected`, and where there are such columns
            pair_id, chosen_id, rejected_id, `prompt` (text), `source` and `probability`. Pairs without an id are known
            by the number of their row, from 0.
        folder: folder to make; an earlier one of this command is replaced, nothing else is.
        count: as for `draw_audit`.
        format_name: one of AUDIT_FORMATS.
        seed: as for `draw_audit`.
        cleaned: output of `dt2it clean` for these pairs, from which the probability comes.
        chosen: column with the texts of the chosen sides, where it is not `chosen`.
        rejected: column with the texts of the rejected sides, where it is not `rejected`.

    Raises:
        AuditError: a table cannot be read, has wrong columns or is empty; or as `draw_audit` and for the folder.
    """
    own = read_own_pairs(pairs, chosen, rejected)
    probability = None if cleaned is None else cleaned_probability(cleaned, own.frame)
    drawn = draw_audit(own.frame, count, seed, probability)
    texts = own.rows(drawn["row"].tolist())
    sources = drawn["source"] if "source" in drawn else [""] * len(drawn)
    given = [text | {"source": source} for text, source in zip(texts, sources, strict=True)]
    return _export(map(_own_row, given), drawn, folder, format_name, seed, -1, len(own.frame))


def export_round_audit(
    store: Store, number: str, folder: Path, count: int = 50, format_name: str = "spreadsheet", seed: int = 0
) -> AuditExport:
    """Draw from the pairs that voters judged in a round, with their images; the artifact home keeps which were drawn.

    Args:
        store: the artifact home.
        number: a finished round.
        folder: as for `export_table_audit`.
        count: as for `draw_audit`.
        format_name: one of AUDIT_FORMATS.
        seed: as for `draw_audit`.

    Raises:
        StoreError: the round, or raw_preferences, is not there.
        AuditError: the round has no pair; as `draw_audit` and for the folder; or the kept draws cannot be read.
    """
    voted = store.read("voted_pairs", number)
    pairs = voted["pairs"]
    if not pairs.num_rows:
        raise AuditError(f"round {number} has no pair in voted_pairs")
    raw = store.read("raw_preferences")["pairs"]
    given = dict(zip(raw["pair_id"].to_pylist(), raw["chosen_id"].to_pylist(), strict=True))
    frame = pairs.select([*_IDS, "source"]).to_pandas()
    same = np.array(
        [given.get(key, side) == side for key, side in zip(frame["pair_id"], frame["chosen_id"], strict=True)]
    )
    strength = pairs["strength"].to_numpy(zero_copy_only=False).astype(np.float64)
    drawn = draw_audit(frame, count, seed, sigmoid(np.where(same, strength, -strength)))
    places = {key: place for place, key in enumerate(pairs["pair_id"].to_pylist())}
    table = pairs.take(pa.array([places[key] for key in drawn["pair_id"]], pa.int64()))
    rows = rows_of(table, voted["prompts"], store.media)
    made = _export(rows, drawn, folder, format_name, seed, int(number), len(frame))
    keep_sample(audit_file(store.home), made.sample)
    return made


def audit_of_home(folder: Path) -> pd.DataFrame:
    """What people said of the pairs that were drawn at random: pair_id, better_id, auditor, answers, weight.

    Only answers count that were given for a draw: people also answer pairs because these are contested, and such pairs
    are no random sample. `better_id` is null for neither; `weight` is the number of pairs that a pair stands for, and
    its sum the number of pairs that were drawn from. Several draws are combined.

    Args:
        folder: an artifact home.

    Raises:
        AuditError: the table of drawn pairs cannot be read.
        AnswersError: the table of people's votes cannot be read.
    """
    drawn, usable = _answered(folder)
    begun = set(drawn["audit"]) & {vote[AUDIT] for vote in usable}
    table = by_majority(usable)
    table["weight"] = answered_weights(table["pair_id"], drawn[drawn["audit"].isin(begun)])
    return table[table["weight"].notna()].reset_index(drop=True)


def answers_of_home(folder: Path) -> pd.DataFrame:
    """Every single answer that `audit_of_home` counts, a person's last one about a pair: pair_id, better_id, auditor.

    Raises:
        AuditError, AnswersError: as `audit_of_home`.
    """
    answers = single_answers(_answered(folder)[1])
    return answers[answers["pair_id"].isin(audit_of_home(folder)["pair_id"])].reset_index(drop=True)


def unanswered_of_home(folder: Path) -> tuple[int, int]:
    """How many pairs were drawn in an artifact home, and how many of these nobody has answered for a draw.

    Raises:
        AuditError, AnswersError: as `audit_of_home`.
    """
    drawn, usable = _answered(folder)
    pairs = set(drawn["pair_id"])
    return len(pairs), len(pairs - {vote["pair_id"] for vote in usable})


def _answered(folder: Path) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The drawn pairs of a home, and the votes that were given for a draw."""
    drawn = kept_sample(audit_file(folder)).to_pandas()
    votes = [vote for vote in kept_votes(folder) if vote[AUDIT] is not None] if len(drawn) else []
    return drawn, of_sample(votes, drawn)[0]


def _export(
    rows: Iterable[Row | tuple[Mapping[str, Any], RowFault]],
    drawn: pd.DataFrame,
    folder: Path,
    format_name: str,
    seed: int,
    number: int,
    population: int,
) -> AuditExport:
    """Write the folder: the tasks, sample.parquet and README.md; `rows` are those of `drawn`, in its order."""
    if format_name not in AUDIT_FORMATS:
        raise AuditError(f"there is no format {format_name!r}; known: {', '.join(AUDIT_FORMATS)}")
    try:
        target = replaceable(folder, MARKER, "audit")
    except OutputFolderError as error:
        raise AuditError(str(error)) from error
    draw = draw_id(drawn, number, seed, population)
    sample, aside = [], []
    with atomic_directory(target) as made:
        writer = AUDIT_FORMATS[format_name](made)
        for row, stratum, weight in zip(rows, drawn["stratum"], drawn["weight"], strict=True):
            try:
                if not isinstance(row, Row):
                    raise row[1]
                marked = Row({**row.pair, AUDIT: draw, "weight": weight}, row.prompt, row.images, row.videos)
                writer.add(marked)
            except RowFault as fault:
                pair = row.pair if isinstance(row, Row) else row[0]
                aside.append(records.quarantine_pair(pair, "audit", fault.reason, fault.detail))
                continue
            sample.append(sample_row(row.pair, draw, stratum, weight, seed, number))
        writer.close()
        table = schemas.table(sample, AUDIT_PAIRS)
        if not sample:
            raise AuditError(f"none of the {len(drawn)} drawn pairs can be shown; the first: {aside[0]['reason']}")
        write_parquet(table, made / "sample.parquet")
        (made / "README.md").write_text(_readme(writer, len(sample), population, number), encoding="utf-8")
        mark(made, MARKER, format=format_name)
    return AuditExport(folder, table, schemas.table(aside, "quarantine"), population)


def _readme(writer: Any, count: int, population: int, number: int) -> str:
    back = (
        "`dt2it review import FILE` keeps the answers in the artifact home."
        if number >= 0
        else "`dt2it_pipeline.human_review.read_audit(FILE, sample)` reads the answers; `sample` is the path of "
        "`sample.parquet` here."
    )
    columns = "".join(f"| `{name}` | {what} |\n" for name, what in writer.columns.items())
    return (
        f"# {count:,} pairs to check\n\nThey were drawn at random from {population:,} pairs. {GUIDELINES} Answer "
        "all of them: pairs that are left out because they are hard make the result too good.\n\n"
        f"{writer.notes}\n\n{back}\n\n"
        f"The order of the two answers says nothing about the present label.\n\n## `{writer.files}`\n\n"
        f"| column | what it holds |\n| --- | --- |\n{columns}"
    )


def _own_row(pair: Mapping[str, Any]) -> Row | tuple[Mapping[str, Any], RowFault]:
    """A pair of somebody's own table as a row to show; nothing in its prompt stands for an image."""
    source = pair.get("source")
    known = {**pair, "source": source if isinstance(source, str) else "", "row_id": None}
    for name in ("chosen", "rejected", "chosen_id", "rejected_id"):
        if not isinstance(pair[name], str):
            return known, RowFault(f"{name} is no text", repr(pair[name])[:100])
    if pair["chosen_id"] == pair["rejected_id"]:
        return known, RowFault("both sides are one answer", pair["chosen_id"])
    prompt = pair.get("prompt")
    if not isinstance(prompt, str | None):
        return known, RowFault("prompt is no text", repr(prompt)[:100])
    turns = [{"role": "prompt", "text": _NO_PROMPT if prompt is None else prompt}]
    return Row(known, {"system": "", "turns": turns, "media": []}, (), ())
