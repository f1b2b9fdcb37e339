"""Files and folders that appear whole or not at all, and Parquet tables written that way."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.leftovers import ASIDE, KEPT, clear, owned_prefix, remove
from dt2it_pipeline.storage.permissions import follow_umask

_SYNC_ONE_BY_ONE = 100  # files and folders
_READ_AT_ONCE = 2**20  # bytes of a column
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)  # of a kernel, or of a file system
_SURROGATE = re.compile("[\ud800-\udfff]")


class StoreError(UserError, RuntimeError):
    """An artifact cannot be read or written; the message names it and says what to do."""

    help_page: ClassVar[str] = "troubleshooting#artifact"


def read_parquet(path: str | Path | pa.NativeFile, kind: str | None = None) -> pa.Table:
    """Read one Parquet file (what is open: see `arrow_bytes`), validated as a table of `kind` where that is given."""
    table = pq.read_table(path, partitioning=None, page_checksum_verification=True)
    return schemas.validate(table.replace_schema_metadata(None), kind) if kind else table


def read_given_parquet(path: str | Path, kind: str) -> pa.Table:
    """Read a Parquet file that a person names, as `read_parquet` does.

    Raises:
        RecordError: it is no Parquet file, or no table of `kind`; the message names the file.
    """
    try:
        return read_parquet(path, kind)
    except (pa.ArrowException, OSError, schemas.RecordError) as error:
        raise schemas.RecordError(
            f"{path} cannot be read as a Parquet table of kind {kind!r}: {error}; name another file"
        ) from error


def arrow_bytes(content: bytes) -> pa.NativeFile:
    """A file to read from, over a copy of the bytes that Arrow owns.

    Over Python's own bytes a read can end the process with an abort: Arrow's threads may let go of them when the
    interpreter is already ending (apache/arrow#33975).
    """
    copy = pa.BufferOutputStream()
    copy.write(content)
    return pa.BufferReader(copy.getvalue())  # noqa: TID251  (what Arrow owns)


def iter_parquet(path: str | Path, kind: str, rows: int) -> Iterator[pa.Table]:
    """Read one Parquet file piece by piece, `rows` rows each, validated as `read_parquet` does; at least one piece.

    Only the piece at hand lies in memory.
    """
    # Read ahead, as PyArrow does by default, the whole file would stay in memory whatever the size of the buffer.
    with pq.ParquetFile(path, buffer_size=_READ_AT_ONCE, pre_buffer=False, page_checksum_verification=True) as file:
        first = 0
        for batch in file.iter_batches(rows):
            piece = pa.Table.from_batches([batch]).replace_schema_metadata(None)
            yield schemas.validate(piece, kind, first)
            first += batch.num_rows
        if not first:
            yield schemas.validate(file.schema_arrow.empty_table().replace_schema_metadata(None), kind)


def write_parquet(value: pa.Table | pd.DataFrame, path: str | Path) -> None:
    """Write a table as Parquet (zstd, pages with checksums) through a temporary file.

    The same table gives the same bytes.
    """
    table = pa.Table.from_pandas(value, preserve_index=False) if isinstance(value, pd.DataFrame) else value
    path = Path(path)
    with temporary_beside(path) as temporary:
        bare = table.replace_schema_metadata(None)
        pq.write_table(bare, temporary, compression="zstd", write_page_checksum=True)
        move_into_place(temporary, path)


def write_json_atomic(value: Any, path: str | Path) -> None:
    """Write JSON (sorted keys, UTF-8) through a temporary file."""
    replace_text(Path(path), json_text(value))


def json_text(value: Any) -> str:
    """JSON as `write_json_atomic` writes it; NumPy's scalars and paths become plain values.

    Half of a surrogate pair, which has no UTF-8 form, is written as its escape. Two halves that belong together are
    read again as the one character that they stand for.
    """
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1, default=_json_scalar)
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; on success it is renamed to `path`, on failure it is removed.

    A folder that is already there is replaced, in one step where the file system can do that. Elsewhere it is moved
    aside first; if this process is killed before the new one is in its place, whoever sweeps next puts it back.
    """
    path = Path(path)
    make_folder(path.parent)
    with _errors_name(path):
        temporary = Path(tempfile.mkdtemp(prefix=owned_prefix(f".{path.name}"), dir=path.parent))
    follow_umask(temporary)  # mkdtemp's 0700 would hide shared artifacts from a team's other users
    try:
        with _errors_name(path, temporary):
            yield temporary
        files = [file for file in temporary.rglob("*") if file.is_file()]
        sync_all((*files, *(folder for folder in temporary.rglob("*") if folder.is_dir()), temporary))
        if not path.exists():
            temporary.rename(path)
        elif not _exchange(temporary, path):
            _replace(temporary, path)
        sync(path.parent)
    finally:
        remove(temporary)  # after an exchange, what was there before


def _exchange(first: Path, second: Path) -> bool:
    """Give two folders each other's names, so that neither is missing at any moment. False where that is not known."""
    function, arguments = _exchanging()
    if function is None:
        return False
    failed = function(*arguments(os.fsencode(first), os.fsencode(second)))
    if failed and (number := ctypes.get_errno()) not in _NO_EXCHANGE:
        raise OSError(number, os.strerror(number), str(second))
    return not failed


@functools.cache
def _exchanging() -> tuple[Any, Callable[[bytes, bytes], tuple[Any, ...]]]:
    """The system's function that exchanges names, which Python has none for, and its arguments; None elsewhere."""
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):  # Linux: renameat2(2) with RENAME_EXCHANGE, from this folder (AT_FDCWD)
        return library.renameat2, lambda first, second: (-100, first, -100, second, ctypes.c_uint(2))
    if hasattr(library, "renamex_np"):  # macOS: renamex_np(2) with RENAME_SWAP
        return library.renamex_np, lambda first, second: (first, second, ctypes.c_uint(2))
    return None, lambda first, second: ()


def _replace(temporary: Path, path: Path) -> None:
    """Put a folder in the place of another one in two steps; see leftovers.py for a process that ends between them."""
    aside = Path(tempfile.mkdtemp(prefix=owned_prefix(f"{ASIDE}{path.name}"), dir=path.parent))
    path.rename(aside / KEPT)
    try:
        temporary.rename(path)
    finally:
        clear(aside)


def replace_text(path: Path, text: str) -> None:
    """Write UTF-8 text through a temporary file beside `path`."""
    with temporary_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        move_into_place(temporary, path)


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Give an empty temporary file in the folder of `path`; it is removed unless it was renamed."""
    make_folder(path.parent)
    with _errors_name(path):
        handle, name = tempfile.mkstemp(prefix=owned_prefix(f".{path.name}"), dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    follow_umask(temporary)
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


def sync(path: Path) -> None:
    """Bring what was written to a file to the disk; of a folder, which names it has.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems sync no folder: they order its changes themselves.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def sync_all(paths: Collection[Path]) -> None:
    """The same of many files and folders.

    Raises:
        OSError: the disk refuses.
    """
    if len(paths) > _SYNC_ONE_BY_ONE:
        os.sync()  # many small files: one flush of everything takes less time than theirs, one by one
        return
    for path in paths:
        sync(path)


def move_into_place(temporary: Path, path: Path) -> None:
    """Rename a finished temporary file to `path`: content first, then the name, each on the disk before the next.

    Raises:
        OSError: the file system refuses.
    """
    move_all_into_place({temporary: path})


def move_all_into_place(places: Mapping[Path, Path]) -> None:
    """The same of several temporary files, by their paths.

    Raises:
        OSError: the file system refuses.
    """
    sync_all(places)
    for temporary, path in places.items():
        temporary.replace(path)
    sync_all({path.parent for path in places.values()})


def _json_scalar(value: Any) -> Any:
    if hasattr(value, "item"):  # NumPy scalars
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
