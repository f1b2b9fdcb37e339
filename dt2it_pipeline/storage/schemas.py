"""Arrow schemas of every table, with a description of every table and column.

What belongs here: the shape of the tables. What does not: ids (content_ids.py), where tables lie (artifacts.py) and how
they are made (the stage packages).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import pyarrow as pa

from dt2it_pipeline.errors import UserError

_MEDIUM = pa.struct([pa.field("kind", pa.string()), pa.field("sha256", pa.string()), pa.field("path", pa.string())])
_TURN = pa.struct([pa.field("role", pa.string()), pa.field("text", pa.string())])
_VOTE = pa.struct([pa.field("voter", pa.string()), pa.field("margin", pa.float64())])
_VERDICT = pa.struct([pa.field(name, pa.string()) for name in ("judge", "order", "verdict", "words", "fault")])


NULLABLE = True
LIST_COLUMNS = ("list_id", "chosen_rank", "rejected_rank")  # of a pair: its place in a list of answers

_Column = tuple[str, pa.DataType, str] | tuple[str, pa.DataType, str, bool]  # name, type, description, nullable


def _table(description: str, *columns: _Column) -> tuple[str, tuple[_Column, ...]]:
    return description, columns


# Every kind of table: what a row is, and its columns. Columns hold no null unless they are NULLABLE.
_PAIR = (
    ("pair_id", pa.string(), "Content id: hash of prompt id and both answers in any order; a flip keeps it."),
    ("prompt_id", pa.string(), "Prompt that both sides answer."),
    ("chosen", pa.string(), "The preferred answer."),
    ("rejected", pa.string(), "The other answer."),
    ("chosen_id", pa.string(), "Response id of the chosen side."),
    ("rejected_id", pa.string(), "Response id of the rejected side."),
    ("strength", pa.float64(), "Preference strength, in the unit of whoever gave it; null if unknown.", NULLABLE),
    ("label", pa.string(), "`original`, `flipped`, `annotated`, `constructed` or `reformulated`."),
    ("round", pa.int32(), "Round that curated the pair; -1 before curation."),
    ("source", pa.string(), "Name of the source (its manifest)."),
    ("votes", pa.list_(_VOTE), "Voters' margins: score of the chosen side minus that of the rejected one."),
    # The source's own id of the row, else its place there, such as `line 17`. Rankings and ratings give several
    # pairs of one row.
    ("row_id", pa.string(), "Row of the source it comes from; null for pairs that are constructed.", NULLABLE),
    (
        "list_id",
        pa.string(),
        "List of answers to one prompt that both sides stand in; null for a pair alone.",
        NULLABLE,
    ),
    # The source's own: a flip takes them along, so that its better side then has the higher number.
    ("chosen_rank", pa.float64(), "Place of the chosen side in its list by the source, 1 is best.", NULLABLE),
    ("rejected_rank", pa.float64(), "The same of the rejected side; equal answers share the mean place.", NULLABLE),
)
_TABLES: dict[str, tuple[str, tuple[_Column, ...]]] = {
    "prompts": _table(
        "Questions with their images or videos.",
        ("prompt_id", pa.string(), "Content id: hash of system prompt, turns and the media's hashes."),
        ("source", pa.string(), "Name of the source (its manifest)."),
        ("system", pa.string(), "System prompt; empty where there is none."),
        ("turns", pa.list_(_TURN), "Conversation, with one `<image>` or `<video>` marker per medium, in their order."),
        ("media", pa.list_(_MEDIUM), "Images and videos: kind, content hash, and path in the media store."),
        ("reference", pa.string(), "Right answer, where the source has one.", NULLABLE),
        ("language", pa.string(), "Language code, such as `en`."),
        ("meta", pa.string(), "JSON object with whatever else the source says."),
    ),
    "responses": _table(
        "Answers to prompts.",
        ("response_id", pa.string(), "Content id: hash of prompt id and text."),
        ("prompt_id", pa.string(), "Prompt that is answered."),
        ("text", pa.string(), "The answer."),
        ("generator", pa.string(), "Model and temperature that made it; empty where that is not known."),
    ),
    "judgements": _table(
        "What judges made of answers: one row per judge, mode and answer.",
        ("prompt_id", pa.string(), "Prompt that is answered."),
        ("response_id", pa.string(), "Answer that is judged."),
        ("judge", pa.string(), "Name of the judge in the recipe."),
        ("mode", pa.string(), "`listwise`, `pointwise` or `pairwise`."),
        ("order", pa.list_(pa.int32()), "Order in which a list was presented; empty when pointwise."),
        ("score", pa.float64(), "Judge's points (0 to 10); null where the reply could not be used.", NULLABLE),
        ("criteria", pa.string(), "JSON object: criterion to its weight and score."),
        ("status", pa.string(), "`ok`, or why the reply could not be used."),
        ("template_hash", pa.string(), "Hash of the prompt template."),
    ),
    "pairs": _table("Preference pairs: two answers to one prompt, of which one is chosen.", *_PAIR),
    "trusted_pairs": _table(
        "Pairs that no model is trained on and whose labels come from reference answers: what curation trusts.", *_PAIR
    ),
    "scores": _table(
        "Scores of reward models.",
        ("response_id", pa.string(), "Answer that is scored."),
        ("voter", pa.string(), "Model that scored it, such as `reward_model/0`."),
        ("score", pa.float32(), "Reward; only differences within one prompt have a meaning."),
    ),
    "votes": _table(
        "Verdicts of judges and people on contested pairs.",
        ("pair_id", pa.string(), "Pair that is judged."),
        ("judge", pa.string(), "Name of the judge in the recipe, or of the person."),
        (
            "order",
            pa.string(),
            "`forward`: the answer with the lower id was shown first; `reversed`: second; `alone`: the judge saw each "
            "answer by itself; `people`.",
        ),
        ("verdict", pa.string(), "`chosen`, `rejected` or `tie`; null where the reply could not be used.", NULLABLE),
        (
            "words",
            pa.string(),
            "What the judge wrote, its first 4,000 characters, with a mark where it was cut; null where it writes "
            "nothing.",
            NULLABLE,
        ),
        ("fault", pa.string(), "Why there is no verdict; null where there is one.", NULLABLE),
    ),
    "cleaning_evidence": _table(
        "What `dt2it clean` knew of every pair of a table, one row each.",
        ("pair_id", pa.string(), "Id of the pair; the number of its row where the table has none."),
        ("outcome", pa.string(), "`kept`, `flipped` or `dropped`."),
        ("chosen_before", pa.string(), "Response id of the given chosen side; `chosen` if there are no ids.", NULLABLE),
        ("chosen_after", pa.string(), "The same of the side chosen now; null where the pair is dropped.", NULLABLE),
        ("given_probability", pa.float64(), "That the given label is right (0 to 1); null if not known.", NULLABLE),
        ("margins", pa.list_(_VOTE), "Voters' margins: score of the given chosen side minus that of the other."),
        (
            "verdicts",
            pa.list_(_VERDICT),
            "Verdicts of judges and people on the given sides, as in `votes`; `order` as the table of votes has it, "
            "else by its `shown_first`.",
        ),
    ),
    "people_votes": _table(
        "What people say of pairs.",
        ("pair_id", pa.string(), "Pair that was shown."),
        ("person", pa.string(), "Who answered."),
        ("preferred_id", pa.string(), "Response id of the preferred answer; null for neither.", NULLABLE),
        ("audit", pa.string(), "Draw of `audit_pairs` that the answer was given for; null for none.", NULLABLE),
    ),
    "audit_pairs": _table(
        "Pairs that were drawn at random for people to check.",
        ("audit", pa.string(), "Id of the draw."),
        ("pair_id", pa.string(), "Pair that was drawn."),
        ("first_id", pa.string(), "Response id of the answer that is shown first."),
        ("second_id", pa.string(), "Response id of the answer that is shown second."),
        ("source", pa.string(), "Name of the source; empty where it is not known."),
        ("stratum", pa.string(), "Part of the pairs that it was drawn from."),
        ("weight", pa.float64(), "Pairs that it stands for: size of the stratum / pairs drawn from it."),
        ("seed", pa.int64(), "Seed of the draw."),
        ("round", pa.int32(), "Round whose pairs were drawn from; -1 for a table of one's own."),
    ),
    "t2i_preferences": _table(
        "Human text-to-image preferences: two images for one caption.",
        ("preference_id", pa.string(), "Content id: hash of the caption and both images."),
        ("caption", pa.string(), "What the images were to show."),
        ("preferred", _MEDIUM, "The preferred image."),
        ("other", _MEDIUM, "The other image."),
        ("strength", pa.float64(), "Preference strength in the source's own unit; null if unknown.", NULLABLE),
        ("language", pa.string(), "Language code of the caption."),
        ("source", pa.string(), "Name of the source (its manifest)."),
        ("row_id", pa.string(), "Row of the source it comes from.", NULLABLE),
    ),
    "benchmark_items": _table(
        "Held-out pairs of benchmarks.",
        ("item_id", pa.string(), "Id of the item in its benchmark."),
        ("benchmark", pa.string(), "Name of the benchmark."),
        ("group", pa.string(), "Group of the benchmark that the item counts for."),
        ("pair_id", pa.string(), "Content id of the pair."),
        ("prompt_id", pa.string(), "Prompt that both sides answer."),
        ("chosen_id", pa.string(), "Response id of the better answer."),
        ("rejected_id", pa.string(), "Response id of the worse answer."),
        ("chosen", pa.string(), "The better answer."),
        ("rejected", pa.string(), "The worse answer."),
    ),
    "benchmark_scores": _table(
        "Accuracy of a model per benchmark and group.",
        ("model", pa.string(), "Name of the model in the tables."),
        ("benchmark", pa.string(), "Name of the benchmark."),
        ("group", pa.string(), "Group, or a mean over groups."),
        ("pairs", pa.int64(), "Pairs of the group."),
        ("correct", pa.int64(), "Pairs whose better answer scored higher."),
        ("ties", pa.int64(), "Pairs whose answers scored the same; they count as wrong."),
        ("unscored", pa.int64(), "Pairs without a score for both answers; they count as wrong."),
        ("accuracy", pa.float64(), "Share of correct pairs (0 to 1); null without pairs.", NULLABLE),
    ),
    "benchmark_figures": _table(
        "Every figure of a benchmark's entry with its bootstrap interval.",
        ("model", pa.string(), "Name of the model in the tables."),
        ("benchmark", pa.string(), "Name of the benchmark."),
        ("figure", pa.string(), "Name of the figure in the benchmark's entry."),
        ("value", pa.float64(), "Share (0 to 1); null where it cannot be computed.", NULLABLE),
        ("low", pa.float64(), "Lower end of the 95% bootstrap interval.", NULLABLE),
        ("high", pa.float64(), "Upper end of the 95% bootstrap interval.", NULLABLE),
        ("count", pa.int64(), "What it is a share of: number of pairs, or of ids."),
    ),
    "benchmark_results": _table(
        "What a model made of every single pair of a benchmark.",
        ("model", pa.string(), "Name of the model in the tables."),
        ("benchmark", pa.string(), "Name of the benchmark."),
        ("item_id", pa.string(), "Id of the item in its benchmark."),
        ("pair_id", pa.string(), "Content id of the pair."),
        ("prompt_id", pa.string(), "Prompt that both sides answer."),
        ("group", pa.string(), "Group of the benchmark that the item counts for."),
        ("chosen_score", pa.float64(), "Score of the better answer; null if unscored.", NULLABLE),
        ("rejected_score", pa.float64(), "Score of the worse answer; null if unscored.", NULLABLE),
        ("outcome", pa.string(), "`correct`, `wrong`, `tie` or `unscored`."),
    ),
    # Nothing is lost silently: rows in = rows out + rows here.
    "quarantine": _table(
        "Rows that a stage could not use, each with its reason.",
        ("row_id", pa.string(), "Row of the source where there is one, else the id of what was quarantined."),
        ("stage", pa.string(), "Stage that quarantined it."),
        ("reason", pa.string(), "Why, in a short fixed phrase."),
        ("detail", pa.string(), "What was found."),
        ("source", pa.string(), "Name of the source (its manifest)."),
        ("pair_id", pa.string(), "Pair that was quarantined, or that the row repeats.", NULLABLE),
    ),
}

SCHEMAS: dict[str, pa.Schema] = {
    kind: pa.schema([pa.field(column[0], column[1], nullable=len(column) == 4) for column in columns])
    for kind, (_, columns) in _TABLES.items()
}

# What a row of each kind is, and what each of its columns holds: for the UI and the reference.
DESCRIPTIONS: dict[str, str] = {kind: description for kind, (description, _) in _TABLES.items()}
COLUMNS: dict[str, dict[str, str]] = {
    kind: {column[0]: column[2] for column in columns} for kind, (_, columns) in _TABLES.items()
}

# Columns that tables of earlier versions lack; such a table is read with null in their place.
ADDED_COLUMNS = {
    "pairs": ("row_id", *LIST_COLUMNS),
    "trusted_pairs": ("row_id", *LIST_COLUMNS),
    "t2i_preferences": ("row_id",),
    "quarantine": ("pair_id",),
    "votes": ("words", "fault"),
    "people_votes": ("audit",),
}


class RecordError(UserError, ValueError):
    """A table does not have the columns or types of its kind."""

    help_page: ClassVar[str] = "troubleshooting#tables"


def table(rows: Iterable[Mapping[str, Any]], kind: str) -> pa.Table:
    """Build a table of one kind from row dictionaries. Raises RecordError as `validate` does."""
    schema = _schema_of(kind)
    try:
        made = pa.Table.from_pylist(list(rows), schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
        raise RecordError(f"table {kind!r}: {error}") from error
    return validate(made, kind)


def validate(given: pa.Table, kind: str, first_row: int = 0) -> pa.Table:
    """Return `given` in the schema of its kind: columns in order, types cast where nothing is lost.

    A column of ADDED_COLUMNS that is missing is null throughout. `first_row` is the number of the first row of a piece.

    Raises:
        RecordError: a column is missing or unknown, a type cannot be cast, or a required value is null.
    """
    schema = _schema_of(kind)
    for name in ADDED_COLUMNS.get(kind, ()):
        if name not in given.column_names:
            given = given.append_column(name, pa.nulls(given.num_rows, schema.field(name).type))
    missing = [name for name in schema.names if name not in given.column_names]
    unknown = [name for name in given.column_names if name not in schema.names]
    if missing or unknown:
        raise RecordError(f"table {kind!r}: missing columns {missing}, unknown columns {unknown}")
    columns = []
    for field in schema:
        column = given.column(field.name)
        if not column.type.equals(field.type):
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise RecordError(f"table {kind!r}, column {field.name!r}: {error}") from error
        if not field.nullable and column.null_count:
            where = first_row + next(i for i, value in enumerate(column) if not value.is_valid)
            raise RecordError(f"table {kind!r}, column {field.name!r}: {column.null_count} null, first in row {where}")
        columns.append(column.combine_chunks() if column.num_chunks > 1 else column)
    return pa.table(columns, schema=schema)


def _schema_of(kind: str) -> pa.Schema:
    try:
        return SCHEMAS[kind]
    except KeyError:
        raise RecordError(f"unknown table kind {kind!r}; known: {', '.join(SCHEMAS)}") from None
