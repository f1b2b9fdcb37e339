"""Throughput of sampling: vLLM, batched transformers `generate`, and `generate` one prompt at a time.

    taskset -c 1 python -m benchmarks.sampling

The same prompts with an image each, `n` answers per prompt, at uneven output lengths: each prompt has one of its own
between a quarter of the longest and the longest, as answers have in practice (the model is made to go on to it). Every
way runs in this process on the same number of threads, after a warm-up; start-up is measured apart.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.environment import run_as_worker
from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.engines.chat import ChatPrompt

LENGTHS = (16, 128, 512)
_COLOURS = ("red", "blue", "green", "teal", "brown", "black")


def prompts(count: int, seed: int = 0) -> list[ChatPrompt]:
    """Questions about images of one shape each."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((10, 10, 30 + number % 24, 50), fill=rng.choice(_COLOURS))
        content = [{"type": "image"}, {"type": "text", "text": "what color is the shape?"}]
        made.append(ChatPrompt(str(number), ({"role": "user", "content": content},), (image,)))
    return made


def lengths(count: int, longest: int, seed: int = 0) -> list[int]:
    """A length for each prompt, from a quarter of the longest to the longest, which occurs."""
    rng = random.Random(seed)
    drawn = [rng.randint(max(1, longest // 4), longest) for _ in range(count - 1)]
    return [*drawn, longest]


class Transformers:
    """`generate` of transformers on one batch after the other."""

    def __init__(self, model: str) -> None:
        from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

        ensure_torchvision()
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        self._processor: Any = AutoProcessor.from_pretrained(model)
        self._processor.tokenizer.padding_side = "left"
        loaded: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
        self._model = loaded.to(self._device).eval()

    def generate(self, asked: Sequence[ChatPrompt], wanted: Sequence[int], n: int, batch: int) -> int:
        """Sample `n` answers to each prompt; returns the tokens that were wanted (a batch goes on to its longest)."""
        import torch

        for start in range(0, len(asked), batch):
            some, longest = asked[start : start + batch], max(wanted[start : start + batch])
            words = [
                self._processor.apply_chat_template(list(p.messages), tokenize=False, add_generation_prompt=True)
                for p in some
            ]
            images = [list(p.images) for p in some]
            inputs = self._processor(text=words, images=images, padding=True, return_tensors="pt").to(self._device)
            with torch.inference_mode():
                self._model.generate(
                    **inputs,
                    do_sample=True,
                    temperature=1.0,
                    num_return_sequences=n,
                    max_new_tokens=longest,
                    min_new_tokens=longest,
                )
        return n * sum(wanted)


class Vllm:
    """The pipeline's engine, with answers made to go on to a length."""

    def __init__(self, model: str, max_model_len: int) -> None:
        from dt2it_pipeline.engines.vllm_engine import VllmEngine

        self._engine = VllmEngine(model, max_model_len, 1)

    def generate(self, asked: Sequence[ChatPrompt], wanted: Sequence[int], n: int) -> int:
        """Sample `n` answers to each prompt in one call; returns the tokens."""
        from vllm import SamplingParams

        self._engine._llm.reset_prefix_cache()
        outputs = self._engine._llm.generate(
            [self._engine._vllm_prompt(prompt) for prompt in asked],
            [
                SamplingParams(n=n, seed=place, temperature=1.0, max_tokens=length, min_tokens=length, ignore_eos=True)
                for place, length in enumerate(wanted)
            ],
            use_tqdm=False,
        )
        tokens = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
        assert tokens == n * sum(wanted), (tokens, n * sum(wanted))
        return tokens


def main() -> None:
    """Run all ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32, help="prompts per batch of transformers")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one-at-a-time", type=int, default=4, help="prompts of the slowest way; its time is scaled")
    arguments = parser.parse_args()
    run_as_worker("benchmarks.sampling")
    model, asked, n = model_path(DEMO_BASE_MODEL), prompts(arguments.prompts), arguments.samples
    started = time.perf_counter()
    vllm = Vllm(model, max(LENGTHS) + 256)
    start_up = {"vLLM": time.perf_counter() - started}
    started = time.perf_counter()
    plain = Transformers(model)
    start_up["transformers"] = time.perf_counter() - started
    few = asked[: arguments.one_at_a_time]
    vllm.generate(few, [4] * len(few), n)
    plain.generate(few, [4] * len(few), n, len(few))
    print(
        f"{len(asked)} prompts, {n} answers each; start-up, s: "
        + ", ".join(f"{k} {v:.1f}" for k, v in start_up.items())
    )
    print("| longest output, tokens | mean | way | tokens/s | times one at a time | times batched |")
    print("|---|---|---|---|---|---|")
    for longest in LENGTHS:
        wanted = lengths(len(asked), longest)
        fewer = lengths(len(few), longest)
        ways: dict[str, Callable[[], int]] = {
            "one at a time": partial(plain.generate, few, fewer, n, 1),
            "batched generate": partial(plain.generate, asked, wanted, n, arguments.batch),
            "vLLM": partial(vllm.generate, asked, wanted, n),
        }
        best = dict.fromkeys(ways, 0.0)
        for _ in range(arguments.rounds):  # in turn, so that other work on the machine meets all of them
            for name, way in ways.items():
                began = time.perf_counter()
                tokens = way()
                best[name] = max(best[name], tokens / (time.perf_counter() - began))
        for name, speed in best.items():
            alone, batched = best["one at a time"], best["batched generate"]
            mean = sum(wanted) / len(wanted)
            print(
                f"| {longest} | {mean:.0f} | {name} | {speed:.0f} | {speed / alone:.1f} | {speed / batched:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
