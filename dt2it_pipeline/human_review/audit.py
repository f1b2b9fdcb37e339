"""The audit: a random sample of pairs that people check, so that label accuracy is measured and not only estimated.

    dt2it review sample --round 1 --output audit
    dt2it review import audit/audit.csv

What belongs here: which pairs are drawn, how people get them, and what an artifact home keeps of it. What does not:
the formats (tasks.py, spreadsheet.py), the answers (audit_answers.py), and what curation makes of them.

A pair is drawn with a known probability. Its weight is the inverse: how many pairs it stands for. So a weighted mean
over the drawn pairs estimates the mean over all pairs without bias, however small sources are drawn more densely.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from dt2it_pipeline.human_review.answers import kept_votes
from dt2it_pipeline.human_review.audit_answers import (
    Audit,
    answered_weights,
    by_majority,
    load_audit,
    of_sample,
    read_audit,
    read_votes,
)
from dt2it_pipeline.human_review.spreadsheet import AuditError, Spreadsheet
from dt2it_pipeline.human_review.tasks import AUDIT, GUIDELINES, Argilla, LabelStudio, shown_sides
from dt2it_pipeline.media.pair_rows import Row, RowFault, rows_of
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.atomic import atomic_directory, read_parquet, write_parquet
from dt2it_pipeline.storage.content_ids import content_hash
from dt2it_pipeline.storage.locks import exclusive
from dt2it_pipeline.storage.output_folder import OutputFolderError, mark, replaceable
from dt2it_pipeline.storage.schemas import RecordError

__all__ = [
    "AUDIT_FORMATS",
    "Audit",
    "AuditError",
    "AuditExport",
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
_KIND = "audit_pairs"
_PARTS = 4  # of a source, by probability
_EVERYTHING = "all pairs"
_IDS = ("pair_id", "chosen_id", "rejected_id")
_TEXTS = ("chosen", "rejected", "prompt")
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


def draw_audit(
    pairs: pd.DataFrame,
    count: int = 50,
    seed: int = 0,
    probability: Sequence[float] | np.ndarray | pd.Series | None = None,
) -> pd.DataFrame:
    """Draw pairs at random for people to check, spread over sources and over claimed probabilities.

    Each source gets a share of `count` by its size, and one pair at least; with more sources than `count`, sources are
    not told apart. Within a source, pairs are put in the order of their probability and cut into up to four parts of
    one size, and each part gets its share: so sure pairs are among the drawn ones. Within a part, chance alone decides:
    by a hash of pair id and seed, so that the same pairs are drawn in whatever order the rows are.

    >>> import pandas as pd
    >>> from dt2it_pipeline.human_review.audit import draw_audit
    >>> pairs = pd.DataFrame({"pair_id": [f"p{n}" for n in range(103)], "source": ["large"] * 100 + ["small"] * 3})
    >>> drawn = draw_audit(pairs, count=11)
    >>> drawn.groupby("source")["weight"].agg(["size", "sum"]).to_dict("index")
    {'large': {'size': 10, 'sum': 100.0}, 'small': {'size': 1, 'sum': 3.0}}

    Args:
        pairs: pair_id, `source` (one source where absent), and any other columns, which are kept.
        count: number of pairs to draw; all pairs where there are fewer.
        seed: any integer; another seed draws other pairs.
        probability: float [pairs], in the order of the rows, 0 to 1: the claimed probability that the label is right.
            NaN where there is none, which stands before all others. When None, the column `probability` of `pairs`,
            where there is one.

    Returns:
        The drawn pairs in a random order, with `probability` (NaN where not known), `stratum` (the part that a pair was
        drawn from) and `weight` (pairs of the stratum / pairs drawn from it: the inverse of the probability with which
        the pair was drawn).

    Raises:
        AuditError: no column pair_id; a pair_id is null, no text, or there twice; `count` is below 1; or a probability
            lies outside 0 to 1, or there are more or fewer than pairs.
    """
    if count < 1:
        raise AuditError(f"count must be at least 1, not {count}")
    ids = _checked_ids(pairs)
    chance = _checked_probability(pairs, probability)
    source = np.full(len(pairs), "", dtype=object)
    if "source" in pairs:
        source = pairs["source"].astype(object).where(pairs["source"].notna(), "").astype("str").to_numpy(dtype=object)
    # Which part a pair is in must not depend on the hash that draws it: else the first pairs of a tie are drawn more.
    order = np.lexsort((_hashes(ids, "order"), np.nan_to_num(chance, nan=-1.0)))
    ranks = _hashes(ids, f"draw {seed}")
    groups = {name: order[source[order] == name] for name in sorted(set(source))}
    if len(groups) > count:
        groups = {_EVERYTHING: order}
    shares = _allocated([len(rows) for rows in groups.values()], count)
    places, strata, weights = [], [], []
    for (name, rows), share in zip(groups.items(), shares, strict=True):
        number = min(_PARTS, share) if np.isfinite(chance[rows]).any() else 1
        parts = np.array_split(rows, number)
        for part, (within, wanted) in enumerate(zip(parts, _allocated([len(p) for p in parts], share), strict=True), 1):
            chosen = within[np.argsort(ranks[within], kind="stable")[:wanted]]
            title = name or _EVERYTHING
            places += chosen.tolist()
            strata += [f"{title}, part {part} of {number} by probability" if number > 1 else title] * wanted
            weights += [len(within) / wanted] * wanted
    drawn = pairs.iloc[places].reset_index(drop=True)
    drawn["probability"] = chance[places]
    drawn["stratum"] = pd.Series(strata, dtype="str")
    drawn["weight"] = np.array(weights, dtype=np.float64)
    shuffled = np.argsort(_hashes(ids[places], f"shown {seed}"), kind="stable")
    return drawn.iloc[shuffled].reset_index(drop=True)


def export_table_audit(
    pairs: Path,
    folder: Path,
    count: int = 50,
    format_name: str = "spreadsheet",
    seed: int = 0,
    cleaned: Path | None = None,
) -> AuditExport:
    """Draw from a table of one's own, and write a folder of pairs to check.

    Args:
        pairs: Parquet or CSV: pair_id, chosen_id, rejected_id, the texts `chosen` and `rejected`, and where there are
            such columns `prompt` (text), `source` and `probability`.
        folder: folder to make; an earlier one of this command is replaced, nothing else is.
        count: as for `draw_audit`.
        format_name: one of AUDIT_FORMATS.
        seed: as for `draw_audit`.
        cleaned: output of `dt2it clean` for these pairs, from which the probability comes.

    Raises:
        AuditError: a table cannot be read, has wrong columns or is empty; or as `draw_audit` and for the folder.
    """
    source = _opened(pairs)
    names = source.schema.names
    missing = [name for name in (*_IDS, "chosen", "rejected") if name not in names]
    if missing:
        raise AuditError(f"{pairs} has no column {', '.join(missing)}; it has: {', '.join(names)[:200]}")
    try:
        light = source.to_table(columns=[name for name in (*_IDS, "source", "probability") if name in names])
    except (OSError, pa.ArrowException) as error:
        raise AuditError(f"{pairs} cannot be read: {error}") from error
    frame = light.to_pandas(ignore_metadata=True)
    if not len(frame):
        raise AuditError(f"{pairs} has no pair")
    probability = None if cleaned is None else _cleaned_probability(cleaned, frame)
    drawn = draw_audit(frame, count, seed, probability)
    kind = source.schema.field("pair_id").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = source.to_table(
        columns=["pair_id", *(name for name in _TEXTS if name in names)],
        filter=pc.field("pair_id").isin(pa.array(drawn["pair_id"].astype("str"), kind)),
    )
    by_pair = {row["pair_id"]: row for row in texts.to_pylist()}
    given = (by_pair[row["pair_id"]] | row for row in drawn.to_dict("records"))
    return _export(map(_own_row, given), drawn, folder, format_name, seed, -1, len(frame))


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
    drawn = draw_audit(frame, count, seed, _sigmoid(np.where(same, strength, -strength)))
    places = {key: place for place, key in enumerate(pairs["pair_id"].to_pylist())}
    table = pairs.take(pa.array([places[key] for key in drawn["pair_id"]], pa.int64()))
    rows = rows_of(table, voted["prompts"], store.media)
    made = _export(rows, drawn, folder, format_name, seed, int(number), len(frame))
    _keep_sample(store.home, made.sample)
    return made


def audit_file(home: Path) -> Path:
    """Where an artifact home keeps which pairs were drawn."""
    return home / f"{_KIND}.parquet"


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
    drawn = _kept_sample(folder).to_pandas()
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
    draw = content_hash(_KIND, number, seed, population, drawn["pair_id"].tolist(), drawn["weight"].tolist())[:10]
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
            (first, _), (second, _) = shown_sides(row.pair)
            ids = {"audit": draw, "pair_id": row.id, "first_id": first, "second_id": second}
            more = {"source": row.pair["source"], "stratum": stratum, "weight": weight, "seed": seed, "round": number}
            sample.append(ids | more)
        writer.close()
        table = schemas.table(sample, _KIND)
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


def _keep_sample(home: Path, sample: pa.Table) -> None:
    """Add a draw to those that a home keeps; the same draw is there once."""
    with exclusive(home / ".audit_pairs.lock", on_wait=print):
        kept = _kept_sample(home)
        others = kept.filter(pc.invert(pc.is_in(kept["audit"], sample["audit"].combine_chunks())))
        write_parquet(pa.concat_tables([others, sample]).combine_chunks(), audit_file(home))


def _kept_sample(home: Path) -> pa.Table:
    file = audit_file(home)
    if not file.exists():
        return schemas.table([], _KIND)
    try:
        return read_parquet(pa.BufferReader(file.read_bytes()), _KIND)
    except (OSError, pa.ArrowException, RecordError) as error:
        raise AuditError(
            f"the file of drawn pairs {file} cannot be read: {error}; bring a copy of it back, or remove it and draw "
            "again"
        ) from error


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


def _opened(file: Path) -> pads.Dataset:
    """A table of pairs: Parquet, or CSV whose cells all are text but for `probability`."""
    try:
        if file.suffix.lower() in (".csv", ".tsv"):
            options = {
                "read_options": pacsv.ReadOptions(),
                "parse_options": pacsv.ParseOptions(
                    delimiter="\t" if file.suffix.lower() == ".tsv" else ",", newlines_in_values=True
                ),
            }
            head = pacsv.open_csv(file, **options).schema.names
            kinds = {name: pa.float64() if name == "probability" else pa.string() for name in head}
            converted = pacsv.ConvertOptions(column_types=kinds, strings_can_be_null=False)
            return pads.dataset(pacsv.read_csv(file, convert_options=converted, **options))
        return pads.dataset([str(file)], schema=pq.read_schema(file).remove_metadata(), format="parquet")
    except (OSError, pa.ArrowException) as error:
        raise AuditError(f"{file} cannot be read: {error}; give Parquet, or CSV whose name ends in .csv") from error


def _cleaned_probability(cleaned: Path, pairs: pd.DataFrame) -> np.ndarray:
    """The probability that each pair's given label is right, float64 [pairs], by a cleaning result; NaN where dropped.

    outcomes.parquet says so where it has the column `probability`, which is of the side that is chosen after a flip;
    else the log-odds `strength` of the kept and the flipped pairs do.
    """
    try:
        outcomes = pq.read_table(cleaned / "outcomes.parquet").to_pandas(ignore_metadata=True)
        if "probability" in outcomes:
            flipped = outcomes["outcome"] == "flipped"
            right = outcomes["probability"].mask(flipped, 1 - outcomes["probability"])
            found = pd.Series(right.to_numpy(), outcomes["pair_id"])
        else:
            kept = pq.read_table(cleaned / "pairs.parquet", columns=["pair_id", "chosen_id", "strength"]).to_pandas()
            given = kept["pair_id"].map(pairs.set_index("pair_id")["chosen_id"])
            strength = kept["strength"].to_numpy(dtype=np.float64)
            found = pd.Series(_sigmoid(np.where(given == kept["chosen_id"], strength, -strength)), kept["pair_id"])
        if not outcomes["pair_id"].isin(pairs["pair_id"]).any():
            raise AuditError(f"{cleaned} is about none of these pairs; give the output of `dt2it clean` for this table")
        return found.reindex(pairs["pair_id"]).to_numpy(dtype=np.float64)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        if isinstance(error, AuditError):
            raise
        raise AuditError(f"{cleaned} is no readable output of `dt2it clean`: {error}") from error


def _checked_ids(pairs: pd.DataFrame) -> np.ndarray:
    if "pair_id" not in pairs:
        raise AuditError(f"pairs have no column pair_id; they have: {', '.join(map(str, pairs.columns))[:200]}")
    ids = pairs["pair_id"].to_numpy(dtype=object)
    for row, value in enumerate(ids):
        if not isinstance(value, str) or value != records.writable(value):
            raise AuditError(f"pair_id of row {row} is {value!r}; ids must be text")
    repeated = pairs["pair_id"].duplicated().to_numpy()
    if repeated.any():
        raise AuditError(
            f"{int(repeated.sum())} pair ids are there twice, the first {ids[repeated][0]!r}; keep one each"
        )
    return ids


def _checked_probability(pairs: pd.DataFrame, probability: Any) -> np.ndarray:
    """Float64 [pairs], NaN where there is none."""
    if probability is None:
        probability = pairs["probability"] if "probability" in pairs else np.full(len(pairs), np.nan)
    try:
        found = pd.to_numeric(pd.Series(np.asarray(probability))).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise AuditError(f"probability: {error}; give numbers from 0 to 1") from error
    if len(found) != len(pairs):
        raise AuditError(f"there are {len(found)} probabilities for {len(pairs)} pairs")
    wrong = (found < 0) | (found > 1)
    if wrong.any():
        raise AuditError(f"probability of row {int(wrong.argmax())} is {found[wrong][0]}; it must lie between 0 and 1")
    return found


def _hashes(ids: np.ndarray, salt: str) -> np.ndarray:
    """Uint64 [ids]: a keyed hash (SipHash) of each id, whatever the order; salts give independent ones."""
    return np.asarray(pd.util.hash_array(ids, hash_key=content_hash(salt)[:16], categorize=False))


def _allocated(sizes: Sequence[int], count: int) -> list[int]:
    """How many of `count` each part gets: one at least where there are as many as parts, then in proportion."""
    total = sum(sizes)
    least = int(count >= len(sizes))
    shares = [min(least, size) for size in sizes]
    # The part that is furthest below its share comes next; the first one of equals.
    waiting = [
        (share - count * size / total, place) for place, (size, share) in enumerate(zip(sizes, shares, strict=True))
    ]
    heapq.heapify(waiting)
    for _ in range(min(count, total) - sum(shares)):
        while shares[waiting[0][1]] >= sizes[waiting[0][1]]:
            heapq.heappop(waiting)
        deficit, place = waiting[0]
        shares[place] += 1
        heapq.heapreplace(waiting, (deficit + 1, place))
    return shares


def _sigmoid(log_odds: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-log_odds)))
