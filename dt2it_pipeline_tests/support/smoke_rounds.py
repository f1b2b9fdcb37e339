"""The jobs as people run them, on the smoke recipe, and one home of finished rounds for all files of a test session."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.storage.locks import exclusive

SMOKE = "configs/recipes/smoke.yaml"
ROUND_0 = ("round", "--tags", '{"dagster/partition": "0"}')
ROUND_1 = ("round", "--tags", '{"dagster/partition": "1"}')
UNPARTITIONED = (
    "raw_prompts",
    "raw_preferences",
    "raw_t2i_preferences",
    "raw_benchmarks",
    "candidate_responses",
    "judged_responses",
    "debiased_pairs",
    "t2i_pairs",
)
PARTITIONED = (
    "training_pairs",
    "response_scores",
    "voted_pairs",
    "verified_pairs",
    "contested_pairs",
    "annotated_pairs",
    "curated_pairs",
    "benchmark_scores",
)


def environment(home: Path, recipe: str = SMOKE) -> dict[str, str]:
    """This process's environment with a home and a recipe."""
    own = {"DT2IT_RECIPE": recipe, "DT2IT_HOME": str(home), "DAGSTER_HOME": str(project_root()), "HF_HUB_OFFLINE": "1"}
    return os.environ | own


def command(*job: str) -> list[str]:
    """The command line of a job."""
    dagster = str(Path(sys.executable).parent / "dagster")
    return [dagster, "job", "execute", "-m", "dt2it_pipeline.definitions", "-j", *job]


def run(home: Path, *job: str, recipe: str = SMOKE) -> str:
    """Run a job to its end; its log as one line, since the terminal's lines are wrapped."""
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command(*job), env=environment(home, recipe), cwd=project_root(), capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return " ".join((done.stdout + done.stderr).split())


def recipe_without_arms(folder: Path, *changes: tuple[str, str], more: str = "") -> str:
    """The smoke recipe with some words changed, without the trainings that only the report compares with.

    `more` is added at its end.
    """
    text = (project_root() / SMOKE).read_text(encoding="utf-8")
    arms = (("control_arm: true", "control_arm: false"), ("ceiling_arm: true", "ceiling_arm: false"))
    for old, new in (*arms, *changes):
        assert text.count(old) == 1
        text = text.replace(old, new)
    recipe = folder / "recipe.yaml"
    recipe.write_text(text + more, encoding="utf-8")
    return str(recipe)


def finished_home(factory: pytest.TempPathFactory) -> Path:
    """A home in which `construct` and rounds 0 and 1 have run: do not write there.

    The first file of tests that asks makes it, also where several processes share the files; the others wait.
    """
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a folder of its own in the session's
        folder = folder.parent
    home, complete = folder / "smoke" / "home", folder / "smoke" / "complete"
    home.parent.mkdir(exist_ok=True)
    with exclusive(home.parent / "lock", print):
        if not complete.exists():
            assert not home.exists(), f"the jobs failed in {home} before; see the first test that asked for it"
            for job in (("construct",), ROUND_0, ROUND_1):
                run(home, *job)
            complete.touch()
    return home


def copy_data(home: Path, copy: Path, *names: str) -> None:
    """Copy what the jobs have made, but no history of their runs: all artifacts, or those of these names."""
    for part in ("media", "sources", *(f"artifacts/{name}" for name in names or ("",))):
        shutil.copytree(home / part, copy / part)
