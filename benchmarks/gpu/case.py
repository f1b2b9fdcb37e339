"""What a process of the benchmark is asked: one case, of one model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import shapes
from benchmarks.gpu.data import WORKLOADS, Part, make_data
from benchmarks.gpu.figures import Result
from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.config.sections.training import TrainingSettings


@dataclass(frozen=True)
class Case:
    """What a process is asked.

    Attributes:
        kind: a key of `cases.KINDS`.
        label: how the table calls it.
        shape: of the model.
        work: folder that is kept between runs.
        place: folder of this case alone.
        training: the recipe's section `training`, as JSON.
        scoring: the recipe's section `scoring`, as JSON.
        steps: that are measured: optimiser steps, responses of the naive scorer.
        warmup: steps before them.
        answer_tokens: of the longest sampled answer.
        python: of an environment with LLaMA-Factory.
        prompts: of the scoring workload that `parity` takes; None: all.
        their_settings: arguments of LLaMA-Factory that replace those that the benchmark chooses.
        started: when the process was started, in seconds since 1970.
    """

    kind: str
    label: str
    shape: str
    work: str
    place: str
    training: dict[str, Any]
    scoring: dict[str, Any]
    steps: int
    warmup: int
    answer_tokens: int = 128
    python: str | None = None
    prompts: int | None = None
    their_settings: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0

    @property
    def settings(self) -> TrainingSettings:
        """The section `training`."""
        return TrainingSettings.model_validate_json(json.dumps(self.training))

    @property
    def scoring_settings(self) -> ScoringSettings:
        """The section `scoring`."""
        return ScoringSettings.model_validate_json(json.dumps(self.scoring))

    @property
    def base(self) -> Path:
        """Folder of the base model."""
        return shapes.base_folder(Path(self.work), self.shape)

    @property
    def checkpoint(self) -> Path:
        """Folder of the reward model."""
        return shapes.checkpoint_folder(Path(self.work), self.shape)

    @property
    def parameters(self) -> dict[str, int]:
        """Parameters of the model by part."""
        facts: dict[str, int] = json.loads((self.base / shapes.FACTS).read_text(encoding="utf-8"))
        return facts

    def part(self, name: str) -> Part:
        """What training or scoring is measured on."""
        return WORKLOADS[shapes.SHAPES[self.shape].workload][name]

    def data(self, name: str) -> Path:
        """Its folder, which is made where it is not there yet."""
        workload = shapes.SHAPES[self.shape].workload
        return make_data(Path(self.work), workload, name, self.settings.system_prompt)

    def result(self, unit: str) -> Result:
        """A result without figures."""
        return Result(self.label, self.shape, unit)
