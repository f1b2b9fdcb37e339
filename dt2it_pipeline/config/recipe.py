"""The typed form of a recipe YAML: every setting of the pipeline, once, with its unit, range and default.

A recipe is strict: an unknown key or a value out of range fails before any work starts and names the key. What does not
belong here: anything that a stage computes, and anything that differs between machines (paths come from the
environment).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from dt2it_pipeline.config.base import Settings, fault_message, guessed_key, unit
from dt2it_pipeline.config.paths import chosen_project, named_file, project_root, what_there_is
from dt2it_pipeline.config.sections.annotation import AnnotationSettings
from dt2it_pipeline.config.sections.cleaning import CleaningSettings, DecontaminationSettings
from dt2it_pipeline.config.sections.curation import CurationSettings
from dt2it_pipeline.config.sections.demo import DemoSettings
from dt2it_pipeline.config.sections.evaluation import EvaluationSettings
from dt2it_pipeline.config.sections.judging import JudgingSettings
from dt2it_pipeline.config.sections.landing import LandingSettings
from dt2it_pipeline.config.sections.launcher import LauncherSettings
from dt2it_pipeline.config.sections.pairing import PairingSettings
from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.config.sections.sampling import SamplingSettings
from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.config.sections.t2i import T2ISettings
from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.config.strict_yaml import load_yaml
from dt2it_pipeline.errors import UserError

DEFAULT_RECIPE = "configs/recipes/demo.yaml"


class RecipeError(UserError, ValueError):
    """The recipe cannot be read, or a setting in it is unknown, missing or out of range."""

    help_page: ClassVar[str] = "troubleshooting#recipe"


class Recipe(Settings):
    """One way of running the whole pipeline."""

    name: str = Field(
        min_length=1, pattern=r"^[a-zA-Z0-9_.-]+$", description="name of the recipe, in the report and in exports"
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, json_schema_extra=unit("seed"), description="the one seed of all random choices"
    )
    rounds: int = Field(
        2, ge=1, le=20, json_schema_extra=unit("rounds"), description="number of rounds: 0 to rounds - 1"
    )
    datasets: tuple[str, ...] = Field(
        (),
        strict=False,
        description="manifests of the sources: names of files in configs/datasets, or paths that end in .yaml",
    )
    demo: DemoSettings | None = Field(None, description="sources from the embedded world. null: none")
    sampling: SamplingSettings = Field(SamplingSettings(), description="candidate responses")
    judging: JudgingSettings = Field(JudgingSettings(), description="judgements of the candidate responses")
    pairing: PairingSettings = Field(PairingSettings(), description="pairs of judged responses, balanced in style")
    t2i: T2ISettings = Field(T2ISettings(), description="text-to-image preferences as two-image questions")
    cleaning: CleaningSettings = Field(CleaningSettings(), description="pairs that are quarantined at ingestion")
    decontamination: DecontaminationSettings = Field(
        DecontaminationSettings(), description="when training pairs count as benchmark content"
    )
    training: TrainingSettings = Field(TrainingSettings(), description="training of reward models")
    scoring: ScoringSettings = Field(ScoringSettings(), description="scores of all responses by a reward model")
    curation: CurationSettings = Field(CurationSettings(), description="which labels are kept, flipped or dropped")
    annotation: AnnotationSettings = Field(description="judges of contested pairs")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="control arms, report, end of rounds")
    landing: LandingSettings = Field(LandingSettings(), description="the folder where new sources are dropped")
    ray: RaySettings | None = Field(
        None, description="scoring and sampling on a Ray cluster. null: in processes on this machine"
    )
    launcher: LauncherSettings | None = Field(
        None, description="jobs that run models through Slurm or Kubernetes. null: in processes on this machine"
    )

    @model_validator(mode="after")
    def _published_policy_has_two_judges(self) -> Recipe:
        if self.curation.policy == "paper" and len(self.annotation.judges) != 2:
            raise ValueError("annotation.judges: the policy `paper` asks two; one is enough for `joint`")
        return self

    @model_validator(mode="after")
    def _ray_workers_hold_the_model(self) -> Recipe:
        restyle = self.pairing.restyle
        widths = {
            "sampling.tensor_parallel": self.sampling.tensor_parallel,
            "scoring.tensor_parallel": self.scoring.tensor_parallel,
            "a judge's tensor_parallel": max(self.judging.gpus_per_copy, self.annotation.gpus_per_copy),
            "tensor_parallel in pairing.restyle": restyle.gpus_per_copy if restyle is not None else 1,
        }
        for name, width in widths.items():
            if self.ray is not None and width > 1 and self.ray.gpus_per_worker < width:
                raise ValueError(
                    f"ray.gpus_per_worker ({self.ray.gpus_per_worker:g}) is below {name} ({width}): a worker holds the "
                    "whole model"
                )
        return self

    @model_validator(mode="after")
    def _a_launchers_job_has_one_node(self) -> Recipe:
        if self.launcher is None:
            return self
        if self.training.hostfile is not None:
            raise ValueError("launcher and training.hostfile cannot both be set: a job of the launcher has one node")
        if 0 < self.launcher.gpus < self.training.processes:
            raise ValueError(
                f"launcher.gpus ({self.launcher.gpus}) is below training.processes ({self.training.processes}): each "
                "rank has a GPU to itself"
            )
        return self

    @model_validator(mode="after")
    def _demo_arms_need_demo(self) -> Recipe:
        if self.evaluation.ceiling_arm and self.demo is None:
            raise ValueError(
                "evaluation.ceiling_arm needs the demo's true labels, and this recipe has no `demo` section"
            )
        return self


_SHOWN = 300  # characters of a value that an error shows


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """Parse and check a recipe's YAML text; `where` names it in errors. Raises RecipeError naming every wrong key."""
    try:
        raw: Any = load_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{where} must be a mapping of settings, found {type(raw).__name__}")
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        lines = [f"  {_described(fault, raw)}" for fault in _faults(error)]
        raise RecipeError(f"{where} has {len(lines)} wrong setting(s):\n" + "\n".join(lines)) from None


def _faults(error: ValidationError) -> list[ErrorDetails]:
    """The faults of a recipe, without lists that count as too short because an item of theirs is wrong."""
    found = error.errors()
    locs = [fault["loc"] for fault in found]

    def caused(loc: tuple[int | str, ...]) -> bool:
        return any(len(other) > len(loc) and other[: len(loc)] == loc for other in locs)

    return [fault for fault in found if fault["type"] != "too_short" or not caused(fault["loc"])]


def _described(fault: ErrorDetails, raw: Any) -> str:
    """One fault in a line: the key as it stands in the recipe, what is wrong, and what was found."""
    loc, value, message = _as_written(fault, raw), fault["input"], fault_message(fault)
    if fault["type"] == "extra_forbidden":
        meant = guessed_key(Recipe, loc)
        message = "unknown key" + (f"; did you mean {meant}?" if meant else "")
    elif fault["type"] == "union_tag_invalid":
        kinds = str(fault["ctx"]["expected_tags"]).replace("'", "")
        value = value.get("kind") if isinstance(value, dict) else value
        loc, message = [*loc, "kind"], f"must be one of {kinds}"
    # Whole sections are not shown: that would say no more, and they might hold what was refused as a secret.
    section = any(isinstance(part, dict) for part in (value, *(value if isinstance(value, list) else ())))
    hidden = section or fault["type"] in ("missing", "extra_forbidden")
    shown = repr(value)
    found = "" if hidden else f", found {shown if len(shown) <= _SHOWN else f'{shown[:_SHOWN]}...'}"
    return f"{'.'.join(map(str, loc)) or '(recipe)'}: {message}{found}"


def _as_written(fault: ErrorDetails, raw: Any) -> list[int | str]:
    """The key of a fault without the kinds that pydantic puts between a section and its keys."""
    found: list[int | str] = []
    here = raw
    for place, part in enumerate(fault["loc"]):
        last = place == len(fault["loc"]) - 1
        missing = fault["type"] == "missing" and last
        # A section may have a (wrong) key that is named as a kind; what lies in a section is in a section.
        within = isinstance(here, dict) and (part in here and (last or isinstance(here[part], dict | list)))
        if isinstance(here, dict) and not within and not missing:
            continue
        found.append(part)
        if isinstance(here, dict):
            here = here.get(part)
        else:
            here = here[part] if isinstance(here, list) and isinstance(part, int) and part < len(here) else None
    return found


def load_recipe(path: str | Path | None = None) -> Recipe:
    """Load and check a recipe.

    Args:
        path: `NAME` of a file in configs/recipes (the project's, else the package's), or a path that ends in .yaml;
            a relative one counts from the project. When None: what `DT2IT_RECIPE` says, else the only recipe that the
            project has, else the demo.

    Examples:
        >>> from dt2it_pipeline import load_recipe
        >>> recipe = load_recipe("configs/recipes/demo.yaml")
        >>> recipe.name, recipe.rounds, recipe.training.base_model
        ('demo', 2, 'demo')

    Returns:
        The recipe: frozen, every setting checked and every default filled in.

    Raises:
        RecipeError: there is no such file, or it is not a valid recipe; the message names every wrong key.
    """
    chosen = chosen_recipe(path)
    full = recipe_path(chosen)
    try:
        text = full.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {full} is not UTF-8 (at byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        reason = error.strerror or str(error)
        known = what_there_is("recipes", "*.yaml")
        raise RecipeError(f"cannot read recipe {full}: {reason}; {known}") from error
    return parse_recipe(text, where=chosen)


def chosen_recipe(path: str | Path | None = None) -> str:
    """The name or path of the recipe that `load_recipe` loads. Raises RecipeError where the project has several."""
    return str(path or os.environ.get("DT2IT_RECIPE") or _default_recipe())


def is_chosen(path: str | Path | None = None) -> bool:
    """Whether an argument, `DT2IT_RECIPE` or a project chooses a recipe; else `load_recipe` loads the demo's."""
    project = chosen_project()
    return bool(path or os.environ.get("DT2IT_RECIPE") or (project and (project / "configs").is_dir()))


def recipe_path(name: str | Path) -> Path:
    """The file that a recipe's name or path means; see `load_recipe`. It need not exist."""
    return named_file("recipes", str(name))


def _default_recipe() -> str:
    """The recipe where none is named: the project's own if it has one, else the demo.

    Raises:
        RecipeError: the project has several of its own and no demo; to choose one would be a guess.
    """
    own = sorted((project_root() / "configs" / "recipes").glob("*.yaml"))
    names = [file.name for file in own]
    if not own or "demo.yaml" in names:
        return DEFAULT_RECIPE
    if len(own) > 1:
        raise RecipeError(
            f"the project {project_root()} has several recipes: {', '.join(names)}; choose one by DT2IT_RECIPE"
        )
    return str(own[0])
