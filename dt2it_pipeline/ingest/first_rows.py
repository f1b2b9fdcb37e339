"""A look at a source's first rows, before a run reads all of them: columns, usable rows, and why others are not."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.reading import read_rows
from dt2it_pipeline.ingest.rows import Row, SourceError
from dt2it_pipeline.ingest.sources import read_source
from dt2it_pipeline.storage.leftovers import owned_prefix


@dataclass(frozen=True)
class FirstRows:
    """What the first rows of a source gave.

    Attributes:
        columns: of the first row that could be read.
        items: what the rows gave: pairs, prompts or preferences, unusable ones included.
        usable: of these, records; their images were opened.
        quarantined: reason -> count; ties and repeated rows are among them.
        example: the first of these in words, empty where there is none.
    """

    columns: tuple[str, ...]
    items: int
    usable: int
    quarantined: dict[str, int]
    example: str = ""


def look_at_source(manifest: Manifest, sources: Path, rows: int) -> FirstRows:
    """Read the first rows of a source as a run would, media included; nothing is kept.

    Args:
        manifest: the source; its own `limit` holds too.
        sources: the folder sources/ of the artifact home.
        rows: how many rows are read.

    Raises:
        SourceError: the source is missing or cannot be read, or no row has the columns that its adapter needs.
    """
    limited = manifest.model_copy(update={"limit": min(rows, manifest.limit or rows)})
    columns = next((tuple(map(str, row.values)) for row in read_rows(limited, sources) if isinstance(row, Row)), ())
    with tempfile.TemporaryDirectory(prefix=owned_prefix("dt2it_first_rows")) as media:
        found = read_source(limited, sources, Path(media))
    aside = found["quarantine"].to_pylist()
    example = f"{aside[0]['row_id']}: {aside[0]['reason']}: {aside[0]['detail']}"[:200] if aside else ""
    counts = Counter(row["reason"] for row in aside)
    return FirstRows(
        columns, found.metadata["rows_in"], found.metadata["rows_out"], dict(counts.most_common()), example
    )


__all__ = ["FirstRows", "SourceError", "look_at_source"]
