"""Features of images kept on disk: time of an image encoded with others, encoded alone and kept, and read again.

    python -m benchmarks.kept_features                                  # the demo's base model, 512 images
    python -m benchmarks.kept_features --shape qwen3-vl-2b --images 8   # vision encoder of that shape, random weights

An image is read from a JPEG file and scaled down, as a training does. "Together" is what happens at the start of a
training that keeps features in memory (`cache_vision`), or at every step where it does not; "read" is what a training
does with kept features in each later epoch and round. Files have just been written, so that they are read from main
memory; a drive that is read for the first time in days takes what its data sheet says.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.environment import run_as_worker
from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path

_LAYERS, _WORDS = 3, 8192  # of the language model at a public shape, which does nothing here


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEMO_BASE_MODEL, help="base model folder; `demo` ships with the package")
    parser.add_argument("--shape", help="vision encoder of a public shape in place of --model; see benchmarks/gpu")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, nargs=2, default=(960, 720), help="of the images, in pixels")
    parser.add_argument("--max-pixels", type=int, default=268_324)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    run_as_worker("benchmarks.kept_features")
    with tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder), given)


def _measure(folder: Path, given: argparse.Namespace) -> None:
    from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    import numpy as np
    import torch

    from benchmarks.gpu.data import photograph
    from benchmarks.gpu.shapes import SHAPES, write_base
    from dt2it_pipeline.engines.device import found_device
    from dt2it_pipeline.reward.data.encoding import load_processor
    from dt2it_pipeline.reward.data.images import ImageRegistry
    from dt2it_pipeline.reward.data.kept_features import FeatureStore
    from dt2it_pipeline.reward.data.vision_features import encode_images
    from dt2it_pipeline.reward.reward_model import RewardModel
    from dt2it_pipeline.reward.training.distributed import Alone

    base = Path(model_path(given.model))
    if given.shape:
        shape, base = SHAPES[given.shape], folder / "base"
        base.mkdir()
        write_base(base, replace(shape, text=shape.text | {"num_hidden_layers": _LAYERS, "vocab_size": _WORDS}))
    device = found_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    model = RewardModel.from_pretrained(base, new_head_seed=0, device=device).eval()
    processor = load_processor(base, "You judge.")
    (folder / "media").mkdir()
    draw = np.random.default_rng(0)
    rows = []
    for number in range(given.images):
        photograph(draw, tuple(given.size)).save(folder / "media" / f"{number}.jpg", quality=90)
        rows.append({"kind": "image", "sha256": f"{number}", "path": f"{number}.jpg"})
    registry = ImageRegistry(processor.image_processor, folder / "media", given.max_pixels, processor.video_processor)
    images = [registry.add(row) for row in rows]

    def together() -> None:
        encode_images(model, registry, images, device)

    def alone(turn: int) -> FeatureStore:
        store = FeatureStore(model, device, 2.0**50, folder / f"cache-{turn}")
        store.keep(registry, images, Alone())
        return store

    def read(store: FeatureStore) -> None:
        kept, _ = store.keep(registry, images, Alone())
        assert kept is not None
        for index in images:
            kept.table([index], device)

    times: dict[str, list[tuple[float, float]]] = {"together": [], "alone, kept": [], "read": []}
    store = alone(-1)  # what is compiled or allocated once
    for turn in range(given.turns):
        times["together"].append(_timed(together))
        times["alone, kept"].append(_timed(functools.partial(alone, turn)))
        times["read"].append(_timed(lambda: read(store)))
    tokens = registry.images[0].tokens
    size = tokens * store.width * store.dtype.itemsize
    print(f"{given.shape or given.model}, {store.dtype}, {device}: {tokens} tokens an image, {size / 1e6:.2f} MB")
    print(f"\n| way, {given.images} images, medians of {given.turns} turns | ms an image | CPU ms an image |")
    print("|---|---|---|")
    for name, found in times.items():
        wall, busy = (1000 * statistics.median(each) / given.images for each in zip(*found, strict=True))
        print(f"| {name} | {wall:.2f} | {busy:.2f} |")
    sys.stdout.flush()


def _timed(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process."""
    wall, busy = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - busy


if __name__ == "__main__":
    main()
