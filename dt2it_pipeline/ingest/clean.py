"""Cleaning of preference pairs, as pure functions on tables: repeated, nearly repeated and contradictory pairs.

Two pairs can be the same only where their questions are: equal media, and equal words but for case, width (NFKC) and
white space. What two sides of one pair have in common does not count: corrections of a few words are the point of some
sources.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.engines.launch import fork_server
from dt2it_pipeline.media.markers import without_markers
from dt2it_pipeline.observe.progress import Progress, Report, silent
from dt2it_pipeline.storage import content_ids, records, schemas

CONTRADICTORY = "contradictory pair"
REPEATED = "duplicate pair"
NEARLY_REPEATED = "near-duplicate pair"
IDENTICAL = "identical sides"
_NAMED = 5  # rows that a detail names
_LONG, _PIECE = 500_000, 4096  # pairs from which on several processes help, and rows that one works on at a time
_BEGINNING = 64  # characters of two sides that are compared first; most differ there
_SHINGLE = 5  # characters; the measure is the same for languages that write no spaces
_HAN_SHARE = 0.3  # of a text's letters, from which on it is Chinese
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_OTHER_EAST_ASIAN = re.compile(r"[\u3040-\u30ff\uac00-\ud7af]")  # kana and Hangul


class Fault(NamedTuple):
    """Why a pair is quarantined, what was found, and the row of the table (by number) that it repeats, if it does."""

    reason: str
    detail: str
    of: int | None = None


def language_of(text: str, default: str) -> str:
    """`zh` where at least 30% of a text's letters are Han and none is kana or Hangul, else `default`.

    A guess from the script alone: it separates Chinese from languages of other scripts, and nothing else.
    """
    if text.isascii() or _OTHER_EAST_ASIAN.search(text):
        return default
    letters = sum(map(str.isalpha, text))
    return "zh" if letters and len(_HAN.findall(text)) >= _HAN_SHARE * letters else default


def normalised(text: str) -> str:
    """Text in one width and case, with single spaces, without media markers."""
    return " ".join(unicodedata.normalize("NFKC", without_markers(text, " ")).casefold().split())


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of two normalised texts' sets of 5-character shingles, 0 to 1."""
    return 1.0 if first == second else _jaccard(_shingles(first), _shingles(second))


def faulty_pairs(
    pairs: pa.Table, prompts: pa.Table, near_duplicate: float | None, report: Report = silent, processes: int = 1
) -> dict[int, Fault]:
    """Rows of a pairs table that should be quarantined, by their number in the table.

    - `identical sides`: both sides are the same text once normalised;
    - `contradictory pair`: the same two sides are preferred both ways; all of these rows, since none can be believed;
    - `duplicate pair`: the same sides, preferred the same way, stand in an earlier row;
    - `near-duplicate pair`: both sides have at least `near_duplicate` shingles in common (Jaccard) with the sides of an
      earlier row of the same question; not looked for where it is None.

    Args:
        pairs: table kind `pairs`; a pair_id may occur several times.
        prompts: table kind `prompts`, with every prompt of the pairs.
        near_duplicate: 0 to 1.
        report: is called with how many of the pairs are looked at.
        processes: that share the work, once there are many pairs; what is found does not depend on them.

    Raises:
        WorkerError: one of several processes died.
    """
    found: dict[int, Fault] = {}
    progress = Progress(report, "pairs cleaned", pairs.num_rows)
    with fork_server.table_pool(processes if pairs.num_rows >= _LONG else 1, "clean pairs", __name__) as pool:
        question = _questions(pairs, prompts, pool)
        counts = np.bincount(question)
        rows = np.argsort(question, kind="stable")
        rows = rows[(counts[question[rows]] > 1) | _may_be_alike(pairs)[rows]]
        progress.at(pairs.num_rows - len(rows))
        for done, faults in pool.map(partial(_faults, near_duplicate), _pieces(pairs, question, rows)):
            found |= faults
            progress.add(done)
    return found


def clean_pairs(
    pairs: pa.Table,
    prompts: pa.Table,
    near_duplicate: float | None,
    stage: str,
    report: Report = silent,
    processes: int = 1,
) -> tuple[pa.Table, pa.Table]:
    """Split a pairs table into the rows to keep and a `quarantine` table of the others (see `faulty_pairs`)."""
    found = faulty_pairs(pairs, prompts, near_duplicate, report, processes)
    places = sorted(found)
    kept = np.ones(pairs.num_rows, dtype=bool)
    kept[places] = False
    rows = pairs.select(["pair_id", "source", "row_id"]).take(pa.array(places, pa.int64())).to_pylist()
    aside = []
    for place, row in zip(places, rows, strict=True):
        # A row that repeats another is joined to the pair that stands for both.
        stands = place
        while stands in found and (of := found[stands].of) is not None:
            stands = of
        pair_id = pairs["pair_id"][stands].as_py()
        aside.append(
            records.quarantine_pair(row, stage, found[place].reason, found[place].detail) | {"pair_id": pair_id}
        )
    return pairs.filter(pa.array(kept)).combine_chunks(), schemas.table(aside, "quarantine")


def _pieces(pairs: pa.Table, question: np.ndarray, rows: np.ndarray) -> Iterator[records.TablePiece]:
    """Rows of the pairs table, which are ordered by their question, in pieces that hold all rows of their questions."""
    columns = pairs.select(["chosen", "rejected", "source", "row_id"])
    ends = np.flatnonzero(np.diff(question[rows], append=-1)) + 1
    start = 0
    while start < len(rows):
        end = int(ends[min(int(np.searchsorted(ends, start + _PIECE)), len(ends) - 1)])
        some = rows[start:end]
        piece = columns.take(pa.array(some))
        yield records.TablePiece(
            piece.append_column("row", pa.array(some)).append_column("question", pa.array(question[some]))
        )
        start = end


def _faults(near_duplicate: float | None, piece: records.TablePiece) -> tuple[int, dict[int, Fault]]:
    """How many rows a piece has, and the faulty ones among them, by their number in the whole table."""
    table = piece.rows
    numbers, questions = table["row"].to_pylist(), table["question"].to_pylist()
    sides = zip(*(table[name].to_pylist() for name in ("chosen", "rejected")), strict=True)
    names = _Names(table)
    found: dict[int, Fault] = {}
    for _, group in itertools.groupby(zip(range(len(numbers)), sides, strict=True), lambda one: questions[one[0]]):
        members = list(group)
        if len(members) == 1 and not _begin_alike(*(text[:_BEGINNING] for text in members[0][1])):
            continue
        texts = {row: (normalised(chosen), normalised(rejected)) for row, (chosen, rejected) in members}
        left = _exact(list(texts), texts, names, found)
        if near_duplicate is not None and len(left) > 1:
            _near(left, texts, names, near_duplicate, found)
    return len(numbers), {
        numbers[row]: fault._replace(of=None if fault.of is None else numbers[fault.of]) for row, fault in found.items()
    }


class _Names:
    """Every row of a pairs table as a person finds it: its source, and its own id there."""

    def __init__(self, pairs: pa.Table) -> None:
        self._pairs = pairs.select(["source", "row_id"])

    def __getitem__(self, row: int) -> str:
        source, row_id = (column[row].as_py() for column in self._pairs.columns)
        return source if row_id is None else f"{source}, {row_id}"


def _may_be_alike(pairs: pa.Table) -> np.ndarray:
    """Bool [pairs], False where the sides surely differ: each begins with a plain word, and these in another letter."""
    first, plain = [], []
    for name in ("chosen", "rejected"):
        start = pc.utf8_slice_codeunits(pairs[name], 0, _BEGINNING)
        # A word that may go on behind the slice, and a mark there may join it, is no such word.
        whole = pc.match_substring_regex(start, r"^[a-zA-Z0-9]+ ")
        plain.append(
            pc.and_(whole, pc.and_(pc.string_is_ascii(start), pc.invert(pc.match_substring_regex(start, r"[<\\]"))))
        )
        first.append(pc.ascii_lower(pc.utf8_slice_codeunits(start, 0, 1)))
    differ = pc.and_(pc.and_(*plain), pc.not_equal(*first))
    return pc.invert(differ).to_numpy()


def _begin_alike(*beginnings: str) -> bool:
    """Whether two texts may be one once normalised: False only where their first words surely differ."""
    if not all(text.isascii() and "<" not in text and "\\" not in text for text in beginnings):
        return True
    words = [text.lower().split() for text in beginnings]
    # The last word may go on behind the beginning, and a mark there may join it.
    return all(one == other for one, other in zip(words[0][:-1], words[1][:-1], strict=False))


def _questions(pairs: pa.Table, prompts: pa.Table, pool: fork_server.Pool) -> np.ndarray:
    """A number for the question of every pair, equal ones alike, in the order of the prompts; int32 [pairs]."""
    asked = prompts.select(["system", "turns", "media"])
    _, number = content_ids.numbered(b"".join(pool.map(_question_digests, records.table_pieces(asked, _PIECE))))
    prompt: np.ndarray = pc.index_in(pairs["prompt_id"], value_set=prompts["prompt_id"].combine_chunks()).to_numpy()
    return number[prompt]


def _question_digests(piece: records.TablePiece) -> bytes:
    """16 bytes for each prompt, equal where the question is."""
    prompts = piece.rows
    systems = prompts["system"].to_pylist()
    normal = {system: normalised(system) for system in set(systems)}
    keys = zip(
        map(normal.__getitem__, systems),
        (tuple(map(normalised, texts)) for texts in records.inner_lists(prompts["turns"], "text")),
        records.inner_lists(prompts["media"], "sha256"),
        strict=True,
    )
    return content_ids.digests(map(repr, keys))


def _exact(
    rows: Sequence[int], texts: Mapping[int, tuple[str, str]], names: _Names, found: dict[int, Fault]
) -> list[int]:
    """Judge rows of one question by equal sides; returns those that are left."""
    same: dict[frozenset[str], list[int]] = defaultdict(list)
    for row in rows:
        if texts[row][0] == texts[row][1]:
            found[row] = Fault(IDENTICAL, texts[row][0][:80])
        else:
            same[frozenset(texts[row])].append(row)
    left = []
    for first, *others in same.values():
        if any(texts[other] != texts[first] for other in others):
            where = "; ".join(names[row] for row in (first, *others)[:_NAMED])
            more = f"; and {len(others) + 1 - _NAMED} more" if len(others) >= _NAMED else ""
            for row in (first, *others):
                found[row] = Fault(CONTRADICTORY, f"preferred both ways in {len(others) + 1} rows: {where}{more}")
            continue
        left.append(first)
        for other in others:
            found[other] = Fault(REPEATED, f"of a row of {names[first]}", first)
    return left


def _near(
    rows: Sequence[int],
    texts: Mapping[int, tuple[str, str]],
    names: _Names,
    least: float,
    found: dict[int, Fault],
) -> None:
    shingles: dict[str, frozenset[str]] = {}

    def alike(first: str, second: str) -> float:
        if first == second:
            return 1.0
        if min(len(first), len(second)) < least * 0.5 * max(len(first), len(second)):
            return 0.0  # repeated shingles count once, so that lengths bound the similarity loosely
        for text in (first, second):
            if text not in shingles:
                shingles[text] = _shingles(text)
        return _jaccard(shingles[first], shingles[second])

    kept: list[int] = []
    for row in sorted(rows):
        for other in kept:
            chosen = alike(texts[row][0], texts[other][0])
            rejected = alike(texts[row][1], texts[other][1]) if chosen >= least else 0.0
            if min(chosen, rejected) >= least:
                detail = f"chosen {chosen:.3f}, rejected {rejected:.3f} like a row of {names[other]}"
                found[row] = Fault(NEARLY_REPEATED, detail, other)
                break
        else:
            kept.append(row)


def _shingles(text: str) -> frozenset[str]:
    return frozenset(text[at : at + _SHINGLE] for at in range(max(1, len(text) - _SHINGLE + 1)))


def _jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    common = len(first & second)
    return common / (len(first) + len(second) - common)
