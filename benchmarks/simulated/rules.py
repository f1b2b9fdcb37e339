"""What the rules of the joint model's decisions bring, and what others would: the same simulated worlds under each.

    python -m benchmarks.simulated.rules

Two rules have a number that could be another one. A decision by an audit is taken only where little is surely lost by
it (`joint.decisions`): how sure, and how much is little. Labels beside trusted pairs are flipped only if they may not
all be right (`joint.clean_labels`): how much easier trusted pairs may be.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.real_noise.duel import one_thread
from benchmarks.real_noise.measures import difference, resample_counts
from benchmarks.simulated.audits import COST, compared, drawn_world
from benchmarks.simulated.audits import difference as change
from benchmarks.simulated.worlds import ERRORS, SHAPES, World
from dt2it_pipeline.curate.joint import clean_labels, decisions

# How sure it has to be that an audit's decision loses no more than so many right labels per pair.
OF_AUDITS: Mapping[str, tuple[float, float]] = {
    "always": (0.0, 0.0),
    "75%, nothing lost": (0.75, 0.0),
    "90%, nothing lost": (0.9, 0.0),
    "90%, 0.03 lost": (0.9, 0.03),
    "90%, 0.05 lost": (0.9, 0.05),
}
# Spread of the log-odds by which trusted pairs may be easier or harder.
OF_TRUSTED: Mapping[str, float] = {"no difference": 1e-6, "0.3": 0.3, "0.5": 0.5, "1.0": 1.0}
_LABELS, _VOTERS, _TRUSTED = (1.0, 0.98, 0.95, 0.9, 0.8, 0.7), (0.6, 0.7, 0.8), (60, 200)
_EASIER = 0.1  # more of the trusted pairs are those that a voter gets right, where they are easier


@contextmanager
def setting(module: Any, **values: float) -> Iterator[None]:
    """Constants of a module have other values meanwhile."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def of_audits(worlds: range, pairs: int, sizes: list[int], auditors: list[float]) -> Iterator[str]:
    """Lines of a table: the change of utility, and of label accuracy, by audits under each rule."""
    names = [f"{size} answers, {auditor:.0%} right" for size in sizes for auditor in auditors]
    yield f"| decided by the audit | {' | '.join(names)} |"
    yield "|---" * (1 + len(names)) + "|"
    for name, (sure, tolerable) in OF_AUDITS.items():
        with setting(decisions, SURE=sure, TOLERABLE=tolerable):
            made = [row for seed in worlds for row in compared(drawn_world(pairs, seed), sizes, auditors)]
        rows, cells = pd.DataFrame(made), []
        for size in sizes:
            for auditor in auditors:
                part = rows[(rows["audited"] == size) & (rows["auditor"] == auditor)]
                cells.append(f"{change(part, 'all', 'right')} / {change(part, 'all', 'utility')}")
        yield f"| {name} | {' | '.join(cells)} |"


def trusted_world(pairs: int, seed: int, easier: bool) -> tuple[World, World]:
    """A world of this seed, and the one that its trusted pairs are from."""
    rng = np.random.default_rng([seed, 3])
    label, voter = (float(rng.choice(each)) for each in (_LABELS, _VOTERS))
    shape, errors, known = str(rng.choice(SHAPES)), str(rng.choice(ERRORS)), int(rng.choice(_TRUSTED))
    world = World(pairs, 3, label, voter, shape, errors, seed)
    there = voter + _EASIER * easier
    return world, replace(world, pairs=known, label=1.0, voter=there, errors="even", seed=seed + 10_000)


def beside_trusted(world: World, known: World) -> dict[str, float]:
    """What becomes of a world's labels beside trusted pairs."""
    from dt2it_pipeline import clean_preferences

    table, right = world.made()
    trusted = known.made()[0].assign(pair_id=lambda each: "t" + each["pair_id"])
    scores = [f"v{place}" for place in range(world.voters)]
    others = ["other"] * len(scores)
    found = clean_preferences(table, chosen_scores=scores, rejected_scores=others, trusted=trusted).pairs
    stays, flipped = (found["outcome"] != "dropped").to_numpy(), (found["outcome"] == "flipped").to_numpy()
    good, every = right ^ flipped, np.ones(len(right), dtype=bool)
    harm = difference(good, stays, right, every, resample_counts(len(right), world.seed))
    return {
        "harm": float(harm.high < 0),
        "accuracy": float(good[stays].mean()) if stays.any() else float("nan"),
        "utility": float((good[stays] - COST * ~good[stays]).sum() / len(right)),
    }


def of_trusted(worlds: range, pairs: int) -> Iterator[str]:
    """Lines of a table: worlds with harm, label accuracy and utility beside trusted pairs under each rule."""
    yield "| trusted pairs may be easier by a spread of | as easy: harm / accuracy / utility | easier: the same |"
    yield "|---|---|---|"
    for name, spread in OF_TRUSTED.items():
        cells = []
        for easier in (False, True):
            with setting(clean_labels, TRANSFER=spread):
                rows = pd.DataFrame([beside_trusted(*trusted_world(pairs, seed, easier)) for seed in worlds])
            accuracy, utility = 100 * rows["accuracy"].mean(), rows["utility"].mean()
            cells.append(f"{rows['harm'].sum():.0f} / {accuracy:.1f} / {utility:.3f}")
        yield f"| {name} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulated.rules",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--worlds", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="seed of the first world")
    parser.add_argument("--pairs", type=int, default=300, help="of each world")
    parser.add_argument("--audits", type=int, nargs="+", default=[15, 50], help="numbers of audited pairs")
    parser.add_argument("--auditors", type=float, nargs="+", default=[1.0, 0.9, 0.8], help="shares of right answers")
    parser.add_argument("--of", nargs="+", choices=("audits", "trusted"), default=["audits", "trusted"])
    given = parser.parse_args(arguments)
    one_thread()
    worlds = range(given.first, given.first + given.worlds)
    if "audits" in given.of:
        print(f"{given.worlds} worlds; points of label accuracy / utility, a wrong label costs {COST:.0f}\n")
        for line in of_audits(worlds, given.pairs, given.audits, given.auditors):
            print(line, flush=True)
    if "trusted" in given.of:
        print(f"\n{given.worlds} worlds each; a wrong label costs {COST:.0f}\n")
        for line in of_trusted(worlds, given.pairs):
            print(line, flush=True)


if __name__ == "__main__":
    main()
