"""Training steps on lists of K answers in one sequence, against the same pairs one by one: pairs per second.

    taskset -c 0 python -m benchmarks.list_step

Both layouts run in one process, in turn, on the same answers: collation, forward, the losses of all pairs, backward and
AdamW (at learning rate 0, so that losses stay comparable). "pairs" is a training without lists: each of the
K (K - 1) / 2 pairs of a list in a sequence of its own, with its prompt once. The ceiling is the ratio of tokens,
K (K - 1) / 2 (P + 2 R) / (P + K R), for P prompt and R response tokens. The third column of speeds has the loss of
Plackett and Luce instead. Seconds are those that the process computes, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import run_as_worker, spread
from benchmarks.training_step import SHARES, make_rows, prepared
from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.sections.training import LossSettings

LAYOUTS = ("pairs", "pairwise", "plackett_luce")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEMO_BASE_MODEL, help="base model folder; `demo` ships with the package")
    parser.add_argument("--lists", type=int, default=4, help="lists per step")
    parser.add_argument("--answers", type=int, default=4, help="answers of a list")
    parser.add_argument("--tokens", type=int, default=320, help="prompt and one answer together")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each layout; medians count")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    run_as_worker("benchmarks.list_step")
    with tempfile.TemporaryDirectory() as folder:
        measure(given, Path(folder))


def token_ratio(prompt: int, answer: int, answers: int) -> float:
    """Tokens of all pairs of a list one by one, by those of the list.

    >>> token_ratio(256, 64, 2), token_ratio(256, 64, 4)
    (1.0, 4.5)
    """
    return answers * (answers - 1) / 2 * (prompt + 2 * answer) / (prompt + answers * answer)


def comparisons(lists: int, answers: int, layout: str) -> Any:
    """What is known of the answers of a batch: all pairs of every list, whose answers stand from best to worst."""
    import torch

    from dt2it_pipeline.reward.modeling.list_loss import Comparisons

    couples = np.array(list(itertools.combinations(range(answers), 2)))
    count = lists * len(couples)
    numbers, none = torch.arange(count), torch.zeros(0, dtype=torch.int64)
    if layout == "pairs":
        grid, places = 2 * numbers[:, None] + torch.arange(2), 4 * numbers + 1
    else:
        grid = torch.arange(lists * answers).view(lists, answers)
        own = torch.from_numpy(couples[:, 0] * answers + couples[:, 1])
        places = (torch.arange(lists)[:, None] * answers**2 + own).view(-1)
    ranked = layout == "plackett_luce"
    return Comparisons(
        grid=grid,
        places=places,
        strengths=torch.full((count,), torch.nan),
        alone=none if ranked else numbers,
        ranked=numbers if ranked else none,
        choices=grid[:, :-1].reshape(-1) if ranked else none,
    )


def measure(given: argparse.Namespace, folder: Path) -> None:
    """Run and print the table."""
    import torch

    from dt2it_pipeline.reward.data.collation import PackedExample, collate
    from dt2it_pipeline.reward.modeling.list_loss import comparison_losses

    model, registry, images, table, image_token = prepared(given.model, given.lists, given.threads, folder)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=0.0)
    pairs = given.lists * given.answers * (given.answers - 1) // 2
    known = {layout: comparisons(given.lists, given.answers, layout) for layout in LAYOUTS}

    def step(rows: list[Any], layout: str) -> tuple[float, float]:
        started = time.process_time()
        if layout == "pairs":
            rows = [
                PackedExample(row.prompt, both) for row in rows for both in itertools.combinations(row.responses, 2)
            ]
        batch = collate(rows)
        scores = model(batch, table.gather(registry, batch.images)).view(-1)
        settings = LossSettings(lists="plackett_luce" if layout == "plackett_luce" else "pairwise")
        loss = comparison_losses(scores, known[layout], settings)[1].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.process_time() - started, float(loss.detach())

    print(f"{given.lists} lists of {given.answers} answers a step, {given.tokens} tokens, {given.threads} thread(s)\n")
    print("| prompt share | pairs/s as pairs | as lists | Plackett-Luce | gain | token ratio | loss differs |")
    print("|---|---|---|---|---|---|---|")
    for share in SHARES:
        rows = make_rows(registry, image_token, images, given.tokens, share, seed=1, answers=given.answers)
        prompt = len(rows[0].prompt.tokens)
        seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
        losses = {}
        for repeat in range(given.repeats + 1):
            for layout in LAYOUTS:
                took, losses[layout] = step(rows, layout)
                if repeat:
                    seconds[layout].append(took)
        speed = [pairs / statistics.median(seconds[layout]) for layout in LAYOUTS]
        gains = [one / other for one, other in zip(seconds["pairs"], seconds["pairwise"], strict=True)]
        print(
            f"| {share:.0%} | {' | '.join(f'{each:.1f}' for each in speed)} | {spread(gains, 2)} "
            f"| {token_ratio(prompt, given.tokens - prompt, given.answers):.2f} "
            f"| {abs(losses['pairs'] - losses['pairwise']):.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
