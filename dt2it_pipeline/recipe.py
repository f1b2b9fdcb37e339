"""The typed form of a recipe YAML: every setting of the pipeline, once, with its unit, range and default.

A recipe is strict: an unknown key or a value out of range fails before any work starts and names the key. What does not
belong here: anything that a stage computes, and anything that differs between machines (paths come from the
environment).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from dt2it_pipeline.construct.settings import JudgingSettings, PairingSettings, SamplingSettings
from dt2it_pipeline.curate.settings import AnnotationSettings, CurationSettings
from dt2it_pipeline.settings import DEMO_BASE_MODEL, RaySettings, Settings, guessed_key
from dt2it_pipeline.strict_yaml import load_yaml

DEFAULT_RECIPE = "configs/recipes/demo.yaml"


class RecipeError(ValueError):
    """The recipe cannot be read, or a setting in it is unknown, missing or out of range."""


class DemoSettings(Settings):
    """The embedded world: how much of easy-VQA becomes which source."""

    prompts: int = Field(600, ge=1, le=10_000, description="questions with a gold answer, for construction")
    preferences: int = Field(3000, ge=1, le=30_000, description="noisy preference pairs, for curation")
    t2i: int = Field(500, ge=1, le=10_000, description="text-to-image preferences")
    benchmark_per_group: int = Field(300, ge=1, le=2_000, description="held-out pairs per benchmark group")
    noise: float = Field(0.3, ge=0, le=0.5, description="share of preference labels that are wrong")
    style_bias: float = Field(
        0.9, ge=0.5, le=1, description="share of pairs whose labelled-chosen side is the verbose one"
    )
    corrupt_images: int = Field(
        0, ge=0, description="image files of the preference slice to truncate, to test quarantine"
    )


class T2ISettings(Settings):
    """Text-to-image preferences as two-image questions (arXiv 2604.19544, reformulation of T2I preferences)."""

    max_pairs: int | None = Field(None, ge=1, description="use at most this many; all when absent")
    phrasings: int | None = Field(
        None,
        ge=1,
        description="ask in the first so many phrasings of each language (configs/prompts/t2i.*.yaml); all when absent",
    )


class CleaningSettings(Settings):
    """What is taken out of the preference pairs when they come in, besides repeated and contradictory ones."""

    near_duplicate: float | None = Field(
        0.9,
        gt=0,
        le=1,
        description="Jaccard similarity of both sides' 5-character shingles to those of an earlier pair "
        "of the same question, from which on a pair is a near-duplicate; null: not looked for",
    )


class DecontaminationSettings(Settings):
    """What counts as a benchmark's content in training pairs, besides equal files and equal questions without media."""

    perceptual_distance: int | None = Field(
        6,
        ge=0,
        le=16,
        description="bits of 64 in which the perceptual hashes of two pictures may differ that count as one picture, "
        "scaled or recompressed; null: equal files only, for drawn pictures that look alike without being the same",
    )
    response_characters: int | None = Field(
        64,
        ge=1,
        description="a response of at least this many characters whose question and words are a benchmark's counts, "
        "whatever the picture; null: never, for answers that follow templates",
    )


class LossSettings(Settings):
    """What training minimises; the formulas and their sources stand in reward/loss.py.

    `strength` is the pairs table's column, in the unit of whoever wrote it (0 to 10 for constructed pairs, reward
    margins for verified ones). A pair without a strength gets the plain Bradley-Terry loss; a negative one counts as 0.
    """

    kind: Literal["bradley_terry", "margin", "soft_label"] = Field(
        "bradley_terry",
        description="plain; margin: strong pairs must be told apart by more; soft_label: weak pairs count as near ties",
    )
    strength_scale: float = Field(
        1.0, gt=0, le=1000, description="margin, or logit of the soft label, per unit of strength"
    )
    center_coefficient: float = Field(
        0.0, ge=0, le=100, description="weight of (chosen score + rejected score)^2; 0.01 keeps scores around zero"
    )


class LoraSettings(Settings):
    """Low-rank adapters instead of all weights of the language model (arXiv 2106.09685); the head is trained in full.

    The checkpoint holds merged weights, so that scoring, export and vLLM see an ordinary reward model. Memory of
    gradients and optimiser falls to that of the adapters; ten times the learning rate of full training is usual.
    """

    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0, le=8192, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapters' input, in training")
    target_modules: tuple[str, ...] = Field(
        (), strict=False, description="names of linear layers, such as q_proj; all of the language model when empty"
    )


class TrainingSettings(Settings):
    """Bradley-Terry training of backbone and linear head (arXiv 2604.19544, implementation details).

    With `validation_fraction` or `validation_pairs`, prompts are held out by seed (all pairs of a prompt are on one
    side), evaluated every `evaluate_every` optimiser steps and at the end.
    """

    base_model: str = Field(
        DEMO_BASE_MODEL,
        min_length=1,
        description="model folder or Hub id; `demo` is the model that ships with the package",
    )
    processes: int = Field(2, ge=1, le=1024, description="ranks that the DeepSpeed launcher starts on this machine")
    hostfile: str | None = Field(
        None,
        min_length=1,
        description="machines of a multi-node run, `host slots=n` per line (relative: from the project root); "
        "`processes` then counts ranks per machine, and this machine stands first",
    )
    deepspeed_config: str = Field("zero2_cpu", description="file in configs/deepspeed, without .json")
    pairs_per_step: int = Field(64, ge=1, le=65_536, description="pairs per optimiser step, over all ranks")
    micro_batch_pairs: int = Field(32, ge=1, le=4096, description="most pairs per forward pass of one rank")
    micro_batch_tokens: int | None = Field(
        None,
        ge=16,
        le=10_000_000,
        description="most tokens per forward pass of one rank, padding included; a longer pair has a pass to itself. "
        "`micro_batch_pairs` holds too: raise it to let tokens alone decide",
    )
    epochs: float = Field(2.0, gt=0, le=100)
    max_steps: int | None = Field(
        None, ge=1, description="stop after this many optimiser steps, whatever `epochs` says"
    )
    learning_rate: float = Field(5e-4, gt=0, le=1)
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    loss: LossSettings = LossSettings()
    lora: LoraSettings | None = Field(None, description="all weights of the language model are trained when absent")
    validation_fraction: float = Field(0.0, ge=0, lt=1, description="share of the pairs; 0: nothing is held out")
    validation_pairs: int | None = Field(None, ge=1, description="pairs, instead of a share")
    evaluate_every: int = Field(50, ge=1, description="optimiser steps between evaluations of the held-out pairs")
    keep: Literal["last", "best"] = Field(
        "last", description="which weights become the checkpoint; best: lowest loss on the held-out pairs"
    )
    shared_prefix: bool = Field(
        True, description="both responses behind one prompt in one sequence, instead of two sequences"
    )
    cache_vision: bool = Field(True, description="keep the frozen tower's output per picture in memory")
    vision_cache_gib: float = Field(
        4.0, gt=0, description="GiB; where the tower's output needs more, it is computed at every step instead"
    )
    gradient_checkpointing: bool = False
    max_tokens: int = Field(512, ge=16, le=131_072, description="longer prompt + response: the pair is set aside")
    max_pixels: int = Field(268_324, ge=1024, description="pictures are scaled down to this many pixels")
    system_prompt: str = Field(
        "You are an impartial evaluator. Judge how well the assistant answers the question about the picture.",
        description="system turn before every training and scoring prompt",
    )
    report_every: int = Field(10, ge=1, description="optimiser steps")
    checkpoint_every: int = Field(50, ge=1, description="optimiser steps")
    tensorboard: bool = Field(False, description="write TensorBoard event files into the checkpoint's folder")
    wandb_project: str | None = Field(
        None, min_length=1, description="also log to this Weights & Biases project; needs the package wandb"
    )

    @model_validator(mode="after")
    def _validation_fits(self) -> TrainingSettings:
        if self.validation_fraction and self.validation_pairs:
            raise ValueError("set validation_fraction or validation_pairs, not both")
        if self.keep == "best" and not self.validates:
            raise ValueError("keep: best needs held-out pairs; set validation_fraction or validation_pairs")
        return self

    @property
    def validates(self) -> bool:
        """Whether pairs are held out."""
        return self.validation_fraction > 0 or self.validation_pairs is not None

    @model_validator(mode="after")
    def _features_stay_on_one_machine(self) -> TrainingSettings:
        if self.hostfile is not None and self.cache_vision:
            raise ValueError(
                "cache_vision must be false where hostfile is given: ranks share the tower's output through the memory "
                "of one machine"
            )
        return self


class ScoringSettings(Settings):
    """Scoring every unique response once, for the votes of iterative training (arXiv 2604.19544)."""

    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="who computes: our own model in shared-prefix batches, or vLLM's pooling engine"
    )
    processes: int = Field(2, ge=1, le=1024, description="data-parallel scorers on this machine")
    tokens_per_batch: int = Field(8192, ge=64, description="token budget of one forward pass")
    shard_responses: int = Field(
        4096, ge=1, description="responses per shard; a killed run loses at most one shard a process"
    )
    max_tokens: int = Field(512, ge=16, le=131_072, description="longer prompt + response: the response is set aside")
    max_pixels: int = Field(1_310_720, ge=1024, description="pictures are scaled down to this many pixels")


class EvaluationSettings(Settings):
    """Benchmarks, grading and the report."""

    control_arm: bool = Field(
        True, description="also train on D0 + the uncurated preferences and show it in the report"
    )
    ceiling_arm: bool = Field(False, description="demo only: also train on D0 + true labels")
    style_probe_folds: int = Field(5, ge=2, le=20)
    examples: int = Field(6, ge=0, le=50, description="example pairs per kind in the report")
    patience: int | None = Field(
        2,
        ge=1,
        description="the round sensor stops after this many rounds in a row whose gain of benchmark accuracy is within "
        "its 95% interval of zero; null: only at the last round",
    )


class LandingSettings(Settings):
    """The folder where manifests are dropped with their data, and who looks there."""

    folder: str = Field(
        "landing",
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$",
        description="name of a folder in the artifact home",
    )
    every_seconds: int = Field(30, ge=1, le=86_400, description="seconds between two looks of the landing sensor")
    fresh_round_cron: str = Field(
        "0 * * * *", min_length=9, description="when the schedule asks for a fresh round if something has landed"
    )


class Recipe(Settings):
    """One way of running the whole pipeline."""

    name: str = Field(min_length=1, pattern=r"^[a-zA-Z0-9_.-]+$")
    seed: int = Field(0, ge=0, le=2**31 - 1)
    rounds: int = Field(2, ge=1, le=20, description="rounds 0 to rounds - 1")
    datasets: tuple[str, ...] = Field(
        (), strict=False, description="manifests: names in configs/datasets, or paths that end in .yaml"
    )
    demo: DemoSettings | None = None
    sampling: SamplingSettings = SamplingSettings()
    judging: JudgingSettings = JudgingSettings()
    pairing: PairingSettings = PairingSettings()
    t2i: T2ISettings = T2ISettings()
    cleaning: CleaningSettings = CleaningSettings()
    decontamination: DecontaminationSettings = DecontaminationSettings()
    training: TrainingSettings = TrainingSettings()
    scoring: ScoringSettings = ScoringSettings()
    curation: CurationSettings = CurationSettings()
    annotation: AnnotationSettings
    evaluation: EvaluationSettings = EvaluationSettings()
    landing: LandingSettings = LandingSettings()
    ray: RaySettings | None = Field(None, description="scoring and sampling on Ray; in local processes when absent")

    @model_validator(mode="after")
    def _published_policy_has_two_judges(self) -> Recipe:
        if self.curation.policy == "paper" and len(self.annotation.judges) != 2:
            raise ValueError("annotation.judges: the policy `paper` asks two; one is enough for `posterior`")
        return self

    @model_validator(mode="after")
    def _ray_workers_hold_the_model(self) -> Recipe:
        width = self.sampling.tensor_parallel
        if self.ray is not None and width > 1 and self.ray.gpus_per_worker < width:
            raise ValueError(
                f"ray.gpus_per_worker ({self.ray.gpus_per_worker:g}) is below sampling.tensor_parallel ({width}): a "
                "worker holds the whole model"
            )
        return self

    @model_validator(mode="after")
    def _demo_arms_need_demo(self) -> Recipe:
        if self.evaluation.ceiling_arm and self.demo is None:
            raise ValueError(
                "evaluation.ceiling_arm needs the demo's true labels, and this recipe has no `demo` section"
            )
        return self


def project_root() -> Path:
    """Folder that holds configs/: `DT2IT_PROJECT` if set, else the checkout that this package was installed from."""
    return Path(os.environ.get("DT2IT_PROJECT") or Path(__file__).resolve().parent.parent)


def artifact_home() -> Path:
    """Folder of all artifacts: `DT2IT_HOME` if set, else data/ in the project."""
    return Path(os.environ.get("DT2IT_HOME") or project_root() / "data").absolute()


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
        lines = [f"  {_told(fault, raw)}" for fault in _faults(error)]
        raise RecipeError(f"{where} has {len(lines)} wrong setting(s):\n" + "\n".join(lines)) from None


def _faults(error: ValidationError) -> list[ErrorDetails]:
    """The faults of a recipe, without lists that count as too short because an item of theirs is wrong."""
    found = error.errors()
    locs = [fault["loc"] for fault in found]

    def caused(loc: tuple[int | str, ...]) -> bool:
        return any(len(other) > len(loc) and other[: len(loc)] == loc for other in locs)

    return [fault for fault in found if fault["type"] != "too_short" or not caused(fault["loc"])]


def _told(fault: ErrorDetails, raw: Any) -> str:
    """One fault in a line: the key as it stands in the recipe, what is wrong, and what was found."""
    loc, value, message = _as_written(fault, raw), fault["input"], fault["msg"]
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
    found = "" if hidden else f", found {value!r}"
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
    """Load a recipe from `path`, else from `DT2IT_RECIPE`, else the demo. Relative paths count from the project root.

    Raises:
        RecipeError: there is no such file, or it is not a valid recipe.
    """
    chosen = Path(path or os.environ.get("DT2IT_RECIPE") or DEFAULT_RECIPE)
    full = chosen if chosen.is_absolute() else project_root() / chosen
    try:
        text = full.read_text(encoding="utf-8")
    except OSError as error:
        known = ", ".join(sorted(p.name for p in (project_root() / "configs/recipes").glob("*.yaml"))) or "none"
        raise RecipeError(
            f"cannot read recipe {full}: {error.strerror}; recipes in configs/recipes: {known}"
        ) from error
    return parse_recipe(text, where=str(chosen))


def model_path(name: str) -> str:
    """Folder or Hub id of a model that a recipe names; `demo` becomes the model that ships with the package."""
    return str(Path(__file__).resolve().parent / "demo" / "base_model") if name == DEMO_BASE_MODEL else name
