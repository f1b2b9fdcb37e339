"""Files that a recipe names: whether they are there, and what they say. Looked at before any work starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dt2it_pipeline.config.paths import ConfigFileError, find_config, is_hub_id, model_path, project_root
from dt2it_pipeline.config.recipe import Recipe, RecipeError
from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.config.strict_yaml import load_json

_HOST = re.compile(r"\S+\s+slots=\d+\s*(#.*)?")  # as DeepSpeed reads it


def require_files(recipe: Recipe) -> None:
    """Check every file and model folder that a recipe names. A Hub id is left to the Hub.

    Raises:
        RecipeError: files are missing or damaged; each is named with its key and with what is there instead.
    """
    faults = list(_faults(recipe))
    if faults:
        raise RecipeError(f"recipe {recipe.name!r} names {len(faults)} file(s) wrongly:\n  " + "\n  ".join(faults))


def read_deepspeed_config(name: str) -> dict[str, Any]:
    """Content of a file in configs/deepspeed, by its name without .json. Raises RecipeError naming file and fault."""
    try:
        path = find_config("deepspeed", f"{name}.json")
    except ConfigFileError as error:
        raise RecipeError(f"training.deepspeed_config: {error}") from None
    try:
        config = load_json(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("expected a JSON object")
    except (OSError, ValueError) as error:
        raise RecipeError(f"training.deepspeed_config: cannot read {path}: {error}") from error
    return config


def zero_stage(name: str) -> int:
    """ZeRO stage, 0 to 3, of a file in configs/deepspeed. Raises RecipeError as `read_deepspeed_config` does."""
    return int((read_deepspeed_config(name).get("zero_optimization") or {}).get("stage", 0))


def hostfile_path(settings: TrainingSettings) -> Path | None:
    """The recipe's hostfile as an absolute path, None where it names none.

    Raises:
        RecipeError: there is no such file, or a line in it is not `host slots=n`.
    """
    if settings.hostfile is None:
        return None
    path = project_root() / settings.hostfile
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"training.hostfile: cannot read {path}: {reason}; `host slots=n` per line") from error
    hosts = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    for number, line in hosts:
        if not _HOST.fullmatch(line.strip()):
            raise RecipeError(f"training.hostfile: {path}, line {number}: expected `host slots=n`, found {line!r}")
    if not hosts:
        raise RecipeError(f"training.hostfile: {path} names no machine; write `host slots=n` per line")
    return path


def _faults(recipe: Recipe) -> Iterator[str]:
    for check in (
        lambda: read_deepspeed_config(recipe.training.deepspeed_config),
        lambda: hostfile_path(recipe.training),
    ):
        try:
            check()
        except RecipeError as error:
            yield str(error)
    models = {"sampling.model": recipe.sampling.model, "training.base_model": recipe.training.base_model}
    models |= {f"sampling.models.{n}": name for n, name in enumerate(recipe.sampling.models)}
    models |= {
        f"annotation.judges.{n}.model": judge.model
        for n, judge in enumerate(recipe.annotation.judges)
        if judge.kind != "endpoint"
    }
    for key, name in models.items():
        fault = _model_fault(name)
        if fault:
            yield f"{key}: {fault}"
    ensemble = recipe.curation.ensemble
    for n, name in enumerate(ensemble.checkpoints if ensemble else ()):
        if not (Path(model_path(name)) / "reward_model.json").is_file():
            yield (
                f"curation.ensemble.checkpoints.{n}: no reward model in {name}: reward_model.json is not there; "
                f"write a checkpoint of another trainer in our layout first: dt2it convert {name} DESTINATION"
            )


def _model_fault(name: str) -> str | None:
    """What is wrong with a model as a recipe names it: a folder, or what can only be one."""
    folder = Path(model_path(name))
    if folder.is_dir():
        return None if (folder / "config.json").is_file() else f"the folder {name} holds no model: no config.json in it"
    if is_hub_id(name):
        return None
    beside = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
    there = f"; in {folder.parent} there are: {', '.join(beside[:20])}" if beside else ""
    return f"there is no model folder {name}{there}; give a folder, a Hub id (owner/name) or `demo`"
