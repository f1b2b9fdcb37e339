"""A source piece by piece: its first rows in this process, and those of a long one in several.

Pieces come in the order of the source, whichever process made them, so that tables do not depend on the processes. They
depend on nothing but their own rows and the source's first ones; what repeats an earlier row is found by who joins them
(sources.py).
"""

from __future__ import annotations

import itertools
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dt2it_pipeline.engines.launch import fork_server
from dt2it_pipeline.errors import WorkerError
from dt2it_pipeline.ingest.adapters import adapter
from dt2it_pipeline.ingest.adapters.registry import LOOK, guarded
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.reading import read_unparsed, row_of
from dt2it_pipeline.ingest.recording import Recorded, own_ids, recorded
from dt2it_pipeline.ingest.rows import Item, Line, Quarantined, Row, SourceError, Unparsed
from dt2it_pipeline.media.bulk_import import MediaImporter
from dt2it_pipeline.media.root import MediaRoot
from dt2it_pipeline.storage.leftovers import sweep

_BATCH = 256  # items whose media are imported together
# Rows, or what they take, from which on a source is long enough for several processes, whose start takes seconds.
_LONG, _LONG_BYTES = 10_000, 64 << 20
_PIECE, _PIECE_BYTES = 512, 8 << 20  # rows that go to a process at a time, and what their texts and images may take
_PATIENCE = 100  # items that may lack a column, before a source none of whose items has it is given up
_HERE: dict[str, _PieceReader] = {}  # this worker process's own


@dataclass(frozen=True)
class MediaFolder:
    """Where the media of a source lie, and where they are put; see `MediaRoot`."""

    root: Path | None
    prefix: str
    web: bool
    store: Path

    @contextmanager
    def importer(self, source: str, threads: int | None = None) -> Iterator[MediaImporter]:
        """What imports them. Raises SourceError where the root is an archive that cannot be read."""
        try:
            root = MediaRoot(self.root, self.prefix, self.web)
        except (OSError, UnicodeDecodeError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise SourceError(f"source {source!r}: media_root cannot be read: {error}") from error
        importer = MediaImporter(root, self.store, threads)
        try:
            yield importer
        finally:
            importer.close()
            root.close()


def items_of(manifest: Manifest, sources: Path, on_row: Callable[[Row], None] = lambda row: None) -> Iterator[Item]:
    """The neutral items of a source before their media are imported, what is quarantined so far among them.

    `on_row` is called with every row that is handed to the adapter.

    Raises:
        SourceError: it cannot be read, or lacks a column that its adapter needs in every row.
    """
    return _items(manifest, read_unparsed(manifest, sources), on_row)


def pieces(manifest: Manifest, sources: Path, media: MediaFolder, processes: int) -> Iterator[Recorded]:
    """What the items of a source give, in order; arguments and errors are those of `sources.read_source`."""
    with media.importer(manifest.name) as importer:
        reads = read_unparsed(manifest, sources)
        first: list[Row] = []
        head: list[Unparsed] = []
        several = False
        # What a benchmark's images are asked is worded by files that a process of its own may find elsewhere.
        if processes > 1 and adapter(manifest.adapter).reader is not None and manifest.kind != "t2i_benchmark":
            head, several = _head(reads)
            rows = (row_of(manifest, read) for read in head)
            first = list(itertools.islice((row for row in rows if isinstance(row, Row)), LOOK))
            several &= len(first) == LOOK
        yield from _here(manifest, head if several else itertools.chain(head, reads), importer)
    if several:
        yield from _in_processes(manifest, reads, first, media, processes)


def _head(reads: Iterator[Unparsed]) -> tuple[list[Unparsed], bool]:
    """The first rows of a source, and whether it is a long one."""
    head: list[Unparsed] = []
    size = 0
    for read in reads:
        head.append(read)
        size += _size(read)
        if len(head) >= _LONG or (size >= _LONG_BYTES and len(head) >= 2 * LOOK):
            return head, True
    return head, False


def _items(manifest: Manifest, reads: Iterable[Unparsed], on_row: Callable[[Row], None]) -> Iterator[Item]:
    known = adapter(manifest.adapter)
    malformed: list[Quarantined] = []

    def rows() -> Iterator[Row]:
        for unparsed in reads:
            read = row_of(manifest, unparsed)
            if isinstance(read, Quarantined):
                malformed.append(read)
            else:
                on_row(read)
                yield read

    hopeless = 0  # items so far, while every one of them lacked a column
    fault: Quarantined | None = None
    for item in known.items(rows()):
        yield from malformed
        malformed.clear()
        if hopeless >= 0:
            missing = isinstance(item, Quarantined) and item.missing_column
            hopeless = hopeless + 1 if missing else -1
            fault = fault or (item if missing and isinstance(item, Quarantined) else None)  # the first row's
            if hopeless >= _PATIENCE:
                break
        yield item
    if hopeless > 0 and fault is not None:
        raise SourceError(
            f"source {manifest.name!r}: {fault.detail}; adapter {manifest.adapter!r} reads {', '.join(known.columns)}: "
            "map them under `columns` in the manifest, or name another adapter"
        )
    yield from malformed


def _here(manifest: Manifest, reads: Iterable[Unparsed], importer: MediaImporter) -> Iterator[Recorded]:
    ids: list[str] = []
    items = _items(manifest, reads, lambda row: ids.extend(own_ids(manifest, row.row_id, row.where)))
    while batch := list(itertools.islice(items, _BATCH)):
        yield recorded(manifest, batch, importer, tuple(ids))
        ids.clear()


class _PieceReader:
    """What a worker process makes of pieces."""

    def __init__(self, manifest: Manifest, first: Sequence[Row], importer: MediaImporter) -> None:
        reader = adapter(manifest.adapter).reader
        assert reader is not None  # else there are no processes
        self.manifest, self.function, self.importer = manifest, reader(first), importer

    def read(self, piece: Sequence[Unparsed]) -> Recorded:
        ids: list[str] = []
        items: list[Item] = []
        for read in piece:
            row = row_of(self.manifest, read)
            if isinstance(row, Quarantined):
                items.append(row)
            else:
                ids += own_ids(self.manifest, row.row_id, row.where)
                items += guarded(self.function, row)
        return recorded(self.manifest, items, self.importer, ids)


def _in_processes(
    manifest: Manifest, reads: Iterator[Unparsed], first: Sequence[Row], media: MediaFolder, processes: int
) -> Iterator[Recorded]:
    lost = (
        f"source {manifest.name!r}: one of {processes} processes that read it ended before its work was "
        "done, often because memory ran out; free memory on this machine and start again: what was imported is kept"
    )
    server = partial(fork_server.context, __name__)
    try:
        with fork_server.Pool(processes, server, lost, _start, (manifest, first, media)) as pool:
            yield from pool.map(_work, _cut(reads))
    except WorkerError:
        sweep(media.store.glob("*"))  # a file that was being written
        raise


def _cut(reads: Iterator[Unparsed]) -> Iterator[Sequence[Unparsed]]:
    """Rows in pieces for processes; a row of many images may be a piece by itself."""
    piece: list[Unparsed] = []
    size = 0
    for read in reads:
        piece.append(read)
        size += _size(read)
        if len(piece) >= _PIECE or size >= _PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _size(value: object) -> int:
    """About how many bytes the texts and images of a row take."""
    if isinstance(value, Line):
        return len(value.raw)
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0


def _start(manifest: Manifest, first: Sequence[Row], media: MediaFolder) -> None:
    fork_server.end_with_parent()
    importer = media.importer(manifest.name, threads=1)
    _HERE["reader"] = _PieceReader(manifest, first, importer.__enter__())  # as long as the process lives


def _work(piece: Sequence[Unparsed]) -> Recorded:
    return _HERE["reader"].read(piece)
