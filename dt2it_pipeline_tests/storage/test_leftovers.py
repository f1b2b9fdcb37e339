"""What killed processes leave is removed by whoever comes next; what living ones write is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dt2it_pipeline.storage import leftovers
from dt2it_pipeline.storage.leftovers import is_left, owned_prefix, places_of, sweep
from dt2it_pipeline_tests.support.processes import wait_until

WRITER = """
import sys, time
from pathlib import Path
from dt2it_pipeline.media.damage import TEMPORARY
from dt2it_pipeline.storage.atomic import atomic_directory, temporary_beside
import tempfile
from dt2it_pipeline.storage.leftovers import owned_prefix
home = Path(sys.argv[1])
with atomic_directory(home / "artifacts" / "pairs" / "key") as folder, temporary_beside(home / "report.html"):
    (folder / "half").write_text("half")
    (home / "media" / "ab").mkdir(parents=True)
    tempfile.mkstemp(prefix=owned_prefix(TEMPORARY), dir=home / "media" / "ab")
    tempfile.mkdtemp(prefix=owned_prefix(TEMPORARY), dir=home / "media" / "ab")
    (home / "ready").touch()
    time.sleep(600)
"""


def temporary(home: Path) -> list[Path]:
    return sorted(path for path in home.rglob("*") if leftovers._OWNER.search(path.name))


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) as writer:
        try:
            wait_until((tmp_path / "ready").exists, 60)
            before = temporary(tmp_path)
            assert len(before) == 4
            assert not [path for path in sweep(places_of(tmp_path)) if tmp_path in path.parents]
            assert temporary(tmp_path) == before
        finally:
            writer.send_signal(signal.SIGKILL)
    assert sorted(path for path in sweep(places_of(tmp_path)) if tmp_path in path.parents) == before
    assert temporary(tmp_path) == [] and (tmp_path / "ready").exists()


def test_a_process_number_that_was_given_again_counts_as_dead(tmp_path: Path) -> None:
    mine = tmp_path / f"{owned_prefix('.table')}x1"
    assert not is_left(mine)
    start = leftovers._start_of(os.getpid())
    assert is_left(mine.with_name(mine.name.replace(f"-{start}.", f"-{start or 0 + 1}7.")))


def test_of_another_machine_only_what_is_old_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(leftovers, "_place", lambda: "0" * 8)
        folder = tmp_path / f"{owned_prefix('tmp')}abc"
    (folder / "inside").mkdir(parents=True)
    for path in (folder / "inside", folder):
        os.utime(path, (0, 0))
    (folder / "inside" / "fresh").touch()
    assert sweep([tmp_path]) == []
    for path in (folder / "inside" / "fresh", folder / "inside", folder):
        os.utime(path, (0, 0))
    assert sweep([tmp_path, tmp_path / "gone"]) == [folder] and not list(tmp_path.iterdir())


def test_names_of_others_are_none_of_its_business(tmp_path: Path) -> None:
    for name in (".hidden", "tmp123", ".table.parquet.x7f", "run.12345678-1-1"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    assert sweep([tmp_path]) == []
