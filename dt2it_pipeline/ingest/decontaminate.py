"""Decontamination: nothing that is trained on shows a benchmark's image, asks its question or gives its answers."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.config.sections.cleaning import DecontaminationSettings
from dt2it_pipeline.media.markers import without_markers
from dt2it_pipeline.storage import records, schemas

SAME_IMAGE = "image is in a benchmark"
ALIKE_IMAGE = "image looks like one of a benchmark"
SAME_QUESTION = "question is in a benchmark"
SAME_ANSWER = "question and response are in a benchmark"
_LETTER = r"[^\W\d_]"
_WORD = re.compile(  # words, and the symbols that make another question of the same words; not Markdown's nor hyphens
    r"\w+|[+<>=^%°$€£¥±×÷√∞≤≥≠≈∈∉∪∩⊂⊆∧∨¬→←↔]|(?<=\w)#"
    r"|(?<=[\w)\]])[*/&](?=[\w(\[])|(?<=[\w)\]] )[*/&](?= [\w(\[])"
    r"|-(?=\.?\d|[(\[])|(?<=[)\]])-|(?<=[\w)\]] )-(?= [\d(\[])"
    rf"|(?<=\b{_LETTER})-(?={_LETTER}\b)|(?<=\b{_LETTER} )-(?= {_LETTER}\b)"
)
_PLAIN = ".,?!:;'\"()"  # no operator, and none beside one where there are no others
_OTHER = re.compile(rf"[^a-z0-9_\s{re.escape(_PLAIN)}]", re.ASCII)
_SPACES = str.maketrans(dict.fromkeys(_PLAIN, " "))
_ROWS = 128  # training images that are compared at a time: what lies between fits a processor's cache


class Contamination(NamedTuple):
    """Why a pair may not be trained on: the reason, the benchmark, and what was found."""

    reason: str
    benchmark: str
    detail: str


@dataclass(frozen=True)
class BenchmarkContent:
    """What the benchmarks hold, each thing with the name of the benchmark (the first, where several hold it)."""

    images: Mapping[str, str] = field(default_factory=dict)  # content hash
    questions: Mapping[str, str] = field(default_factory=dict)  # of prompts without media, normalised
    answers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by question, then response, normalised


def benchmark_content(items: pa.Table, prompts: pa.Table) -> BenchmarkContent:
    """Collect what must not be trained on from `benchmark_items` and their `prompts`."""
    named: dict[str, str] = {}
    for prompt, name in zip(items["prompt_id"].to_pylist(), items["benchmark"].to_pylist(), strict=True):
        named.setdefault(prompt, name)
    images: dict[str, str] = {}
    questions: dict[str, str] = {}
    asked: dict[str, str] = {}
    for row in prompts.select(["prompt_id", "media", "turns"]).to_pylist():
        name, asked[row["prompt_id"]] = named.get(row["prompt_id"], "benchmark"), _question(row["turns"])
        for medium in row["media"]:
            images.setdefault(medium["sha256"], name)
        if not row["media"]:
            questions.setdefault(asked[row["prompt_id"]], name)
    answers: dict[str, dict[str, str]] = defaultdict(dict)
    for row in items.select(["prompt_id", "benchmark", "chosen", "rejected"]).to_pylist():
        for side in ("chosen", "rejected"):
            answers[asked.get(row["prompt_id"], "")].setdefault(plain_words(row[side]), row["benchmark"])
    return BenchmarkContent(images, questions, dict(answers))


def contaminated_pairs(
    pairs: pa.Table,
    prompts: pa.Table,
    content: BenchmarkContent,
    settings: DecontaminationSettings,
    hashes: Mapping[str, int],
) -> dict[str, Contamination]:
    """Pair ids that a benchmark holds too, in part or whole, each with the first reason found.

    A pair is contaminated when one of its media has the content hash of a benchmark's medium, or a perceptual hash
    within `perceptual_distance` bits of one; when its prompt has no media and its question is a benchmark's; or when
    its question and one of its responses, if that is long enough to be distinctive, are a benchmark's. A question is
    all turns of a conversation, or its last one by the user. Words are compared without case, punctuation and white
    space.

    Args:
        pairs: table kind `pairs`.
        prompts: their prompts.
        content: of the benchmarks.
        settings: of the recipe.
        hashes: content hash -> perceptual hash, of the media of training and benchmarks.
    """
    by_prompt, asked = _by_prompt(prompts, content, settings, hashes)
    found: dict[str, Contamination] = {}
    suspected = pc.is_in(pairs["prompt_id"], value_set=pa.array([*by_prompt, *asked], pa.string()))
    columns = pairs.select(["pair_id", "prompt_id", "chosen", "rejected"])
    for row in columns.filter(suspected).to_pylist():
        fault = by_prompt.get(row["prompt_id"])
        for question in asked.get(row["prompt_id"], ()):
            if fault is None and settings.response_characters is not None:
                fault = _answered(content.answers[question], row, settings.response_characters)
        if fault is not None:
            found[row["pair_id"]] = fault
    return found


def decontaminate(
    pairs: pa.Table,
    prompts: pa.Table,
    content: BenchmarkContent,
    settings: DecontaminationSettings,
    hashes: Mapping[str, int],
) -> tuple[pa.Table, pa.Table, list[dict[str, Any]]]:
    """Split a pairs table into the pairs that may be trained on and a `quarantine` table of the others.

    The third value is the report of what was removed: reason, benchmark, source and pairs, most pairs first.
    """
    found = contaminated_pairs(pairs, prompts, content, settings, hashes)
    contaminated = pc.is_in(pairs["pair_id"], value_set=pa.array(list(found), pa.string()))
    removed, counts = [], Counter[tuple[str, str, str]]()
    for row in pairs.select(["pair_id", "source", "row_id"]).filter(contaminated).to_pylist():
        fault = found[row["pair_id"]]
        detail = f"{fault.benchmark}: {fault.detail}"
        removed.append(records.quarantine_pair(row, "decontamination", fault.reason, detail))
        counts[fault.reason, fault.benchmark, row["source"]] += 1
    report = [
        {"reason": reason, "benchmark": benchmark, "source": source, "pairs": count}
        for (reason, benchmark, source), count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    ]
    return pairs.filter(pc.invert(contaminated)).combine_chunks(), schemas.table(removed, "quarantine"), report


def plain_words(text: str) -> str:
    """The words of a text and the operators between them, without case, width, punctuation and media markers.

    Its characters where it has none.
    """
    text = unicodedata.normalize("NFKC", without_markers(text, " ")).casefold().replace("\N{MINUS SIGN}", "-")
    if not _OTHER.search(text):
        return " ".join(text.translate(_SPACES).split()) or " ".join(text.split())
    return " ".join(_WORD.findall(text)) or " ".join(text.split())


def nearest(hashes: Sequence[int], others: Sequence[int], distance: int) -> dict[int, tuple[int, int]]:
    """Which hashes lie within `distance` bits of another: position -> position of the nearest, and its distance."""
    if not hashes or not others:
        return {}
    theirs = np.array(others, dtype=np.uint64)
    found: dict[int, tuple[int, int]] = {}
    for start in range(0, len(hashes), _ROWS):
        ours = np.array(hashes[start : start + _ROWS], dtype=np.uint64)
        bits = np.bitwise_count(ours[:, None] ^ theirs[None, :])
        best = bits.argmin(axis=1)
        least = bits[np.arange(len(ours)), best]
        for row in np.flatnonzero(least <= distance):
            found[start + int(row)] = int(best[row]), int(least[row])
    return found


def _by_prompt(
    prompts: pa.Table, content: BenchmarkContent, settings: DecontaminationSettings, hashes: Mapping[str, int]
) -> tuple[dict[str, Contamination], dict[str, tuple[str, ...]]]:
    """What is wrong with prompts whatever is answered, and the benchmarks' questions that prompts ask."""
    showing: dict[str, list[str]] = defaultdict(list)  # content hash of a medium -> prompts
    asked: dict[str, tuple[str, ...]] = {}
    found: dict[str, Contamination] = {}
    columns = (
        prompts["prompt_id"].to_pylist(),
        *(records.inner_lists(prompts[name], field) for name, field in (("media", "sha256"), ("turns", "role"))),
        records.inner_lists(prompts["turns"], "text"),
    )
    for key, media, roles, texts in zip(*columns, strict=True):
        questions = _asked(roles, texts)
        if known := tuple(question for question in questions if content.answers.get(question)):
            asked[key] = known
        for sha256 in media:
            showing[sha256].append(key)
            if sha256 in content.images:
                found.setdefault(key, Contamination(SAME_IMAGE, content.images[sha256], sha256))
        same = next((question for question in questions if question in content.questions), None)
        if not media and same is not None:
            found[key] = Contamination(SAME_QUESTION, content.questions[same], same[:80])
    if settings.perceptual_distance is not None:
        ours = sorted(sha for sha in showing if sha in hashes and sha not in content.images)
        theirs = sorted(sha for sha in content.images if sha in hashes)
        near = nearest([hashes[s] for s in ours], [hashes[s] for s in theirs], settings.perceptual_distance)
        for position, (other, bits) in near.items():
            detail = f"{ours[position]} is {bits} of 64 bits from {theirs[other]}"
            for key in showing[ours[position]]:
                found.setdefault(key, Contamination(ALIKE_IMAGE, content.images[theirs[other]], detail))
    return found, asked


def _answered(known: Mapping[str, str], row: Mapping[str, str], least: int) -> Contamination | None:
    """Whether a response is among those that the benchmarks know to its question."""
    for side in ("chosen", "rejected"):
        answer = plain_words(row[side])
        if len(answer) >= least and answer in known:
            return Contamination(SAME_ANSWER, known[answer], f"{side}: {answer[:80]}")
    return None


def _asked(roles: Sequence[str], texts: Sequence[str]) -> tuple[str, ...]:
    """What a conversation asks: all of its turns, and the last one by the user where there are others."""
    words = [_plain_question(text) for text in texts]
    last = [text for role, text in zip(roles, words, strict=True) if role == "user"][-1:]
    return tuple(dict.fromkeys((" ".join(words), " ".join(last))))


def _question(turns: Sequence[Mapping[str, str]]) -> str:
    return " ".join(_plain_question(turn["text"]) for turn in turns)


@functools.lru_cache(maxsize=2**14)
def _plain_question(text: str) -> str:
    """As `plain_words`; many prompts of a source ask the same of another image."""
    return plain_words(text)
