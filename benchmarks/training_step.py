"""Training steps with shared prefixes against concatenated pairs: pairs per second, at several shares of prompt tokens.

    taskset -c 0 python -m benchmarks.training_step

Both layouts run in one process, in turn, on the same pairs: collation, forward, Bradley-Terry loss, backward and AdamW
(at learning rate 0, so that losses stay comparable). "concatenated" is what public trainers do: chosen and rejected as
two sequences. The ceiling is the ratio of tokens, 2 (P + R) / (P + 2 R), for P prompt and R response tokens.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import run_as_worker, spread
from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path

SHARES = (0.5, 0.8, 0.95)
SIDE = 128  # pixels; every prompt shows one square image


def make_rows(
    registry: Any, image_token: int, images: list[int], length: int, share: float, seed: int, answers: int = 2
) -> list[Any]:
    """Prompts with answers; a prompt has `share` of the `length` tokens of it and one answer, an image among them."""
    from dt2it_pipeline.reward.data.collation import PackedExample
    from dt2it_pipeline.reward.data.encoding import EncodedPrompt, mrope_positions

    generator = np.random.default_rng(seed)
    prompt_tokens = round(length * share)
    rows = []
    for image in images:
        shown = registry.images[image]
        text = generator.integers(10, 200, size=prompt_tokens - shown.tokens + 1).astype(np.int32)
        text[4] = image_token
        tokens = np.repeat(text, np.where(np.arange(len(text)) == 4, shown.tokens, 1))
        positions, after = mrope_positions(len(text), np.array([4]), [shown.grid], registry.merge)
        slots = np.flatnonzero(tokens == image_token).astype(np.int32)
        prompt = EncodedPrompt(tokens, positions, after, slots, (image,))
        sides = (generator.integers(10, 200, size=length - prompt_tokens).astype(np.int32) for _ in range(answers))
        rows.append(PackedExample(prompt, tuple(sides)))
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEMO_BASE_MODEL, help="base model folder; `demo` ships with the package")
    parser.add_argument("--pairs", type=int, default=8, help="pairs per step")
    parser.add_argument("--tokens", type=int, default=320, help="prompt and response together")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each layout; medians count")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    run_as_worker("benchmarks.training_step")
    with tempfile.TemporaryDirectory() as folder:
        measure(given, Path(folder))


def prepared(name: str, prompts: int, threads: int, folder: Path) -> tuple[Any, Any, list[int], Any, int]:
    """Model, registry, an image for each prompt, the vision encoder's output for these, and the image token's id."""
    import torch
    from PIL import Image

    from dt2it_pipeline.reward.data.encoding import load_processor
    from dt2it_pipeline.reward.data.images import ImageRegistry
    from dt2it_pipeline.reward.data.patches import read_patches
    from dt2it_pipeline.reward.data.vision_features import FeatureTable, encode_patches
    from dt2it_pipeline.reward.reward_model import RewardModel
    from dt2it_pipeline.reward.training.distributed import flush_denormals

    torch.set_num_threads(threads)
    flush_denormals()
    base = model_path(name)
    model = RewardModel.from_pretrained(base, new_head_seed=0)
    model.freeze_vision()
    processor = load_processor(base)
    registry = ImageRegistry(processor.image_processor, folder, None)
    generator = np.random.default_rng(0)
    images = []
    for number in range(prompts):
        noise = generator.integers(0, 255, size=(SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        images.append(registry.add({"kind": "image", "sha256": str(number), "path": f"{number}.png"}))
    cpu = torch.device("cpu")
    encoded, _ = encode_patches(model, registry, read_patches(registry, images, cpu), cpu)
    starts = dict(zip(encoded, np.cumsum([0, *(len(part) for part in encoded.values())])[:-1].tolist(), strict=True))
    table = FeatureTable(torch.cat(list(encoded.values())), starts)
    return model, registry, images, table, int(processor.image_token_id)


def measure(given: argparse.Namespace, folder: Path) -> None:
    """Run and print the table."""
    import torch

    from dt2it_pipeline.reward.data.collation import PackedExample, collate, with_pixels
    from dt2it_pipeline.reward.modeling.loss import bradley_terry

    model, registry, images, table, image_token = prepared(given.model, given.pairs, given.threads, folder)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=0.0)

    def step(rows: list[Any], shared: bool, cached: bool) -> tuple[float, float]:
        started = time.perf_counter()
        if not shared:
            rows = [PackedExample(row.prompt, (response,)) for row in rows for response in row.responses]
        batch = collate(rows)
        features = table.gather(registry, batch.images) if cached else None
        if not cached:
            batch = with_pixels(batch, registry, once=shared)
        scores = model(batch, features).view(-1, 2)
        loss = bradley_terry(scores[:, 0], scores[:, 1]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started, float(loss.detach())

    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{parameters:,} parameters, {given.pairs} pairs of {given.tokens} tokens a step, {given.threads} thread(s)\n"
    )
    print(
        "| prompt share | vision | separate, pairs/s | shared, pairs/s | gain | token ratio | reached | loss differs |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for cached in (True, False):
        for share in SHARES:
            rows = make_rows(registry, image_token, images, given.tokens, share, seed=1)
            prompt = len(rows[0].prompt.tokens)
            answer = given.tokens - prompt
            ratio = 2 * (prompt + answer) / (prompt + 2 * answer)
            seconds: dict[bool, list[float]] = {True: [], False: []}
            losses = {}
            for repeat in range(given.repeats + 1):
                for shared in (False, True):
                    took, losses[shared] = step(rows, shared, cached)
                    if repeat:
                        seconds[shared].append(took)
            speed = {shared: given.pairs / statistics.median(times) for shared, times in seconds.items()}
            gains = [separate / shared for separate, shared in zip(seconds[False], seconds[True], strict=True)]
            reached = statistics.median(gains) / ratio
            print(
                f"| {share:.0%} | {'cached' if cached else 'every step'} | {speed[False]:.2f} | {speed[True]:.2f} "
                f"| {spread(gains, 2)} | {ratio:.2f} | {reached:.0%} | {abs(losses[True] - losses[False]):.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
