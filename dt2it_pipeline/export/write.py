"""Writes pairs in one format: a folder that appears whole or not at all, the same bytes from the same pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.export.card import dataset_card
from dt2it_pipeline.export.formats import TRL, Format, HuggingFace, LlamaFactory
from dt2it_pipeline.human_review.tasks import Argilla, LabelStudio
from dt2it_pipeline.ingest.provenance import Provenance
from dt2it_pipeline.media.pair_rows import Row, RowFault, rows_of
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.atomic import atomic_directory
from dt2it_pipeline.storage.output_folder import OutputFolderError, mark, replaceable

MARKER = ".dt2it_export.json"  # marks a folder as an export and lists what was written there; `datasets` skips dotfiles
TITLE = "Curated multimodal preference pairs"
DATASETS: Mapping[str, Any] = {"huggingface": HuggingFace, "llamafactory": LlamaFactory, "trl": TRL}
FORMATS: Mapping[str, Any] = {**DATASETS, "label_studio": LabelStudio, "argilla": Argilla}  # the others are for people


class ExportError(UserError, ValueError):
    """Pairs cannot be exported; the message says why and what to do."""

    help_page: ClassVar[str] = "troubleshooting#export"


@dataclass(frozen=True)
class Exported:
    """Where an export lies, how many pairs are in it, and which are not (table kind `quarantine`)."""

    folder: Path
    pairs: int
    quarantine: pa.Table


def export_pairs(
    pairs: pa.Table,
    prompts: pa.Table,
    media: Path,
    folder: Path,
    format_name: str,
    *,
    title: str = TITLE,
    sources: Mapping[str, Provenance] | None = None,
    lineage: Mapping[str, str] | None = None,
) -> Exported:
    """Write a pairs table with its prompts and media, as others train on them, and a card of counts and licences.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from dt2it_pipeline import export_pairs
        >>> from dt2it_pipeline.storage.records import make_pair
        >>> from dt2it_pipeline.storage.schemas import table
        >>> turns = [{"role": "user", "text": "What is 2 + 2?"}]
        >>> prompt = {"prompt_id": "p", "source": "mine", "system": "", "turns": turns, "media": []}
        >>> prompts = table([prompt | {"reference": None, "language": "en", "meta": "{}"}], "prompts")
        >>> pairs = table([make_pair("p", "4", "5", source="mine")], "pairs")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export_pairs(pairs, prompts, Path(folder, "media"), Path(folder, "out"), "trl")
        ...     print(done.pairs, sorted(path.name for path in done.folder.iterdir() if path.suffix == ".md"))
        1 ['README.md']

    Args:
        pairs: table of kind `pairs`.
        prompts: table of kind `prompts` with their prompts.
        media: root of the media store.
        folder: folder to make; an earlier export is replaced, with everything in it.
        format_name: one of FORMATS.
        title: heading of the dataset card.
        sources: what is known of the data sources, for the card.
        lineage: what the pairs were made from and by, for the card.

    Returns:
        The folder, the number of pairs in it, and the pairs that the format cannot hold (table kind `quarantine`).

    Raises:
        ExportError: there is no such format, or what lies at `folder` may not be replaced.
    """
    if format_name not in FORMATS:
        raise ExportError(f"there is no format {format_name!r}; known: {', '.join(FORMATS)}")
    try:
        target = replaceable(folder, MARKER, "export")
    except OutputFolderError as error:
        raise ExportError(str(error)) from error
    written: list[dict[str, Any]] = []
    languages: set[str] = set()
    aside = []
    with atomic_directory(target) as made:
        writer: Format = FORMATS[format_name](made)
        for row in rows_of(pairs, prompts, media):
            try:
                if not isinstance(row, Row):
                    raise row[1]
                writer.add(row)
            except RowFault as fault:
                pair = row.pair if isinstance(row, Row) else row[0]
                aside.append(records.quarantine_pair(pair, "export", fault.reason, fault.detail))
                continue
            written.append({name: row.pair[name] for name in ("source", "label", "round")})
            languages.add(row.prompt["language"])
        writer.close()
        origin = dict(lineage or {}) | {"pairs that this format cannot hold": str(len(aside))}
        card = dataset_card(
            title, writer.files, written, languages, sources or {}, origin, writer.columns, writer.notes
        )
        (made / "README.md").write_text(card, encoding="utf-8")
        mark(made, MARKER, format=format_name)
    return Exported(folder, len(written), schemas.table(aside, "quarantine"))
