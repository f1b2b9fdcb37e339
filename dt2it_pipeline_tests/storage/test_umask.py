"""What is made under a temporary name has the permissions that the umask says, as if it had been made in its place."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dt2it_pipeline.storage import atomic
from dt2it_pipeline.storage.permissions import umask


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def masked(request: pytest.FixtureRequest) -> Iterator[int]:
    """The umask of the process."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_and_folders_are_for_whom_the_umask_lets_in(masked: int, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o2775)  # a group's folder: its group is handed on
    atomic.replace_text(home / "text", "x")
    for _ in range(2):  # made, and made again in the place of the first
        with atomic.atomic_directory(home / "version") as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "file").write_text("x")
    (home / "plain").mkdir()
    (home / "plain file").touch()
    modes = {path.name: path.stat().st_mode for path in home.rglob("*")}
    assert stat.S_IMODE(modes["text"]) == stat.S_IMODE(modes["plain file"]) == 0o666 & ~masked
    assert stat.S_IMODE(modes["version"]) == stat.S_IMODE(modes["plain"]) == 0o2000 | (0o777 & ~masked)
    assert stat.S_IMODE(modes["inner"]) == 0o2000 | (0o777 & ~masked)
    assert {path.name for path in home.iterdir()} == {"text", "version", "plain", "plain file"}


def test_the_umask_is_read_without_setting_it(masked: int) -> None:
    found: list[int] = []
    readers = [threading.Thread(target=lambda: found.extend(umask() for _ in range(50))) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert set(found) == {masked} and len(found) == 200
