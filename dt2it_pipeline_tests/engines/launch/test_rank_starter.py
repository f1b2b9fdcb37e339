"""Ranks of this machine: how they know their places, how they end, and how one that fails is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dt2it_pipeline.engines.launch.rank_starter import ERROR_FILE
from dt2it_pipeline.engines.launch.ranks import ranks_command
from dt2it_pipeline.engines.launch.worker import PARENT_PID
from dt2it_pipeline_tests.support.processes import alive, wait_until

PLACES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES")


@pytest.fixture
def ranks(tmp_path: Path):
    """Runs lines of Python as a module in several ranks."""

    def command(lines: str, count: int) -> subprocess.Popen[str]:
        (tmp_path / "of_a_rank.py").write_text("import json, os, signal, sys, time\n" + lines)
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}", "CUDA_VISIBLE_DEVICES": "5,3"}
        line = ranks_command(["of_a_rank", str(tmp_path)], count)
        return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path)

    return command


def test_each_rank_knows_its_place_and_the_gpus_that_were_given(ranks, tmp_path):
    names = json.dumps(PLACES)
    process = ranks(
        f"open(f'place-{{os.environ[\"RANK\"]}}', 'w').write(json.dumps([os.environ[n] for n in {names}]))", 3
    )
    assert process.wait(60) == 0
    found = [json.loads((tmp_path / f"place-{rank}").read_text()) for rank in range(3)]
    assert found == [[str(rank), str(rank), "3", "3", "127.0.0.1", "5,3"] for rank in range(3)]


@pytest.mark.parametrize(("end", "status"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_the_first_failure_is_the_end_of_all_and_others_may_say_why(ranks, tmp_path, end, status):
    lines = f"""
if os.environ["RANK"] == "1":
    open("process", "w").write(str(os.getpid()))
    {end}
while not os.path.exists("process") or not os.path.getsize("process"):
    time.sleep(0.01)
process = open("process").read()
while (state := open(f"/proc/{{process}}/stat").read().rpartition(")")[2].split()[0]) not in "ZX":
    time.sleep(0.01)
open("last_words", "w").write(state)
time.sleep(600)
"""
    started = time.monotonic()
    assert ranks(lines, 2).wait(60) == status
    assert (tmp_path / "last_words").read_text() == "Z"  # nobody had waited for it: its signal could be read
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_ranks_too(ranks, tmp_path, number):
    lines = "signal.signal(signal.SIGTERM, lambda *_: (open(f'ended-{os.environ[\"RANK\"]}', 'w'), sys.exit(1)))\n"
    lines += "open(f'runs-{os.environ[\"RANK\"]}', 'w')\ntime.sleep(600)"
    process = ranks(lines, 2)
    wait_until(lambda: len(list(tmp_path.glob("runs-*"))) == 2, 30)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert len(list(tmp_path.glob("ended-*"))) == 2


def test_a_rank_that_heeds_nothing_is_killed(ranks, tmp_path, monkeypatch):
    lines = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen(f'pid-{os.getpid()}', 'w')\n"
    lines += "sys.exit(3) if os.environ['RANK'] == '0' and time.sleep(1) is None else time.sleep(600)"
    assert ranks(lines, 2).wait(60) == 3
    left = [int(file.name.removeprefix("pid-")) for file in tmp_path.glob("pid-*")]
    assert len(left) == 2
    for process in left:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.parametrize(("end", "status"), [("sys.exit(0)", 0), ("sys.exit(4)", 4), ("os.kill(os.getpid(), 9)", 137)])
def test_without_waitid_it_does_the_same(tmp_path, end, status):
    """As on macOS."""
    (tmp_path / "ends.py").write_text(f"import os, sys\n{end}")
    lines = (
        "import os, sys; del os.waitid; from dt2it_pipeline.engines.launch.rank_starter import main; "
        "sys.exit(main(['1234', '2', 'ends']))"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
    assert subprocess.run([sys.executable, "-c", lines], env=environment, timeout=60).returncode == status


@pytest.mark.parametrize(
    ("end", "status", "words"),
    [
        ("os._exit(255)", 255, None),
        ("os._exit(137)", 137, None),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", 128 + signal.SIGRTMIN + 1, "(SIGRTMIN+1)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "(SIGKILL)"),
    ],
)
def test_only_a_rank_that_a_signal_ended_is_named_as_killed(ranks, tmp_path, monkeypatch, end, status, words):
    """Exit codes above 128 are a rank's own, too."""
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.txt"))
    assert ranks(end, 1).wait(60) == status
    found = (tmp_path / "error.txt").read_text() if (tmp_path / "error.txt").exists() else None
    assert found is None if words is None else found.endswith(words)


def test_ranks_end_with_their_starter(tmp_path):
    """Where it is killed, too: whoever launched it may read what they print, and would wait for their end."""
    lines = "import os, time\nfrom dt2it_pipeline.engines.launch.worker import end_with_parent\nend_with_parent()\n"
    (tmp_path / "of_a_rank.py").write_text(f"{lines}open(f'pid-{{os.getpid()}}', 'w')\ntime.sleep(600)")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}", PARENT_PID: str(os.getpid())}
    starter = subprocess.Popen(ranks_command(["of_a_rank"], 2), env=environment, cwd=tmp_path, start_new_session=True)
    wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 2, 30)
    starter.kill()
    starter.wait()
    left = [int(file.name.removeprefix("pid-")) for file in tmp_path.glob("pid-*")]
    wait_until(lambda: not any(map(alive, left)), 10)
