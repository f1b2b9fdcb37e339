"""Published rows for tests, from ../shared/real_data beside the project; tests skip where it is absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.config.paths import project_root

FOLDER = project_root().parent / "shared" / "real_data"


def real_file(name: str) -> Path:
    """A file below the folder; skips the test where it is absent."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"published rows are not here: no ../shared/real_data/{name} beside the project")
    return path


def real_rows(name: str) -> list[dict[str, Any]]:
    """Rows of a JSON or JSON Lines file below the folder."""
    text = real_file(name).read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = (
        [json.loads(line) for line in text.splitlines() if line.strip()] if name.endswith("l") else json.loads(text)
    )
    return rows
