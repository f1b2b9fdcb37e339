"""Compiled code goes when nothing has used it for long, or when there is too much, and never under another process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dt2it_pipeline.storage.home import compiled_code
from dt2it_pipeline.storage.home.compiled_code import DAYS, LOCK, prune_and_hold, unused_folders

# Prints how many bytes went, and holds a folder until it reads a line.
HOLDER = """
import sys
from pathlib import Path
from dt2it_pipeline.storage.home.compiled_code import prune_and_hold
print(prune_and_hold(Path(sys.argv[1])), flush=True)
sys.stdin.readline()
"""
# A function that is compiled, with its backward pass, and what it gives.
COMPILES = """
import torch
from dt2it_pipeline.reward.modeling.compile_cache import use_private_cache
use_private_cache()
torch.manual_seed(0)
x = torch.randn(64, 32, requires_grad=True)
value = torch.compile(lambda x: (x @ x.T).softmax(-1).square().sum())(x)
value.backward()
print(float(value), float(x.grad.sum()))
"""


def put(folder: Path, name: str, days: float, size: int = 10) -> Path:
    """A file that was last used so many days ago."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * size)
    used = time.time() - days * 24 * 3600
    os.utime(file, (used, used))
    return file


def hold(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that holds a folder, and how many bytes it has removed before."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    return holder, int(holder.stdout.readline())


def removed_by_a_start(folder: Path) -> int:
    holder, removed = hold(folder)
    holder.communicate("end\n", timeout=30)
    return removed


def test_what_nothing_uses_goes_and_files_of_a_folder_go_together(tmp_path: Path) -> None:
    old = [put(tmp_path, name, DAYS + 1, 100) for name in ("fxgraph/ab/c/graph", "xy/code.so", "top.json")]
    read = put(tmp_path, "triton/0/k/kernel.cubin", DAYS + 1)
    os.utime(read, (time.time() - 60, read.stat().st_mtime))  # read a minute ago, written long ago
    beside = put(tmp_path, "triton/0/k/kernel.json", DAYS + 1)
    above = put(tmp_path, "triton/version", DAYS + 1)
    assert removed_by_a_start(tmp_path) == 310
    assert not any(file.exists() for file in [*old, above]) and not (tmp_path / "fxgraph/ab/c").exists()
    assert read.exists() and beside.exists()
    assert removed_by_a_start(tmp_path) == 0


def test_where_there_is_too_much_the_oldest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_code, "MOST_BYTES", 250)
    files = [put(tmp_path, f"{number}/code", days=number, size=100) for number in (3, 1, 2)]
    assert prune_and_hold(tmp_path) == 100
    assert [file.exists() for file in files] == [False, True, True]


def test_what_cannot_be_removed_is_not_counted_and_keeps_its_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_code, "MOST_BYTES", 250)
    files = [put(tmp_path, f"{number}/code", days=number, size=100) for number in (1, 3, 2)]
    stuck = put(tmp_path, "code", DAYS + 1, 1000)
    unlink = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path == stuck:
            raise PermissionError(f"{path} is another user's")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    assert prune_and_hold(tmp_path) == 100
    assert stuck.exists() and [file.exists() for file in files] == [True, False, True]


def test_nothing_goes_while_another_process_uses_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    first, _ = hold(folder)
    old = put(folder, "ab/code.so", DAYS + 1)
    second, removed = hold(folder)
    assert removed == 0 and old.exists() and not list(unused_folders(tmp_path))
    first.communicate("end\n", timeout=30)
    assert removed_by_a_start(folder) == 0 and old.exists()  # the second one still uses it
    second.kill()
    second.wait()
    assert removed_by_a_start(folder) == 10 and not old.exists()


def test_folders_that_nothing_uses_are_listed(tmp_path: Path) -> None:
    for name, days in (("gone", DAYS + 1), ("now", 1.0)):
        put(tmp_path, f"{name}/ab/code.so", DAYS + 2)
        put(tmp_path, f"{name}/cd/code.so", days)
        (tmp_path / name / LOCK).touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "file").touch()
    assert list(unused_folders(tmp_path)) == [tmp_path / "gone"]


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_code_of_which_half_is_gone_is_compiled_again(tmp_path: Path) -> None:
    """PyTorch's index may outlive the code that it names, and the other way round."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"DT2IT_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    # No trial compilations of what the processor can, which take most of the time.
    environment["TORCHINDUCTOR_VEC_ISA_OK"] = "1"

    def run() -> str:
        command = [sys.executable, "-c", COMPILES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    expected = run()
    (folder,) = (tmp_path / "cache" / "compiled").iterdir()
    long_ago = time.time() - (DAYS + 1) * 24 * 3600
    for index_goes in (True, False):
        files = [file for file in folder.rglob("*") if file.is_file() and file.name != LOCK]
        indices = [file for file in files if {"fxgraph", "aotautograd"} & set(file.parts)]
        code = [file for file in files if file.suffix == ".so"]
        assert indices and code
        for file in files:
            if (file in indices) == index_goes:
                os.utime(file, (long_ago, long_ago))
        assert run() == expected
        assert all(file.exists() for file in code)  # kept, or made again under the same name
