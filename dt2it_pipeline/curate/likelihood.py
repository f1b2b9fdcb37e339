"""Judging by likelihood: how much more probable does seeing the picture make a response?

    evidence(response) = log p(response | picture, question) - mean over baselines of log p(response | other, question)

The pointwise mutual information of response and picture, with the pictures of other prompts (or a blank one) as
baselines. What makes a response probable by itself (its length, its style, a common answer) stands in both terms and
cancels; what the picture says does not. The mean is that of the logarithms: every picture moves the probability of
every word a little at random, and the logarithm of the mean probability would count that against longer responses.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from PIL import Image

from dt2it_pipeline.engines.chat import ChatPrompt


class LikelihoodError(RuntimeError):
    """A judge's model cannot be loaded."""


@dataclass(frozen=True)
class Question:
    """A prompt, the pictures to measure against (one tuple per baseline), and the responses to weigh."""

    prompt: ChatPrompt
    baselines: tuple[tuple[Image.Image, ...], ...]
    responses: tuple[str, ...]


class LikelihoodModel:
    """A vision-language model of transformers that gives the likelihood of responses.

    Args:
        model: folder or Hub id.
        batch: sequences per forward pass.

    Raises:
        LikelihoodError: the model cannot be loaded.
    """

    def __init__(self, model: str, batch: int) -> None:
        os.environ.setdefault(
            "OMP_WAIT_POLICY", "PASSIVE"
        )  # small kernels: waiting threads would spin most of the time
        from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

        ensure_torchvision()
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        try:
            self._processor: Any = AutoProcessor.from_pretrained(model)
            loaded: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            raise LikelihoodError(f"cannot load the judge's model {model}: {error}") from error
        self._model = loaded.to(self._device).eval()
        inner: Any = getattr(self._model, "model", None)
        if hasattr(inner, "visual"):  # the Qwen-VL family
            from dt2it_pipeline.curate.tower import RememberingTower

            inner.visual = RememberingTower(inner.visual)
        self._processor.tokenizer.padding_side = "left"  # every prompt then ends in the same column
        self._batch = batch

    def evidence(self, questions: Sequence[Question]) -> list[list[float]]:
        """Evidence in nats of each response of each question; NaN where the model gives no number."""
        prompts: list[tuple[ChatPrompt, str]] = []
        for question in questions:
            for images in (question.prompt.images, *question.baselines):
                prompts += [(question.prompt.with_images(images), response) for response in question.responses]
        values = iter(self.log_likelihoods(prompts))
        found: list[list[float]] = []
        for question in questions:
            count = len(question.responses)
            seen = [next(values) for _ in range(count)]
            baselines = [[next(values) for _ in range(count)] for _ in question.baselines]
            found.append([seen[i] - fmean(row[i] for row in baselines) for i in range(count)])
        return found

    def log_likelihoods(self, sequences: Sequence[tuple[ChatPrompt, str]]) -> list[float]:
        """Nats of log p(response, end of turn | prompt), one per (prompt, response)."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][1]))  # little padding
        values = [math.nan] * len(sequences)
        for start in range(0, len(order), self._batch):
            chunk = order[start : start + self._batch]
            for index, value in zip(chunk, self._forward([sequences[i] for i in chunk]), strict=True):
                values[index] = value
        return values

    def _forward(self, chunk: Sequence[tuple[ChatPrompt, str]]) -> list[float]:
        import torch

        template: Callable[..., str] = self._processor.apply_chat_template
        before = [template(list(p.messages), tokenize=False, add_generation_prompt=True) for p, _ in chunk]
        images = [image for prompt, _ in chunk for image in prompt.images]
        prompt = dict(self._processor(text=before, images=images or None, padding=True, return_tensors="pt"))
        # Prompt and response are tokenised apart, as in generation, so that the boundary never merges into one token.
        answers = [self._tokens(text) for _, text in chunk]
        longest = max(len(answer) for answer in answers)
        padded = torch.tensor([answer + [-1] * (longest - len(answer)) for answer in answers])
        here = padded >= 0
        appended = {
            "input_ids": padded.clamp(min=0),
            "attention_mask": here.long(),
            "mm_token_type_ids": here.long() * 0,
        }
        for key, tail in appended.items():
            if key in prompt:
                prompt[key] = torch.cat([prompt[key], tail.to(prompt[key].dtype)], dim=1)
        inputs = {key: value.to(self._device) for key, value in prompt.items()}
        with torch.inference_mode():
            logits = self._model(**inputs, logits_to_keep=longest + 1).logits
        values: list[float] = []
        for row, answer in zip(logits, answers, strict=True):  # one by one: in float32 a large vocabulary fills memory
            each = torch.log_softmax(row[: len(answer)].float(), dim=-1)
            values.append(each.gather(-1, torch.tensor(answer, device=row.device).unsqueeze(-1)).sum().item())
        return values

    def _tokens(self, text: str) -> list[int]:
        """Tokens of a response and the end of its turn; control tokens spelled out in it stay plain text."""
        tokenizer = self._processor.tokenizer
        tokenizer.backend_tokenizer.encode_special_tokens = True
        try:
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        finally:
            tokenizer.backend_tokenizer.encode_special_tokens = False
        return [*ids, tokenizer.eos_token_id]
