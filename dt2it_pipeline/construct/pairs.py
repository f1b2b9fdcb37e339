"""Preference pairs from judged responses, over a spread of strengths (DT2IT-MRM, part 1, step 6)."""

from __future__ import annotations

import bisect
import difflib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from dt2it_pipeline.config.sections.pairing import PairingSettings
from dt2it_pipeline.engines.launch import fork_server
from dt2it_pipeline.errors import UserError
from dt2it_pipeline.judges.answer_matching import answers
from dt2it_pipeline.judges.protocol import LISTWISE, PAIRWISE, POINTWISE
from dt2it_pipeline.judges.quality import AGAINST
from dt2it_pipeline.judges.rubric import OK
from dt2it_pipeline.storage import content_ids, records, schemas

STAGE = "pairs"
TIED, DISAGREE, WEAK = "tied", "judgements disagree on the order", "weaker than min_strength"
IDENTICAL, SURPLUS, FULL = "near-identical texts", "prompt has enough pairs", "strength bin has enough pairs"
_MANY, _PIECE = 50_000, 64  # responses from which on several processes help, and prompts that one takes at a time
_SHOWN = 80  # characters of an answer in a message
_LONG = 20  # words from which two texts that share nearly all of them count as one
_NOT_WORD = re.compile(r"[\W_]+")

Row = dict[str, Any]
_Presentation = tuple[str, str, tuple[int, ...]]  # judge, mode, order


class PairingError(UserError, ValueError):
    """No pair can be formed; the message says why and which setting to change."""

    help_page: ClassVar[str] = "troubleshooting#no-pairs"


@dataclass(frozen=True)
class _Scored:
    """A response with its scores by presentation, and pairwise judges' verdicts on it and another."""

    row: Row
    scores: Mapping[_Presentation, float]
    words: str  # the text's `bare_words`
    against: Mapping[str, list[float | None]] = field(default_factory=dict)  # other response -> verdicts on this one


@dataclass(frozen=True)
class _Candidates:
    """All pairs of responses of some prompts.

    Attributes:
        good: those that may be taken, table kind `pairs`.
        surplus: a row of quarantine for each of these, where it is not taken.
        faulty: a row of quarantine for each other pair.
        counts: good and faulty pairs of each prompt.
    """

    good: records.TablePiece
    surplus: records.TablePiece
    faulty: records.TablePiece
    counts: Sequence[tuple[int, int]]


def form_pairs(
    prompts: pa.Table, responses: pa.Table, judgements: pa.Table, settings: PairingSettings, seed: int
) -> tuple[pa.Table, pa.Table]:
    """Form pairs where every judge, in every order and mode, prefers the same side.

    strength = mean of the listwise difference (itself the mean over orders and judges) and the pointwise difference of
    the overall scores, 0 to 10; of the one there is where only one mode was asked. At most `max_pairs_per_prompt` pairs
    of a prompt are taken, each time from the strength bin that is furthest below its share so far, so that weak and
    strong preferences both appear. Without `strength_bins`, bins are 1 wide and their shares equal; with them, a bin
    that ends up with more than its share is cut to it, as long as another bin can never reach its own.

    Args:
        prompts: prompts table.
        responses: responses table.
        judgements: judgements table; a response with a listwise or pointwise judgement that is not `ok`, or without one
            that other responses of its prompt have, takes no part (`judge_responses` has set it aside).
        settings: bounds.
        seed: breaks ties between equally wanted pairs.

    Returns:
        pairs (label `constructed`, in the order of the prompts) and quarantine (one row per candidate pair that was not
        taken). Candidate pairs are all pairs of usable responses of one prompt: candidates = pairs + quarantined.

    Raises:
        PairingError: there are prompts, but not one pair can be formed.
    """
    pairs, _, aside = form_pairs_with_spares(prompts, responses, judgements, settings, seed)
    return pairs, aside


def form_pairs_with_spares(
    prompts: pa.Table,
    responses: pa.Table,
    judgements: pa.Table,
    settings: PairingSettings,
    seed: int,
    processes: int = 1,
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """As `form_pairs`, with the good pairs of full prompts in the middle: a later selection may swap them in.

    They are in quarantine, too (reason: the prompt has enough pairs). `processes` share the work, once there are many
    responses; what comes out does not depend on them.

    Raises:
        PairingError: there are prompts, but not one pair can be formed.
        WorkerError: one of several processes died.
    """
    usable = _usable(responses, judgements)
    bins = _Bins(settings)
    pairs, spares = ([schemas.table([], "pairs")] for _ in range(2))
    aside = [schemas.table([], "quarantine")]
    with fork_server.table_pool(processes if responses.num_rows >= _MANY else 1, "form pairs", __name__) as pool:
        for made in pool.map(partial(_candidates, settings), _pieces(prompts, usable)):
            taken, left, order = _chosen(made, settings.max_pairs_per_prompt, bins, seed)
            pairs.append(made.good.rows.take(taken))
            spares.append(made.good.rows.take(left))
            aside.append(pa.concat_tables([made.faulty.rows, made.surplus.rows]).take(order))
    taken_pairs, quarantine = (pa.concat_tables(parts) for parts in (pairs, aside))
    if not taken_pairs.num_rows and prompts.num_rows:
        reasons, missed = quarantine["reason"].to_pylist(), _no_reference_met(prompts, usable)
        raise PairingError(_nothing_formed(len(usable), responses.num_rows, reasons, missed, settings))
    cut = bins.cut(taken_pairs, seed)
    full = (
        taken_pairs.filter(pa.array(cut)).select(["pair_id", "prompt_id", "strength", "source", "row_id"]).to_pylist()
    )
    quarantine = pa.concat_tables([quarantine, schemas.table([_aside(pair, FULL) for pair in full], "quarantine")])
    kept = taken_pairs.filter(pa.array(~cut))
    return kept.combine_chunks(), pa.concat_tables(spares).combine_chunks(), quarantine.combine_chunks()


def _pieces(prompts: pa.Table, usable: Mapping[str, Sequence[_Scored]]) -> Iterator[list[tuple[Row, list[_Scored]]]]:
    """Prompts with their responses, some at a time."""
    named = prompts.select(["prompt_id", "source"]).to_pylist()
    asked = iter([(row, list(usable[row["prompt_id"]])) for row in named if row["prompt_id"] in usable])
    while piece := list(itertools.islice(asked, _PIECE)):
        yield piece


def _candidates(settings: PairingSettings, piece: Sequence[tuple[Row, Sequence[_Scored]]]) -> _Candidates:
    good: list[Row] = []
    faulty: list[dict[str, Any]] = []
    counts: list[tuple[int, int]] = []
    for prompt, scored in piece:
        before = len(good), len(faulty)
        for first, second in itertools.combinations(scored, 2):
            pair, reason = _pair(prompt, first, second, settings)
            if reason:
                faulty.append(_aside(pair, reason))
            else:
                good.append(pair)
        counts.append((len(good) - before[0], len(faulty) - before[1]))
    surplus = [_aside(pair, SURPLUS) for pair in good]
    tables = (good, "pairs"), (surplus, "quarantine"), (faulty, "quarantine")
    made = [records.TablePiece(schemas.table(rows, kind)) for rows, kind in tables]
    return _Candidates(made[0], made[1], made[2], counts)


def _chosen(made: _Candidates, most: int, bins: _Bins, seed: int) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Places of the pairs that are taken, of those that are left, and of rows for quarantine: faulty, then surplus."""
    columns = ["pair_id", "chosen_id", "rejected_id", "strength"]
    rows = [row | {"place": place} for place, row in enumerate(made.good.rows.select(columns).to_pylist())]
    taken: list[int] = []
    left: list[int] = []
    order: list[int] = []
    faulty, start = 0, 0
    for good, bad in made.counts:
        candidates = rows[start : start + good]
        chosen = _spread(candidates, most, bins, seed)
        kept = {pair["pair_id"] for pair in chosen}
        others = [pair["place"] for pair in candidates if pair["pair_id"] not in kept]
        taken += [pair["place"] for pair in chosen]
        left += others
        order += [*range(faulty, faulty + bad), *(made.faulty.rows.num_rows + place for place in others)]
        start, faulty = start + good, faulty + bad
    return pa.array(taken, pa.int64()), pa.array(left, pa.int64()), pa.array(order, pa.int64())


class _Bins:
    """The histogram of strengths so far, and which bin is short of pairs."""

    def __init__(self, settings: PairingSettings) -> None:
        self._edges = [item.from_strength for item in settings.strength_bins]
        self._shares = [item.share for item in settings.strength_bins]
        self._counts: Counter[int] = Counter()

    def of(self, strength: float) -> int:
        """Number of the bin that a strength lies in; -1 below the first."""
        return bisect.bisect_right(self._edges, strength) - 1 if self._edges else int(strength)

    def filling(self, strength: float) -> float:
        """How full the bin of a strength is, measured by its share; the least is wanted most."""
        number = self.of(strength)
        if number < 0:
            return float("inf")
        return self._counts[number] / (self._shares[number] if self._edges else 1.0)

    def take(self, strength: float) -> None:
        """Count one pair."""
        self._counts[self.of(strength)] += 1

    def cut(self, pairs: pa.Table, seed: int) -> np.ndarray:
        """Which pairs lie beyond the wanted histogram, bool [pairs]; none of them where none is wanted.

        The largest histogram of the wanted shape that the pairs can fill: the bin that is shortest for its share sets
        the size. A bin without a single pair is left out of the shape: nothing could be kept otherwise.
        """
        if not self._edges:
            return np.zeros(pairs.num_rows, dtype=bool)
        ids, strengths = (pairs[name].to_pylist() for name in ("pair_id", "strength"))
        members: dict[int, list[int]] = {}
        for place in sorted(range(len(ids)), key=lambda place: content_ids.content_hash(seed, "bin", ids[place])):
            members.setdefault(self.of(strengths[place]), []).append(place)
        present = {number: share for number, share in enumerate(self._shares) if members.get(number)}
        size = min((len(members[number]) / share for number, share in present.items()), default=0.0)
        wanted = {
            ids[place] for number, share in present.items() for place in members[number][: max(1, round(size * share))]
        }
        return np.array([name not in wanted for name in ids], dtype=bool)


def _usable(responses: pa.Table, judgements: pa.Table) -> dict[str, list[_Scored]]:
    scores: dict[str, dict[_Presentation, float]] = {}
    against: dict[str, dict[str, list[float | None]]] = {}
    asked: dict[str, set[_Presentation]] = {}  # by prompt
    faulty: set[str] = set()
    columns = ("prompt_id", "response_id", "judge", "mode", "order", "score", "status", "criteria")
    for prompt_id, key, judge, mode, order, score, status, criteria in zip(
        *(judgements[name].to_pylist() for name in columns), strict=True
    ):
        good = status == OK and score is not None
        if mode == PAIRWISE:
            other = json.loads(criteria)[AGAINST]
            against.setdefault(key, {}).setdefault(other, []).append(score if good else None)
            continue
        presentation = (judge, mode, tuple(order or ()))
        asked.setdefault(prompt_id, set()).add(presentation)
        if good:
            scores.setdefault(key, {})[presentation] = score
        else:
            faulty.add(key)
    usable: dict[str, list[_Scored]] = {}
    for row in responses.to_pylist():
        found = scores.get(row["response_id"], {})
        if found and row["response_id"] not in faulty and found.keys() == asked[row["prompt_id"]]:
            scored = _Scored(row, found, bare_words(row["text"]), against.get(row["response_id"], {}))
            usable.setdefault(row["prompt_id"], []).append(scored)
    return usable


def _pair(prompt: Mapping[str, Any], first: _Scored, second: _Scored, settings: PairingSettings) -> tuple[Row, str]:
    """The pair of two responses, better side chosen, and the reason not to use it (empty if there is none)."""
    by_mode: dict[str, list[float]] = {}
    for presentation, score in first.scores.items():
        by_mode.setdefault(presentation[1], []).append(score - second.scores[presentation])
    differences = [difference for of_mode in by_mode.values() for difference in of_mode]
    strength = _mean([_mean(by_mode[mode]) for mode in (LISTWISE, POINTWISE) if mode in by_mode])
    better, worse = (first, second) if strength >= 0 else (second, first)
    pair = records.make_pair(
        prompt["prompt_id"],
        better.row["text"],
        worse.row["text"],
        strength=abs(strength),
        label="constructed",
        source=prompt["source"],
    )
    if near_identical(first.words, second.words, settings.near_identical):
        return pair, IDENTICAL
    if all(abs(difference) < 1e-9 for difference in differences):
        return pair, TIED
    preferred = first.against.get(second.row["response_id"], [])
    # A pairwise verdict of 1 is a difference for the first; a tie or a faulty reply is agreement with nothing.
    differences += [0.0 if verdict is None else verdict - 0.5 for verdict in preferred]
    if not (all(d > 1e-9 for d in differences) or all(d < -1e-9 for d in differences)):
        return pair, DISAGREE
    return pair, WEAK if abs(strength) < settings.min_strength else ""


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)  # as fmean, which looks at more than lists


def bare_words(text: str) -> str:
    """A text without case, punctuation and markup."""
    return _NOT_WORD.sub(" ", text.lower()).strip()


def near_identical(first: str, second: str, bound: float) -> bool:
    """Whether two texts, given as their `bare_words`, are one but for a few words.

    Short answers may differ in the one word that matters, so that only long ones are compared by their share of common
    words (in order): 2 * common / all.
    """
    if first == second:
        return True
    left, right = first.split(), second.split()
    if min(len(left), len(right)) < _LONG or bound >= 1:
        return False
    # Bounds of the ratio first: SequenceMatcher takes longer to be made than these.
    total = len(left) + len(right)
    if 2.0 * min(len(left), len(right)) / total <= bound:
        return False
    if 2.0 * (Counter(left) & Counter(right)).total() / total <= bound:
        return False
    return difflib.SequenceMatcher(None, left, right, autojunk=False).ratio() > bound


def _spread(candidates: Sequence[Row], count: int, bins: _Bins, seed: int) -> list[Row]:
    """Take up to `count` pairs, each from the bin that is shortest so far; among equals, by a seeded hash."""
    left = sorted(candidates, key=lambda pair: content_ids.content_hash(seed, pair["pair_id"]))
    taken: list[Row] = []
    used: Counter[str] = Counter()  # a response in many pairs teaches little each time
    while left and len(taken) < count:
        best = min(left, key=lambda p: (used[p["chosen_id"]] + used[p["rejected_id"]], bins.filling(p["strength"])))
        left.remove(best)
        taken.append(best)
        bins.take(best["strength"])
        used.update((best["chosen_id"], best["rejected_id"]))
    return taken


def _nothing_formed(
    prompts: int, responses: int, reasons: Sequence[str], missed: str, settings: PairingSettings
) -> str:
    if responses and not prompts:
        return (
            f"no pair can be formed from {responses} responses: none has a usable judgement of every judge, in every "
            "mode. The quarantine of judged_responses has the replies; `dt2it check --call-judges` shows one call"
        )
    counts = Counter(reasons)
    found = ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "no prompt has two of them"
    return (
        f"no pair can be formed from {responses} responses, those of {prompts} prompts usable: {found}. {missed}"
        "Draw more varied answers (sampling.samples, sampling.mismatched_samples, sampling.temperature)"
        + (f" or lower pairing.min_strength ({settings.min_strength:g})." if counts[WEAK] else ".")
    )


def _no_reference_met(prompts: pa.Table, usable: Mapping[str, Sequence[_Scored]]) -> str:
    """That no answer has the words of its reference, with one; empty where one does, or no reference is a short one.

    Prose and a yes or no are no such references: an answer may agree with them in other words.
    """
    missed: dict[bool, tuple[str, str]] = {}  # whether the answer holds its reference otherwise -> the first such
    for prompt in prompts.select(["prompt_id", "reference"]).to_pylist():
        wanted = answers.words(prompt["reference"] or "")
        if not 0 < len(wanted) <= answers.MAX_PHRASE_WORDS or answers.polarity_word(wanted):
            continue
        for scored in usable.get(prompt["prompt_id"], ()):
            text = scored.row["text"]
            if f" {' '.join(wanted)} " in f" {' '.join(answers.words(text))} ":
                return ""
            missed.setdefault(answers.holds(text, prompt["reference"]), (text, prompt["reference"]))
    if not missed:
        return ""
    plain = (" ".join(each.split()) for each in missed.get(True) or missed[False])
    text, reference = (each if len(each) <= _SHOWN else f"{each[:_SHOWN]}..." for each in plain)
    if True in missed:
        return (
            f"No answer has its reference as words of its own; one is {text!r}, where {reference!r} is right. Words "
            "end at spaces and punctuation: give references that answers repeat as such words, or let a model judge "
            "(judging.judges). "
        )
    return (
        f"No answer contains its reference; one is {text!r}, where {reference!r} is right. The model that answers "
        "(sampling.model) may not know: ask what it can see in an image, or choose another model. "
    )


def _aside(pair: Row, reason: str) -> dict[str, Any]:
    detail = f"prompt {pair['prompt_id']}, strength {pair['strength']:.3f}"
    return records.quarantine_pair(pair, STAGE, reason, detail)
