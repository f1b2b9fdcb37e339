"""Where a project's files lie: its configuration, its artifacts, the models that a recipe names.

A project is a folder with a `configs/` of its own. The recipes, manifests, benchmarks, prompts and DeepSpeed files of
the package come with it, in a checkout and in an installed wheel alike. A project's file wins over the package's file
of the same name; a project without one uses the package's.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.errors import UserError

KINDS = ("recipes", "datasets", "benchmarks", "deepspeed", "prompts")  # the folders below configs/
_PACKAGE = Path(__file__).resolve().parents[1]
_HUB_ID = re.compile(r"\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b", re.ASCII)


class ConfigFileError(UserError, ValueError):
    """There is no such file of configuration; the message lists the places that were looked at and what is there."""


def shipped_configs() -> Path:
    """The configs/ that comes with the package: the repository's own in a checkout, a copy of it in a wheel."""
    inside = _PACKAGE / "_configs"  # in a checkout a link to the top-level folder, where people edit
    return inside.resolve() if inside.is_dir() else _PACKAGE.parent / "configs"  # a copied tree may have lost the link


def project_root() -> Path:
    """The project's folder: configuration is looked for in its configs/, and a recipe's relative paths count from it.

    `DT2IT_PROJECT` if set. Else the nearest folder, from the working directory upwards, whose configs/ holds one of
    KINDS. Else the checkout that the package lies in; where it lies in none, the working directory.
    """
    if (chosen := chosen_project()) is not None:
        return chosen
    shipped = shipped_configs()
    return shipped.parent if shipped.parent != _PACKAGE else Path.cwd()


def chosen_project() -> Path | None:
    """The project that `DT2IT_PROJECT` or the working directory chooses; None where neither does.

    Raises:
        ConfigFileError: the variable names no folder.
    """
    if given := os.environ.get("DT2IT_PROJECT"):
        if not Path(given).is_dir():
            raise ConfigFileError(f"DT2IT_PROJECT names {given}, and there is no such folder")
        return Path(given).absolute()
    here = Path.cwd()
    return next((f for f in (here, *here.parents) if any((f / "configs" / kind).is_dir() for kind in KINDS)), None)


def config_folders(kind: str) -> tuple[Path, ...]:
    """Folders in which files of one of KINDS are looked for: the project's, then the package's."""
    own, shipped = project_root() / "configs" / kind, shipped_configs() / kind
    return (own,) if own.resolve() == shipped else (own, shipped)


def config_files(kind: str, pattern: str, folder: Path | None = None) -> dict[str, Path]:
    """Files of one of KINDS by their names, in the order of these; the project's win over the package's.

    Args:
        kind: one of KINDS.
        pattern: of the names, as `Path.glob` takes it.
        folder: look here instead, and nowhere else.
    """
    folders = config_folders(kind) if folder is None else (folder,)
    found = {path.name: path for place in reversed(folders) for path in place.glob(pattern)}
    return {name: found[name] for name in sorted(found)}


def find_config(kind: str, name: str) -> Path:
    """The file `name` (with its extension) of one of KINDS: the project's, else the package's.

    Raises:
        ConfigFileError: there is none in either place.
    """
    for folder in config_folders(kind):
        if _is_file(folder / name):
            return folder / name
    raise ConfigFileError(f"there is no {name}; {what_there_is(kind, f'*{Path(name).suffix}')}")


def named_file(kind: str, name: str) -> Path:
    """The YAML file that a person names: `NAME` (in configs/KIND), or a path that ends in .yaml or .yml.

    A relative path counts from the project. `configs/KIND/NAME.yaml` may be the package's, as `NAME` may. The file need
    not exist.
    """
    if Path(name).is_absolute():
        return Path(name)
    if not name.endswith((".yaml", ".yml")):
        return next((f / f"{name}.yaml" for f in config_folders(kind) if _is_file(f / f"{name}.yaml")),
                    config_folders(kind)[0] / f"{name}.yaml")  # fmt: skip
    path = project_root() / name
    if Path(name).parent == Path("configs", kind) and not _is_file(path):
        shipped = shipped_configs() / kind / path.name
        return shipped if _is_file(shipped) else path
    return path


def looked_in(kind: str) -> str:
    """The places where files of one of KINDS are looked for, for errors."""
    return " or ".join(map(str, config_folders(kind)))


def what_there_is(kind: str, pattern: str) -> str:
    """The files of one of KINDS for errors, each place with its own, the project's first."""
    files = config_files(kind, pattern).values()
    named = {place: [path.stem for path in files if path.parent == place] for place in config_folders(kind)}
    return "; ".join(f"{place} has: {', '.join(names) or 'none'}" for place, names in named.items())


def artifact_home() -> Path:
    """Folder of all artifacts: `DT2IT_HOME` if set, else data/ in the project."""
    return Path(os.environ.get("DT2IT_HOME") or project_root() / "data").absolute()


def object_store_url() -> str | None:
    """Where other machines find finished artifacts: `DT2IT_OBJECT_STORE`, such as s3://bucket/folder; None: nowhere."""
    return os.environ.get("DT2IT_OBJECT_STORE") or None


def model_path(name: str) -> str:
    """Folder or Hub id of a model that a recipe names; `demo` becomes the model that ships with the package.

    A relative path of a folder that the project holds counts from the project.
    """
    if name == DEMO_BASE_MODEL:
        return str(_PACKAGE / "demo" / "base_model")
    own = project_root() / name
    return str(own) if not Path(name).is_absolute() and _is_folder(own) else name


def is_hub_id(name: str) -> bool:
    """Whether a name may be that of a repository of the Hub, `owner/name`; a mistyped folder seldom may.

    The rule is that of `huggingface_hub.utils.validate_repo_id`, which also takes names without an owner.

    >>> is_hub_id("Qwen/Qwen3-VL-2B-Instruct"), is_hub_id("checkpoint"), is_hub_id("data/models/1"), is_hub_id("./a")
    (True, False, False, False)
    """
    never = "--" in name or ".." in name or name.endswith(".git")
    return not never and _HUB_ID.fullmatch(name) is not None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have, or a folder that may not be looked into
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
