"""Teaches the demo's base model to rewrite: `python -m dt2it_pipeline.demo.build_rewriter --output FOLDER`.

The result is of use in the demo's small world alone. Asked with the pipeline's own prompt (`configs/prompts/restyle`),
it puts a plain or verbose answer to a question for the shape into one plain sentence, and keeps what it says, right or
wrong. That takes half a minute on a CPU core, and lets rewriting (`pairing.restyle`) be seen to keep pairs where no
large model is available.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.construct.restyle import RESTYLE
from dt2it_pipeline.demo import language
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.judges.protocol import JudgeRequest
from dt2it_pipeline.judges.templates import load_template

STYLE = "one plain sentence"  # what `pairing.restyle.style` has to say for this rewriter
_PLAIN = 0.3  # share of answers that are plain already
_NOT_LEARNT = -100
STEPS = 80

Example = tuple[list[int], list[int]]  # tokens of a prompt behind its constant beginning, and of the reply


def prompt_text(question: str, text: str) -> str:
    """What the rewriter is asked, in the form of the base model's chat template."""
    turns = [{"role": "user", "text": question}]
    request = JudgeRequest({"turns": turns, "reference": None, "media": []}, (text,), RESTYLE)
    words = load_template(RESTYLE, "en").render(request, {"style": STYLE})
    return f"<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n"


def draw(rng: random.Random) -> tuple[str, str, str]:
    """A question, an answer to it in either style, right or wrong, and the one sentence that says the same."""
    color, shape = rng.choice(language.COLORS), rng.choice(language.SHAPES)
    question, answer = language.make_question("shape", color, shape, rng)
    if rng.random() < 0.5:
        answer = language.wrong_answer(question, answer, rng)
    style: language.Style = "plain" if rng.random() < _PLAIN else "verbose"
    return question, language.answer_in_style(style, question, answer, rng), f"The shape is a {answer}."


class Pupil:
    """The base model and how it is taught.

    All prompts begin alike (the instruction). That part is read once per step, without a gradient, and every example
    goes on from there; so a step costs what its questions and answers cost.
    """

    def __init__(self, seed: int) -> None:
        ensure_torchvision()
        import torch
        from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

        torch.manual_seed(seed)
        base = model_path(DEMO_BASE_MODEL)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self.model: Any = Qwen3VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
        self._text: Any = self.model.model.language_model
        self._usual = self._text.config._attn_implementation
        self._text.set_attn_implementation("eager")  # on a CPU its backward pass is the fastest
        self._rng = random.Random(seed + 1)
        first = "=== QUESTION"  # what follows differs: the mark of the call
        whole = prompt_text("", "")
        self._beginning = self._ids(whole[: whole.index(first) + len(first)])

    def train(self, steps: int, batch: int, learning_rate: float) -> None:
        """Teach it; prints the loss now and then."""
        import torch
        from torch import nn

        from dt2it_pipeline.demo.training import descend, schedule

        parameters = [*self._text.parameters(), *self.model.lm_head.parameters()]
        optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        rates = schedule(optimizer, steps, warmup=min(50, steps // 5))
        started = time.monotonic()
        self._text.train()
        for step, examples in zip(range(steps), self._batches(batch), strict=False):
            logits, wanted = self._forward(examples)
            loss = nn.functional.cross_entropy(logits, wanted)
            descend(loss, parameters, optimizer, rates)
            if step % 25 == 24:
                elapsed = time.monotonic() - started
                print(f"rewriter {step + 1}/{steps} loss {loss.item():.4f} {elapsed:.0f} s", flush=True)
        self._text.eval()

    def exact(self, count: int, seed: int) -> float:
        """Share of unseen answers whose sentence it would write to the letter, each token given those before it."""
        import torch

        rng, right = random.Random(seed), 0
        with torch.inference_mode():
            for example in (self._example(rng) for _ in range(count)):
                logits, wanted = self._forward([example])
                right += bool((logits.argmax(-1) == wanted).all())
        return right / count

    def save(self, folder: Path) -> None:
        """Write a folder that transformers and vLLM load; what is not learned is the base model's."""
        self._text.set_attn_implementation(self._usual)
        shutil.copytree(model_path(DEMO_BASE_MODEL), folder, ignore=shutil.ignore_patterns("README.md"))
        self.model.bfloat16().save_pretrained(folder)

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def _example(self, rng: random.Random) -> Example:
        question, text, sentence = draw(rng)
        prompt = self._ids(prompt_text(question, text))
        start = len(self._beginning)
        assert prompt[:start] == self._beginning
        # Without blanks, as the engine constrains replies.
        reply = json.dumps({"text": sentence}, separators=(",", ":"))
        return prompt[start:], [*self._ids(reply), self.tokenizer.eos_token_id]

    def _batches(self, size: int) -> Iterator[list[Example]]:
        """Endless batches of examples of about equal length."""
        while True:
            pool = sorted((self._example(self._rng) for _ in range(8 * size)), key=lambda example: len(example[0]))
            chunks = [pool[at : at + size] for at in range(0, len(pool), size)]
            self._rng.shuffle(chunks)
            yield from chunks

    def _forward(self, examples: list[Example]) -> tuple[Any, Any]:
        """Logits [N, vocabulary] and tokens [N] of all replies."""
        import torch
        from transformers import DynamicCache

        longest = max(len(prompt) + len(reply) for prompt, reply in examples)
        ids = torch.full((len(examples), longest), self.tokenizer.pad_token_id)
        labels = torch.full((len(examples), longest), _NOT_LEARNT)
        for row, (prompt, reply) in enumerate(examples):
            end = len(prompt) + len(reply)
            ids[row, :end] = torch.tensor(prompt + reply)
            labels[row, len(prompt) : end] = torch.tensor(reply)
        start = len(self._beginning)
        cache = DynamicCache()
        with torch.no_grad():
            first = torch.arange(start).expand(3, 1, -1)
            self._text(torch.tensor([self._beginning]), position_ids=first, past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(examples))
        places = torch.arange(start, start + longest).expand(3, len(examples), -1)
        # Padding stands last, so causal attention needs no mask.
        hidden = self._text(ids, position_ids=places, past_key_values=cache, use_cache=True).last_hidden_state
        wanted = labels[:, 1:]
        known = wanted != _NOT_LEARNT
        return self.model.lm_head(hidden[:, :-1][known]), wanted[known]


def build(
    output: Path,
    seed: int = 0,
    steps: int = STEPS,
    batch: int = 8,
    learning_rate: float = 3e-3,
) -> float:
    """Teach a rewriter and store it in `output`, which must not be there; returns `Pupil.exact` of 50 answers."""
    pupil = Pupil(seed)
    pupil.train(steps, batch, learning_rate)
    exact = pupil.exact(50, seed + 2)
    pupil.save(output)
    return exact


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dt2it_pipeline.demo.build_rewriter",
        description="Teach the demo's base model to rewrite answers into a plain sentence.",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not be there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps")
    given = parser.parse_args()
    print(f"exact on unseen answers: {build(given.output, given.seed, given.steps):.1%}")


if __name__ == "__main__":
    main()
