"""Training over a hostfile: DeepSpeed's own launcher with two `machines`, which are both this one.

There is no ssh daemon where tests run, so `pdsh` and `ssh` are stand-ins on the PATH that run what they are given here.
Everything else is real: the launcher, the exported environment, two per-node launchers, a process group over both.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dt2it_pipeline.engines.deepspeed_launcher import REMOTE_ENVIRONMENT, deepspeed_command, write_remote_environment
from dt2it_pipeline.recipe import RecipeError, TrainingSettings, parse_recipe
from dt2it_pipeline.reward.train import weights_digest
from dt2it_pipeline_tests.reward.tiny import make_tables, make_tiny

PDSH = """#!{python}
import subprocess, sys
at = sys.argv.index("-w")
hosts, command = sys.argv[at + 1].split(","), sys.argv[at + 2 :]
clean = {{"PATH": {path!r}, "HOME": "/nonexistent"}}  # what ssh would start with
shells = [
    subprocess.Popen(["sh", "-c", " ".join(command).replace("%n", str(n))], env=clean) for n in range(len(hosts))
]
sys.exit(max(shell.wait() for shell in shells))
"""
SSH = """#!/bin/sh
case "$*" in *"hostname -I") echo 127.0.0.1 ;; *) hostname ;; esac
"""


def test_the_environment_of_other_machines(tmp_path: Path) -> None:
    ours = {"DT2IT_HOME": "/data", "DT2IT_PARENT_PID": "7", "SECRET": "x", "HF_HUB_OFFLINE": "1"}
    ours |= {"HF_TOKEN": "hf_x", "WANDB_API_KEY": "x"}  # DeepSpeed would print them
    write_remote_environment(tmp_path / "env", ours, {"DAGSTER_PIPES_CONTEXT": "abc="})
    assert (tmp_path / "env").read_text() == "DAGSTER_PIPES_CONTEXT=abc=\nDT2IT_HOME=/data\nHF_HUB_OFFLINE=1\n"
    assert (tmp_path / "env").stat().st_mode & 0o077 == 0


def test_features_in_memory_and_several_machines_exclude_each_other() -> None:
    with pytest.raises(RecipeError, match=r"training: .*cache_vision must be false where hostfile is given"):
        parse_recipe("name: x\nannotation: {judges: [{name: a}, {name: b}]}\ntraining: {hostfile: hosts}\n")


@pytest.mark.heavy
def test_two_machines_train_as_one_with_two_ranks(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    tables = make_tables(tmp_path / "tables", 16)
    settings = TrainingSettings(
        pairs_per_step=8, micro_batch_pairs=4, epochs=1.0, cache_vision=False, system_prompt="You judge."
    )
    job = {
        "base_model": str(make_tiny(tmp_path / "base")), "pairs": tables["pairs"], "prompts": tables["prompts"],
        "media_root": tables["media_root"], "settings": settings.model_dump(), "seed": 5, "name": "test",
    }  # fmt: skip
    tools = tmp_path / "bin"
    tools.mkdir()
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    for name, text in {"pdsh": PDSH.format(python=sys.executable, path=path), "ssh": SSH}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment[REMOTE_ENVIRONMENT] = str(tmp_path / "env")
    write_remote_environment(tmp_path / "env", environment, {"DS_ACCELERATOR": "cpu"})
    digests = {}
    for name, hostfile, processes in (("one", None, 2), ("two", tmp_path / "hosts", 1)):
        this = job | {"output": str(tmp_path / name), "work": str(tmp_path / f"work-{name}")}
        (tmp_path / f"{name}.json").write_text(json.dumps(this))
        module = ["dt2it_pipeline.reward.train", str(tmp_path / f"{name}.json")]
        command = deepspeed_command(module, processes, hostfile=hostfile)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        ranks = re.search(r'"ranks": (\d+)', done.stdout)
        assert ranks is not None
        assert ranks[1] == "2"
        digests[name] = weights_digest(tmp_path / name)
    assert "node_rank=1" in done.stdout + done.stderr
    assert digests["one"] == digests["two"]
