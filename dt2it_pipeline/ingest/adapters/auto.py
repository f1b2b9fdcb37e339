"""The default adapter: finds out by looking at the columns how rows are to be read; the manifest maps what it does not.

Pairs may have any form of ingest/forms. Prompts are a question and a reference answer, text-to-image preferences a
caption and two images.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from dt2it_pipeline.ingest.adapters.registry import LOOK, PerRow, guarded, over_rows
from dt2it_pipeline.ingest.forms.beside import columns_beside, stands_beside, with_beside
from dt2it_pipeline.ingest.forms.fields import Fields
from dt2it_pipeline.ingest.forms.pairs import FIELDS, PairReader, says_which, sides
from dt2it_pipeline.ingest.forms.prompts import prompt, with_columns
from dt2it_pipeline.ingest.forms.sides import Judged
from dt2it_pipeline.ingest.rows import TIE, Conversation, ImagePair, Item, Quarantined, Row

PAIRS, IMAGES = ("preferences", "truth", "benchmark"), ("t2i", "t2i_benchmark")
# What a row must have, by kind, in the words of the manifest.
NEEDED = {
    "preferences": ("question", "chosen", "rejected"),
    "t2i": ("caption", "preferred", "other"),
    "prompts": ("question", "reference"),
}
# Other forms of pairs, in place of `chosen` and `rejected`.
FURTHER = (("first", "second", "verdict"), ("answers", "ratings"), ("answers", "ranks"))
_BESIDE = ("id", "image", "images", "video", "videos", "group", "system", "strength", "tie")


def reader(first: Sequence[Row], promptless: bool = False) -> PerRow:
    """What reads the rows of a source of any known form.

    Args:
        first: its first LOOK rows, as far as there are so many; one suffices where names say which answer is better.
        promptless: whether pairs without a prompt are read too; they have no turns.
    """
    if first[0].kind not in PAIRS:
        return _prompt if first[0].kind == "prompts" else _images
    return PairReader(Judged(first[:1] if says_which(Fields(first[0])) else first[:LOOK]), promptless).items


@over_rows("auto", (*PAIRS, "prompts", *IMAGES), (*FIELDS, "reference", "caption", "preferred", "other"), reader)
def items(rows: Iterable[Row]) -> Iterator[Item]:
    """The items of rows of any known form."""
    yield from read(rows)


def read(rows: Iterable[Row], promptless: bool = False) -> Iterator[Item]:
    """The items of rows of one source; `promptless` as for `reader`."""
    rows = iter(rows)
    ahead = list(itertools.islice(rows, 1))
    if not ahead:
        return
    if ahead[0].kind in PAIRS and not says_which(Fields(ahead[0])):
        ahead += itertools.islice(rows, LOOK - 1)
    made = reader(ahead, promptless)
    for row in itertools.chain(ahead, rows):
        yield from guarded(made, row)


def reading(row: Row, kind: str) -> dict[str, str] | None:
    """Which column of a row would be read as which field; None where the kind does not fit.

    Args:
        row: of a source that nobody has described; what its `columns` map is read so.
        kind: preferences, t2i or prompts.
    """
    fields = Fields(row)
    found = sides(fields) if kind == "preferences" else {name: fields.column(name) for name in NEEDED[kind]}
    if not found or None in found.values():
        return None
    columns = {name: str(column) for name, column in found.items()}
    if kind == "preferences":
        asked = [name for name in ("conversation", "question") if fields.column(name) not in {*columns.values(), None}]
        if not stands_beside(fields):  # a column that is named as the prompt would be all of it
            columns |= {name: str(fields.column(name)) for name in asked[:1]}
    for name in _BESIDE if kind != "t2i" else ("id", "group", "strength", "tie"):
        column = fields.column(name)
        if column is not None and column not in columns.values():
            columns[name] = column
    return columns


def read_by_name(row: Row) -> tuple[str, ...]:
    """The columns that a row's prompt is read from without a manifest that names them; none where one maps the prompt.

    >>> read_by_name(Row("1", {"conversations": [], "chosen": "a", "rejected": "b"}, {}, "preferences"))
    ('conversations',)
    """
    fields = Fields(row)
    if {"conversation", "question"} & {*row.columns}:
        return ()
    asked = (fields.column(name) for name in ("question", "conversation"))
    return tuple(dict.fromkeys(name for name in (*asked, *columns_beside(fields)) if name is not None))


def _prompt(row: Row) -> Iterator[Item]:
    """A question with its media and, where the row has one, a reference answer."""
    fields = Fields(row)
    found = prompt(fields)
    if found is None:
        raise fields.missing("question", "conversation")
    reference = fields.text("reference")
    found = with_beside(fields, found, () if reference is None else (reference,))
    found, media = with_columns(fields, found)
    yield Conversation(
        row.row_id,
        found.turns,
        media,
        reference=reference,
        system=found.system,
        group=fields.text("group") if "group" in row.columns else None,
    )


def _images(row: Row) -> Iterator[Item]:
    """Two images for a caption."""
    fields = Fields(row)
    columns = {name: fields.column(name) for name in ("caption", "preferred", "other")}
    for name, column in columns.items():
        if column is None:
            raise fields.missing(name)
    if (tie := fields.column("tie")) is not None and fields.bare.flag(tie):
        yield Quarantined(row.row_id, TIE)
        return
    strength = fields.column("strength")
    yield ImagePair(
        row.row_id,
        fields.bare.text(str(columns["caption"])),
        fields.bare.image(str(columns["preferred"])),
        fields.bare.image(str(columns["other"])),
        fields.bare.number(strength) if strength is not None else None,
        fields.text("group") if row.kind == "t2i_benchmark" or "group" in row.columns else None,
    )
