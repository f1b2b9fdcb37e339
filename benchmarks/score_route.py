"""Throughput of a reward model: `RewardModel.score` in this process, against the routes of `dt2it serve`.

    python -m benchmarks.score_route CHECKPOINT --world WORLD [--prompts 32] [--responses 16] [--repeats 5]

WORLD is the folder `sources/demo` of the demo's artifact home, for its images and texts. Each way scores the same
responses several times; the table has the median of responses per second, and its ratio to the first line. The server
runs on this machine, so on a CPU both share the cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline_tests.support.served import served


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--responses", type=int, default=16, help="per prompt")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    ensure_torchvision()
    from dt2it_pipeline.reward import RewardModel
    from dt2it_pipeline.serve import RewardClient

    lines = (given.world / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[-given.prompts :]]
    texts = [row[side] for row in rows for side in ("chosen", "rejected")]
    prompts: list[dict[str, Any]] = [
        {
            "turns": [{"role": "user", "text": f"<image>{row['question']}"}],
            "images": [str((given.world / row["image"]).absolute())],
        }
        for row in rows
    ]
    responses = [[texts[(n + k) % len(texts)] for k in range(given.responses)] for n in range(len(rows))]
    model = RewardModel.from_pretrained(given.checkpoint)
    with tempfile.TemporaryDirectory() as work, served(given.checkpoint, Path(work) / "server.log") as url:
        ways: dict[str, Callable[[], Any]] = {
            "RewardModel.score": lambda: model.score(prompts, responses),
            "/score-responses": lambda: RewardClient(url).score(prompts, responses),
            "/classify": lambda: RewardClient(f"{url}/classify").score(prompts, responses),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(given.repeats + 1):  # the ways in turn, so that what else runs here slows all of them
            for way, score in ways.items():
                started = time.perf_counter()
                score()
                rates[way].append(given.prompts * given.responses / (time.perf_counter() - started))
    medians = {way: statistics.median(found[1:]) for way, found in rates.items()}  # without the first, which warms up
    first = medians["RewardModel.score"]
    print("| way | responses per second | ratio |\n| --- | ---: | ---: |")
    for way, rate in medians.items():
        print(f"| {way} | {rate:.1f} | {rate / first:.2f} |")


if __name__ == "__main__":
    main()
