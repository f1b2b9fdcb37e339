"""The package as others install it: a wheel is built and used from an empty folder, without this repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from dt2it_pipeline.config.paths import shipped_configs

pytestmark = pytest.mark.heavy
REPOSITORY = Path(__file__).resolve().parents[1]
# Isolated: neither the working directory nor PYTHONPATH nor links of editable installs (.pth files) are on the path.
PROGRAM = """
import sys
sys.path[:0] = [{target!r}]
sys.path.append({site!r})
import dt2it_pipeline
assert dt2it_pipeline.__file__.startswith({target!r}), dt2it_pipeline.__file__
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which a wheel of this tree has been installed. Nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tree / name)
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("configs", "dt2it_pipeline"):
        shutil.copytree(REPOSITORY / name, tree / name, symlinks=True, ignore=junk)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(tree)]
    _pip(*build)
    (wheel,) = folder.glob("*.whl")
    _pip("install", "--no-deps", "--no-compile", "--target", str(folder / "site"), str(wheel))
    return folder / "site"


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ | {"PIP_NO_INDEX": "1"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def python(installed: Path, folder: Path, code: str, **environment: str) -> str:
    """What a program prints that runs in `folder` and sees the wheel and this environment's other packages alone."""
    program = PROGRAM.format(target=str(installed), site=sysconfig.get_paths()["purelib"]) + code
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("DT2IT_", "PYTHON"))}
    variables |= {"HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_every_configuration_file_is_in_the_wheel(installed: Path) -> None:
    shipped = shipped_configs()
    files = {path.relative_to(shipped): path.read_bytes() for path in shipped.rglob("*") if path.is_file()}
    assert len(files) > 50
    copy = installed / "dt2it_pipeline/_configs"
    assert {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()} == files


def test_an_empty_folder_is_enough(installed: Path, tmp_path: Path) -> None:
    code = """
from pathlib import Path
from dt2it_pipeline.config import load_recipe, project_root
from dt2it_pipeline.config.paths import config_files
from dt2it_pipeline.config.recipe_files import read_deepspeed_config, require_files
from dt2it_pipeline.evaluate.benchmarks.reference_results import load_published
from dt2it_pipeline.evaluate.benchmarks.spec import load_entries
from dt2it_pipeline.ingest.manifest import load_catalogue
from dt2it_pipeline.judges.templates import load_template
from dt2it_pipeline.reformulate.phrasings import load_phrasings
assert project_root() == Path.cwd(), project_root()
recipe = load_recipe()
require_files(recipe)
assert recipe.name == load_recipe("demo").name == load_recipe("configs/recipes/demo.yaml").name == "demo"
assert len(load_catalogue(recipe.datasets)) == 6 and "povid.yaml" in config_files("datasets", "*.yaml")
assert "vl_rewardbench" in load_entries() and load_published().systems
assert load_template("pairwise", "zh").text and load_phrasings() and read_deepspeed_config("zero3")
print("found")
"""
    assert python(installed, tmp_path, code) == "found\n"
    assert list(tmp_path.iterdir()) == []


def test_the_command_and_the_code_location_work_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    command = "from dt2it_pipeline.cli import main\nsys.argv = ['dt2it', {}]\nmain()\n"
    shown = python(installed, tmp_path, command.format("'settings', 'training.lora.rank'"))
    assert "training.lora.rank: integer" in shown
    python(installed, tmp_path, command.format("'init', 'mine'"))
    code = (
        "from dt2it_pipeline.definitions import defs\nprint(sorted(job.name for job in defs.resolve_all_job_defs()))\n"
    )
    for folder in (tmp_path, tmp_path / "mine"):
        assert "'construct'" in python(installed, folder, code, DT2IT_HOME=str(tmp_path / "home"))
    named = "from dt2it_pipeline.config import load_recipe\nprint(load_recipe().name)\n"
    assert python(installed, tmp_path / "mine" / "configs", named) == "mine\n"
    assert python(installed, tmp_path, named, DT2IT_PROJECT=str(tmp_path / "mine")) == "mine\n"
