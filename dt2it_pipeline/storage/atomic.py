"""Files and folders that appear whole or not at all, and Parquet tables written that way."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.storage import schemas

_SYNC_ONE_BY_ONE = 100  # files


class StoreError(UserError, RuntimeError):
    """An artifact cannot be read or written; the message names it and says what to do."""

    help_page: ClassVar[str] = "troubleshooting#artifact"


def read_parquet(path: str | Path, kind: str | None = None) -> pa.Table:
    """Read one Parquet file, validated as a table of `kind` where that is given."""
    table = pq.read_table(path, partitioning=None)
    return schemas.validate(table.replace_schema_metadata(None), kind) if kind else table


def write_parquet(value: pa.Table | pd.DataFrame, path: str | Path) -> None:
    """Write a table as Parquet (zstd) through a temporary file; the same table gives the same bytes."""
    table = pa.Table.from_pandas(value, preserve_index=False) if isinstance(value, pd.DataFrame) else value
    path = Path(path)
    with temporary_beside(path) as temporary:
        pq.write_table(table.replace_schema_metadata(None), temporary, compression="zstd")
        _sync(temporary)
        temporary.replace(path)


def write_json_atomic(value: Any, path: str | Path) -> None:
    """Write JSON (sorted keys, UTF-8) through a temporary file."""
    replace_text(Path(path), json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1, default=_json_scalar))


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; on success it is renamed to `path`, on failure it is removed.

    A folder that is already there is replaced: it is moved aside first and removed afterwards.
    """
    path = Path(path)
    make_folder(path.parent)
    with _errors_name(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary.chmod(0o755)  # mkdtemp's 0700 would hide shared artifacts from a team's other users
    try:
        with _errors_name(path, temporary):
            yield temporary
        files = [file for file in temporary.rglob("*") if file.is_file()]
        if len(files) > _SYNC_ONE_BY_ONE:
            os.sync()  # thousands of small files: one flush of everything takes less time than theirs, one by one
        else:
            for file in files:
                _sync(file)
        if path.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".old.{path.name}.", dir=path.parent))
            path.rename(aside / "old")
            temporary.rename(path)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Write UTF-8 text through a temporary file beside `path`."""
    with temporary_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Give an empty temporary file in the folder of `path`; it is removed unless it was renamed."""
    make_folder(path.parent)
    with _errors_name(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o644)
    try:
        with _errors_name(path, temporary):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path, advice: str = "choose a folder that can be written to") -> None:
    """Make a folder and its parents. Raises StoreError, with the advice, where the file system refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror}; {advice}") from error


@contextlib.contextmanager
def _errors_name(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let errors of the file system name `path` instead of the temporary place; None: it could not be made."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (temporary is not None and str(temporary) not in str(error)):
            raise
        file, words = str(path), error.strerror or ""
        if temporary is not None:
            file = str(error.filename or path).replace(str(temporary), file)
            words = words.replace(str(temporary), str(path))
        raise OSError(error.errno, words, file) from error


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _json_scalar(value: Any) -> Any:
    if hasattr(value, "item"):  # NumPy scalars
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
