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

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, TypeVar

from PIL import Image

from dt2it_pipeline.engines.chat import ChatPrompt, fit_pixels
from dt2it_pipeline.engines.control_tokens import OwnControlTokens
from dt2it_pipeline.errors import UserError

_Inputs = TypeVar("_Inputs")
YES, NO = ("Yes", "yes", "是"), ("No", "no", "否")  # as a model may begin its answer, whatever the language


class LikelihoodError(UserError, RuntimeError):
    """A judge's model cannot be loaded, or cannot answer yes or no."""

    help_page: ClassVar[str] = "troubleshooting#likelihood-judge"


class SequenceMemoryError(LikelihoodError):
    """Memory does not suffice for one sequence; it may for others."""


@dataclass(frozen=True)
class Question:
    """A prompt, the images to measure against (one tuple per baseline), and the responses to weigh."""

    prompt: ChatPrompt
    baselines: tuple[tuple[Image.Image, ...], ...]
    responses: tuple[str, ...]


class LikelihoodModel:
    """A vision-language model of transformers that gives the likelihood of responses.

    Sequences of similar length share a forward pass. While a GPU computes one, a thread prepares the next. Where memory
    does not suffice for a pass, it is split in halves; results differ by rounding alone.

    Args:
        model: folder or Hub id.
        tokens_per_batch: most tokens of one forward pass, padding included.
        precision: number format of the weights: float32, bfloat16, or auto for what suits the device.
        max_pixels: larger images are scaled down to this; None: to what the model's image processor allows.

    Raises:
        LikelihoodError: the model cannot be loaded.
        DeviceError: the device does not compute in this format.
    """

    def __init__(
        self, model: str, tokens_per_batch: int, precision: str = "auto", max_pixels: int | None = None
    ) -> None:
        os.environ.setdefault(
            "OMP_WAIT_POLICY", "PASSIVE"
        )  # small kernels: waiting threads would spin most of the time
        from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

        ensure_torchvision()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from dt2it_pipeline.engines.device import found_device, weight_type

        if Path(model).is_absolute() and not Path(model).is_dir():  # transformers would speak of ids of the Hub
            raise LikelihoodError(f"cannot load the judge's model: there is no folder {model}")
        self._device = found_device()
        dtype = weight_type(precision, self._device)
        try:
            self._processor: Any = AutoProcessor.from_pretrained(model)
            made: Any = AutoModelForImageTextToText.from_pretrained(
                model, dtype=dtype, output_loading_info=True,
                device_map=None if self._device.type == "cpu" else {"": self._device},
            )  # fmt: skip
        except (OSError, ValueError, KeyError) as error:
            raise LikelihoodError(f"cannot load the judge's model {model}: {error}") from error
        loaded, report = made
        if missing := sorted(report["missing_keys"]):  # drawn at random; a reward model has no language-model head
            raise LikelihoodError(
                f"{model} lacks weights of a language model ({', '.join(missing[:3])}), so its likelihoods mean "
                "nothing; name the base model, and a reward model as a voter"
            )
        self._model = loaded.eval()
        inner: Any = getattr(self._model, "model", None)
        self._read_here: tuple[str, ...] = ()
        if hasattr(inner, "visual"):  # the Qwen-VL family
            from dt2it_pipeline.judges.likelihood.vision_cache import RememberingVisionEncoder

            inner.visual = RememberingVisionEncoder(inner.visual)
            # It looks there whether an image is new, and the model how many tokens each has.
            self._read_here = ("pixel_values", "image_grid_thw")
        self._processor.tokenizer.padding_side = "left"  # every prompt then ends in the same column
        self._control_tokens = OwnControlTokens(self._processor.tokenizer)
        self._tokens_per_batch, self._max_pixels = tokens_per_batch, max_pixels
        self._halved = False

    def evidence(self, questions: Sequence[Question]) -> list[list[float]]:
        """Evidence in nats of each response of each question; NaN where the model gives no number.

        Raises:
            SequenceMemoryError: memory does not suffice for one sequence.
        """
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
        """Nats of log p(response, end of turn | prompt), one per (prompt, response).

        Raises:
            SequenceMemoryError: memory does not suffice for one sequence.
        """
        fitted = self._fitted([prompt for prompt, _ in sequences])
        sequences = [(prompt, text) for prompt, (_, text) in zip(fitted, sequences, strict=True)]
        # Prompt and response are tokenised apart, as in generation, so that the boundary never merges into one token.
        answers = {text: self._tokens(text) for _, text in sequences}
        lengths = self._prompt_lengths([prompt for prompt, _ in sequences])

        def prepare(chunk: list[int]) -> tuple[dict[str, Any], list[list[int]]]:
            some = [sequences[index] for index in chunk]
            tokens = [answers[text] for _, text in some]
            return self._placed(self._answered(self._inputs([prompt for prompt, _ in some]), tokens)), tokens

        totals = [length + len(answers[text]) for length, (_, text) in zip(lengths, sequences, strict=True)]
        return self._computed(totals, prepare, lambda prepared: self._forward(*prepared))

    def mean_log_likelihoods(self, sequences: Sequence[tuple[ChatPrompt, str]]) -> list[float]:
        """Nats per token of log p(response, end of turn | prompt), one per (prompt, response).

        Raises:
            SequenceMemoryError: memory does not suffice for one sequence.
        """
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
            SequenceMemoryError: memory does not suffice for one sequence.
        """
        import torch

        first = [torch.tensor(tokens, device=self._device) for tokens in self.yes_and_no()]
        prompts = self._fitted(prompts)

        def prepare(chunk: list[int]) -> dict[str, Any]:
            return self._placed(self._inputs([prompts[index] for index in chunk]))

        def compute(inputs: dict[str, Any]) -> list[float]:
            with torch.inference_mode():
                logits = self._model(**self._there(inputs), logits_to_keep=1).logits[:, -1].float()
            yes, no = (logits[:, tokens].logsumexp(-1) for tokens in first)
            found: list[float] = torch.sigmoid(yes - no).tolist()
            return found

        return self._computed(self._prompt_lengths(prompts), prepare, compute)

    def _computed(
        self,
        lengths: Sequence[int],
        prepare: Callable[[list[int]], _Inputs],
        compute: Callable[[_Inputs], list[float]],
    ) -> list[float]:
        """A number of each sequence; on a GPU the inputs of a pass are read ahead.

        Args:
            lengths: tokens of each sequence.
            prepare: makes the inputs of a pass from the places of its sequences.
            compute: gives the numbers of the sequences of a pass.
        """
        from dt2it_pipeline.engines.device import read_ahead, threads_for

        alone = threading.Lock()  # a tokenizer cannot be used by two threads at once

        def prepared(places: list[int]) -> _Inputs:
            with alone:
                return prepare(places)

        values = [math.nan] * len(lengths)
        passes = batches(lengths, self._tokens_per_batch)
        for places, inputs in read_ahead(passes, prepared, min(1, threads_for(self._device))):
            for place, value in self._in_parts(places, inputs, lengths, prepared, compute):
                values[place] = value
        return values

    def _in_parts(
        self,
        places: list[int],
        inputs: _Inputs,
        lengths: Sequence[int],
        prepare: Callable[[list[int]], _Inputs],
        compute: Callable[[_Inputs], list[float]],
    ) -> Iterator[tuple[int, float]]:
        """Places of the sequences of a pass with their numbers; where memory does not suffice, in halves."""
        import torch

        from dt2it_pipeline.observe.memory import ran_out

        try:
            yield from zip(places, compute(inputs), strict=True)
            return
        except Exception as error:
            if not ran_out(error):
                raise
            if len(places) == 1:
                now = self._max_pixels or "what its image processor allows"
                raise SequenceMemoryError(
                    f"{self._memory()} does not suffice for one sequence of {lengths[places[0]]:,} tokens (a prompt "
                    "with its images and a response). It had a pass to itself, so that a smaller tokens_per_batch does "
                    f"not help: lower max_pixels of this judge (now {now}), or name a smaller model"
                ) from error
        torch.cuda.empty_cache()  # outside the handler, which keeps what the failed pass has allocated
        if not self._halved:
            self._halved = True
            logging.getLogger(__name__).warning(
                "%s does not suffice for a batch of %s tokens, which is split in halves; a smaller tokens_per_batch of "
                "this judge saves the attempts",
                self._memory(),
                f"{len(places) * max(lengths[place] for place in places):,}",
            )
        middle = len(places) // 2
        for half in (places[:middle], places[middle:]):
            yield from self._in_parts(half, prepare(half), lengths, prepare, compute)

    def _memory(self) -> str:
        return "the GPU's memory" if self._device.type == "cuda" else "this machine's memory"

    def _fitted(self, prompts: Sequence[ChatPrompt]) -> Sequence[ChatPrompt]:
        """Prompts with images of at most `max_pixels`, each of which is scaled once however many prompts show it."""
        if self._max_pixels is None:
            return prompts
        images = {id(image): image for prompt in prompts for image in prompt.images}
        made = {key: fit_pixels(image, self._max_pixels) for key, image in images.items()}
        return [prompt.with_images([made[id(image)] for image in prompt.images]) for prompt in prompts]

    def _prompt_lengths(self, prompts: Sequence[ChatPrompt]) -> list[int]:
        """Tokens of each prompt, with those of its images as the image processor will cut them."""
        texts = self._rendered(prompts)
        # What transformers' processors of the Qwen-VL family have; of another family an image counts a token per 28².
        patches = getattr(self._processor.image_processor, "get_number_of_image_patches", None)
        merged = getattr(self._processor.image_processor, "merge_size", 1) ** 2
        found = []
        for text, prompt in zip(texts, prompts, strict=True):
            length = len(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])
            for image in prompt.images:
                try:
                    length += (
                        patches(image.height, image.width) // merged if patches else image.height * image.width // 784
                    )
                except ValueError:
                    continue  # a shape that the processor refuses; it says so when it comes to it
            found.append(length)
        return found

    def _rendered(self, prompts: Sequence[ChatPrompt]) -> list[str]:
        """Prompts as the chat template words them, up to where the model begins to answer."""
        template: Callable[..., str] = self._processor.apply_chat_template
        asked = [self._control_tokens.broken_in(prompt.messages) for prompt in prompts]
        return [template(messages, tokenize=False, add_generation_prompt=True) for messages in asked]

    def _inputs(self, prompts: Sequence[ChatPrompt]) -> dict[str, Any]:
        """What the model reads of prompts, padded on the left, up to where it begins to answer."""
        images = [image for prompt in prompts for image in prompt.images]
        read = self._processor(text=self._rendered(prompts), images=images or None, padding=True, return_tensors="pt")
        return dict(read)

    def _placed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs with their positions. On a GPU the model would wait for it several times for each sequence."""
        place: Callable[..., Any] | None = getattr(getattr(self._model, "model", None), "get_rope_index", None)
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        if place is not None and all(name in inputs for name in names):
            inputs["position_ids"] = place(**{name: inputs[name] for name in names})[0]
        return inputs

    def _there(self, inputs: dict[str, Any]) -> dict[str, Any]:
        from dt2it_pipeline.engines.device import copied

        return {key: value if key in self._read_here else copied(value, self._device) for key, value in inputs.items()}

    @staticmethod
    def _answered(prompt: dict[str, Any], answers: Sequence[list[int]]) -> dict[str, Any]:
        """Inputs of prompts with the tokens of an answer behind each, padded on the right."""
        import torch

        longest = max(map(len, answers))
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
        return prompt

    def _forward(self, inputs: dict[str, Any], answers: Sequence[list[int]]) -> list[float]:
        """Nats of the answers with which the sequences end."""
        import torch

        from dt2it_pipeline.engines.device import copied

        with torch.inference_mode():
            logits = self._model(**self._there(inputs), logits_to_keep=max(map(len, answers)) + 1).logits
        values: list[torch.Tensor] = []
        for row, answer in zip(logits, answers, strict=True):  # one by one: in float32 a large vocabulary fills memory
            each = torch.log_softmax(row[: len(answer)].float(), dim=-1)
            values.append(each.gather(-1, copied(torch.tensor(answer), row.device).unsqueeze(-1)).sum())
        found: list[float] = torch.stack(values).tolist()  # waits for the device once
        return found

    def _tokens(self, text: str) -> list[int]:
        """Tokens of a response and the end of its turn; control tokens spelled out in it stay plain text."""
        tokenizer = self._processor.tokenizer
        tokenizer.backend_tokenizer.encode_special_tokens = True
        try:
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        finally:
            tokenizer.backend_tokenizer.encode_special_tokens = False
        return [*ids, tokenizer.eos_token_id]


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of sequences that share a forward pass: of similar length, `most` tokens at most, padding included.

    >>> list(batches([3, 9, 4, 20, 3], 12))
    [[0, 4, 2], [1], [3]]
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        if batch and lengths[place] * (len(batch) + 1) > most:  # all are as long as this one, the longest so far
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
