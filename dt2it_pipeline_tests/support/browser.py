"""A page of a real browser; tests are skipped where there is none."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def browser_page(allowed: str) -> Iterator[Any]:
    """A page that fails the test where a script fails, or where it asks for an address without the text `allowed`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium is on the path: install it to test the page in a real browser")
    faults: list[str] = []
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        made = opened.new_page(viewport={"width": 1280, "height": 850})
        made.on("pageerror", lambda error: faults.append(str(error)))
        made.on("request", lambda request: faults.append(request.url) if allowed not in request.url else None)
        yield made
        opened.close()
    assert not faults, faults
