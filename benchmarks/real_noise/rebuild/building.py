"""What the builders of sets share: the four tables of a set, appended to row by row, and writing them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.real_noise.sets import FILES, SetError

Rows = list[dict[str, Any]]
Tables = dict[str, Rows]


def write(tables: Tables, folder: Path) -> None:
    """Write a set's four files into a folder, which may not exist yet.

    Raises:
        SetError: there is no pair.
    """
    if not tables["pairs"]:
        raise SetError(f"{folder.name}: no pair follows from these files; are they complete?")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        pd.DataFrame(tables[name]).to_parquet(folder / f"{name}.parquet", index=False)


def empty() -> Tables:
    """The four tables of a set without rows."""
    return {name: [] for name in FILES}


def read(file: Path) -> Rows:
    """The rows of a JSON file.

    Raises:
        SetError: it is not JSON.
    """
    made: Rows = _parsed(file, file.read_text(encoding="utf-8"))
    return made


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file; raises SetError where it is not JSON."""
    made: dict[str, Any] = _parsed(file, file.read_text(encoding="utf-8"))
    return made


def read_lines(file: Path) -> Rows:
    """The rows of a JSON Lines file.

    Raises:
        SetError: a line is not JSON.
    """
    return [_parsed(file, line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _parsed(file: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SetError(
            f"{file} is not JSON ({error}); download it again, with `git lfs pull` if it is a pointer"
        ) from error


def number(text: str) -> float | None:
    """The number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def add_pair(tables: Tables, pair: str, source: str, prompt: str, first: str, second: str, label: int) -> str:
    """Append a pair whose `label` (1 or 2) side is chosen; returns chosen_id."""
    texts = {1: str(first), 2: str(second)}  # PandaLM has a response that JSON reads as a truth value
    tables["pairs"].append(
        {
            "pair_id": pair,
            "source": source,
            "prompt": prompt,
            "chosen_id": f"{pair}-{label}",
            "rejected_id": f"{pair}-{3 - label}",
            "chosen": texts[label],
            "rejected": texts[3 - label],
        }
    )
    return f"{pair}-{label}"


def add_scores(tables: Tables, pair: str, voter: str, scores: Iterable[float | None]) -> None:
    """Append a voter's scores of the first and second side; None is left out."""
    for side, score in enumerate(scores, 1):
        if score is not None:
            tables["scores"].append({"response_id": f"{pair}-{side}", "voter": voter, "score": score})


def add_vote(tables: Tables, pair: str, judge: str, better: str | None, chosen: str, order: str = "ab") -> None:
    """Append a judge's verdict; `better` is the better side's id, or None for a tie."""
    verdict = "tie" if better is None else "chosen" if better == chosen else "rejected"
    tables["votes"].append({"pair_id": pair, "judge": judge, "order": order, "better_id": better, "verdict": verdict})
