"""Which column of a row holds which field of ours: as the manifest maps it, else by the names that public files use."""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.rows import ColumnError, Row, checked_text, medium
from dt2it_pipeline.media.store import Medium, MediumKind

# Our field: its names in public files, the likeliest first. Names are compared in lower case, words joined by `_`.
NAMES: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "prompt", "query", "instruction", "problem", "user_prompt", "user_query", "prompt_text",
                 "prompt_content", "text", "input", "caption"),
    "conversation": ("messages", "conversations", "conversation", "turns", "dialogue", "dialog", "context",
                     "trajectory"),
    "chosen": ("chosen",),  # further names come in pairs: COUPLES
    "rejected": ("rejected",),
    "first": ("first",),  # neutral names come in pairs: sides.py
    "second": ("second",),
    "verdict": ("verdict", "winner", "better", "preference", "human_preference", "overall_preference", "preferred",
                "preferred_response", "preferred_answer", "better_response", "better_answer", "better_response_id",
                "better_id", "best_response", "choice", "human_choice", "vote", "human_vote", "judgement", "judgment",
                "winning_response", "selected", "criteria_preference", "overall_response", "preference_strength",
                "chosen", "label"),
    "answers": ("responses", "response", "answers", "completions", "generations", "outputs", "candidates"),
    "ranks": ("ranks", "rank", "human_ranking", "human_rank"),
    "order": ("order",),
    "ratings": ("ratings", "rating", "scores", "score", "rewards", "overall_scores", "overall_ratings",
                "overall_score", "overall_rating"),
    "reference": ("reference", "reference_answer", "ground_truth", "gt_answer", "gold", "gold_answer", "answer",
                  "solution"),
    "caption": ("caption", "prompt", "text"),
    "preferred": ("preferred", "image_chosen", "chosen_image", "preferred_image", "image_preferred", "best_image"),
    "other": ("other", "image_rejected", "rejected_image", "other_image", "image_other", "worst_image"),
    "image": ("image", "image_path", "img", "img_path", "image_file", "photo", "picture", "image_url",
              "screenshot", "prompt_image", "question_image", "input_image", "file_name", "filename"),
    "images": ("images", "image_paths", "image_list", "image_urls", "prompt_images", "input_images"),
    "video": ("video", "video_path"),
    "videos": ("videos", "video_paths"),
    "group": ("group", "category", "subset", "task"),
    "system": ("system", "system_prompt", "system_message", "system_instruction", "system_instructions"),
    "strength": ("strength", "margin", "score_difference"),
    "tie": ("tie", "is_tie"),
    "id": ("id", "uid", "pair_id", "question_id", "sample_id", "idx", "index"),
}  # fmt: skip
# Columns of the better and the worse answer; a whole conversation may stand in the first.
COUPLES: tuple[tuple[str, str], ...] = (
    ("messages", "rejected_messages"),  # ms-swift
    ("messages", "rejected_response"),
    ("chosen", "rejected"),  # TRL, OpenRLHF, Argilla, most data sets
    ("chosen_messages", "rejected_messages"),  # LLaMA-Factory v1
    ("conversations", "rejected_conversations"),  # POVID
    ("chosen_conversations", "rejected_conversations"),
    ("chosen_response", "rejected_response"),
    ("response", "rejected_response"),  # ms-swift before its version 3
    ("chosen_answer", "rejected_answer"),
    ("response_chosen", "response_rejected"),
    ("preferred_response", "dispreferred_response"),
    ("preferred", "dispreferred"),
    ("accepted", "rejected"),
    ("chosen", "reject"),
    ("winner", "loser"),
    ("better", "worse"),
    ("better_response", "worse_response"),
)
RATINGS: tuple[tuple[str, str], ...] = (
    ("chosen_rating", "rejected_rating"),
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
)


_FILE_NAMES = ("file_name", "filename")  # may be of anything
_Found = TypeVar("_Found")
_SIZE = 100  # pixels, as in image_512; further images have lower numbers
_COMMON = ("image", "images")  # names of columns, most of all


class Fields:
    """A row, asked by our fields."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self._layout = _layout(tuple(map(str, row.values)))
        self._plain, self._known, self._values = self._layout.plain, self._layout.known, row.values

    @property
    def bare(self) -> Row:
        """The row, asked by the file's own names."""
        return Row(self.row.row_id, self.row.values, {}, self.row.kind, self.row.where)

    def column(self, field: str) -> str | None:
        """The column that holds a field; of several, the likeliest one that has a value in this row.

        Raises ColumnError where the manifest maps the field to a column that is not there.
        """
        if self.row.columns and field in self.row.columns:
            name = self.row.columns[field]
            if name not in self.row.values:
                raise ColumnError(
                    "missing column", f"column {name!r} is not in {self._where}, which has {self.row.columns_in_words}"
                )
            return name
        there = self._known.get(field)
        if there is None:
            there = self._layout.columns(field)
        if len(there) < 2:
            return there[0] if there else None
        # Tables of several forms have nulls in the columns of the others.
        return next((name for name in there if self.value(name) is not None), there[0])

    def plain(self, name: str) -> str | None:
        """The column of that name, spelled anyhow."""
        return self._plain.get(name)

    def present(self, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        """Those of some names, spelled anyhow, that the row has, each with its column; in order."""
        return self._layout.present(names)

    def couples(self, names: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """The columns of those couples of names, spelled anyhow, both of which the row has; in order."""
        return self._layout.couples(names)

    def matching(self, pattern: re.Pattern[str]) -> tuple[str, ...]:
        """The columns whose plain names a pattern fits, in the order of these names."""
        return self._layout.matching(pattern)

    def once(self, name: str, found: Callable[[Fields], _Found]) -> _Found:
        """What follows from the names of the columns alone, found out once for all rows that have them."""
        known = self._layout.once
        if name not in known:
            known[name] = found(self)
        there: _Found = known[name]
        return there

    @staticmethod
    def plain_of(column: str) -> str:
        """A column's name in lower case, words joined by `_`."""
        return plain_name(column)

    @property
    def names(self) -> Mapping[str, str]:
        """Every column by its name in lower case, words joined by `_`."""
        return self._plain

    def get(self, field: str) -> Any:
        """The value of a field, None where there is none or it is NaN, which pandas writes for none."""
        return self.value(self.column(field))

    def value(self, column: str | None) -> Any:
        """The value of a column, None where there is none or it is NaN."""
        value = None if column is None else self._values.get(column)
        if value is None or type(value) is str:  # nearly all
            return value
        return None if isinstance(value, float) and math.isnan(value) else value

    def has(self, field: str) -> bool:
        """Whether a field has a value that is neither null nor empty."""
        return self.get(field) not in (None, "", [], ())

    def text(self, field: str) -> str | None:
        """A field as text, None where it has no value. Raises RowError where the value is not text or blank."""
        column = self.column(field)
        return checked_text(self.value(column), f"column {column!r}") if self.has(field) else None

    def media(self) -> tuple[Medium, ...]:
        """The media of the columns for images and videos, in this order; of several columns, those of the likeliest."""
        found: tuple[Medium, ...] = ()
        kinds: tuple[tuple[MediumKind, tuple[str, str]], ...]
        kinds = ("image", ("images", "image")), ("video", ("videos", "video"))
        for kind, fields in kinds:
            for field in fields:
                mapped = field in self.row.columns
                if not mapped and not self._layout.columns(field):
                    continue
                media = self._media_of(self._media_column(field), kind)
                if media and not mapped:  # image, image_2, image_3
                    media += tuple(one for one in self._further(kind) if one not in media)
                if media or mapped:
                    found += media
                    break
            else:
                found += tuple(
                    medium for column in self._layout.numbered(kind) for medium in self._media_of(column, kind)
                )
        return found

    def _further(self, kind: MediumKind) -> Iterator[Medium]:
        """The media of numbered columns; a number of three digits is a size."""
        for column in self._layout.numbered(kind):
            if _last_number(plain_name(column)) < _SIZE:
                yield from self._media_of(column, kind)

    def _media_of(self, column: str | None, kind: MediumKind) -> tuple[Medium, ...]:
        """The media of a column; what stands for none (empty, null, a struct of nulls) is left out."""
        if column is None:
            return ()
        value = listed(self.value(column))
        values = [one for one in (value if isinstance(value, list | tuple) else [value]) if not _is_nothing(one)]
        if column.lower() not in _COMMON and plain_name(column) in _FILE_NAMES and not all(map(_is_image_file, values)):
            return ()
        return tuple(medium(one, kind, column) for one in values)

    def _media_column(self, field: str) -> str | None:
        """As `column`; a mapped column that only this row lacks costs the row, not the source."""
        try:
            return self.column(field)
        except ColumnError as error:
            raise RowError("missing value", error.detail) from error

    def missing(self, *fields: str) -> ColumnError:
        """The error of a row that lacks all of these fields."""
        wanted = " or ".join(repr(self.row.columns.get(field, field)) for field in fields)
        return ColumnError(
            "missing column", f"column {wanted} is not in {self._where}, which has {self.row.columns_in_words}"
        )

    @property
    def _where(self) -> str:
        return self.row.where or self.row.row_id


class _Layout:
    """The names of a row's columns, and what follows from them alone; nearly all rows of a source share one."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.plain = plain_names(names)
        self.known: dict[str, tuple[str, ...]] = {}  # columns by the fields that were asked for so far
        self._couples: dict[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = {}
        self._present: dict[tuple[str, ...], tuple[tuple[str, str], ...]] = {}
        self._numbered: dict[str, tuple[str, ...]] = {}
        self.once: dict[str, Any] = {}
        self._matching: dict[re.Pattern[str], tuple[str, ...]] = {}

    def columns(self, field: str) -> tuple[str, ...]:
        """The columns that may hold a field, the likeliest first."""
        found = self.known.get(field)
        if found is None:
            there = (self.plain.get(name) for name in NAMES.get(field, (field,)))
            found = self.known[field] = tuple(name for name in there if name is not None)
        return found

    def couples(self, names: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """The columns of those couples of names both of which there are, in order."""
        found = self._couples.get(names)
        if found is None:
            plain = self.plain
            found = tuple((plain[one], plain[other]) for one, other in names if one in plain and other in plain)
            self._couples[names] = found
        return found

    def present(self, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        """Those of some names that there are, each with its column, in order."""
        found = self._present.get(names)
        if found is None:
            found = self._present[names] = tuple((name, self.plain[name]) for name in names if name in self.plain)
        return found

    def matching(self, pattern: re.Pattern[str]) -> tuple[str, ...]:
        """The columns whose plain names a pattern fits, in the order of these names."""
        found = self._matching.get(pattern)
        if found is None:
            names = sorted(name for name in self.plain if pattern.fullmatch(name))
            found = self._matching[pattern] = tuple(self.plain[name] for name in names)
        return found

    def numbered(self, kind: str) -> tuple[str, ...]:
        """The columns image_1, image_2 and so on, in the order of their numbers."""
        found = self._numbered.get(kind)
        if found is None:
            names = (name for name in self.plain if re.fullmatch(rf"{kind}_\d+", name))
            found = self._numbered[kind] = tuple(self.plain[name] for name in sorted(names, key=_last_number))
        return found


@functools.lru_cache(maxsize=1024)
def _layout(names: tuple[str, ...]) -> _Layout:
    return _Layout(names)


def plain_name(name: str) -> str:
    """A column's name in lower case, words joined by `_`.

    >>> plain_name("Output1"), plain_name("chosen-rating"), plain_name("responseA")
    ('output_1', 'chosen_rating', 'response_a')
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])", "_", name)
    return re.sub(r"[^\w]+|_+", "_", spaced).strip("_").lower()


def plain_names(names: tuple[str, ...]) -> Mapping[str, str]:
    """Every column by its plain name; of two that have one, the one that is spelled so, else the first."""
    return {plain_name(name): name for name in reversed(names)} | {n: n for n in names if plain_name(n) == n}


def listed(value: Any) -> Any:
    """A list that stands as text in a cell, as JSON or as Python writes it; anything else as it is."""
    if not isinstance(value, str) or not (value[:1] == "[" or value[:1].isspace()):
        return value
    if value.lstrip()[:1] == "[" and value.rstrip()[-1:] == "]":
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            return found if isinstance(found, list) else value
    return value


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing, as files with texts alone write it."""
    return value is None or (isinstance(value, str) and not value.strip())


def _is_nothing(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(part is None for part in value.values())
    return value is None or value == "" or value == b"" or (isinstance(value, float) and math.isnan(value))


def is_media(value: Any) -> bool:
    """Whether a value is a medium, or surely names one: bytes, a file's name, an address, an object that holds one."""
    if isinstance(value, Mapping):
        return any(is_media(value.get(key)) or isinstance(value.get(key), str) for key in ("bytes", "path", "url"))
    if isinstance(value, bytes):
        return bool(value)
    return isinstance(value, str) and re.search(r"^(?:https?://|data:)|\.\w{3,4}$", value.strip()) is not None


def _is_image_file(value: Any) -> bool:
    return (
        isinstance(value, str) and re.search(r"\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif|jp2)$", value.lower()) is not None
    )


def _last_number(name: str) -> int:
    return int(name.rpartition("_")[2])
