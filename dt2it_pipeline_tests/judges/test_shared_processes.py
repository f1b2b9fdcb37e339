"""Judging and rewriting in processes of their own, as a run starts them: one of the workers is killed, or cannot load.

Each run is a real process with two workers. What it prints is what a person sees.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dt2it_pipeline.config.sections.judging import JudgingSettings
from dt2it_pipeline.construct.restyle import RESTYLE, SAME
from dt2it_pipeline.demo.rendering import draw
from dt2it_pipeline.engines.jobs import Job
from dt2it_pipeline.engines.launch.worker import summary_file
from dt2it_pipeline_tests.support.construct_world import judging_job, prompt_row, response_rows
from dt2it_pipeline_tests.support.fault_server import FaultServer, serving
from dt2it_pipeline_tests.support.processes import alive, wait_until
from dt2it_pipeline_tests.support.restyle_jobs import SHAPES, restyling

COLORS = ("red", "blue", "green", "teal", "black", "yellow", "gray", "brown")
KILLED = "error: the worker process {} ended with exit code -9 at shard "


def prompts_in(folder: Path, count: int) -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        color, shape = COLORS[number % 8], SHAPES[number % 3]
        Image.fromarray(draw(color, shape, random.Random(number))).save(folder / f"{color}{number}.png")
        found.append(prompt_row(folder, f"{color}{number}", "what shape is in the image?", shape))
    return found


def started(job: Job, folder: Path) -> subprocess.Popen[str]:
    """A process of the job, whose output lies in `folder`/output."""
    job.write(folder / "job.json")
    command = [sys.executable, "-m", "dt2it_pipeline.engines.launch.worker", str(folder / "job.json")]
    with (folder / "output").open("w") as output:
        own = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True, env=own)


def kept(cache: Path) -> int:
    """Replies on disk."""
    if not cache.exists():
        return 0
    with closing(sqlite3.connect(f"{cache.as_uri()}?mode=ro", uri=True)) as database:
        try:
            return int(database.execute("SELECT count(*) FROM replies").fetchone()[0])
        except sqlite3.OperationalError:  # the table is about to be made
            return 0


def workers_of(process: int) -> list[int]:
    """Processes that `multiprocessing` has spawned there or that its fork server has forked."""
    found = []
    for child in children_of(process):
        command = Path(f"/proc/{child}/cmdline").read_text()
        if "spawn_main" in command:
            found.append(child)
        elif "multiprocessing.forkserver" in command:
            found += children_of(child)
    return found


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def kill_one_when(process: subprocess.Popen[str], cache: Path, replies: int) -> int:
    """Kill a worker as soon as so many replies are on disk; returns its id."""
    wait_until(lambda: kept(cache) >= replies or process.poll() is not None, 240)
    assert process.poll() is None, "it ended before a worker was killed"
    workers = workers_of(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    process.wait(60)
    wait_until(lambda: not any(alive(worker) for worker in workers), 30)
    return workers[0]


def require_named(output: Path, killed: int) -> None:
    """One sentence names the killed process. (Python's own notice of the semaphores that it left may follow.)"""
    text = output.read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert line.startswith(KILLED.format(killed)) and "signal SIGKILL" in line
    assert "Traceback" not in text


def finished(job: Job, folder: Path) -> dict[str, Any]:
    process = started(job, folder)
    assert process.wait(400) == 0, (folder / "output").read_text()
    return json.loads(summary_file(folder / "job.json").read_text())


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    prompts = prompts_in(tmp_path, 50)
    responses = [row for prompt in prompts for row in response_rows(prompt, *(f"It is a {s}." for s in SHAPES))]
    likely = {"kind": "likelihood", "name": "likely", "measure": "yes", "model": str(tmp_path / "none")}
    job = judging_job(tmp_path, prompts, responses, JudgingSettings.model_validate({"judges": [likely]}))
    process = started(job.model_copy(update={"processes": 2}), tmp_path)
    assert process.wait(240) == 1
    output = (tmp_path / "output").read_text()
    words = f"failed in a worker process: likely: cannot load the judge's model: there is no folder {tmp_path / 'none'}"
    assert output.startswith("error: shard ") and output.endswith(f"{words}\n") and len(output.splitlines()) == 1


@pytest.mark.heavy
def test_a_judges_worker_is_killed_and_the_next_run_asks_only_what_is_not_kept(tmp_path: Path) -> None:
    prompts = prompts_in(tmp_path, 200)
    responses = [row for prompt in prompts for row in response_rows(prompt, *(f"It is a {s}." for s in SHAPES))]
    likely = {"kind": "likelihood", "name": "likely", "measure": "yes"}
    settings = JudgingSettings.model_validate({"judges": [likely], "modes": ["pointwise"]})
    job = judging_job(tmp_path, prompts, responses, settings).model_copy(update={"processes": 2})
    process = started(job, tmp_path)
    killed = kill_one_when(process, job.cache, 1)
    assert process.returncode == 1
    require_named(tmp_path / "output", killed)
    before = kept(job.cache)
    assert 0 < before < len(responses)
    counts = finished(job, tmp_path)["judges"]["likely"]
    assert (counts["looked_up"], counts["asked"]) == (before, len(responses) - before)
    again = finished(job, tmp_path)["judges"]["likely"]
    assert (again["looked_up"], again["asked"]) == (len(responses), 0)


@pytest.mark.heavy
def test_the_worker_of_a_rewriters_check_is_killed_and_no_text_is_rewritten_twice(tmp_path: Path) -> None:
    def rewrite(words: str, _: list[str]) -> str:
        shape = next(shape for shape in SHAPES if shape in words.split("=== ANSWER")[1])
        return '{"text": "The shape is a %s."}' % ("rectangle" if shape == "triangle" else shape)

    prompts = prompts_in(tmp_path, 100)
    with serving(FaultServer({}, rewrite)) as server:
        rewriter = {"kind": "endpoint", "name": "rewriter", "base_url": server.url, "model": "m", "attempts": 1}
        check = {"kind": "likelihood", "name": "check", "asks": "right"}
        job = restyling(tmp_path, prompts, referenced=False, processes=2, rewriter=rewriter, check=check)
        process = started(job, tmp_path)
        wait_until(lambda: len(workers_of(process.pid)) == 2, 240)
        rewritten = len(server.bodies)
        killed = kill_one_when(process, job.cache, rewritten)
        assert process.returncode == 1
        require_named(tmp_path / "output", killed)
        assert rewritten > 0 and len(server.bodies) == rewritten
        before = kept(job.cache)
        summary = finished(job, tmp_path)
        assert len(server.bodies) == rewritten  # what had been rewritten was paid for once
    looked_up, asked = (sum(summary[mode][key] for mode in (RESTYLE, SAME)) for key in ("looked_up", "asked"))
    assert looked_up == before and asked > 0 and kept(job.cache) == before + asked


@pytest.mark.heavy
def test_the_worker_of_a_rewriter_is_killed_and_the_next_run_goes_on(tmp_path: Path) -> None:
    rewriter = {"kind": "vllm", "name": "rewriter", "max_model_len": 512, "max_new_tokens": 24, "attempts": 1}
    prompts = prompts_in(tmp_path, 300)
    job = restyling(tmp_path, prompts, referenced=False, processes=2, rewriter=rewriter, check={"kind": "words"})
    process = started(job, tmp_path)
    killed = kill_one_when(process, job.cache, 1)
    assert process.returncode == 1
    require_named(tmp_path / "output", killed)
    before = kept(job.cache)
    assert before > 0
    summary = finished(job, tmp_path)[RESTYLE]
    assert summary["looked_up"] == before and kept(job.cache) == before + summary["asked"]
