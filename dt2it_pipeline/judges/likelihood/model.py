"""Judging by likelihood: how much more probable does seeing the image make a response?

    evidence(response) = log p(response | image, question) - mean over baselines of log p(response | other, question)

The pointwise mutual information of response and image, with the images of other prompts (or a blank one) as
baselines. What makes a response probable by itself (its length, its style, a common answer) stands in both terms and
cancels; what the image says does not. The mean is that of the logarithms: every image moves the probability of
every word a little at random, and the logarithm of the mean probability would count that against longer responses.

Two more measures, on a scale of their own, need no baselines:

    mean_log_likelihood(response) = log p(response | image, question) / number of its tokens

the length-normalised likelihood (SimPO, arXiv 2405.14734, uses it as a reward), and

    P(yes) = p(yes words) / (p(yes words) + p(no words)), each the next token after a question that yes or no answers

as VQAScore (arXiv 2404.01291) and P(True) (arXiv 2207.05221) have it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

from PIL import Image

from dt2it_pipeline.engines.chat import ChatPrompt
from dt2it_pipeline.engines.control_tokens import OwnControlTokens
from dt2it_pipeline.errors import UserError

YES, NO = ("Yes", "yes", "是"), ("No", "no", "否")  # as a model may begin its answer, whatever the language


class LikelihoodError(UserError, RuntimeError):
    """A judge's model cannot be loaded, or cannot answer yes or no."""

    help_page: ClassVar[str] = "troubleshooting#likelihood-judge"


@dataclass(frozen=True)
class Question:
    """A prompt, the images to measure against (one tuple per baseline), and the responses to weigh."""

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
            made: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype, output_loading_info=True)
        except (OSError, ValueError, KeyError) as error:
            raise LikelihoodError(f"cannot load the judge's model {model}: {error}") from error
        loaded, report = made
        if missing := sorted(report["missing_keys"]):  # drawn at random; a reward model has no language-model head
            raise LikelihoodError(
                f"{model} lacks weights of a language model ({', '.join(missing[:3])}), so its likelihoods mean "
                "nothing; name the base model, and a reward model as a voter"
            )
        self._model = loaded.to(self._device).eval()
        inner: Any = getattr(self._model, "model", None)
        if hasattr(inner, "visual"):  # the Qwen-VL family
            from dt2it_pipeline.judges.likelihood.vision_cache import RememberingVisionEncoder

            inner.visual = RememberingVisionEncoder(inner.visual)
        self._processor.tokenizer.padding_side = "left"  # every prompt then ends in the same column
        self._control_tokens = OwnControlTokens(self._processor.tokenizer)
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

    def mean_log_likelihoods(self, sequences: Sequence[tuple[ChatPrompt, str]]) -> list[float]:
        """Nats per token of log p(response, end of turn | prompt), one per (prompt, response)."""
        values = self.log_likelihoods(sequences)
        return [value / len(self._tokens(text)) for value, (_, text) in zip(values, sequences, strict=True)]

    def yes_and_no(self) -> tuple[list[int], list[int]]:
        """Tokens that begin a yes, and those that begin a no. Raises LikelihoodError where one begins both."""
        yes, no = (sorted({self._tokens(word)[0] for word in words}) for words in (YES, NO))
        if shared := set(yes) & set(no):
            raise LikelihoodError(f"the model begins yes and no with the same token {shared}: it cannot be asked so")
        return yes, no

    def yes_probabilities(self, prompts: Sequence[ChatPrompt]) -> list[float]:
        """P(yes) of each question, 0 to 1; NaN where the model gives no number.

        Raises:
            LikelihoodError: the model has no separate tokens for yes and no.
        """
        import torch

        first = [torch.tensor(tokens) for tokens in self.yes_and_no()]
        order = sorted(range(len(prompts)), key=lambda i: len(str(prompts[i].messages)))  # little padding
        values = [math.nan] * len(prompts)
        for start in range(0, len(order), self._batch):
            some = order[start : start + self._batch]
            inputs = {key: value.to(self._device) for key, value in self._inputs([prompts[i] for i in some]).items()}
            with torch.inference_mode():
                logits = self._model(**inputs, logits_to_keep=1).logits[:, -1].float()
            yes, no = (logits[:, tokens.to(logits.device)].logsumexp(-1) for tokens in first)
            for index, value in zip(some, torch.sigmoid(yes - no).tolist(), strict=True):
                values[index] = value
        return values

    def _inputs(self, prompts: Sequence[ChatPrompt]) -> dict[str, Any]:
        """What the model reads of prompts, padded on the left, up to where it begins to answer."""
        template: Callable[..., str] = self._processor.apply_chat_template
        asked = [self._control_tokens.broken_in(prompt.messages) for prompt in prompts]
        before = [template(messages, tokenize=False, add_generation_prompt=True) for messages in asked]
        images = [image for prompt in prompts for image in prompt.images]
        return dict(self._processor(text=before, images=images or None, padding=True, return_tensors="pt"))

    def _forward(self, chunk: Sequence[tuple[ChatPrompt, str]]) -> list[float]:
        import torch

        prompt = self._inputs([each for each, _ in chunk])
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
