"""The public reward model: the network of modeling/ with a method that scores texts and images as they are.

It has a module of its own because the network stands below the encoding of prompts, and scoring above it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dt2it_pipeline.reward.modeling.model import RewardNetwork
from dt2it_pipeline.reward.scoring.inputs import score_lists


class RewardModel(RewardNetwork):
    """A reward model for notebooks and scripts: `RewardModel.from_pretrained(path).score(prompts, responses)`."""

    def score(
        self,
        prompts: Sequence[Mapping[str, Any]],
        responses: Sequence[Sequence[str]],
        *,
        media_root: str | Path | None = None,
        max_length: int | None = None,
        max_pixels: int | None = None,
        tokens_per_batch: int = 8192,
    ) -> list[np.ndarray]:
        """Score responses to prompts, as the pipeline does.

        Higher is better; a score has a meaning only beside others of the same prompt. Images are encoded once per
        prompt, and all its responses go through the model in one sequence.

        >>> from PIL import Image
        >>> from dt2it_pipeline.reward import RewardModel
        >>> from dt2it_pipeline.config.paths import model_path
        >>> model = RewardModel.from_pretrained(model_path("demo"), new_head_seed=0)  # a trained one needs no seed
        >>> question = {
        ...     "turns": [{"role": "user", "text": "<image>What colour is the shape?"}],
        ...     "images": [Image.new("RGB", (64, 64), "red")],
        ... }
        >>> scores = model.score([question], [["The shape is red.", "blue"]])
        >>> len(scores), scores[0].shape, scores[0].dtype
        (1, (2,), dtype('float32'))

        Args:
            prompts: each a mapping with `turns` (a list of role and text, the last of the user; texts hold an `<image>`
                or `<video>` marker for each medium), and, where there are any, `system`, `images` (paths or images of
                PIL, in the order of their markers) and `videos` (paths of files or of folders of frames). Rows of a
                prompts table, with `media`, are taken too.
            responses: the texts of each prompt, at least one.
            media_root: folder from which paths count and which they may not leave; needed for rows of a table. Without
                it paths count from the working directory.
            max_length: longest prompt with response; by default what the backbone's positions allow.
            max_pixels: larger images and frames are scaled down to this; by default as in training.
            tokens_per_batch: token budget of one forward pass, padding included.

        Returns:
            One float32 array per prompt, [its responses].

        Raises:
            ValueError: a prompt or response cannot be scored; the message says which, why and what to change.
        """
        return score_lists(self, prompts, responses, media_root, max_length, max_pixels, tokens_per_batch)
