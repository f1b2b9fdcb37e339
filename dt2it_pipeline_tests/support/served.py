"""A model behind vLLM's own OpenAI-compatible server, for tests that are marked heavy."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.engines.launch.ranks import free_port


def patient_model(folder: Path) -> Path:
    """The shipped base model, made to take prompts of any length: beyond 2048 tokens its words are nonsense."""
    shutil.copytree(model_path(DEMO_BASE_MODEL), folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 8192
    (folder / "config.json").write_text(json.dumps(config))
    return folder


OUR_COMMAND = (sys.executable, "-c", "from dt2it_pipeline.cli import main; main()", "serve")


@contextmanager
def served(
    model: Path,
    log: Path,
    *options: str,
    command: Sequence[str] = OUR_COMMAND,
    environment: Mapping[str, str] = os.environ,
) -> Iterator[str]:
    """Serve until the block ends; gives the server's address. A chat model's name is its folder's path."""
    port = free_port()
    line = [*command, str(model), "--host", "127.0.0.1", "--port", str(port), *options]
    with log.open("wb") as out:
        server = subprocess.Popen(
            line, env=dict(environment) | {"OMP_NUM_THREADS": "1"}, stdout=out, stderr=out, start_new_session=True
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}"
            server.terminate()  # as an orchestrator ends it
            assert server.wait(90) in (0, -signal.SIGTERM), log.read_text(errors="replace")[-3000:]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 500
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert server.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)
