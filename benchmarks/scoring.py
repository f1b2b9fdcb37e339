"""Scoring responses: ours, one response at a time with the full LM head, and plain batches without LM head.

    taskset -c 0 python -m benchmarks.scoring

- "one at a time": the processor prepares every conversation, the whole model runs with its LM head over all positions,
  and the reward head reads the last hidden state. This is how scripts around a value head do it.
- "plain batches": 16 conversations at once without LM head, each with its own copy of prompt and image.
- "ours": `reward.scorer.Scorer`, images and prompts once.

Every way goes from text and image files to scores, over the same rows. The ways take turns in one process (A B C A B
C ...), and the ratio is taken within a round, so that a noisy machine meets all alike. Memory is the peak of a process
that runs one way alone, Python and libraries included.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import run_as_worker, spread
from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.storage import content_ids

WAYS = ("one at a time", "plain batches", "ours")
SYSTEM = "You are an impartial evaluator. Judge how well the assistant answers the question about the picture."
WORDS = ("the", "shape", "in", "this", "image", "is", "a", "red", "blue", "circle", "triangle", "and", "it", "looks")

Rows = tuple[dict[str, dict[str, Any]], list[tuple[str, str, str]]]
Way = Callable[[Rows], dict[str, float]]
Scores = dict[str, dict[str, float]]


def make_rows(folder: Path, prompts: int, responses: int) -> Rows:
    """Prompts with an image each, and responses of 6 to 20 words."""
    from PIL import Image

    generator = np.random.default_rng(0)
    rows: dict[str, dict[str, Any]] = {}
    asked: list[tuple[str, str, str]] = []
    for number in range(prompts):
        blocks = generator.integers(0, 255, size=(8, 8, 3), dtype=np.uint8)
        path = f"{number}.png"
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(folder / path)
        turns = [{"role": "user", "text": f"<image>\nwhat shape is in image {number}?"}]
        key = content_ids.prompt_id("", turns, [path])
        media = [{"kind": "image", "sha256": path, "path": path}]
        rows[key] = {"prompt_id": key, "system": "", "turns": turns, "media": media}
        for _ in range(responses):
            text = " ".join(generator.choice(WORDS, size=int(generator.integers(6, 21))))
            asked.append((f"{number:05d}-{len(asked):06d}", key, text))
    return rows, asked


def one_at_a_time(checkpoint: Path, base: str, media: Path) -> Way:
    """The loop around a whole generating model."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText

    from dt2it_pipeline.reward.data.encoding import load_processor
    from dt2it_pipeline.reward.reward_model import RewardModel

    processor = load_processor(base, SYSTEM)
    head = RewardModel.from_pretrained(checkpoint).head
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()

    def run(rows: Rows) -> dict[str, float]:
        prompts, responses = rows
        scores = {}
        for name, key, text in responses:
            prompt = prompts[key]
            question = prompt["turns"][0]["text"].removeprefix("<image>")
            messages = [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
                {"role": "assistant", "content": text},
            ]
            rendered = processor.apply_chat_template(messages, tokenize=False)
            with Image.open(media / prompt["media"][0]["path"]) as image:
                inputs = processor(text=[rendered], images=[image.convert("RGB")], return_tensors="pt")
            with torch.inference_mode():
                out = model(**inputs, output_hidden_states=True, use_cache=False)
                scores[name] = float(head(out.hidden_states[-1][0, -1]))
        return scores

    return run


def plain_batches(checkpoint: Path, media: Path) -> Way:
    """Batches of 16 whole conversations, sorted by length, without LM head."""
    import torch

    from dt2it_pipeline.reward.data.collation import PackedExample, collate, with_pixels
    from dt2it_pipeline.reward.data.encoding import EncodedPrompt, PromptEncoder, load_processor
    from dt2it_pipeline.reward.data.images import ImageRegistry
    from dt2it_pipeline.reward.data.preparation import encode_prompts
    from dt2it_pipeline.reward.reward_model import RewardModel

    processor = load_processor(checkpoint)
    model = RewardModel.from_pretrained(checkpoint).eval()

    def run(rows: Rows) -> dict[str, float]:
        prompts, responses = rows
        registry = ImageRegistry(processor.image_processor, media, None)
        prompt_encoder = PromptEncoder(checkpoint, registry, processor)
        encoded = encode_prompts(prompt_encoder, prompts)
        tokens = prompt_encoder.responses([text for _, _, text in responses])
        all_rows = []
        for (name, key, _), ids in zip(responses, tokens, strict=True):
            prompt = encoded[key]
            assert isinstance(prompt, EncodedPrompt)
            all_rows.append((name, PackedExample(prompt, (ids,))))
        all_rows.sort(key=lambda item: len(item[1]))
        scores: dict[str, float] = {}
        with torch.inference_mode():
            for start in range(0, len(all_rows), 16):
                part = all_rows[start : start + 16]
                values = model(with_pixels(collate([row for _, row in part]), registry, once=False))
                scores.update(zip((name for name, _ in part), values.tolist(), strict=True))
        return scores

    return run


def ours(checkpoint: Path, media: Path, tokens_per_batch: int) -> Way:
    """The scorer of the pipeline."""
    from dt2it_pipeline.reward.scoring.scorer import Scorer

    scorer = Scorer(
        checkpoint, media, max_length=ScoringSettings().max_length, max_pixels=None, tokens_per_batch=tokens_per_batch
    )

    def run(rows: Rows) -> dict[str, float]:
        scores, faults = scorer.score(*rows)
        assert not faults, faults
        return scores

    return run


def build(way: str, given: argparse.Namespace, folder: Path) -> Way:
    """Load what a way needs."""
    checkpoint = folder / "checkpoint"
    if way == "one at a time":
        return one_at_a_time(checkpoint, model_path(given.model), folder)
    if way == "plain batches":
        return plain_batches(checkpoint, folder)
    return ours(checkpoint, folder, given.tokens_per_batch)


def prepare(threads: int) -> None:
    """Set up torch as the pipeline's worker processes do."""
    from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    import torch

    from dt2it_pipeline.reward.training.distributed import flush_denormals

    torch.set_num_threads(threads)
    flush_denormals()


def peak_memory(given: argparse.Namespace) -> None:
    """Run one way over the longest rows and print the peak memory of this process, in bytes."""
    prepare(given.threads)
    folder = Path(given.folder)
    build(given.way, given, folder)(make_rows(folder, given.prompts, max(given.responses)))
    status = Path("/proc/self/status").read_text(encoding="ascii")  # getrusage counts the parent's memory too
    print(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024)


def take_turns(ways: dict[str, Way], rows: Rows, rounds: int) -> tuple[dict[str, list[tuple[float, float]]], Scores]:
    """Seconds of the wall clock and of CPU time by way and round, after one round that does not count; and scores."""
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    scores = {}
    for number in range(rounds + 1):
        for way, run in ways.items():
            before = time.perf_counter(), time.process_time()
            scores[way] = run(rows)
            after = time.perf_counter(), time.process_time()
            if number:
                seconds[way].append((after[0] - before[0], after[1] - before[1]))
    return seconds, scores


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEMO_BASE_MODEL, help="base model folder; `demo` ships with the package")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--responses", type=int, nargs="+", default=[2, 4, 8], help="responses per prompt")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every way; medians count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens-per-batch", type=int, default=ScoringSettings().tokens_per_batch, help="of ours")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    run_as_worker("benchmarks.scoring")
    if given.way:
        peak_memory(given)
        return
    prepare(given.threads)
    from dt2it_pipeline.reward.reward_model import RewardModel

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "checkpoint").mkdir()
        model = RewardModel.from_pretrained(model_path(given.model), new_head_seed=0)
        model.card["system_prompt"] = SYSTEM
        model.save_pretrained(folder / "checkpoint")
        ways = {way: build(way, given, folder) for way in WAYS}
        print(
            "| responses per prompt | way | responses/s | times one at a time, wall clock | the same, CPU time "
            "| scores differ by |\n|---|---|---|---|---|---|"
        )
        for responses in given.responses:
            rows = make_rows(folder, given.prompts, responses)
            show(responses, len(rows[1]), *take_turns(ways, rows, given.rounds))
        print("\n| way | peak memory, MiB |\n|---|---|")
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.scoring", *sys.argv[1:], "--way", way, "--folder", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print(f"| {way} | {int(done.stdout.splitlines()[-1]) / 2**20:.0f} |", flush=True)


def show(responses: int, scored: int, seconds: dict[str, list[tuple[float, float]]], scores: Scores) -> None:
    """Print the rows of one number of responses per prompt."""
    base, expected = seconds[WAYS[0]], scores[WAYS[0]]
    for way in WAYS:
        speed = scored / statistics.median(wall for wall, _ in seconds[way])
        ratios = [spread([b[c] / m[c] for b, m in zip(base, seconds[way], strict=True)]) for c in (0, 1)]
        differ = max(abs(scores[way][name] - value) for name, value in expected.items())
        print(f"| {responses} | {way} | {speed:.1f} | {ratios[0]} | {ratios[1]} | {differ:.1e} |", flush=True)


if __name__ == "__main__":
    main()
