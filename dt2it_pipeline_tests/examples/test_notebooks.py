"""The notebooks in `examples/`, run whole by Jupyter's own kernel on what a small demo would have left."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.demo import DemoSettings
from dt2it_pipeline.demo.world import write_world
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.ipynb"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact home with the demo's sources and two reward models that have learnt nothing."""
    ensure_torchvision()
    from dt2it_pipeline.reward import RewardModel

    folder = tmp_path_factory.mktemp("home")
    settings = DemoSettings(prompts=48, preferences=80, t2i=8, benchmark_per_group=20, corrupt_images=0)
    write_world(folder / "sources/demo", settings)
    for number in (0, 1):
        slot = folder / f"artifacts/reward_model/{number}"
        (slot / "key").mkdir(parents=True)
        RewardModel.from_pretrained(model_path("demo"), new_head_seed=number).save_pretrained(slot / "key")
        (slot / "current").write_text("key", encoding="utf-8")
    return folder


def test_they_hold_no_output() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs") and not cell.get("execution_count"), f"{path.name}: clear all outputs"


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DT2IT_HOME", str(home))
    monkeypatch.setenv("STEPS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert {"text/plain", "text/html"} <= kinds  # values, and tables or pictures
