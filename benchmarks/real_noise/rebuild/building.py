"""What the builders of sets share: the four tables of a set, appended to row by row, and writing them."""

from __future__ import annotations

import gzip
import json
import math
import tarfile
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.real_noise.sets import FILES, SetError

Rows = list[dict[str, Any]]
Tables = dict[str, Rows]

# what comes of a file's content that has another form than its source publishes; of an archive that is cut off, too
MALFORMED = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    gzip.BadGzipFile,
    tarfile.TarError,
    zlib.error,
)


def write(tables: Tables, folder: Path) -> None:
    """Write a set's four files into a folder, which may not exist yet.

    Raises:
        SetError: there is no pair, or the source or prompt of one is no text.
    """
    if not tables["pairs"]:
        raise SetError(f"{folder.name}: no pair follows from these files; are they complete?")
    for row in tables["pairs"]:
        if odd := [name for name in ("source", "prompt") if not isinstance(row.get(name, ""), str)]:
            raise SetError(f"{folder.name}: the {odd[0]} of pair {row['pair_id']} is no text, but {row[odd[0]]!r}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        pd.DataFrame(tables[name]).to_parquet(folder / f"{name}.parquet", index=False)


def empty() -> Tables:
    """The four tables of a set without rows."""
    return {name: [] for name in FILES}


@contextmanager
def parsing(file: Path, what: str = "as its source publishes it") -> Iterator[None]:
    """Make an error that names the file of what its malformed content raises.

    Raises:
        SetError: the content is malformed.
    """
    try:
        yield
    except MALFORMED as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SetError(
            f"{file} is not {what} ({reason}); download it again, with `git lfs pull` if it is a pointer"
        ) from error


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        SetError: it is not UTF-8.
    """
    with parsing(file, "UTF-8 text"):
        return file.read_text(encoding="utf-8")


def read(file: Path) -> Rows:
    """The rows of a JSON file.

    Raises:
        SetError: it is not JSON, or no list.
    """
    made: Rows = _parsed(file, read_text(file), list)
    return made


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        SetError: it is not JSON, or no object.
    """
    made: dict[str, Any] = _parsed(file, read_text(file), dict)
    return made


def read_lines(file: Path) -> Rows:
    """The rows of a JSON Lines file.

    Raises:
        SetError: a line is not JSON, or no object.
    """
    return [_parsed(file, line, dict) for line in read_text(file).splitlines() if line.strip()]


def _parsed(file: Path, text: str, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    with parsing(file, "JSON"):
        made = json.loads(text)
    if not isinstance(made, kind):
        expected = "an object" if kind is dict else "a list"
        raise SetError(f"{file}: expected {expected}, found {text.strip()[:40]!r}; download it again")
    return made


def read_table(file: Path, columns: Sequence[str], numbers: Sequence[str] = (), **options: Any) -> pd.DataFrame:
    """The columns of a table and those that are `numbers`, read with `options` of pandas' read_csv.

    Raises:
        SetError: it is no table, a column is missing, or a row has nothing or no finite number where it needs it.
    """
    columns = (*columns, *numbers)
    with parsing(file, "readable as a table"):
        table = pd.read_csv(file, usecols=lambda column: column in columns, **options)
    if missing := [column for column in columns if column not in table.columns]:
        raise SetError(f"{file}: columns {missing} missing; download it again")
    if (absent := table.isna()).any(axis=None):
        row, column = np.argwhere(absent.to_numpy())[0]
        raise SetError(f"{file}: row {row + 1} has no {table.columns[column]}; download it again")
    with parsing(file):
        return table.assign(**{column: table[column].map(numeric) for column in numbers})


def complete(file: Path, there: Container[Any], wanted: Iterable[Any], least: float = 1.0) -> None:
    """Check that a file or folder has what a set asks of it.

    Args:
        file: The file or folder.
        there: What it has.
        wanted: What the set needs.
        least: The least share of it, less than 1 where the published files lack some.

    Raises:
        SetError: there is less.
    """
    needed = list(wanted)
    missing = [item for item in needed if item not in there]
    if len(missing) > (1 - least) * len(needed):
        raise SetError(
            f"{file}: {len(missing)} of {len(needed)} that the set needs are missing, first {missing[0]}; "
            "download it again"
        )


def numeric(value: Any) -> float:
    """A value of a file as a finite number.

    Raises:
        ValueError: it is text of another kind, or not finite.
        TypeError: it is null, a list or an object.
    """
    made = float(value)
    if not math.isfinite(made):
        raise ValueError(f"{value!r} is not finite")
    return made


def number(text: str) -> float | None:
    """The number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def add_pair(tables: Tables, pair: str, source: str, prompt: str, first: str, second: str, label: int) -> str:
    """Append a pair whose `label` (1 or 2) side is chosen; returns chosen_id."""
    texts = {1: str(first), 2: str(second)}  # PandaLM has a response that JSON reads as a truth value
    tables["pairs"].append(
        {
            "pair_id": pair,
            "source": source,
            "prompt": prompt,
            "chosen_id": f"{pair}-{label}",
            "rejected_id": f"{pair}-{3 - label}",
            "chosen": texts[label],
            "rejected": texts[3 - label],
        }
    )
    return f"{pair}-{label}"


def add_scores(tables: Tables, pair: str, voter: str, scores: Iterable[float | None]) -> None:
    """Append a voter's scores of the first and second side; None is left out."""
    for side, score in enumerate(scores, 1):
        if score is not None:
            tables["scores"].append({"response_id": f"{pair}-{side}", "voter": voter, "score": score})


def add_vote(tables: Tables, pair: str, judge: str, better: str | None, chosen: str, order: str = "ab") -> None:
    """Append a judge's verdict; `better` is the better side's id, or None for a tie."""
    verdict = "tie" if better is None else "chosen" if better == chosen else "rejected"
    tables["votes"].append({"pair_id": pair, "judge": judge, "order": order, "better_id": better, "verdict": verdict})
