"""Arms to compare with: models that train on D0 and the uncurated pairs, or on true labels."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any
import dagster as dg
import pandas as pd
import pyarrow as pa
from pydantic import Field
from dt2it_pipeline.config.cleaning import DecontaminationSettings
from dt2it_pipeline.config.evaluation import EvaluationSettings
from dt2it_pipeline.curate.tables import to_frame, to_table
from dt2it_pipeline.evaluate.benchmarks.metrics import ALL, MACRO, OVERALL, ItemScores, score_items
from dt2it_pipeline.evaluate.benchmarks.model_scores import is_url
from dt2it_pipeline.evaluate.benchmarks.reference_results import comparison, comparison_markdown
from dt2it_pipeline.evaluate.benchmarks.spec import load_entries
from dt2it_pipeline.evaluate.report.formatting import percent
from dt2it_pipeline.orchestrate.assets.rounds import trained_on
from dt2it_pipeline.orchestrate.cached_stage import run_stage
from dt2it_pipeline.orchestrate.checks import BENCHMARKS_GIVEN, NO_REGRESSION
from dt2it_pipeline.orchestrate.metadata import markdown_of
from dt2it_pipeline.orchestrate.model_jobs import ModelJobs, responses_of, training_metadata
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.sections import ModelSections
from dt2it_pipeline.orchestrate.stage_asset import StageResult, stage_asset
from dt2it_pipeline.storage.artifacts import Artifact, model_digest


CONTROL, CEILING = "control", "ceiling"


def arms(settings: EvaluationSettings) -> dict[str, str]:
    """Arms that the recipe asks for: name -> the asset whose preferences join D0 in its training set."""
    asked = {CONTROL: settings.control_arm, CEILING: settings.ceiling_arm}
    preferences = {CONTROL: "raw_preferences", CEILING: "demo_truth"}
    return {arm: preferences[arm] for arm, wanted in asked.items() if wanted}
