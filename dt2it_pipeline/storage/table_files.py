"""Tables that people hand in: Parquet, CSV and JSON files, compressed or not, and ids that match between them.

What belongs here: bytes and formats. What does not: which columns a table must have.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.storage.atomic import arrow_bytes

FORMATS = ".parquet, .csv, .tsv, .jsonl or .json, also with .gz, .zst, .bz2 or .xz"
# What pandas raises at a file that is damaged; of Parquet, its own description of the table may be.
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, pa.ArrowException)
_PIECE = 1 << 20  # bytes that are decompressed at once
_HEADING = 1 << 16  # bytes in which the heading of a CSV file ends
_IDS = ("pair_id", "chosen_id", "rejected_id", "response_id", "better_id", "shown_first")  # text in CSV: 007 is no 7


def _zst(name: str, _: str) -> pa.CompressedInputStream:
    return pa.CompressedInputStream(pa.OSFile(name), "zstd")


_COMPRESSED: Mapping[str, Callable[[str, str], Any]] = {
    ".gz": gzip.open,
    ".zst": _zst,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}


class TableFileError(UserError, ValueError):
    """A file of a table cannot be read; the message says why, and which formats can."""

    help_page: ClassVar[str] = "troubleshooting#curation-tables"


def kind_of_file(file: Path) -> str:
    """The ending that names the format, in lower case, whatever a compression adds to it.

    >>> kind_of_file(Path("pairs.JSONL.gz")), kind_of_file(Path("pairs"))
    ('.jsonl', '')
    """
    kinds = [suffix.lower() for suffix in file.suffixes if suffix.lower() not in _COMPRESSED]
    return kinds[-1] if kinds else ""


def delimiter_of(heading: str) -> str:
    """What separates the values of a file called .csv, by its heading: a comma, or where there is none, `;` or a tab.

    >>> delimiter_of("prompt;chosen;rejected"), delimiter_of("prompt,chosen;or not")
    (';', ',')
    """
    return next((mark for mark in (",", ";", "\t") if mark in heading), ",")


def delimiter_in(file: Path) -> str:
    """What separates the values of a file called .csv, compressed as PyArrow can read it; see `delimiter_of`."""
    with pa.input_stream(str(file), compression="detect") as stream:
        return delimiter_of(stream.read(_HEADING).partition(b"\n")[0].decode("utf-8", "replace"))


def unreadable(file: Path, error: Exception) -> str:
    """Why a file that somebody names cannot be read, for errors.

    >>> unreadable(Path("a.csv"), FileNotFoundError(2, "No such file or directory", "a.csv"))
    'there is no file a.csv'
    >>> unreadable(Path("a.csv"), PermissionError(13, "Permission denied", "a.csv"))
    'a.csv cannot be read: Permission denied'
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return no_file(file)
    return f"{file} cannot be read: {getattr(error, 'strerror', None) or error}"


def no_file(file: Path) -> str:
    """Why a path that somebody names is no file, for errors; what lies below a file is not there, either.

    >>> no_file(Path("a.csv/b")), no_file(Path("/"))
    ('there is no file a.csv/b', '/ is a folder, and no file')
    """
    return f"{file} is a folder, and no file" if file.is_dir() else f"there is no file {file}"


def plain_bytes(file: Path) -> bytes:
    """The bytes of a file, decompressed where its name says how.

    Raises:
        OSError: it cannot be read, or is not compressed as its name says.
    """
    with _decompressed(file) as stream:
        return bytes(stream.read())


def is_longer(file: Path, most: int) -> bool:
    """Whether a file has more than `most` bytes once it is decompressed; no more than these are decompressed to see it.

    Raises:
        OSError: as for `plain_bytes`.
    """
    if file.suffix.lower() not in _COMPRESSED:
        return file.stat().st_size > most
    size = 0
    with _decompressed(file) as stream:
        while size <= most and (part := stream.read(_PIECE)):
            size += len(part)
    return size > most


@contextmanager
def _decompressed(file: Path) -> Iterator[Any]:
    """The bytes of a file as a stream. Raises OSError as `plain_bytes` does, also for what the block reads."""
    opened = _COMPRESSED.get(file.suffix.lower(), open)
    try:
        with opened(str(file), "rb") as stream:
            yield stream
    except (EOFError, ValueError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise OSError(f"it is not compressed as its name says: {error}") from error


def read_table_file(file: Path) -> pd.DataFrame:
    """The rows of a table in a file, with column names that are text.

    Raises:
        TableFileError: there is no such file, its format is not known, or it cannot be read.
    """
    kind = kind_of_file(file)
    if not file.is_file():
        raise TableFileError(no_file(file))
    try:
        if kind == ".parquet":
            plain = file.suffix.lower() == kind
            # pandas' reader keeps an index that pandas wrote; it is given no Python file (see `arrow_bytes`).
            found = pd.read_parquet(pa.OSFile(str(file)) if plain else arrow_bytes(plain_bytes(file)))  # noqa: TID251
        elif kind in (".csv", ".tsv"):
            content, texts = plain_bytes(file), dict.fromkeys(_IDS, "str")
            heading = content[:_HEADING].partition(b"\n")[0].decode("utf-8", "replace")
            mark = "\t" if kind == ".tsv" else delimiter_of(heading)
            found = pd.read_csv(io.BytesIO(content), sep=mark, dtype=texts, encoding="utf-8-sig")
        elif kind in (".jsonl", ".json"):
            found = pd.read_json(
                io.BytesIO(plain_bytes(file)),
                lines=kind == ".jsonl",
                dtype=False,
                convert_dates=False,
                precise_float=True,
            )
        else:
            raise TableFileError(f"{file}: the format is not known by the name; use {FORMATS}")
    except TableFileError:
        raise
    except (OSError, ImportError, *DAMAGED) as error:
        raise TableFileError(f"{file} cannot be read: {error}; give {FORMATS}") from error
    return found.set_axis(found.columns.astype(str), axis=1)


def key_strings(ids: pd.Series) -> pd.Series:
    """Ids as `as_keys` makes them, held as Arrow strings, numbered from 0: of millions, a tenth of the memory."""
    if isinstance(ids.dtype, pd.StringDtype):
        return ids.astype("str").reset_index(drop=True)
    if isinstance(ids.dtype, np.dtype) and ids.dtype.kind in "iu":
        return pa.array(ids.to_numpy()).cast(pa.large_string()).to_pandas()
    return pd.Series(as_keys(ids), dtype="str")


def as_keys(ids: pd.Series) -> np.ndarray:
    """Ids as text, object [n], None where null: 3, 3.0 and "3" are one id, since tables come from different files."""
    if ids.dtype.kind in "iu":
        return ids.astype(str).to_numpy(dtype=object)
    text = ids.to_numpy(dtype=object, copy=True)
    missing = np.asarray(pd.isna(text))
    if pd.api.types.infer_dtype(ids, skipna=True) != "string":
        whole = (int(each) if isinstance(each, float) and each.is_integer() else each for each in text)
        text = np.array([str(each) for each in whole], dtype=object)
    text[missing] = None
    return text
