"""Tables to draw an audit from, and filled-in spreadsheets of one."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd

SOURCES = {"large": 700, "middle": 97, "small": 3}


def population(seed: int = 0) -> pd.DataFrame:
    """Pairs of three sources; the less sure a label is, the more often it is wrong, and most in the small sources."""
    random = np.random.default_rng(seed)
    source = np.repeat(list(SOURCES), list(SOURCES.values()))
    probability = random.beta(4, 1, len(source)).round(2)  # many equal ones
    probability[random.random(len(source)) < 0.1] = np.nan
    right = random.random(len(source)) < np.where(np.isnan(probability), 0.3, probability) - 0.3 * (source == "middle")
    right[-3:] = [True, False, False]
    ids = [f"p{n}" for n in range(len(source))]
    return pd.DataFrame({"pair_id": ids, "source": source, "probability": probability, "right": right})


def rows_of_sheet(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline="")))


def filled(
    file: Path, answers: list[str], auditor: str = "Ann", delimiter: str = ",", encoding: str = "utf-8-sig"
) -> Path:
    """A spreadsheet as a person saves it; one answer per row."""
    rows = rows_of_sheet(file)
    made = file.with_name(f"filled-{auditor}.csv")
    with made.open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        for row, answer in zip(rows, [*answers, *[""] * (len(rows) - len(answers))], strict=True):
            writer.writerow({**row, "better": answer, "auditor": auditor if answer else ""})
    return made


def tool_answers(folder: Path, format_name: str, choices: list[str]) -> Path:
    """What a tool gives back when one person chose so."""
    name = {"label_studio": "tasks.json", "argilla": "records.json"}[format_name]
    entries = json.loads((folder / name).read_text())
    for entry, choice in zip(entries, choices, strict=True):
        if format_name == "label_studio":
            result = {"from_name": "better", "value": {"choices": [choice]}}
            entry["annotations"] = [{"completed_by": 1, "result": [result]}]
        else:
            entry |= {"status": "completed", "responses": {"better": [{"value": choice, "user_id": "u"}]}}
    file = folder.with_name("answers.json")
    file.write_text(json.dumps(entries))
    return file
