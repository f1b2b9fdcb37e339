"""Tables of one's own that an audit is drawn from: every layout that `dt2it clean` takes, as long as it has both texts.

What belongs here: reading such a table, the ids that people and files know its pairs by, and what a cleaning result
says of them. What does not: which pairs are drawn (audit_sample.py) and how people see them (audit.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from dt2it_pipeline.human_review.spreadsheet import AuditError
from dt2it_pipeline.ingest.readers.parquet_footer import row_groups_of
from dt2it_pipeline.ingest.readers.thrift_compact import FormatError
from dt2it_pipeline.storage.content_ids import content_hash
from dt2it_pipeline.storage.table_files import (
    TableFileError,
    as_keys,
    delimiter_in,
    is_longer,
    kind_of_file,
    no_file,
    read_table_file,
    unreadable,
)

CHOSEN, REJECTED = "chosen", "rejected"
NAME_TEXTS = "--chosen COLUMN --rejected COLUMN (in Python chosen= and rejected=)"  # how a caller does, for messages
_IDS = ("pair_id", "chosen_id", "rejected_id")
_BLIND = 16  # hex digits of an id
_FEW = 8  # rows that are looked at first
_PIECE, _PIECE_BYTES = 8192, 64 << 20  # rows that are read at once, and about how much memory they may take
MOST_TEXT = 512 << 20  # bytes of a table that lies in memory as a whole; JSON takes about seven times as much there
_BUFFER = 1 << 20  # bytes of a column that are read from a file at once
_PYARROW_READS = (".gz", ".bz2", ".zst")  # compressions that it knows by a name, in small letters alone


@dataclass(frozen=True)
class OwnPairs:
    """Pairs of a user's table.

    Attributes:
        frame: pair_id as text (the row's number where the table has none), chosen_id and rejected_id where it has some,
            `source` and `probability` where it has them; and `row`, the number of the row.
        rows: gives the rows of some numbers, in their order: pair_id, chosen_id, rejected_id, chosen, rejected, prompt;
            and other columns of the table, where some are named.
        pieces: gives all rows in their order, some at a time, so that what lies in memory stays small, whatever they
            hold; other columns as in `rows`.
        names: of all columns of the table.
    """

    frame: pd.DataFrame
    rows: Callable[..., list[dict[str, Any]]]
    pieces: Callable[[Sequence[str]], Iterator[list[dict[str, Any]]]]
    names: Sequence[str] = ()


@dataclass(frozen=True)
class _Table:
    """A table that may be larger than the memory: the names of its columns, whole columns, and single rows.

    `pieces` gives all rows of some columns in their order, some at a time.
    """

    names: Sequence[str]
    columns: Callable[[Sequence[str]], pd.DataFrame]
    take: Callable[[Sequence[str], Sequence[int]], list[dict[str, Any]]]
    pieces: Callable[[Sequence[str]], Iterator[list[dict[str, Any]]]]


def blind_id(pair_id: str, text: str) -> str:
    """Id of a side of a pair whose table has no ids of responses: it tells the sides apart, and not which is chosen.

    >>> blind_id("3", "It is red.") != blind_id("3", "It is blue."), len(blind_id("3", "It is red."))
    (True, 16)
    """
    return content_hash("side", pair_id, text)[:_BLIND]


def read_own_pairs(file: Path, chosen: str | None = None, rejected: str | None = None) -> OwnPairs:
    """Pairs of a table, in Parquet, CSV or JSON Lines.

    Args:
        file: of the table. Columns pair_id, chosen_id and rejected_id may be absent, and ids may be numbers.
        chosen: column with the texts of the chosen sides; `chosen` where None.
        rejected: column with the texts of the rejected sides; `rejected` where None.

    Raises:
        AuditError: it cannot be read, has no pair, a column is missing, or it is no Parquet and has more than 512 MiB.
    """
    table = _opened(file)
    texts = {CHOSEN: chosen or CHOSEN, REJECTED: rejected or REJECTED}
    missing = [name for name in texts.values() if name not in table.names]
    if ("chosen_id" in table.names) != ("rejected_id" in table.names):
        missing += [name for name in ("chosen_id", "rejected_id") if name not in table.names]
    if missing:
        hint = f". Name the columns that hold the texts: {NAME_TEXTS}" if {*missing} & {*texts.values()} else ""
        raise AuditError(f"{file} has no column {', '.join(missing)}; it has: {', '.join(table.names)[:200]}{hint}")
    light = [name for name in (*_IDS, "source", "probability") if name in table.names]
    try:
        frame = table.columns(light or list(texts.values())[:1])
    except (OSError, pa.ArrowException) as error:
        raise AuditError(f"{file} cannot be read: {error}") from error
    if not len(frame):
        raise AuditError(f"{file} has no pair")
    keys = {name: as_keys(frame[name]) for name in _IDS if name in frame}
    keys.setdefault("pair_id", np.arange(len(frame)).astype(str).astype(object))
    known = {name: frame[name] for name in ("source", "probability") if name in frame}
    own = pd.DataFrame({**{name: pd.Series(key, dtype=object) for name, key in keys.items()}, **known})
    own["row"] = np.arange(len(own))
    wanted = texts | ({"prompt": "prompt"} if "prompt" in table.names else {})

    def row_of(place: int, row: Mapping[str, Any], more: Sequence[str]) -> dict[str, Any]:
        made: dict[str, Any] = {name: row[name] for name in more} | {name: keys[name][place] for name in keys}
        made |= {name: _value(row[column]) for name, column in wanted.items()}
        if "chosen_id" not in keys:
            made |= {f"{side}_id": blind_id(made["pair_id"], str(made[side])) for side in texts}
        return made

    def columns_with(more: Sequence[str]) -> list[str]:
        return [*dict.fromkeys((*wanted.values(), *more))]

    def rows(places: Sequence[int], more: Sequence[str] = ()) -> list[dict[str, Any]]:
        found = table.take(columns_with(more), places)
        return [row_of(place, row, more) for place, row in zip(places, found, strict=True)]

    def pieces(more: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        first = 0
        for piece in table.pieces(columns_with(more)):
            yield [row_of(place, row, more) for place, row in enumerate(piece, first)]
            first += len(piece)

    return OwnPairs(own, rows, pieces, list(table.names))


def cleaned_probability(cleaned: Path, pairs: pd.DataFrame) -> np.ndarray:
    """The probability that each pair's given label is right, float64 [pairs], by a cleaning result; NaN where dropped.

    outcomes.parquet says so where it has the column `probability`, which is of the side that is chosen after a flip;
    else the log-odds `strength` of the kept and the flipped pairs do.
    """
    if (twice := pairs["pair_id"][pairs["pair_id"].duplicated()]).size:
        raise AuditError(f"pair ids are there twice: {', '.join(map(str, twice.unique()[:5]))}")
    try:
        outcomes = pq.read_table(cleaned / "outcomes.parquet").to_pandas(ignore_metadata=True)
        ids = as_keys(outcomes["pair_id"])
        if "probability" in outcomes:
            flipped = outcomes["outcome"] == "flipped"
            right = outcomes["probability"].mask(flipped, 1 - outcomes["probability"])
            found = pd.Series(right.to_numpy(), ids)
        else:
            kept = pq.read_table(cleaned / "pairs.parquet", columns=["pair_id", "chosen_id", "strength"]).to_pandas()
            kept_ids = as_keys(kept["pair_id"])
            given = pd.Series(kept_ids, dtype=object).map(pairs.set_index("pair_id")["chosen_id"])
            same = given.to_numpy() == as_keys(kept["chosen_id"])
            strength = kept["strength"].to_numpy(dtype=np.float64)
            found = pd.Series(sigmoid(np.where(same, strength, -strength)), kept_ids)
        if not np.isin(ids.astype(str), pairs["pair_id"].to_numpy().astype(str)).any():
            raise AuditError(f"{cleaned} is about none of these pairs; give the output of `dt2it clean` for this table")
        return found.reindex(pairs["pair_id"]).to_numpy(dtype=np.float64)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        if isinstance(error, AuditError):
            raise
        raise AuditError(f"{cleaned} is no readable output of `dt2it clean`: {error}") from error


def sigmoid(log_odds: np.ndarray) -> np.ndarray:
    """Probabilities of log-odds in nats."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-log_odds)))


def _value(cell: Any) -> Any:
    """A cell, None where it is null."""
    return None if isinstance(cell, float) and np.isnan(cell) else cell


def _opened(file: Path) -> _Table:
    """A table of pairs: Parquet, CSV whose cells all are text but for `probability`, or JSON. Raises AuditError."""
    kind = kind_of_file(file)
    try:
        too_long = kind in (".csv", ".tsv", ".json", ".jsonl") and is_longer(file, MOST_TEXT)
    except OSError as error:
        raise AuditError(unreadable(file, error)) from error
    if too_long:
        raise AuditError(
            f"{file} has more than {MOST_TEXT >> 20} MiB of text, and a table in {kind} lies in memory as a whole; "
            "write it as Parquet, which is read some rows at a time"
        )
    compressed = file.suffix.lower() not in (".csv", ".tsv")
    if kind in (".jsonl", ".json") or (compressed and kind in (".csv", ".tsv") and file.suffix not in _PYARROW_READS):
        try:
            frame = read_table_file(file)
        except TableFileError as error:
            raise AuditError(str(error)) from error

        def take(names: Sequence[str], places: Sequence[int]) -> list[dict[str, Any]]:
            chosen = frame.iloc[list(places)][list(names)]
            return [dict(zip(names, cells, strict=True)) for cells in chosen.itertuples(index=False, name=None)]

        return _Table(list(frame.columns), lambda names: frame[list(names)], take, _in_memory(take, len(frame)))
    whole: pa.Table | None = None
    try:
        if kind in (".csv", ".tsv"):
            options: Mapping[str, Any] = {
                "read_options": pacsv.ReadOptions(),
                "parse_options": pacsv.ParseOptions(
                    delimiter="\t" if kind == ".tsv" else delimiter_in(file), newlines_in_values=True
                ),
            }
            head = pacsv.open_csv(file, **options).schema.names
            kinds = {name: pa.float64() if name == "probability" else pa.string() for name in head}
            converted = pacsv.ConvertOptions(column_types=kinds, strings_can_be_null=False)
            whole = pacsv.read_csv(file, convert_options=converted, **options)
            source = pads.dataset(whole)
        else:
            source = pads.dataset([str(file)], schema=pq.read_schema(file).remove_metadata(), format="parquet")
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError) or file.is_dir():
            raise AuditError(no_file(file)) from error
        raise AuditError(
            f"{file} cannot be read: {error}; give Parquet, or CSV or JSON Lines whose name ends in .csv or .jsonl"
        ) from error

    def taken(names: Sequence[str], places: Sequence[int]) -> list[dict[str, Any]]:
        return source.take(pa.array(places, pa.int64()), columns=list(names)).to_pylist()

    return _Table(
        source.schema.names,
        lambda names: source.to_table(columns=list(names)).to_pandas(ignore_metadata=True),
        taken,
        partial(_parquet_pieces, file) if whole is None else _in_memory(taken, whole.num_rows),
    )


def _in_memory(
    take: Callable[[Sequence[str], Sequence[int]], list[dict[str, Any]]], count: int
) -> Callable[[Sequence[str]], Iterator[list[dict[str, Any]]]]:
    def pieces(names: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        for start in range(0, count, _PIECE):
            yield take(names, range(start, min(start + _PIECE, count)))

    return pieces


def _parquet_pieces(file: Path, names: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Rows of a Parquet file, so many at a time that they take about 64 MiB."""
    # Read ahead, as PyArrow does by default, the whole file would stay in memory whatever the size of the buffer.
    with pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as opened:
        first = next(opened.iter_batches(_FEW, columns=list(names)), None)
        each = 0.0 if first is None else first.nbytes / max(1, len(first))
        for batch in opened.iter_batches(_rows_of_a_piece(file, set(names), each), columns=list(names)):
            yield batch.to_pylist()


def _rows_of_a_piece(file: Path, names: set[str], each: float) -> int:
    """By the row group whose rows are the longest, once decompressed; what repeats lies there once.

    So the first rows count as well, which take `each` bytes.

    Raises:
        AuditError: the file's footer is damaged.
    """
    longest = each
    try:
        groups = row_groups_of(file)
    except FormatError as error:
        raise AuditError(f"{file} cannot be read: {error}") from error
    for group in groups:
        chunks = (chunk for chunk in group.columns if chunk.path_in_schema.split(".")[0] in names)
        longest = max(longest, sum(chunk.total_uncompressed_size for chunk in chunks) / max(1, group.num_rows))
    return int(min(_PIECE, max(1, _PIECE_BYTES // max(1.0, longest))))
