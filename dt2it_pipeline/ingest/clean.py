"""Cleaning of preference pairs, as pure functions on tables: repeated, nearly repeated and contradictory pairs.

Two pairs can be the same only where their questions are: equal media, and equal words but for case, width (NFKC) and
white space. What two sides of one pair have in common does not count: corrections of a few words are the point of some
sources.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from dt2it_pipeline.media.markers import without_markers
from dt2it_pipeline.observe.progress import Progress, Report, silent
from dt2it_pipeline.storage import records, schemas

CONTRADICTORY = "contradictory pair"
REPEATED = "duplicate pair"
NEARLY_REPEATED = "near-duplicate pair"
IDENTICAL = "identical sides"
_NAMED = 5  # rows that a detail names
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
    questions, names = _questions(prompts), _names(pairs)
    sides = [[normalised(text) for text in pairs[name].to_pylist()] for name in ("chosen", "rejected")]
    groups: dict[Any, list[int]] = defaultdict(list)
    for row, key in enumerate(pairs["prompt_id"].to_pylist()):
        groups[questions[key]].append(row)
    found: dict[int, Fault] = {}
    progress = Progress(report, "pairs cleaned", pairs.num_rows)
    for rows in groups.values():
        texts = {row: (sides[0][row], sides[1][row]) for row in rows}
        left = _exact(rows, texts, names, found)
        if near_duplicate is not None and len(left) > 1:
            _near(left, texts, names, near_duplicate, found)
        progress.add(len(rows))
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
    keep = pa.array([row not in found for row in range(pairs.num_rows)], pa.bool_())
    places = sorted(found)
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
    return pairs.filter(keep).combine_chunks(), schemas.table(aside, "quarantine")


def _names(pairs: pa.Table) -> Sequence[str]:
    """Every row as a person finds it: its source, and its own id there."""
    columns = (pairs[name].to_pylist() for name in ("source", "row_id"))
    return [source if row_id is None else f"{source}, {row_id}" for source, row_id in zip(*columns, strict=True)]


def _questions(prompts: pa.Table) -> dict[str, Any]:
    columns = (prompts[name].to_pylist() for name in ("prompt_id", "system", "turns", "media"))
    return {
        key: (
            normalised(system),
            tuple(normalised(turn["text"]) for turn in turns),
            tuple(medium["sha256"] for medium in media),
        )
        for key, system, turns, media in zip(*columns, strict=True)
    }


def _exact(
    rows: Sequence[int], texts: Mapping[int, tuple[str, str]], names: Sequence[str], found: dict[int, Fault]
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
    names: Sequence[str],
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
