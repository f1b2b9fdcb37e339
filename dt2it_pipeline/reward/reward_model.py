"""The public reward model: the network of modeling/ with a method that scores texts and images as they are.

It has a module of its own because the network stands below the encoding of prompts, and scoring above it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dt2it_pipeline.reward.calibration import Calibration, calibration_of, probability_better
from dt2it_pipeline.reward.modeling.model import RewardNetwork
from dt2it_pipeline.reward.scoring.inputs import score_lists


class RewardModel(RewardNetwork):
    """A reward model for notebooks and scripts: `RewardModel.from_pretrained(path).score(prompts, responses)`."""

    _said_uncalibrated = False

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

        Examples:
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
                or `<video>` marker for each medium, or none, then media come first), and, where there are any,
                `system`, `images` (paths, bytes or images of PIL, in the order of their markers) and `videos` (paths
                of files or of folders of frames). Rows of a prompts table, with `media`, are taken too.
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

    @property
    def calibration(self) -> Calibration | None:
        """The checkpoint's calibration (`dt2it calibrate`); None where it has none.

        Raises:
            CalibrationError: what its reward_model.json holds is damaged.
        """
        return calibration_of(self.card)

    def probability(self, margin: np.ndarray | float) -> np.ndarray:
        """P(the first answer is better) of margins between answers to the same prompt: sigmoid(margin / T).

        T is the checkpoint's temperature. Where it has none, T = 1 is assumed, and a warning says so.

        Args:
            margin: scores of first answers minus scores of second ones.

        Returns:
            float64 of the same shape.
        """
        found = self.calibration
        if found is None and not self._said_uncalibrated:
            self._said_uncalibrated = True
            logging.getLogger(__name__).warning(
                "this checkpoint is not calibrated: T = 1 is assumed, and probabilities may be far off; fit T with "
                "`dt2it calibrate`"
            )
        return probability_better(margin, 1.0 if found is None else found.temperature)

    def compare(
        self, prompts: Sequence[Mapping[str, Any]], first: Sequence[str], second: Sequence[str], **options: Any
    ) -> np.ndarray:
        """P(the first answer is better than the second) of each prompt; see `probability`.

        Examples:
            >>> from dt2it_pipeline import RewardModel
            >>> from dt2it_pipeline.config.paths import model_path
            >>> model = RewardModel.from_pretrained(model_path("demo"), new_head_seed=0)
            >>> question = {"turns": [{"role": "user", "text": "Is the sky blue?"}]}
            >>> one = model.compare([question], ["Yes."], ["No."])[0]
            >>> other = model.compare([question], ["No."], ["Yes."])[0]
            >>> bool(abs(one + other - 1) < 1e-6)
            True

        Args:
            prompts: as for `score`.
            first: an answer to each prompt.
            second: another answer to each prompt.
            options: further arguments of `score`, such as `media_root`.

        Returns:
            float64 [prompts].

        Raises:
            ValueError: the lists differ in length; or as `score`.
        """
        if isinstance(first, str) or isinstance(second, str) or not len(prompts) == len(first) == len(second):
            raise ValueError("first and second are lists with one answer for each prompt")
        scores = self.score(prompts, [list(pair) for pair in zip(first, second, strict=True)], **options)
        return self.probability(np.array([one - other for one, other in scores], dtype=np.float64))
