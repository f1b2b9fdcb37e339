"""Style balance: choose pairs so that style no longer predicts the chosen side (DT2IT-MRM, "Debiased").

The simplest selection that is right by construction (`balance_style`): pairs are put into strata by how the styles of
their two sides differ, whichever of them is chosen, and of each stratum equally many are kept with the one side chosen
and with the other. It keeps fewer pairs than needed: the probe (`evaluate.style.style_probe`) need not fall to 0.5 but
to a bound. So `debias` takes pairs back, those first whose style predicts least, as long as the probe stays below the
bound, and swaps in other pairs of the same prompts for what had to go.

Who wrote a side counts as a part of its style where that is known: a set in which one model always wins teaches its
ways, those too that no feature counts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from dt2it_pipeline.construct.generators import Models, with_models
from dt2it_pipeline.storage import content_ids, records, schemas
from dt2it_pipeline.style.features import UNKNOWN, model_difference, style_difference
from dt2it_pipeline.style.probe import StyleProbe, leak_scores, probe_differences, style_probe

STAGE = "debias"
SURPLUS = "no counterpart of the opposite style"
_STEPS = 8  # parts in which pairs are taken back; each costs one probe
_REFINEMENTS = 4  # halvings of the step in which the bound is passed
_FIRST_WORD = re.compile(r"[\u4e00-\u9fff]|\w+")
_LENGTH_STEP = 4  # characters: differences up to 2 count as equal length
_FINE = 12  # characters beyond which steps double in width


@dataclass(frozen=True)
class Debiased:
    """What `debias` chose.

    Attributes:
        pairs: the kept pairs in their order, then those that were swapped in.
        quarantine: one row per pair that was left out.
        swapped_in: pair_ids of the spare pairs that were taken.
        curve: pairs kept against the probe, from the strictest selection to none at all: kept, auc, ci_low, ci_high
            (null where there are too few pairs to measure). Values clearly below 0.5 mean what 0.5 means: where strata
            are balanced exactly, what is learnt from some folds points the other way in the last.
        before, after: the probe of all pairs and of the kept ones.
    """

    pairs: pa.Table
    quarantine: pa.Table
    swapped_in: frozenset[str]
    curve: tuple[dict[str, float | int | None], ...]
    before: StyleProbe
    after: StyleProbe


def debias(
    pairs: pa.Table,
    spares: pa.Table,
    bound: float,
    max_pairs_per_prompt: int,
    folds: int = 5,
    seed: int = 0,
    models: Models | None = None,
    processes: int = 1,
) -> Debiased:
    """Keep as many pairs as possible while style predicts the chosen side no better than the bound allows.

    Starts with `balance_style` and takes pairs back in steps, those first whose style predicts least (the probe's own
    log-odds). The largest selection counts whose area under the ROC curve lies below the bound with its whole 95%
    interval: a selection that is made by the probe would otherwise profit from the probe's chance. Where no step is
    that clear, the strictest selection stays, whatever its probe. Then spare pairs of prompts that lost some are
    swapped in: those without a difference in style, and those that are the counterpart of a pair that was left out,
    together with it.

    Args:
        pairs: pairs table.
        spares: good pairs of the same prompts beyond `max_pairs_per_prompt`, which may be swapped in.
        bound: of the probe's area under the ROC curve, 0.5 to 1.
        max_pairs_per_prompt: most pairs of a prompt.
        folds: of the probe.
        seed: of the choice; the probe's folds use another one than the asset check, so that they do not share chance.
        models: who wrote the responses; does not count as style when None.
        processes: that share the work, once there are many texts; what is kept does not depend on them.

    Raises:
        WorkerError: one of several processes died.
    """
    models = models or {}
    frame, spare_frame = (with_models(table, models) for table in (pairs, spares))
    style = style_difference(pd.concat([frame, spare_frame], ignore_index=True), processes)
    own = style.iloc[: len(frame)]
    strict = _balanced(pairs, seed, models, own)
    difference = pd.concat([own, model_difference(frame)], axis=1)
    order = np.abs(leak_scores(difference, seed))
    left = np.flatnonzero(~strict)
    left = left[np.lexsort((left, order[left]))]
    probes: dict[int, StyleProbe] = {}  # by the number of pairs taken back

    def fits(taken: int) -> bool:
        some = _with(strict, left[:taken])
        probes[taken] = probe_differences(difference[some], frame[some], folds, seed + 1)
        high = probes[taken].ci_high
        return high is not None and high <= bound

    steps = sorted({round(len(left) * step / _STEPS) for step in range(_STEPS + 1)})
    enough = max((taken for taken in steps if fits(taken)), default=0)
    before = probes[len(left)]
    too_many = min((taken for taken in steps if taken > enough), default=enough)
    for _ in range(_REFINEMENTS):
        if too_many - enough < 2:
            break
        middle = (enough + too_many) // 2
        enough, too_many = (middle, too_many) if fits(middle) else (enough, middle)
    best = _with(strict, left[:enough])
    curve = [
        {"kept": int(strict.sum()) + taken, "auc": probe.auc, "ci_low": probe.ci_low, "ci_high": probe.ci_high}
        for taken, probe in sorted(probes.items())
    ]
    swapped, rescued = _swaps(pairs, best, spares, max_pairs_per_prompt, seed, models, style)
    kept = _with(best, np.array(rescued, dtype=np.int64))
    after = probes[enough]
    if swapped:
        texts = pd.concat([frame[kept], spare_frame.iloc[swapped]], ignore_index=True)
        after = style_probe(texts, folds, seed + 1)
        if after.auc is None or after.auc > bound:  # the counterparts are not as alike as their strata suggest
            kept, swapped, after = best, [], probes[enough]
    chosen = pa.concat_tables([pairs.filter(pa.array(kept)), spares.take(pa.array(swapped, pa.int64()))])
    ids = spares.column("pair_id").to_pylist()
    return Debiased(
        chosen.combine_chunks(),
        _left_out(pairs, kept),
        frozenset(ids[index] for index in swapped),
        tuple(curve),
        before,
        after,
    )


def balance_style(pairs: pa.Table, seed: int, models: Models | None = None) -> tuple[pa.Table, pa.Table]:
    """Keep, for every difference of style, as many pairs that prefer one side of it as pairs that prefer the other.

    Style is what `evaluate.style.style_features` counts, the opening word, and who wrote the text. A stratum is a
    difference in length (in steps that widen with it), in opening words, in every other feature's sign, and in models.
    Pairs whose sides do not differ are all kept.

    Args:
        pairs: pairs table.
        seed: decides which pairs of the larger half of a stratum stay.
        models: who wrote the responses; does not count as style when None.

    Returns:
        The kept pairs, in their order, and quarantine (one row per pair that was left out).
    """
    kept = _balanced(pairs, seed, models or {}, style_difference(pairs.select(["chosen", "rejected"]).to_pandas()))
    return pairs.filter(pa.array(kept)), _left_out(pairs, kept)


def _balanced(pairs: pa.Table, seed: int, models: Models, style: pd.DataFrame) -> np.ndarray:
    """Bool [pairs], which of them `balance_style` keeps."""
    strata: dict[tuple[int, ...], dict[int, list[int]]] = {}
    kept = np.zeros(pairs.num_rows, dtype=bool)
    for index, (stratum, side) in enumerate(_strata(_signatures(pairs, models, style))):
        if side == 0:
            kept[index] = True
        else:
            strata.setdefault(stratum, {1: [], -1: []})[side].append(index)
    ids = pairs.column("pair_id").to_pylist()
    for sides in strata.values():
        count = min(len(members) for members in sides.values())
        for members in sides.values():
            kept[sorted(members, key=lambda i: content_ids.content_hash(seed, ids[i]))[:count]] = True
    return kept


def _swaps(
    pairs: pa.Table,
    kept: np.ndarray,
    spares: pa.Table,
    most: int,
    seed: int,
    models: Models,
    style: pd.DataFrame,
) -> tuple[list[int], list[int]]:
    """Places of the spares to take, and of the left-out pairs that thereby have a counterpart and return."""
    if spares.num_rows == 0 or kept.all():
        return [], []
    prompts = pairs.column("prompt_id").to_pylist()
    room = Counter({prompt: most for prompt in prompts})
    room.subtract(prompts[index] for index in np.flatnonzero(kept))
    # Opening words are numbered over both tables, so that their strata are the same.
    strata = _strata(_signatures(pa.concat_tables([pairs, spares]), models, style))
    waiting: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for index in np.flatnonzero(~kept).tolist():
        waiting.setdefault(strata[index], []).append(index)
    spare_ids, spare_prompts = spares.column("pair_id").to_pylist(), spares.column("prompt_id").to_pylist()
    swapped: list[int] = []
    rescued: list[int] = []
    for index in sorted(range(spares.num_rows), key=lambda i: content_ids.content_hash(seed, "spare", spare_ids[i])):
        prompt = spare_prompts[index]
        if room[prompt] < 1:
            continue
        stratum, side = strata[pairs.num_rows + index]
        if side == 0:
            swapped.append(index)
            room[prompt] -= 1
            continue
        room[prompt] -= 1  # held for the spare while its counterpart is looked for
        counterparts = waiting.get((stratum, -side), [])
        found = next((other for other in counterparts if room[prompts[other]] > 0), None)
        if found is None:
            room[prompt] += 1
            continue
        counterparts.remove(found)
        room[prompts[found]] -= 1
        swapped.append(index)
        rescued.append(found)
    return sorted(swapped), rescued


def _with(kept: np.ndarray, places: np.ndarray) -> np.ndarray:
    more = kept.copy()
    more[places] = True
    return more


def _left_out(pairs: pa.Table, kept: np.ndarray) -> pa.Table:
    some = pairs.filter(pa.array(~kept)).select(["pair_id", "prompt_id", "source", "row_id"]).to_pylist()
    return schemas.table(
        (records.quarantine_pair(r, STAGE, SURPLUS, f"prompt {r['prompt_id']}") for r in some),
        "quarantine",
    )


def _strata(signatures: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], int]]:
    """Per pair its stratum, and which side of it: 1 or -1, 0 where the sides do not differ in style."""
    found = []
    for signature in signatures:
        mirrored = tuple(-value for value in signature)
        found.append((max(signature, mirrored), (signature > mirrored) - (signature < mirrored)))
    return found


def _signatures(pairs: pa.Table, models: Models, style: pd.DataFrame) -> list[tuple[int, ...]]:
    """Per pair, the difference of styles, chosen minus rejected, in whole numbers; swapped, it is negated."""
    chosen, rejected = pairs.column("chosen").to_pylist(), pairs.column("rejected").to_pylist()
    values = style.drop(columns=["characters", "words", "tokens", "word length"]).to_numpy()
    signs = np.sign(np.round(values, 6)).astype(int)
    opening = {text: _opening(text) for text in dict.fromkeys((*chosen, *rejected))}
    openings = {word: rank for rank, word in enumerate(sorted(set(opening.values())))}
    sides = ([models.get(key) or UNKNOWN for key in pairs[name].to_pylist()] for name in ("chosen_id", "rejected_id"))
    writers = list(zip(*sides, strict=True))
    ranks = {name: rank for rank, name in enumerate(sorted({name for both in writers for name in both}))}
    return [
        (
            _length_step(len(a) - len(b)),
            *_code(openings[opening[a]], openings[opening[b]]),
            *row,
            *_code(ranks[by_a], ranks[by_b]),
        )
        for a, b, row, (by_a, by_b) in zip(chosen, rejected, signs.tolist(), writers, strict=True)
    ]


def _code(first: int, second: int) -> tuple[int, int]:
    """Numbers that are negated when the two swap, and differ for different pairs of opening words, or of models."""
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
