"""Training over a hostfile: what the other machines are sent; reward/training/test_two_ranks.py trains so."""

from __future__ import annotations

from pathlib import Path

import pytest

from dt2it_pipeline.config.recipe import RecipeError, parse_recipe
from dt2it_pipeline.engines.launch.ranks import write_remote_environment


def test_the_environment_of_other_machines(tmp_path: Path) -> None:
    ours = {"DT2IT_HOME": "/data", "DT2IT_PARENT_PID": "7", "SECRET": "x", "HF_HUB_OFFLINE": "1"}
    ours |= {"HF_TOKEN": "hf_x", "WANDB_API_KEY": "x"}  # DeepSpeed would print them
    write_remote_environment(tmp_path / "env", ours, {"DAGSTER_PIPES_CONTEXT": "abc="})
    assert (tmp_path / "env").read_text() == "DAGSTER_PIPES_CONTEXT=abc=\nDT2IT_HOME=/data\nHF_HUB_OFFLINE=1\n"
    assert (tmp_path / "env").stat().st_mode & 0o077 == 0


def test_features_in_memory_and_several_machines_exclude_each_other() -> None:
    with pytest.raises(RecipeError, match=r"training: .*cache_vision must be false where hostfile is given"):
        parse_recipe("name: x\nannotation: {judges: [{name: a}, {name: b}]}\ntraining: {hostfile: hosts}\n")
