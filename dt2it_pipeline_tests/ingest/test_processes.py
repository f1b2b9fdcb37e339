"""Reading a source in several processes: the same tables to the byte, dead processes, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.errors import WorkerError
from dt2it_pipeline.ingest import pieces
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.sources import SourceError, read_source
from dt2it_pipeline.storage.artifacts import Artifact
from dt2it_pipeline.storage.atomic import write_parquet
from dt2it_pipeline_tests.support.ingest_world import numbered_image

ROWS, IMAGES = 700, 60


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_LONG", 150)
    monkeypatch.setattr(pieces, "_PIECE", 23)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(IMAGES):
        numbered_image(tmp_path / f"root/{number}.png", number)
    whole = (tmp_path / "root/7.png").read_bytes()
    (tmp_path / "root/7.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "root/11.png").unlink()
    return tmp_path


def rows() -> list[dict[str, Any]]:
    """Pairs: some repeat an earlier one or its id, some are ties, lack a side, or show an image that is damaged."""
    made: list[dict[str, Any]] = []
    for number in range(ROWS):
        row = {
            "id": f"r{number - number % 50}" if number % 50 == 3 else f"r{number}",
            "image": f"{number % IMAGES}.png",
            "question": f"What is in {number % 90}?",
            "chosen": f"a cat {number}",
            "rejected": "a cat" if number % 31 else f"a cat {number}",
            "tie": "yes" if number % 41 == 5 else "no",
        }
        made.append(made[number - 170] if number % 37 == 2 and number > 170 else row)
    return made


def manifest(folder: Path, file: str, **more: Any) -> Manifest:
    fields = {"name": "s", "kind": "preferences", "licence": "MIT", "media_root": str(folder / "root")}
    return Manifest(path=str(folder / file), **(fields | more))


def read(made: Manifest, folder: Path, processes: int) -> Artifact:
    return read_source(made, folder, folder / f"media{processes}", processes=processes)


def parquet_bytes(artifact: Artifact, folder: Path) -> dict[str, bytes]:
    found = {}
    for kind, table in artifact.tables.items():
        write_parquet(table, folder / "one.parquet")
        found[kind] = (folder / "one.parquet").read_bytes()
    return found


def stored(folder: Path) -> dict[str, bytes]:
    """Images of a media store; nothing else lies there but its index."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("index.")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def written(folder: Path, format: str) -> Manifest:
    given = rows()
    if format == "parquet":
        images = [(folder / "root" / row["image"]) for row in given]
        inline = [{"bytes": file.read_bytes() if file.exists() else b"", "path": file.name} for file in images]
        pq.write_table(pa.Table.from_pylist(given).set_column(1, "image", [inline]), folder / "rows.parquet")
        return manifest(folder, "rows.parquet", media_root=None)
    lines = [json.dumps(row) for row in given]
    lines[400], lines[40] = '{"id": "cut', "[1, 2]"
    (folder / "rows.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    return manifest(folder, "rows.jsonl")


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_tables_are_the_same_to_the_byte_whatever_the_number_of_processes(folder: Path, format: str) -> None:
    made = written(folder, format)
    one, three = read(made, folder, 1), read(made, folder, 3)
    assert one.metadata == three.metadata
    assert parquet_bytes(one, folder) == parquet_bytes(three, folder)
    assert stored(folder / "media1") == stored(folder / "media3") and len(stored(folder / "media1")) == IMAGES - 2
    reasons = set(one["quarantine"]["reason"].to_pylist())
    assert {"duplicate row", "tie", "identical sides", "unreadable image"} < reasons
    assert one.metadata["repeated_ids"] and one.metadata["ties"]
    assert one.metadata["rows_in"] == ROWS == one.metadata["rows_out"] + one["quarantine"].num_rows
    if format == "jsonl":  # what is malformed and missing costs its own rows, in their places
        aside = one["quarantine"].to_pylist()
        named = [row["row_id"] for row in aside if row["reason"] == "malformed JSON"]
        assert named == ["line 81", "line 801"]
        missing = [row["row_id"] for row in aside if row["reason"] == "missing image"]
        assert missing == sorted(missing, key=lambda name: int(name[1:])) and len(missing) > ROWS // IMAGES // 2


def test_verdicts_mean_what_the_first_rows_show_in_every_process(folder: Path) -> None:
    given = [
        {"question": f"Is it {n}?", "response_a": f"yes {n}", "response_b": f"no {n}", "winner": 1 + n % 2}
        for n in range(ROWS)
    ]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, given)), encoding="utf-8")
    made = manifest(folder, "rows.jsonl", media_root=None)
    one, three = read(made, folder, 1), read(made, folder, 3)
    assert parquet_bytes(one, folder) == parquet_bytes(three, folder) and one["pairs"].num_rows == ROWS
    given[500]["winner"] = 3  # so that 1 and 2 did not mean the sides
    file.write_text("\n".join(map(json.dumps, given)), encoding="utf-8")
    with pytest.raises(SourceError) as alone:
        read(made, folder, 1)
    with pytest.raises(SourceError) as together:
        read(made, folder, 3)
    assert str(alone.value) == str(together.value)


def below(process: int) -> set[int]:
    """Processes that descend from one."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(file.parent.name)] = int(file.read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
    found: set[int] = set()
    while more := {each for each, parent in parents.items() if parent in {process, *found}} - found:
        found |= more
    return found


def readers() -> set[int]:
    """Processes that read pieces: the children of this process's fork server, and none of a browser or other test."""
    return {each for child in below(os.getpid()) if is_fork_server(child) for each in below(child)}


def is_fork_server(process: int) -> bool:
    try:
        return b"multiprocessing.forkserver" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_killed_process_is_an_error_that_says_what_to_do_and_leaves_nothing(folder: Path) -> None:
    made = written(folder, "jsonl")
    before, killed = readers(), []

    def kill_one(state: Mapping[str, Any]) -> None:
        if not killed and (started := readers() - before):
            killed.append(min(started))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"ended before its work was done.*start again"):
        read_source(made, folder, folder / "media3", kill_one, processes=3)
    assert killed and not readers() - before
    assert all(".tmp" not in name and not Path(name).name.startswith("tmp") for name in stored(folder / "media3"))
    again, whole = read(made, folder, 3), read(made, folder, 1)
    assert parquet_bytes(again, folder) == parquet_bytes(whole, folder)


def test_no_process_outlives_a_killed_one(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows() * 200)), encoding="utf-8")
    program = f"""
from pathlib import Path
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.sources import read_source
if __name__ == "__main__":
    made = Manifest.model_validate_json({manifest(folder, "rows.jsonl").model_dump_json()!r})
    read_source(made, Path({str(folder)!r}), Path({str(folder / "media")!r}), processes=2)
"""
    (folder / "program.py").write_text(program, encoding="utf-8")
    with subprocess.Popen([sys.executable, folder / "program.py"]) as running:
        started = next(found for found in waited(lambda: below(running.pid)) if len(found) >= 4)  # 2, server, tracker
        running.kill()
    assert next(not left for left in waited(lambda: {p for p in started if alive(p)}) if not left)


def waited(look: Any, seconds: float = 60.0) -> Iterator[set[int]]:
    """What is seen, look by look, until the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield look()
        time.sleep(0.2)
    pytest.fail(f"nothing has changed in {seconds:.0f} seconds: {look()}")


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
