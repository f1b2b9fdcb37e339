"""Preference pairs from judged responses, over a spread of strengths (DT2IT-MRM, part 1, step 6)."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pyarrow as pa

from dt2it_pipeline import records
from dt2it_pipeline.construct.judges.protocol import LISTWISE, POINTWISE
from dt2it_pipeline.construct.judges.rubric import OK
from dt2it_pipeline.recipe import PairingSettings

STAGE = "pairs"
TIED, DISAGREE, WEAK = "tied", "listwise and pointwise disagree", "weaker than min_strength"
IDENTICAL, SURPLUS = "near-identical texts", "prompt has enough pairs"
_NOT_WORD = re.compile(r"[\W_]+")

Row = dict[str, Any]


class PairingError(ValueError):
    """No pair can be formed; the message says why and which setting to change."""


@dataclass(frozen=True)
class _Scored:
    """A response with its scores: one per listwise order, and the pointwise one."""

    row: Row
    listwise: tuple[float, ...]
    pointwise: float
    words: str  # the text without case, punctuation and markup


def form_pairs(
    prompts: pa.Table, responses: pa.Table, judgements: pa.Table, settings: PairingSettings, seed: int
) -> tuple[pa.Table, pa.Table]:
    """Form pairs where every listwise order and the pointwise score prefer the same side.

    strength = mean of the listwise difference (itself the mean over orders) and the pointwise difference of the overall
    scores, 0 to 10. At most `max_pairs_per_prompt` pairs of a prompt are taken, each time from the strength band (1
    wide) of which there are fewest so far, so that weak and strong preferences both appear.

    Args:
        prompts: prompts table.
        responses: responses table.
        judgements: judgements table; a response with a judgement that is not `ok`, or without one of either mode, takes
            no part (`judge_responses` has set it aside).
        settings: bounds.
        seed: breaks ties between equally wanted pairs.

    Returns:
        pairs (label `constructed`, in the order of the prompts) and set_aside (one row per candidate pair that was not
        taken). Candidate pairs are all pairs of usable responses of one prompt: candidates = pairs + set aside.

    Raises:
        PairingError: there are prompts, but not one pair can be formed.
    """
    usable = _usable(responses, judgements)
    strengths: Counter[int] = Counter()  # pairs per strength band so far
    pairs: list[Row] = []
    aside: list[dict[str, str]] = []
    for prompt in prompts.to_pylist():
        candidates: list[Row] = []
        for first, second in itertools.combinations(usable.get(prompt["prompt_id"], ()), 2):
            pair, reason = _pair(prompt, first, second, settings)
            if reason:
                aside.append(_aside(pair, reason))
            else:
                candidates.append(pair)
        taken = _spread(candidates, settings.max_pairs_per_prompt, strengths, seed)
        pairs += taken
        kept = {pair["pair_id"] for pair in taken}
        aside += [_aside(pair, SURPLUS) for pair in candidates if pair["pair_id"] not in kept]
    if not pairs and prompts.num_rows:
        raise PairingError(_nothing_formed(len(usable), responses.num_rows, aside, settings))
    return records.table(pairs, "pairs"), records.table(aside, "set_aside")


def _usable(responses: pa.Table, judgements: pa.Table) -> dict[str, list[_Scored]]:
    scores: dict[str, dict[str, list[float]]] = {}
    faulty: set[str] = set()
    for row in judgements.select(["response_id", "mode", "score", "status"]).to_pylist():
        if row["status"] != OK or row["score"] is None:
            faulty.add(row["response_id"])
        else:
            scores.setdefault(row["response_id"], {}).setdefault(row["mode"], []).append(row["score"])
    usable: dict[str, list[_Scored]] = {}
    for row in responses.to_pylist():
        found = scores.get(row["response_id"], {})
        if row["response_id"] not in faulty and LISTWISE in found and POINTWISE in found:
            words = _NOT_WORD.sub(" ", row["text"].lower()).strip()
            scored = _Scored(row, tuple(found[LISTWISE]), fmean(found[POINTWISE]), words)
            usable.setdefault(row["prompt_id"], []).append(scored)
    return usable


def _pair(prompt: Mapping[str, Any], first: _Scored, second: _Scored, settings: PairingSettings) -> tuple[Row, str]:
    """The pair of two responses, better side chosen, and the reason not to use it (empty if there is none)."""
    listwise = [a - b for a, b in zip(first.listwise, second.listwise, strict=True)]
    differences = [*listwise, first.pointwise - second.pointwise]
    strength = (fmean(listwise) + differences[-1]) / 2
    better, worse = (first, second) if strength >= 0 else (second, first)
    pair = records.make_pair(
        prompt["prompt_id"],
        better.row["text"],
        worse.row["text"],
        strength=abs(strength),
        label="constructed",
        source=prompt["source"],
    )
    if first.words == second.words:
        return pair, IDENTICAL
    if all(abs(difference) < 1e-9 for difference in differences):
        return pair, TIED
    if not (all(d > 1e-9 for d in differences) or all(d < -1e-9 for d in differences)):
        return pair, DISAGREE
    return pair, WEAK if abs(strength) < settings.min_strength else ""


def _spread(candidates: Sequence[Row], count: int, strengths: Counter[int], seed: int) -> list[Row]:
    """Take up to `count` pairs, each from the rarest strength band so far; among equals, by a seeded hash."""
    left = sorted(candidates, key=lambda pair: records.content_hash(seed, pair["pair_id"]))
    taken: list[Row] = []
    used: Counter[str] = Counter()  # a response in many pairs teaches little each time
    while left and len(taken) < count:
        best = min(left, key=lambda p: (used[p["chosen_id"]] + used[p["rejected_id"]], strengths[int(p["strength"])]))
        left.remove(best)
        taken.append(best)
        strengths[int(best["strength"])] += 1
        used.update((best["chosen_id"], best["rejected_id"]))
    return taken


def _nothing_formed(prompts: int, responses: int, aside: Sequence[Mapping[str, str]], settings: PairingSettings) -> str:
    counts = Counter(row["reason"] for row in aside)
    found = ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "no prompt has two of them"
    return (
        f"no pair can be formed from {responses} responses, those of {prompts} prompts usable: {found}. "
        "Draw more varied answers (sampling.samples, sampling.mismatched_samples, sampling.temperature)"
        + (f" or lower pairing.min_strength ({settings.min_strength:g})." if counts[WEAK] else ".")
    )


def _aside(pair: Row, reason: str) -> dict[str, str]:
    detail = f"prompt {pair['prompt_id']}, strength {pair['strength']:.3f}"
    return records.set_aside_row(pair["pair_id"], STAGE, reason, detail, pair["source"])
