"""The model families that a reward model can be made of, and every fact by which they differ.

A further family gets an entry in FAMILIES; what the entry cannot say, the code that reads it must learn.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """One family of vision-language models of transformers.

    Attributes:
        model_type: `model_type` of config.json, and the name of its folder in transformers.
        classes: prefix of its model classes.
        processor: its processor class.
        head_name: name of the head's weight in a file, where vLLM looks for it.
        file_names: (ours, the file's) prefixes of weight names that differ.
        writes_video_times: a video is a row of images with their times written between them; otherwise it is one block
            whose steps lie apart in M-RoPE's time axis, by `tokens_per_second` of the vision configuration.
        normalises_heads: its attention normalises query and key per head, as `attention.last_layer` computes it.
    """

    model_type: str
    classes: str
    processor: str
    head_name: str
    file_names: tuple[tuple[str, str], ...]
    writes_video_times: bool
    normalises_heads: bool

    @property
    def base_architecture(self) -> str:
        """Name of the architecture of a base model, which generates text."""
        return f"{self.classes}ForConditionalGeneration"

    @property
    def reward_architecture(self) -> str:
        """Name of the architecture of a reward model, as vLLM knows it."""
        return f"{self.classes}ForSequenceClassification"

    def backbone_class(self) -> Any:
        """The class of transformers for the model without a language-model head."""
        name = self.model_type
        module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        return getattr(module, f"{self.classes}Model")

    def processor_class(self) -> Any:
        """The class of transformers for its processor (tokenizer, image and video processor, chat template)."""
        name = self.model_type
        return getattr(importlib.import_module(f"transformers.models.{name}.processing_{name}"), self.processor)

    def positions_per_second(self, config: Mapping[str, Any]) -> float | None:
        """Time scale of M-RoPE for videos, by the model's config.json; None where times are written as text."""
        if self.writes_video_times:
            return None
        name = self.model_type
        module = importlib.import_module(f"transformers.models.{name}.configuration_{name}")
        default = getattr(module, f"{self.classes}VisionConfig")().tokens_per_second
        return float(config.get("vision_config", {}).get("tokens_per_second", default))


QWEN3_VL = Family(
    model_type="qwen3_vl",
    classes="Qwen3VL",
    processor="Qwen3VLProcessor",
    head_name="score.weight",
    file_names=(),
    writes_video_times=True,
    normalises_heads=True,
)
QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    classes="Qwen2_5_VL",
    processor="Qwen2_5_VLProcessor",
    # Checkpoints keep the layout of the family's first release, and vLLM reads the head from inside the language model.
    head_name="language_model.score.weight",
    file_names=(("model.visual.", "visual."), ("model.language_model.", "model.")),
    writes_video_times=False,
    normalises_heads=False,
)
FAMILIES = {family.model_type: family for family in (QWEN3_VL, QWEN2_5_VL)}


def limits_pixels_in_total(video_processor: Any) -> bool:
    """Whether a video processor's pixel limits count all frames together (Qwen3-VL) and not each frame."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    return isinstance(video_processor, Qwen3VLVideoProcessor)
