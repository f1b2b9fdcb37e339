"""Projects outside the checkout, as `dt2it init` and `dt2it check` meet them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

PROMPTS = [{"image": f"{n}.png", "question": f"What is it, {n}?", "reference": "A square."} for n in range(3)]


def go_outside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a folder that is no project, where no variable names one."""
    for name in ("DT2IT_PROJECT", "DT2IT_RECIPE", "DT2IT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read from the environment once
    monkeypatch.chdir(folder)


def lines_file(path: Path, rows: list[dict]) -> Path:
    """JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def project(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: str = "",
    *,
    annotators: str = "[{name: a}, {name: b}]",
    **sources: list[dict],
) -> None:
    """A project with sources of the kinds that are named, as JSON Lines, and the demo's model."""
    for kind, rows in sources.items():
        lines_file(folder / f"{kind}.jsonl", rows)
        manifest = f"name: {kind}\nkind: {kind}\npath: {kind}.jsonl\nmedia_root: .\nlicence: MIT\n"
        (folder / "configs/datasets").mkdir(parents=True, exist_ok=True)
        (folder / f"configs/datasets/{kind}.yaml").write_text(manifest)
    recipe = f"name: mine\ndatasets: [{', '.join(sources)}]\nannotation: {{judges: {annotators}}}\n{more}"
    (folder / "configs/recipes").mkdir(parents=True)
    (folder / "configs/recipes/mine.yaml").write_text(recipe)
    monkeypatch.chdir(folder)
