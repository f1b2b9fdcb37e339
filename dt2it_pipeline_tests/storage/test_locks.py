import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dt2it_pipeline.storage.locks import exclusive, held_here, is_free

# Holds a lock and has a child, which says what it finds and lives on: forked, started, or started with the lock.
HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from dt2it_pipeline.storage.locks import exclusive, held_here

path, how = Path(sys.argv[1]), sys.argv[2]

def refuse(words):
    raise RuntimeError(words)

with exclusive(path, refuse):
    if how != "forked":
        more = {"pass_fds": held_here()} if how == "handed" else {}
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], **more)
        print(child.pid, "started", flush=True)
        time.sleep(60)
    elif os.fork():
        time.sleep(60)
if how == "forked":  # the child, which has left its parent's block
    found = "sees no lock"
    try:
        with exclusive(path, refuse):
            pass
    except RuntimeError as error:
        found = str(error)
    print(os.getpid(), found, len(held_here()), flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["forked", "started", "handed"])
def holder(request, tmp_path):
    """How the child came to be, the lock, the process that holds it, its child's number and what the child found."""
    path = tmp_path / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), request.param], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child, _, found = process.stdout.readline().partition(" ")
    yield request.param, path, process, int(child), found.strip()
    process.kill()
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(child), signal.SIGKILL)


def test_the_lock_of_a_killed_process_is_free_unless_its_child_was_handed_it(holder):
    how, path, process, child, found = holder
    assert not is_free(path)  # the child has not given its parent's lock away
    if how == "forked":
        assert found.startswith(f"waits for process {process.pid} on ") and found.endswith(" 0")
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.kill(child, 0)  # lives
    assert is_free(path) == (how != "handed")
    told, order = [], []

    def next_one():
        with exclusive(path, lambda words: (told.append(words), order.append("waits"))) as taken:
            assert taken and len(held_here()) == 1
            order.append("holds")

    thread = threading.Thread(target=next_one)
    thread.start()
    while not order:
        time.sleep(0.01)
    if how == "handed":
        order.append("the child ends")
        os.kill(child, signal.SIGKILL)
    thread.join(20)
    assert order == (["waits", "the child ends", "holds"] if how == "handed" else ["holds"])
    if how == "handed":
        assert told[0].startswith(f"waits for programs that were started by process {process.pid} on ")
        assert told[0].endswith("that process has ended, and they end next")
    assert is_free(path)


def test_a_lock_is_given_back_though_a_program_that_was_handed_it_still_runs(tmp_path):
    path = tmp_path / "lock"
    with exclusive(path, pytest.fail):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=held_here())
        assert not is_free(path)
    assert is_free(path)
    child.kill()
    child.wait()
