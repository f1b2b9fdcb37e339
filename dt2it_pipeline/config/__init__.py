"""Every setting of the pipeline: a recipe and its sections, where their files lie, and a reference of all settings.

What belongs here: one module per section, reading of YAML, the places of configuration files, and credentials. What
does not: anything that a stage computes. Start with `load_recipe`.
"""

from dt2it_pipeline.config.base import DEMO_BASE_MODEL, Settings
from dt2it_pipeline.config.models import EndpointSettings, VllmSettings
from dt2it_pipeline.config.paths import ConfigFileError, artifact_home, find_config, model_path, project_root
from dt2it_pipeline.config.recipe import Recipe, RecipeError, load_recipe, parse_recipe
from dt2it_pipeline.config.recipe_files import require_files
from dt2it_pipeline.config.reference import Setting, recipe_schema, settings_reference
from dt2it_pipeline.config.sections.annotation import AnnotationSettings, PairJudgeSettings
from dt2it_pipeline.config.sections.cleaning import CleaningSettings, DecontaminationSettings
from dt2it_pipeline.config.sections.curation import CurationSettings, EnsembleSettings, OutOfFoldSettings
from dt2it_pipeline.config.sections.demo import DemoSettings
from dt2it_pipeline.config.sections.evaluation import EvaluationSettings
from dt2it_pipeline.config.sections.judging import (
    EndpointJudgeSettings,
    JudgingSettings,
    LikelihoodCheckSettings,
    LikelihoodJudgeSettings,
    ReferenceJudgeSettings,
    VllmJudgeSettings,
    WordsCheckSettings,
)
from dt2it_pipeline.config.sections.landing import LandingSettings
from dt2it_pipeline.config.sections.pairing import PairingSettings, RestyleSettings, StrengthBin
from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.config.sections.sampling import SamplingSettings
from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.config.sections.t2i import T2ISettings
from dt2it_pipeline.config.sections.training import LoraSettings, LossSettings, TrainingSettings

__all__ = [
    "DEMO_BASE_MODEL",
    "AnnotationSettings",
    "CleaningSettings",
    "ConfigFileError",
    "CurationSettings",
    "DecontaminationSettings",
    "DemoSettings",
    "EndpointJudgeSettings",
    "EndpointSettings",
    "EnsembleSettings",
    "EvaluationSettings",
    "JudgingSettings",
    "LandingSettings",
    "LikelihoodCheckSettings",
    "LikelihoodJudgeSettings",
    "LoraSettings",
    "LossSettings",
    "OutOfFoldSettings",
    "PairJudgeSettings",
    "PairingSettings",
    "RaySettings",
    "Recipe",
    "RecipeError",
    "ReferenceJudgeSettings",
    "RestyleSettings",
    "SamplingSettings",
    "ScoringSettings",
    "Setting",
    "Settings",
    "StrengthBin",
    "T2ISettings",
    "TrainingSettings",
    "VllmJudgeSettings",
    "VllmSettings",
    "WordsCheckSettings",
    "artifact_home",
    "find_config",
    "load_recipe",
    "model_path",
    "parse_recipe",
    "project_root",
    "recipe_schema",
    "require_files",
    "settings_reference",
]
