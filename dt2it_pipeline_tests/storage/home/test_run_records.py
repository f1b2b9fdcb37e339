"""Dagster's databases: a damaged or locked one is named with what mends it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dt2it_pipeline.config.paths import shipped_configs
from dt2it_pipeline.storage.home.run_records import RunRecordsError, fault_in_words, require_usable
from dt2it_pipeline_tests.support.commands import failing

NAMES = ["history/runs.db", "history/runs/index.db", "schedules/schedules.db"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in [*NAMES, "history/runs/one.db"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(tmp_path / name)) as database:
            database.execute("CREATE TABLE runs (id TEXT PRIMARY KEY, body TEXT)")
            database.executemany("INSERT INTO runs VALUES (?, ?)", [(f"{n:05d}", "x" * 200) for n in range(400)])
            database.commit()
    return tmp_path


def overwrite(file: Path, start: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[start : start + 3000] = b"\xa5" * 3000
    file.write_bytes(content)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("start", [0, 8192], ids=["header", "a page"])
def test_a_damaged_one_is_named_with_its_mend(home: Path, name: str, start: int) -> None:
    require_usable(home)
    overwrite(home / name, start)
    with pytest.raises(
        RunRecordsError, match=r"is damaged \(.*\); stop Dagster and move it away .*artifacts stay"
    ) as raised:
        require_usable(home)
    assert f"; mv {home / name} {home / name}.damaged`" in str(raised.value)
    assert str(home / name) in failing("run", "construct", "--home", home)
    (home / name).rename(home / f"{name}.damaged")  # as the sentence says
    require_usable(home)


def test_a_locked_one_is_named(home: Path) -> None:
    with closing(sqlite3.connect(home / NAMES[0], isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RunRecordsError, match=r"runs.db is locked by another process .*fuser"):
            require_usable(home, wait=0.1)
        with closing(sqlite3.connect(home / NAMES[0], timeout=0.1)) as mine:
            try:
                mine.execute("INSERT INTO runs VALUES ('a', 'b')")
            except sqlite3.Error as error:
                wrapped = RuntimeError("Dagster's own")
                wrapped.__cause__ = error
        assert "locked by another process" in (fault_in_words(wrapped, home) or "")
    require_usable(home)


def test_the_events_of_one_run_are_found_when_an_error_asks_for_them(home: Path) -> None:
    overwrite(home / "history" / "runs" / "one.db", 8192)
    require_usable(home)
    words = fault_in_words(sqlite3.DatabaseError("database disk image is malformed"), home)
    assert words and str(home / "history/runs/one.db") in words and "this one run" in words
    assert fault_in_words(ValueError("else"), home) is None


def test_dagsters_own_command_names_it_too(tmp_path: Path) -> None:
    """A real `dagster job execute`, which opens its databases before it imports any definitions."""
    home = tmp_path / "home"
    (home / "history").mkdir(parents=True)
    (home / NAMES[0]).write_bytes(b"\xa5" * 9000)
    own = {**os.environ, "DT2IT_HOME": str(home), "DAGSTER_HOME": str(shipped_configs().parent)}
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "dt2it_pipeline.definitions", "-j", "construct"]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    *_, last = done.stderr.splitlines()
    assert (
        last.startswith(f"error: Dagster's database {home / NAMES[0]} is damaged") and "stop Dagster and move" in last
    )
    (home / NAMES[0]).rename(home / f"{NAMES[0]}.damaged")  # as the sentence says
    asked = [sys.executable, "-m", "dagster", "run", "list"]
    assert subprocess.run(asked, env=own, capture_output=True, timeout=120).returncode == 0
