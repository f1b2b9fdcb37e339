"""Multimodal RewardBench: Text, Image (a path), Output1, Output2, Better, Category or Meta.Category."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import user
from dt2it_pipeline.ingest.rows import ColumnError, Conversation, Item, Row

_GROUPS = {  # by a word in the category
    "correctness": "general_correctness",
    "preference": "general_preference",
    "knowledge": "knowledge",
    "math": "math",
    "coding": "coding",
    "safety": "safety",
    "vqa": "vqa",
}
_COLUMNS = ("ID", "Text", "Image", "Output1", "Output2", "Better", "Category", "Meta.Category")


@per_row("multimodal_rewardbench", ("benchmark",), _COLUMNS)
def items(row: Row) -> Iterator[Item]:
    """One pair. Reasoning is split by ID into math and coding; safety is one group; IDs tell bias (`pairs`)."""
    better = row.text("Better")
    if better not in ("Output1", "Output2"):
        raise RowError("verdict unclear", f"column 'Better' is {better!r}, neither Output1 nor Output2")
    outputs = row.text("Output1"), row.text("Output2")
    chosen, rejected = outputs if better == "Output1" else outputs[::-1]
    row_id = str(row.need("ID"))
    group = group_of(row_id, category(row))
    yield Conversation(row_id, user(row.text("Text")), row.media("Image"), chosen, rejected, group=group)


def category(row: Row) -> str:
    """The category, from the column `Category`, the column `Meta.Category` or the key of that name in `Meta`."""
    meta = row.get("Meta")
    if not row.has("Category") and not row.has("Meta.Category") and isinstance(meta, dict):
        if "Category" not in meta:
            raise ColumnError("missing column", f"Meta of {row.row_id} has no Category, but {sorted(meta)}")
        return str(meta["Category"])
    return row.text("Category", "Meta.Category")


def group_of(row_id: str, category: str) -> str:
    """The group of a row by ID and category. Raises RowError for a category that the benchmark does not have."""
    name = category.casefold()
    if "reasoning" in name and "math" not in name and "coding" not in name:
        return "math" if row_id.casefold().startswith("math") else "coding"
    for word, group in _GROUPS.items():
        if word in name:
            return group
    raise RowError("unknown category", f"{category!r}; known: reasoning, {', '.join(_GROUPS)}")
