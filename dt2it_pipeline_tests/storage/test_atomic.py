"""Files written through a temporary one, what their errors name, and what Arrow reads from."""

from __future__ import annotations

import ctypes
import errno
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.storage import atomic, records, schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline.storage.atomic import (
    StoreError,
    arrow_bytes,
    atomic_directory,
    read_parquet,
    replace_text,
    temporary_beside,
    write_json_atomic,
    write_parquet,
)
from dt2it_pipeline.storage.leftovers import ASIDE, KEPT, sweep
from dt2it_pipeline_tests.support.processes import name_of_a_dead_process


@pytest.mark.parametrize(
    "write", [lambda path: replace_text(path, "x"), lambda path: write_parquet(pa.table({"a": [1]}), path)]
)
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "out.parquet").mkdir()
    with pytest.raises(OSError, match=f"{re.escape(str(tmp_path / 'out.parquet'))}'$") as raised:
        write(tmp_path / "out.parquet")
    assert raised.value.filename == str(tmp_path / "out.parquet") and "/." not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_a_name_that_is_too_long_is_named_as_it_was_given(tmp_path: Path) -> None:
    for making in (atomic_directory, temporary_beside):
        with pytest.raises(OSError) as raised, making(tmp_path / ("x" * 300)):
            pass
        assert raised.value.filename == str(tmp_path / ("x" * 300))


def test_a_file_within_a_folder_that_is_being_made_is_named_by_its_last_place(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, atomic_directory(tmp_path / "out") as folder:
        (folder / "none" / "file").write_text("x")
    assert raised.value.filename == str(tmp_path / "out" / "none" / "file")
    with pytest.raises(FileNotFoundError) as raised, atomic_directory(tmp_path / "out") as folder:
        pa.OSFile(str(folder / "gone"))
    assert str(tmp_path / "out" / "gone") in str(raised.value) and "/." not in str(raised.value)


def test_errors_about_other_files_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, atomic_directory(tmp_path / "out"):
        (tmp_path / "other").read_text()
    assert raised.value.filename == str(tmp_path / "other")


def test_a_file_in_the_place_of_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError) as raised:
        replace_text(tmp_path / "file" / "out.jsonl", "x")
    expected = f"cannot make the folder {tmp_path / 'file'}: File exists; choose a folder that can be written to"
    assert str(raised.value) == expected


KILLED = """
import os, signal, sys
from pathlib import Path
from dt2it_pipeline.storage import atomic, records, schemas

def killing(number, do):
    def done(*arguments):
        global steps
        steps += 1
        if steps == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return do(*arguments)
    return done

for how in ("exchange", "two steps"):
    for number in range(1, 100):
        steps, path = 0, Path(sys.argv[1]) / how / str(number) / "key"
        with atomic.atomic_directory(path) as folder:
            (folder / "table").write_text("old")
        if (child := os.fork()) == 0:
            if how == "two steps":
                atomic._exchange = lambda first, second: False
            for name in ("_exchange", "sync", "sync_all", "remove", "clear"):
                setattr(atomic, name, killing(number, getattr(atomic, name)))
            Path.rename = killing(number, Path.rename)
            with atomic.atomic_directory(path) as folder:
                (folder / "table").write_text("new")
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break  # it came to its end before that step
"""


def test_a_folder_is_never_lost_whenever_the_process_that_replaces_it_is_killed(tmp_path: Path) -> None:
    """Killed before each of its steps in turn."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True)
    for how, missing in (("exchange", 0), ("two steps", 1)):
        places = sorted((tmp_path / how).iterdir(), key=lambda place: int(place.name))
        assert len(places) > 3
        assert sum(not (place / "key").exists() for place in places) == missing
        sweep(places)
        assert all([path.name for path in place.iterdir()] == ["key"] for place in places)
        found = [(place / "key" / "table").read_text() for place in places]
        assert set(found) == {"old", "new"} and found == sorted(found, reverse=True)


def test_a_folder_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "table").write_text("old")
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name.startswith(".out"):
            raise OSError(errno.ENOSPC, "no room")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="no room"), atomic_directory(tmp_path / "out") as folder:
        (folder / "table").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "table").read_text() == "old"


class _MacLibrary:
    """A system's library with the function of macOS, which this one's does the work of."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses, self.calls = refuses, 0

    def renamex_np(self, first: bytes, second: bytes, flags: ctypes.c_uint) -> int:
        assert flags.value == 2  # RENAME_SWAP
        self.calls += 1
        if self.refuses:
            ctypes.set_errno(self.refuses)
            return -1
        linux = ctypes.CDLL(None, use_errno=True).renameat2
        return int(linux(-100, first, -100, second, ctypes.c_uint(2)))


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[_MacLibrary]:
    library = _MacLibrary()
    with monkeypatch.context() as patched:
        patched.setattr(atomic.ctypes, "CDLL", lambda *_, **__: library)
        atomic._exchanging.cache_clear()
        atomic._exchanging()
    yield library
    atomic._exchanging.cache_clear()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "renameat2"), reason="it does the work of the other system's")
@pytest.mark.parametrize("refuses", [0, errno.ENOTSUP, errno.EINVAL], ids=["exchanged", "ENOTSUP", "EINVAL"])
def test_a_folder_is_replaced_as_on_macos(
    tmp_path: Path, mac: _MacLibrary, monkeypatch: pytest.MonkeyPatch, refuses: int
) -> None:
    mac.refuses = refuses
    two_steps: list[Path] = []
    replace = atomic._replace
    monkeypatch.setattr(atomic, "_replace", lambda new, path: (two_steps.append(path), replace(new, path)))
    for text in ("old", "new"):
        with atomic_directory(tmp_path / "out") as folder:
            (folder / "table").write_text(text)
    assert (tmp_path / "out/table").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["out"]
    assert mac.calls == 1 and two_steps == ([tmp_path / "out"] if refuses else [])


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "renameat2"), reason="it does the work of the other system's")
def test_an_exchange_that_fails_on_macos_is_an_error_and_leaves_the_folder(tmp_path: Path, mac: _MacLibrary) -> None:
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "table").write_text("old")
    mac.refuses = errno.EROFS
    with pytest.raises(OSError, match="Read-only") as raised, atomic_directory(tmp_path / "out") as folder:
        (folder / "table").write_text("new")
    assert raised.value.errno == errno.EROFS
    assert (tmp_path / "out/table").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_stage_finds_what_its_killed_writer_had_moved_aside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("pairs", Artifact({}, {"rows": 3}), "key")
    slot = tmp_path / "artifacts" / "pairs"
    aside = slot / name_of_a_dead_process(f"{ASIDE}key")
    aside.mkdir()
    (slot / "key").rename(aside / KEPT)
    assert store.find("pairs", "key") is None
    with store.locked("pairs"):
        assert store.find("pairs", "key") is not None
    assert sorted(path.name for path in slot.iterdir()) == ["current", "key"]


def test_several_files_are_on_the_disk_before_they_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, Path]] = []
    sync, replace = atomic.sync, Path.replace
    monkeypatch.setattr(atomic, "sync", lambda path: (events.append(("sync", path)), sync(path)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (events.append(("name", path)), replace(path, to))[1])
    for name in "ab":
        (tmp_path / f"tmp{name}").write_text(name)
    atomic.move_all_into_place({tmp_path / f"tmp{name}": tmp_path / name for name in "ab"})
    files = [tmp_path / "tmpa", tmp_path / "tmpb"]
    assert events == [*(("sync", file) for file in files), *(("name", file) for file in files), ("sync", tmp_path)]


def test_a_published_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    sync = atomic.sync
    monkeypatch.setattr(atomic, "sync", lambda path: (synced.append(path), sync(path)))
    (tmp_path / "made.html").write_text("report")
    store = Store(tmp_path / "home")
    copy = store.publish(tmp_path / "made.html", "report.html")
    assert copy.read_text() == "report"
    assert synced[0].name.startswith(".report.html.") and synced[1:] == [store.home]


def test_json_keeps_text_that_has_no_utf_8_form(tmp_path: Path) -> None:
    value = {"half \ud800": ["\udfff end", "\U0001f600 é"], "path": "\\ud800", "odd": "\\\ud800"}
    write_json_atomic(value, tmp_path / "value.json")
    written = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(written) == value
    assert "\U0001f600 é" in written and "half \\ud800" in written  # all else stays as it is


def test_arrow_reads_bytes_that_python_may_free() -> None:
    """Arrow's threads let go late of what they read: Python's bytes, let go while the interpreter ends, abort it."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1, 2]}), sink)
    content = sink.getvalue().to_pybytes()
    before = sys.getrefcount(content)
    file = arrow_bytes(content)
    assert sys.getrefcount(content) == before
    assert read_parquet(file).to_pydict() == {"a": [1, 2]}


def test_no_bit_of_a_page_changes_unnoticed(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    write_parquet(pa.table({"a": np.random.default_rng(0).normal(size=4000)}), file)
    whole = read_parquet(file)
    content = bytearray(file.read_bytes())
    for place in range(200, 30_000, 3_000):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises((OSError, pa.ArrowException)):
            read_parquet(file)
    file.write_bytes(content)
    assert read_parquet(file).equals(whole)


def test_pieces_of_a_file_do_not_stay_in_memory(tmp_path: Path) -> None:
    file, text = tmp_path / "pairs.parquet", random.Random(0).randbytes(400_000).hex()
    rows = [
        records.make_pair("p", text[at : at + 200], text[at + 200 : at + 400], source="s")
        for at in range(0, len(text), 400)
    ]
    table = schemas.table(rows, "pairs")
    pq.write_table(pa.concat_tables([table] * 20), file, row_group_size=2000, compression="none", use_dictionary=False)
    before, most = pa.total_allocated_bytes(), 0
    for piece in atomic.iter_parquet(file, "pairs", 1000):
        most = max(most, pa.total_allocated_bytes() - before)
        del piece
    assert most < file.stat().st_size / 2
