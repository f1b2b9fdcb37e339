"""SIGTERM ends a server that has not started yet, and its engine with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline_tests.support.served import OUR_COMMAND, free_port


def test_an_interrupt_passes_through_the_wait_for_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_torchvision()
    import zmq
    from vllm.utils.network_utils import get_open_zmq_ipc_path, zmq_socket_ctx
    from vllm.v1.engine import utils

    from dt2it_pipeline.serve.vllm_server import keep_interrupts

    monkeypatch.setattr(utils, "zmq_socket_ctx", zmq_socket_ctx)
    with zmq_socket_ctx(get_open_zmq_ipc_path(), zmq.ROUTER, bind=True):
        raise KeyboardInterrupt  # vLLM drops it: when it no longer does, keep_interrupts can go
    keep_interrupts()
    with pytest.raises(KeyboardInterrupt), utils.zmq_socket_ctx(get_open_zmq_ipc_path(), zmq.ROUTER, bind=True):
        raise KeyboardInterrupt
    with utils.zmq_socket_ctx(get_open_zmq_ipc_path(), zmq.ROUTER, bind=True) as socket:
        assert not socket.closed
    assert socket.closed


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
