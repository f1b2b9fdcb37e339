"""How tests run: the order of files, how often Python looks for garbage, the seeds of those that draw at random."""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

# A search for garbage goes through all that has been imported: at Python's own pace, 4% of the time of all tests.
gc.set_threshold(100_000, 50, 100)
# Read when torch is loaded, here and in what tests start. Several testers share the cores: threads that wait for each
# other would spin until the other one's turn comes, which took up to 20 times as long as their work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files go first whose tests may take longest, so that in the end no process waits for another's.

    Heavy tests come before those without a limit of their own.
    """
    longest: dict[Path, float] = defaultdict(float)
    for item in items:
        if item.get_closest_marker("heavy") is not None:
            longest[item.path] = max(longest[item.path], 1.0)
        marker = item.get_closest_marker("timeout")
        if marker is not None and marker.args:
            longest[item.path] = max(longest[item.path], float(marker.args[0]))
    items.sort(key=lambda item: -longest[item.path])


def pytest_collection_finish() -> None:
    """Leave out of every later search for garbage what has been imported: one goes through all of it in 0.4 s."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the seeds that tests recorded, whether they passed or not."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    for report in reports:
        if getattr(report, "when", "") == "call":
            for name, value in report.user_properties:
                if name == "seed":
                    terminalreporter.write_line(f"{report.nodeid} drew with {value}")
