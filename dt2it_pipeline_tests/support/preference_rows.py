"""Rows of preferences, read from a file as a source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from dt2it_pipeline import read_preferences

PAIR = {"prompt": "q?", "chosen": "good", "rejected": "bad"}


def read_rows_as_pairs(
    folder: Path, rows: list[Any], name: str = "pairs.json", **more: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The pairs of rows in a file of that name, JSON or JSON lines, and the rows that are quarantined."""
    path = folder / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    return read_preferences(path, **more)
