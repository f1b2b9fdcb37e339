"""Decontamination: nothing that is trained on shows a benchmark's image, asks its question or gives its answers."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.config.sections.cleaning import DecontaminationSettings
from dt2it_pipeline.engines.launch import fork_server
from dt2it_pipeline.media.markers import without_markers
from dt2it_pipeline.storage import content_ids, records, schemas

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
_BYTES = 8  # of a perceptual hash
_LONG, _PIECE = 1_000_000, 4096  # prompts from which on several processes help, and those that one takes at a time


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
    processes: int = 1,
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
        processes: that share the work, once there are many prompts; what is found does not depend on them.

    Raises:
        WorkerError: one of several processes died.
    """
    by_prompt, asked = _by_prompt(prompts, content, settings, hashes, processes)
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
    processes: int = 1,
) -> tuple[pa.Table, pa.Table, list[dict[str, Any]]]:
    """Split a pairs table into the pairs that may be trained on and a `quarantine` table of the others.

    The third value is the report of what was removed: reason, benchmark, source and pairs, most pairs first. Arguments
    and errors are those of `contaminated_pairs`.
    """
    found = contaminated_pairs(pairs, prompts, content, settings, hashes, processes)
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
    """Which hashes lie within `distance` bits of another: position -> position of the nearest, and its distance.

    Of several equally near ones the first. Two hashes that differ in fewer bits than they have bytes have a byte in
    common, so that only such ones are compared (multi-index hashing, Norouzi et al. 2012, arXiv 1307.2982).
    """
    ours, theirs = (np.array(given, dtype=np.uint64) for given in (hashes, others))
    best = np.full(len(ours), -1, dtype=np.int64)
    least = np.full(len(ours), distance + 1, dtype=np.int64)
    for some, few in _comparisons(ours, theirs, distance):
        for start in range(0, len(some), _ROWS):
            rows = some[start : start + _ROWS]
            bits = np.bitwise_count(ours[rows][:, None] ^ theirs[few][None, :])
            first = bits.argmin(axis=1)
            bit, other = bits[np.arange(len(rows)), first].astype(np.int64), few[first]
            nearer = (bit < least[rows]) | ((bit == least[rows]) & (other < best[rows]))
            best[rows[nearer]], least[rows[nearer]] = other[nearer], bit[nearer]
    return {row: (int(best[row]), int(least[row])) for row in np.flatnonzero(best >= 0).tolist()}


def _comparisons(ours: np.ndarray, theirs: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Which hashes are to be compared with which, by place; those of the others rise."""
    bytes_of = [values.view(np.uint8).reshape(-1, _BYTES) for values in (ours, theirs)]
    counts = [[np.bincount(values[:, at], minlength=256) for at in range(_BYTES)] for values in bytes_of]
    work = sum(int(one @ other) for one, other in zip(*counts, strict=True))
    if distance >= _BYTES or work >= len(ours) * len(theirs):  # many have a byte in common
        if len(ours) and len(theirs):
            yield np.arange(len(ours)), np.arange(len(theirs))
        return
    for at in range(_BYTES):
        orders = [np.argsort(values[:, at], kind="stable") for values in bytes_of]
        ends = [np.cumsum(count[at])[:-1] for count in counts]
        groups = zip(*(np.split(order, end) for order, end in zip(orders, ends, strict=True)), strict=True)
        yield from ((some, few) for some, few in groups if len(some) and len(few))


def _by_prompt(
    prompts: pa.Table,
    content: BenchmarkContent,
    settings: DecontaminationSettings,
    hashes: Mapping[str, int],
    processes: int,
) -> tuple[dict[str, Contamination], dict[str, tuple[str, ...]]]:
    """What is wrong with prompts whatever is answered, and the benchmarks' questions that prompts ask."""
    found: dict[str, Contamination] = {}
    keys = prompts["prompt_id"]
    counts = pc.fill_null(pc.list_value_length(prompts["media"]), 0).to_numpy()
    shown = pa.table(
        {
            "sha256": pc.struct_field(pc.list_flatten(prompts["media"]), "sha256"),
            "prompt": pa.array(np.repeat(np.arange(len(keys)), counts)),
        }
    )
    theirs = pa.array(content.images, pa.string())
    for medium in shown.filter(pc.is_in(shown["sha256"], value_set=theirs)).to_pylist():
        name = content.images[medium["sha256"]]
        found.setdefault(keys[medium["prompt"]].as_py(), Contamination(SAME_IMAGE, name, medium["sha256"]))
    asked: dict[str, tuple[str, ...]] = {}
    for row in _asking(prompts, content, processes).tolist():
        key = keys[row].as_py()
        turns = prompts["turns"][row].as_py()
        questions = _asked([turn["role"] for turn in turns], [turn["text"] for turn in turns])
        if known := tuple(question for question in questions if content.answers.get(question)):
            asked[key] = known
        same = next((question for question in questions if question in content.questions), None)
        if not counts[row] and same is not None:
            found[key] = Contamination(SAME_QUESTION, content.questions[same], same[:80])
    if settings.perceptual_distance is not None:
        near = _alike(pc.unique(shown["sha256"]).to_pylist(), content, settings.perceptual_distance, hashes)
        showing: dict[str, list[int]] = defaultdict(list)
        for medium in shown.filter(pc.is_in(shown["sha256"], value_set=pa.array(near, pa.string()))).to_pylist():
            showing[medium["sha256"]].append(medium["prompt"])
        for sha256, (other, bits) in near.items():
            alike = Contamination(ALIKE_IMAGE, content.images[other], f"{sha256} is {bits} of 64 bits from {other}")
            for row in showing[sha256]:
                found.setdefault(keys[row].as_py(), alike)
    return found, asked


def _alike(
    shown: Sequence[str], content: BenchmarkContent, distance: int, hashes: Mapping[str, int]
) -> dict[str, tuple[str, int]]:
    """Images that look like one of a benchmark: content hash -> that of the benchmark's, and bits between them."""
    ours = sorted(sha for sha in shown if sha in hashes and sha not in content.images)
    theirs = sorted(sha for sha in content.images if sha in hashes)
    near = nearest([hashes[s] for s in ours], [hashes[s] for s in theirs], distance)
    return {ours[position]: (theirs[other], bits) for position, (other, bits) in near.items()}


def _asking(prompts: pa.Table, content: BenchmarkContent, processes: int) -> np.ndarray:
    """Rows of prompts that ask a benchmark's question, and by a rare chance others; rising."""
    known = np.array([_question_hash(text) for text in {*content.questions, *content.answers}], dtype=np.uint64)
    pieces = records.table_pieces(prompts.select(["turns"]), _PIECE)
    with fork_server.table_pool(
        processes if prompts.num_rows >= _LONG else 1, "compare questions with benchmarks", __name__
    ) as pool:
        asked = np.concatenate([*pool.map(_question_hashes, pieces), np.zeros((0, 2), dtype=np.uint64)])
    return np.flatnonzero(np.isin(asked, known).any(axis=1))


def _question_hashes(piece: records.TablePiece) -> np.ndarray:
    """Of each prompt, hashes of what it asks, uint64 [prompts, 2]."""
    turns = piece.rows["turns"]
    hashes = []
    for roles, texts in zip(records.inner_lists(turns, "role"), records.inner_lists(turns, "text"), strict=True):
        if roles == ("user",):  # as _asked gives it
            hashes += [_question_hash(_plain_question(texts[0]))] * 2
        else:
            questions = _asked(roles, texts)
            hashes += [_question_hash(questions[0]), _question_hash(questions[-1])]
    return np.array(hashes, dtype=np.uint64).reshape(-1, 2)


def _question_hash(text: str) -> int:
    return int.from_bytes(content_ids.digest(text)[:8], "little")


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
