"""Where a project's files lie: its configuration, its artifacts, the models that a recipe names."""

from __future__ import annotations

import os
from pathlib import Path

from dt2it_pipeline.config.base import DEMO_BASE_MODEL


def project_root() -> Path:
    """Folder that holds configs/: `DT2IT_PROJECT` if set, else the checkout that this package was installed from."""
    return Path(os.environ.get("DT2IT_PROJECT") or Path(__file__).resolve().parents[2])


def artifact_home() -> Path:
    """Folder of all artifacts: `DT2IT_HOME` if set, else data/ in the project."""
    return Path(os.environ.get("DT2IT_HOME") or project_root() / "data").absolute()


def model_path(name: str) -> str:
    """Folder or Hub id of a model that a recipe names; `demo` becomes the model that ships with the package."""
    return str(Path(__file__).resolve().parents[1] / "demo" / "base_model") if name == DEMO_BASE_MODEL else name
