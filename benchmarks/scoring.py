"""Scoring responses: ours, one response at a time with the full LM head, and plain batches without LM head.

    taskset -c 0 python -m benchmarks.scoring

- "one at a time": the processor prepares every conversation, the whole model runs with its LM head over all positions,
  and the reward head reads the last hidden state. This is how scripts around a value head do it.
- "plain batches": 16 conversations at once without LM head, each with its own copy of prompt and picture.
- "ours": `reward.scorer.Scorer`, pictures and prompts once.

Every way runs in a process of its own over the same rows, from text and picture files to scores; memory is the peak of
that process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dt2it_pipeline import records
from dt2it_pipeline.recipe import DEMO_BASE_MODEL, ScoringSettings, model_path

WAYS = ("one at a time", "plain batches", "ours")
SYSTEM = "You are an impartial evaluator. Judge how well the assistant answers the question about the picture."
WORDS = ("the", "shape", "in", "this", "picture", "is", "a", "red", "blue", "circle", "triangle", "and", "it", "looks")

Rows = tuple[dict[str, dict[str, Any]], list[tuple[str, str, str]]]
Way = Callable[[Rows], dict[str, float]]


def make_rows(folder: Path, prompts: int, responses: int) -> Rows:
    """Prompts with a picture each, and responses of 6 to 20 words."""
    from PIL import Image

    generator = np.random.default_rng(0)
    rows: dict[str, dict[str, Any]] = {}
    asked: list[tuple[str, str, str]] = []
    for number in range(prompts):
        blocks = generator.integers(0, 255, size=(8, 8, 3), dtype=np.uint8)
        path = f"{number}.png"
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(folder / path)
        turns = [{"role": "user", "text": f"<image>\nwhat shape is in picture {number}?"}]
        key = records.prompt_id("", turns, [path])
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

    from dt2it_pipeline.reward.model import RewardModel
    from dt2it_pipeline.reward.prompting import load_processor

    processor = load_processor(base)
    head = RewardModel.from_pretrained(checkpoint).head
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()

    def run(rows: Rows) -> dict[str, float]:
        prompts, responses = rows
        scores = {}
        for name, key, text in responses:
            prompt = prompts[key]
            question = prompt["turns"][0]["text"].removeprefix("<image>")
            messages = [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
                {"role": "assistant", "content": text},
            ]
            rendered = processor.apply_chat_template(messages, tokenize=False)
            with Image.open(media / prompt["media"][0]["path"]) as picture:
                inputs = processor(text=[rendered], images=[picture.convert("RGB")], return_tensors="pt")
            with torch.inference_mode():
                out = model(**inputs, output_hidden_states=True, use_cache=False)
                scores[name] = float(head(out.hidden_states[-1][0, -1]))
        return scores

    return run


def plain_batches(checkpoint: Path, media: Path) -> Way:
    """Batches of 16 whole conversations, sorted by length, without LM head."""
    import torch

    from dt2it_pipeline.reward.batch import Row, collate, with_pixels
    from dt2it_pipeline.reward.data import encode_prompts
    from dt2it_pipeline.reward.model import RewardModel
    from dt2it_pipeline.reward.pictures import PictureShelf
    from dt2it_pipeline.reward.prompting import EncodedPrompt, Prompter, load_processor

    processor = load_processor(checkpoint)
    model = RewardModel.from_pretrained(checkpoint).eval()

    def run(rows: Rows) -> dict[str, float]:
        prompts, responses = rows
        shelf = PictureShelf(processor.image_processor, media, 10**9)
        prompter = Prompter(checkpoint, shelf, SYSTEM, processor)
        encoded = encode_prompts(prompter, prompts)
        tokens = prompter.responses([text for _, _, text in responses])
        all_rows = []
        for (name, key, _), ids in zip(responses, tokens, strict=True):
            prompt = encoded[key]
            assert isinstance(prompt, EncodedPrompt)
            all_rows.append((name, Row(prompt, (ids,))))
        all_rows.sort(key=lambda item: len(item[1]))
        scores: dict[str, float] = {}
        with torch.inference_mode():
            for start in range(0, len(all_rows), 16):
                part = all_rows[start : start + 16]
                values = model(with_pixels(collate([row for _, row in part]), shelf, once=False))
                scores.update(zip((name for name, _ in part), values.tolist(), strict=True))
        return scores

    return run


def ours(checkpoint: Path, media: Path, tokens_per_batch: int) -> Way:
    """The scorer of the pipeline."""
    from dt2it_pipeline.reward.scorer import Scorer

    scorer = Scorer(
        checkpoint, media, max_tokens=ScoringSettings().max_tokens, max_pixels=10**9, tokens_per_batch=tokens_per_batch
    )

    def run(rows: Rows) -> dict[str, float]:
        scores, faults = scorer.score(*rows)
        assert not faults, faults
        return scores

    return run


def child(given: argparse.Namespace) -> None:
    """Measure one way and print its figures as JSON."""
    from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    import torch

    from dt2it_pipeline.reward.distributed import flush_denormals

    torch.set_num_threads(given.threads)
    flush_denormals()
    folder = Path(given.folder)
    checkpoint = folder / "checkpoint"
    if given.way == "one at a time":
        run = one_at_a_time(checkpoint, model_path(given.model), folder)
    elif given.way == "plain batches":
        run = plain_batches(checkpoint, folder)
    else:
        run = ours(checkpoint, folder, given.tokens_per_batch)
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    result: dict[str, Any] = {}
    for responses in given.responses:
        rows = make_rows(folder, given.prompts, responses)
        warm = {key: rows[0][key] for key in list(rows[0])[:8]}
        run((warm, [response for response in rows[1] if response[1] in warm]))
        seconds = []
        for _ in range(given.repeats):
            started = clock()
            scores = run(rows)
            seconds.append(clock() - started)
        result[str(responses)] = {"speed": len(rows[1]) / statistics.median(seconds), "scores": scores}
    result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEMO_BASE_MODEL, help="base model folder; `demo` ships with the package")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--responses", type=int, nargs="+", default=[2, 4, 8], help="responses per prompt")
    parser.add_argument("--repeats", type=int, default=5, help="the median counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: time of the process, where others share the core"
    )
    parser.add_argument("--tokens-per-batch", type=int, default=ScoringSettings().tokens_per_batch, help="of ours")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        child(given)
        return
    from dt2it_pipeline.reward.model import RewardModel

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoint").mkdir()
        model = RewardModel.from_pretrained(model_path(given.model))
        model.card["system_prompt"] = SYSTEM
        model.save_pretrained(Path(folder) / "checkpoint")
        found = {}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.scoring", *sys.argv[1:], "--way", way, "--folder", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[way] = json.loads(done.stdout.splitlines()[-1])
    show(found, given.responses)


def show(found: dict[str, Any], counts: list[int]) -> None:
    """Print the table."""
    print("| responses per prompt | way | responses/s | times one at a time | scores differ by | peak memory, MiB |")
    print("|---|---|---|---|---|---|")
    for responses in map(str, counts):
        first = found[WAYS[0]][responses]
        for way in WAYS:
            here = found[way][responses]
            differ = max(abs(here["scores"][name] - value) for name, value in first["scores"].items())
            print(
                f"| {responses} | {way} | {here['speed']:.1f} | {here['speed'] / first['speed']:.1f} | {differ:.1e} "
                f"| {found[way]['memory'] / 2**20:.0f} |"
            )


if __name__ == "__main__":
    main()
