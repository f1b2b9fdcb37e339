"""Harm to clean labels: what curation makes of labels of which 0, 2 or 5% are wrong, in simulated worlds.

    python -m benchmarks.simulated.harm

Three voters that err alike are each right in 60 to 99% of the pairs, with margins of every shape. Nothing is known, or
an audit of fifty pairs, or 200 trusted pairs.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.real_noise.duel import one_thread
from benchmarks.real_noise.measures import difference, resample_counts
from benchmarks.simulated.worlds import SHAPES, World, answers

NOISE, VOTERS = (0.0, 0.02, 0.05), (0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
ANCHORS = ("none", "audit", "trusted")
_AUDITED, _TRUSTED = 50, 200


def cleaned(world: World, anchor: str) -> dict[str, Any]:
    """What becomes of a world's labels."""
    from dt2it_pipeline import clean_preferences
    from dt2it_pipeline.human_review.audit_sample import draw_audit

    table, right = world.made()
    scores = [f"v{place}" for place in range(world.voters)]
    known: dict[str, Any] = {}
    if anchor == "audit":
        drawn = draw_audit(table[["pair_id"]], min(_AUDITED, world.pairs // 2), world.seed)["pair_id"]
        known["audit"] = answers(drawn, right, 1.0, world.seed)
    elif anchor == "trusted":
        more, _ = World(_TRUSTED, world.voters, 1.0, world.voter, world.shape, "even", world.seed + 10_000).made()
        known["trusted"] = more.assign(pair_id="t" + more["pair_id"])
    found = clean_preferences(table, chosen_scores=scores, rejected_scores=["other"] * len(scores), **known).pairs
    stays, flipped = (found["outcome"] != "dropped").to_numpy(), (found["outcome"] == "flipped").to_numpy()
    good, every = right ^ flipped, np.ones(len(right), dtype=bool)
    change = difference(good, stays, right, every, resample_counts(len(right), world.seed))
    return vars(world) | {
        "anchor": anchor,
        "before": right.mean(),
        "after": good[stays].mean(),
        "kept": stays.mean(),
        "flipped": flipped.mean(),
        "harm": change.high < 0,
    }


def cells(
    pairs: list[int], draws: int, first: int = 0, anchors: Sequence[str] = ANCHORS
) -> Iterator[tuple[World, str]]:
    """All worlds of the grid, each with a seed of its own from `first` on, and with each anchor."""
    grid = itertools.product(pairs, NOISE, VOTERS, SHAPES, range(draws))
    for (seed, (size, noise, voter, shape, _)), anchor in itertools.product(enumerate(grid, first), anchors):
        yield World(size, 3, 1 - noise, voter, shape, "even", seed), anchor


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulated.harm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=[100, 400, 1_000], help="sizes of worlds")
    parser.add_argument("--draws", type=int, default=3, help="worlds of each kind")
    parser.add_argument("--first", type=int, default=0, help="seed of the first world")
    parser.add_argument("--anchors", nargs="+", choices=ANCHORS, default=list(ANCHORS))
    given = parser.parse_args(arguments)
    one_thread()
    rows = pd.DataFrame(
        cleaned(world, anchor) for world, anchor in cells(given.pairs, given.draws, given.first, given.anchors)
    )
    rows["wrong"] = 1 - rows["label"]
    for by in (["anchor", "pairs", "wrong"], ["anchor", "voter", "wrong"], ["anchor", "shape", "wrong"]):
        print(f"\n| {' | '.join(by)} | worlds | before | after | least change | kept | flipped | worlds with harm |")
        print("|---" * (len(by) + 7) + "|")
        for key, part in rows.groupby(by, sort=True):
            least = (part["after"] - part["before"]).min()
            means = (part["before"].mean(), part["after"].mean(), least, part["kept"].mean(), part["flipped"].mean())
            figures = " | ".join(f"{100 * figure:.2f}" for figure in means)
            names = " | ".join(f"{one:.0%}" if isinstance(one, float) else str(one) for one in key)
            print(f"| {names} | {len(part)} | {figures} | {part['harm'].sum()} |")


if __name__ == "__main__":
    main()
