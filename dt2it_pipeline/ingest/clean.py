"""Cleaning of preference pairs, as pure functions on tables: repeated, nearly repeated and contradictory pairs.

Two pairs can be the same only where their questions are: equal media, and equal words but for case, width (NFKC) and
white space. What two sides of one pair have in common does not count: corrections of a few words are the point of some
sources.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.media.markers import without_markers
from dt2it_pipeline.observe.progress import Progress, Report, silent
from dt2it_pipeline.storage import records, schemas

CONTRADICTORY = "contradictory pair"
REPEATED = "duplicate pair"
NEARLY_REPEATED = "near-duplicate pair"
IDENTICAL = "identical sides"
_NAMED = 5  # rows that a detail names
_REPORTED = 1000  # pairs between two counts
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
    pairs: pa.Table, prompts: pa.Table, near_duplicate: float | None, report: Report = silent
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
    """
    questions, names = _questions(prompts), _Names(pairs)
    groups: dict[Any, list[int]] = defaultdict(list)
    for row, key in enumerate(pairs["prompt_id"].to_pylist()):
        groups[questions[key]].append(row)
    normal = _normal_sides(pairs, groups.values())
    found: dict[int, Fault] = {}
    progress = Progress(report, "pairs cleaned", pairs.num_rows)
    done = 0
    for rows in groups.values():
        if rows[0] in normal:
            texts = {row: normal.pop(row) for row in rows}
            left = _exact(rows, texts, names, found)
            if near_duplicate is not None and len(left) > 1:
                _near(left, texts, names, near_duplicate, found)
        done += len(rows)
        if done - progress.done >= _REPORTED or done == pairs.num_rows:
            progress.at(done)
    return found


def clean_pairs(
    pairs: pa.Table,
    prompts: pa.Table,
    near_duplicate: float | None,
    stage: str,
    report: Report = silent,
) -> tuple[pa.Table, pa.Table]:
    """Split a pairs table into the rows to keep and a `quarantine` table of the others (see `faulty_pairs`)."""
    found = faulty_pairs(pairs, prompts, near_duplicate, report)
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


class _Names:
    """Every row of a pairs table as a person finds it: its source, and its own id there."""

    def __init__(self, pairs: pa.Table) -> None:
        self._pairs = pairs.select(["source", "row_id"])

    def __getitem__(self, row: int) -> str:
        source, row_id = (column[row].as_py() for column in self._pairs.columns)
        return source if row_id is None else f"{source}, {row_id}"


def _normal_sides(pairs: pa.Table, groups: Iterable[Sequence[int]]) -> dict[int, tuple[str, str]]:
    """Both sides of rows that may be faulty, normalised: rows whose question has others, and rows of alike sides."""
    sides = pairs.select(["chosen", "rejected"])
    beginnings = [pc.utf8_slice_codeunits(column, 0, _BEGINNING).to_pylist() for column in sides.columns]
    suspected = [
        row
        for rows in groups
        if len(rows) > 1 or _begin_alike(beginnings[0][rows[0]], beginnings[1][rows[0]])
        for row in rows
    ]
    texts = (map(normalised, column.to_pylist()) for column in sides.take(pa.array(suspected, pa.int64())).columns)
    return dict(zip(suspected, zip(*texts, strict=True), strict=True))


def _begin_alike(*beginnings: str) -> bool:
    """Whether two texts may be one once normalised: False only where their first words surely differ."""
    if not all(text.isascii() and "<" not in text and "\\" not in text for text in beginnings):
        return True
    words = [text.lower().split() for text in beginnings]
    # The last word may go on behind the beginning, and a mark there may join it.
    return all(one == other for one, other in zip(words[0][:-1], words[1][:-1], strict=False))


def _questions(prompts: pa.Table) -> dict[str, Any]:
    keys, systems = prompts["prompt_id"].to_pylist(), prompts["system"].to_pylist()
    normal = {system: normalised(system) for system in set(systems)}
    return {
        key: (normal[system], tuple(map(normalised, texts)), media)
        for key, system, texts, media in zip(
            keys,
            systems,
            records.inner_lists(prompts["turns"], "text"),
            records.inner_lists(prompts["media"], "sha256"),
            strict=True,
        )
    }


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
