"""Which models are trained: a cell is a kind of wrong labels, their share and a seed, and it has several models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ROUND_0, ROUND_1, ROUND_2, UNCURATED, CEILING = "round 0", "round 1", "round 2", "uncurated", "ceiling"
UNJUDGED = "round 2's pairs, no judge in either round"
SURE_SHARE = 0.85  # of all pairs: the most certain, whose label accuracy before any judge is reported
GROUPS = ("style-random", "style-congruent", "style-incongruent")
KINDS = ("even", "style", "demo")


@dataclass(frozen=True)
class Cell:
    """A kind of wrong labels, their share in percent, and a seed."""

    kind: str
    percent: int
    seed: int

    @classmethod
    def parse(cls, text: str) -> Cell:
        """A cell from KIND:PERCENT:SEED."""
        kind, percent, seed = text.split(":")
        if kind not in KINDS:
            raise ValueError(f"{text}: the kind must be one of {', '.join(KINDS)}")
        return cls(kind, int(percent), int(seed))

    def key(self, model: str) -> tuple[Any, ...]:
        """What a model of this cell is found by: two cells with the same key have the same model."""
        if model == UNCURATED and self.percent == 0:
            model = CEILING
        if model in (ROUND_0, CEILING):
            return model, None, None, self.seed
        return model, self.kind if self.percent else "none", self.percent, self.seed


def row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    """`Cell.key` of a row of the results."""
    return row["model"], row["kind"], row["percent"], row["seed"]


def name_of(key: tuple[Any, ...]) -> str:
    """A key as the name of a folder."""
    return "-".join(str(part) for part in key if part is not None).replace(" ", "_")
