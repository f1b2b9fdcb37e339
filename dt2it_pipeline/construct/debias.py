"""Style balance: choose pairs so that style no longer tells chosen from rejected (DT2IT-MRM, "Debiased").

The simplest selection that is right by construction: pairs are put into strata by how the styles of their two sides
differ, whichever of them is chosen, and of each stratum equally many are kept with the one side chosen and with the
other. `evaluate.style.style_probe` then measures what is left.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dt2it_pipeline import records
from dt2it_pipeline.evaluate.style import style_features

STAGE = "debias"
SURPLUS = "no counterpart of the opposite style"
_FIRST_WORD = re.compile(r"[\u4e00-\u9fff]|\w+")
_LENGTH_STEP = 4  # characters: differences up to 2 count as equal length
_FINE = 12  # characters beyond which steps double in width


def balance_style(pairs: pa.Table, seed: int) -> tuple[pa.Table, pa.Table]:
    """Keep, for every difference of style, as many pairs that prefer one side of it as pairs that prefer the other.

    Style is what `evaluate.style.style_features` counts, and the opening word. A stratum is a difference in length (in
    steps that widen with it), in opening words, and in every other feature's sign. Pairs whose sides do not differ are
    all kept.

    Args:
        pairs: pairs table.
        seed: decides which pairs of the larger half of a stratum stay.

    Returns:
        The kept pairs, in their order, and set_aside (one row per pair that was left out).
    """
    signatures = _signatures(pairs)
    strata: dict[tuple[Any, ...], dict[int, list[int]]] = {}
    kept = np.zeros(pairs.num_rows, dtype=bool)
    for index, signature in enumerate(signatures):
        mirrored = tuple(-value for value in signature)
        side = (signature > mirrored) - (signature < mirrored)
        if side == 0:
            kept[index] = True
        else:
            strata.setdefault(max(signature, mirrored), {1: [], -1: []})[side].append(index)
    ids = pairs.column("pair_id").to_pylist()
    for sides in strata.values():
        count = min(len(members) for members in sides.values())
        for members in sides.values():
            kept[sorted(members, key=lambda i: records.content_hash(seed, ids[i]))[:count]] = True
    sources, prompt_ids = pairs.column("source").to_pylist(), pairs.column("prompt_id").to_pylist()
    aside = [
        records.set_aside_row(ids[i], STAGE, SURPLUS, f"prompt {prompt_ids[i]}", sources[i])
        for i in np.flatnonzero(~kept)
    ]
    return pairs.filter(pa.array(kept)), records.table(aside, "set_aside")


def _signatures(pairs: pa.Table) -> list[tuple[int, ...]]:
    """Per pair, the difference of styles, chosen minus rejected, in whole numbers; swapped, it is negated."""
    chosen, rejected = pairs.column("chosen").to_pylist(), pairs.column("rejected").to_pylist()
    both = style_features(pd.Series(chosen + rejected))
    values = both.drop(columns=["characters", "words", "word length"]).to_numpy()
    signs = np.sign(np.round(values[: len(chosen)] - values[len(chosen) :], 6)).astype(int)
    openings = {word: rank for rank, word in enumerate(sorted({_opening(text) for text in chosen + rejected}))}
    return [
        (_length_step(len(a) - len(b)), *_opening_code(openings[_opening(a)], openings[_opening(b)]), *row)
        for a, b, row in zip(chosen, rejected, signs.tolist(), strict=True)
    ]


def _opening_code(first: int, second: int) -> tuple[int, int]:
    """Numbers that are negated when the two swap, and differ for different pairs of opening words."""
    low, high = sorted((first, second))
    sign = (first > second) - (first < second)
    return sign * (low + 1), sign * (high + 1)


def _opening(text: str) -> str:
    """First word of a text, without the markup and punctuation around it."""
    found = _FIRST_WORD.search(text.lower())
    return found.group() if found else ""


def _length_step(difference: int) -> int:
    """Length difference in steps: a few characters near zero, then each twice as wide as the one before."""
    size = abs(difference)
    if size <= _FINE:
        step = round(size / _LENGTH_STEP)
    else:
        step = round(_FINE / _LENGTH_STEP) + math.ceil(math.log2(size / _FINE))
    return step if difference > 0 else -step
