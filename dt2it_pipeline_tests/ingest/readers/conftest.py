"""Bounds of readers that tests can reach."""

from __future__ import annotations

import pytest

from dt2it_pipeline.ingest.readers import bounds, file_formats

SMALL = 4096


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test can pass quickly."""
    for name, value in {"LONGEST_LINE": SMALL, "LONGEST_OBJECT": 3 * SMALL, "_FREE": 1 << 16}.items():
        monkeypatch.setattr(bounds, name, value)
        if hasattr(file_formats, name):
            monkeypatch.setattr(file_formats, name, value)
