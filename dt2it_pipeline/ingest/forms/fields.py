"""Which column of a row holds which field of ours: as the manifest maps it, else by the names that public files use."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.rows import ColumnError, Row, checked_text
from dt2it_pipeline.media.store import Medium, MediumKind

# Our field: its names in public files, the likeliest first. Names are compared in lower case, words joined by `_`.
NAMES: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "prompt", "query", "instruction", "problem", "user_prompt", "user_query", "prompt_text",
                 "prompt_content", "text", "input", "caption"),
    "conversation": ("messages", "conversations", "conversation", "turns", "dialogue", "dialog", "context"),
    "chosen": ("chosen",),  # further names come in pairs: COUPLES
    "rejected": ("rejected",),
    "first": ("first",),  # neutral names come in pairs: sides.py
    "second": ("second",),
    "verdict": ("verdict", "winner", "better", "preference", "human_preference", "overall_preference", "preferred",
                "preferred_response", "preferred_answer", "better_response", "better_answer", "better_response_id",
                "better_id", "best_response", "choice", "human_choice", "vote", "human_vote", "judgement", "judgment",
                "winning_response", "selected", "chosen", "label", "result", "type"),
    "answers": ("responses", "response", "answers", "completions", "generations", "outputs", "candidates"),
    "ranks": ("ranks", "rank", "human_ranking", "human_rank"),
    "order": ("order",),
    "ratings": ("ratings", "rating", "scores", "score", "rewards", "overall_scores", "overall_ratings"),
    "reference": ("reference", "reference_answer", "ground_truth", "gt_answer", "gold", "gold_answer", "answer",
                  "solution"),
    "caption": ("caption", "prompt", "text"),
    "preferred": ("preferred", "image_chosen", "chosen_image", "preferred_image", "image_preferred", "best_image"),
    "other": ("other", "image_rejected", "rejected_image", "other_image", "image_other", "worst_image"),
    "image": ("image", "image_path", "img", "img_path", "image_file", "photo", "picture", "file_name", "filename"),
    "images": ("images", "image_paths", "image_list"),
    "video": ("video", "video_path"),
    "videos": ("videos", "video_paths"),
    "group": ("group", "category", "subset", "task"),
    "system": ("system", "system_prompt"),
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


class Fields:
    """A row, asked by our fields."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.bare = Row(row.row_id, row.values, {}, row.kind, row.where)  # asked by the file's own names
        self._plain = plain_names(tuple(map(str, row.values)))

    def column(self, field: str) -> str | None:
        """The column that holds a field, whether or not it has a value in this row.

        Raises ColumnError where the manifest maps the field to a column that is not there.
        """
        if field in self.row.columns:
            name = self.row.columns[field]
            if name not in self.row.values:
                raise ColumnError(
                    "missing column", f"column {name!r} is not in {self._where}, which has {sorted(self.row.values)}"
                )
            return name
        return next((self._plain[name] for name in NAMES.get(field, (field,)) if name in self._plain), None)

    def plain(self, name: str) -> str | None:
        """The column of that name, spelled anyhow."""
        return self._plain.get(name)

    @property
    def names(self) -> Mapping[str, str]:
        """Every column by its name in lower case, words joined by `_`."""
        return self._plain

    def get(self, field: str) -> Any:
        """The value of a field, None where there is none or it is NaN, which pandas writes for none."""
        return self.value(self.column(field))

    def value(self, column: str | None) -> Any:
        """The value of a column, None where there is none or it is NaN."""
        value = None if column is None else self.row.values.get(column)
        return None if isinstance(value, float) and math.isnan(value) else value

    def has(self, field: str) -> bool:
        """Whether a field has a value that is neither null nor empty."""
        return self.get(field) not in (None, "", [], ())

    def text(self, field: str) -> str | None:
        """A field as text, None where it has no value. Raises RowError where the value is not text or blank."""
        column = self.column(field)
        return checked_text(self.value(column), f"column {column!r}") if self.has(field) else None

    def media(self) -> tuple[Medium, ...]:
        """The media of the columns for images and videos, in this order."""
        found: tuple[Medium, ...] = ()
        kinds: tuple[tuple[MediumKind, tuple[str, str]], ...]
        kinds = ("image", ("images", "image")), ("video", ("videos", "video"))
        for kind, fields in kinds:
            for field in fields:
                mapped = field in self.row.columns
                column = self._media_column(field)
                media = () if column is None else self.bare.media(column, kind)
                if media or mapped:
                    found += media
                    break
        return found

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
            "missing column", f"column {wanted} is not in {self._where}, which has {sorted(map(str, self.row.values))}"
        )

    @property
    def _where(self) -> str:
        return self.row.where or self.row.row_id


def plain_name(name: str) -> str:
    """A column's name in lower case, words joined by `_`.

    >>> plain_name("Output1"), plain_name("chosen-rating"), plain_name("responseA")
    ('output_1', 'chosen_rating', 'response_a')
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[0-9])(?=[A-Za-z])", "_", name)
    return re.sub(r"[^\w]+|_+", "_", spaced).strip("_").lower()


@functools.lru_cache(maxsize=1024)
def plain_names(names: tuple[str, ...]) -> Mapping[str, str]:
    """Every column by its plain name; of two that have one, the first."""
    return {plain_name(name): name for name in reversed(names)}
