"""Pairs with hidden truth, voters, and judges of a known accuracy, for the tests of curation."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import expit

from dt2it_pipeline.curate.pair_frames import length_difference
from dt2it_pipeline.curate.tables import to_frame
from dt2it_pipeline.storage import schemas


class World:
    """Pairs with hidden truth: the truly better side, wrong labels, a style that labels prefer, calibrated voters."""

    def __init__(self, count: int, noise: float, seed: int = 0, sources: tuple[str, ...] = ("s",)) -> None:
        self.random = np.random.default_rng(seed)
        self.right = self.random.random(count) >= noise
        self.verbose_chosen = self.random.random(count) < 0.9
        chosen, rejected = (np.where(self.verbose_chosen ^ flip, "w" * 40, "w" * 10) for flip in (False, True))
        names = [f"{i:05d}" for i in range(count)]
        self.pairs = pd.DataFrame(
            {
                "pair_id": [f"p{name}" for name in names],
                "chosen": chosen,
                "rejected": rejected,
                "chosen_id": [f"c{name}" for name in names],
                "rejected_id": [f"r{name}" for name in names],
                "source": [sources[i % len(sources)] for i in range(count)],
                "label": "original",
            }
        )

    def voter(self, name: str, scale: float = 1.0, style: float = 0.0, quality: float = 3.0) -> pd.DataFrame:
        """Scores whose margins for the truly better side are calibrated: P(right | |m|) = sigmoid(quality * |m|)."""
        count = len(self.pairs)
        size = np.abs(self.random.normal(1.0, 0.6, count))
        agrees = self.random.random(count) < expit(quality * size)
        margin = np.where(agrees == self.right, size, -size) + np.where(self.verbose_chosen, style, -style)
        ids = np.concatenate([self.pairs["chosen_id"], self.pairs["rejected_id"]])
        return pd.DataFrame(
            {"response_id": ids, "voter": name, "score": scale * np.concatenate([margin, np.zeros(count)])}
        )

    def is_right(self, part: pd.DataFrame) -> np.ndarray:
        """Bool [rows]: the truly better side is the chosen one."""
        number = part["pair_id"].str[1:].astype(int).to_numpy()
        return part["chosen_id"].str.startswith("c").to_numpy() == self.right[number]

    def accuracy(self, part: pd.DataFrame) -> float:
        return float(self.is_right(part).mean())


def judged(pairs: pd.DataFrame, verdicts: list[tuple[str | None, str | None]]) -> pd.DataFrame:
    rows = [
        {"pair_id": pair, "judge": judge, "order": "forward", "verdict": verdict}
        for pair, both in zip(pairs["pair_id"], verdicts, strict=True)
        for judge, verdict in zip("ab", both, strict=True)
    ]
    return to_frame(schemas.table(rows, "votes"))


def judged_with(skill: float, world: World, pairs: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Votes of two judges who agree, and are right with the probability `skill`."""
    honest = np.random.default_rng(seed).random(len(pairs)) < skill
    sides = ["chosen" if each else "rejected" for each in world.is_right(pairs) == honest]
    return judged(pairs, [(side, side) for side in sides])


def misled(count: int, seed: int = 0) -> tuple[World, pd.DataFrame]:
    """An overconfident vote, more so on pairs whose longer side is chosen."""
    world = World(count, 0.3, seed)
    random = np.random.default_rng(seed)
    voted = world.pairs.assign(strength=np.abs(random.normal(2.5, 1.5, count)), votes=None, round=0)
    world.right = random.random(count) < expit(0.8 * voted["strength"] - 0.7 * length_difference(voted))
    return world, voted
