"""SIGTERM ends a server that has not started yet, and its engine with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dt2it_pipeline_tests.support.served import OUR_COMMAND, free_port

_WAITS = """
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
ensure_torchvision()
import zmq
from vllm.utils.network_utils import get_open_zmq_ipc_path, zmq_socket_ctx
from vllm.v1.engine import utils
from dt2it_pipeline.serve.vllm_server import keep_interrupts

def passes(context):
    try:
        with context(get_open_zmq_ipc_path(), zmq.ROUTER, bind=True):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return True
    return False

print("vllm", passes(zmq_socket_ctx))
keep_interrupts()
print("ours", passes(utils.zmq_socket_ctx))
with utils.zmq_socket_ctx(get_open_zmq_ipc_path(), zmq.ROUTER, bind=True) as socket:
    print("closed inside", socket.closed)
print("closed behind", socket.closed)
"""


def test_an_interrupt_passes_through_the_wait_for_the_engine() -> None:
    done = subprocess.run([sys.executable, "-c", _WAITS], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    # vLLM drops it: when it no longer does, keep_interrupts can go
    assert done.stdout.splitlines()[-4:] == ["vllm False", "ours True", "closed inside False", "closed behind True"]


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_sigterm_during_the_start_ends_server_and_engine(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [*OUR_COMMAND, "demo", "--port", str(free_port())], stdout=out, stderr=out, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        watched = psutil.Process(server.pid)
        deadline = time.monotonic() + 200
        while not (engines := [child for child in watched.children() if "EngineCore" in " ".join(child.cmdline())]):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.2)
        os.kill(server.pid, signal.SIGTERM)
        server.wait(60)
        assert not psutil.wait_procs(engines, timeout=20)[1]
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
