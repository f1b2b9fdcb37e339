"""Best-of-N of a file of answers: chosen by one or several models, and the curve where the file says how good they are.

What belongs here: from the scores of several models to choices, tables and lines. What does not: scoring itself
(reward/scoring/response_scores.py) and the mathematics (choice.py, curve.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.evaluate.best_of.choice import BestAnswer, best_answer
from dt2it_pipeline.evaluate.best_of.curve import Numbers
from dt2it_pipeline.reward.ensemble import Rule, combine_scores
from dt2it_pipeline.reward.scoring.response_files import ResponseFile
from dt2it_pipeline.reward.scoring.response_scores import GivenResponses, write_lines
from dt2it_pipeline.storage import atomic

QUALITY_KEYS = ("quality", "truth")
_COLUMNS = (
    "model", "row_id", "place", "response_id", "text", "score", "margin", "tied", "answers", "unscored", "reason",
    "detail",
)  # fmt: skip
_TYPES = {
    "place": "Int64", "score": "Float64", "margin": "Float64", "text": "str", "response_id": "str", "reason": "str",
    "detail": "str",
}  # fmt: skip


class BestOfError(UserError, ValueError):
    """Best-of-N cannot be computed from what is given; the message says why."""


@dataclass(frozen=True)
class Answers:
    """The answers of a file with their scores by every model, row by row.

    Attributes:
        names: of the rows.
        ids: response ids of each row, in the order of its answers; none where the row cannot be used.
        texts: of the answers, likewise; empty where one cannot be scored.
        scores: by model; None where an answer has no score.
        faults: reason and detail of the rows that cannot be used, by their place.
    """

    names: Sequence[str]
    ids: Sequence[Sequence[str]]
    texts: Sequence[Sequence[str]]
    scores: Mapping[str, Sequence[Sequence[float | None]]]
    faults: Mapping[int, tuple[str, str]]

    @property
    def count(self) -> int:
        """How many answers there are."""
        return sum(map(len, self.ids))

    def chosen(self, model: str) -> list[BestAnswer]:
        """The best answer of every row by a model."""
        return [best_answer(*row) for row in zip(self.scores[model], self.texts, strict=True)]


def scored_answers(given: GivenResponses, found: Mapping[str, Mapping[str, float]]) -> Answers:
    """The answers with the scores that models gave, by model and response_id."""
    names, ids = given.names_and_ids()
    texts = given.texts()
    return Answers(
        names,
        ids,
        [[texts.get(key, "") for key in own] for own in ids],
        {model: [[scores.get(key) for key in own] for own in ids] for model, scores in found.items()},
        {} if given.file is None else given.file.faults,
    )


def with_ensemble(answers: Answers, rule: Rule, scales: Sequence[float] | None = None) -> tuple[Answers, np.ndarray]:
    """The answers with an ensemble of all models as a further model, and the spread of every answer, [answers].

    Args:
        answers: with the scores of the models.
        rule: `mean` or `worst`.
        scales: of the models; see reward.ensemble.

    Raises:
        BestOfError: there is one model alone.
    """
    models = list(answers.scores)
    if len(models) < 2:
        raise BestOfError("an ensemble needs at least two models; give --model several times")
    arrays = [[np.array([_number(value) for value in row]) for row in answers.scores[name]] for name in models]
    made = combine_scores(arrays, rule, scales)
    combined = [[None if math.isnan(value) else float(value) for value in row] for row in made.scores]
    name = f"{rule} of {len(models)}"
    both = Answers(answers.names, answers.ids, answers.texts, {**answers.scores, name: combined}, answers.faults)
    return both, np.concatenate([*made.spread, np.empty(0)])


def qualities(file: ResponseFile | None) -> tuple[Numbers | None, list[str]]:
    """Quality of every answer, row by row, and sentences about rows whose `quality` or `truth` cannot be used.

    The first is None where no row has one. A row that cannot be used has no numbers.
    """
    rows = [] if file is None else [file.fields(row) for row in file.rows]
    key = next((key for key in QUALITY_KEYS if any(row.get(key) is not None for row in rows)), None)
    if file is None or key is None:
        return None, []
    found: list[list[float | None]] = []
    faults = []
    for name, row, own in zip(file.names, rows, file.ids, strict=True):
        given = row.get(key)
        if not own or given is None:
            found.append([None] * len(own))
        elif not isinstance(given, list) or len(given) != len(own):
            faults.append(f"{name}: {file.key_of(key)} is no list with one number for each of the {len(own)} responses")
            found.append([None] * len(own))
        elif wrong := [value for value in given if value is not None and not _is_finite(value)]:
            faults.append(f"{name}: {file.key_of(key)} holds {wrong[0]!r}, which is no number")
            found.append([None] * len(own))
        else:
            found.append([None if value is None else float(value) for value in given])
    return found, faults


def write_choices(answers: Answers, models: Sequence[str], output: Path, file: ResponseFile | None) -> None:
    """Write the best answers.

    Args:
        answers: with scores.
        models: whose choices are written.
        output: .jsonl: the rows as given, each with `scores` and the object `best` (one model alone); else Parquet
            with a row per model and row.
        file: that the rows were read from; needed for .jsonl.

    Raises:
        BestOfError: a .jsonl file was asked for, and there are several models or no rows.
    """
    if output.suffix == ".jsonl":
        if file is None or len(models) != 1:
            raise BestOfError(f"{output}: the choices of several models, or of tables, go to a .parquet file")
        scores = answers.scores[models[0]]
        best = [None if one.place is None else asdict(one) for one in answers.chosen(models[0])]
        triples = zip(file.rows, scores, best, strict=True)
        write_lines([{**row, "scores": own, "best": one} for row, own, one in triples], output)
        return
    rows: list[tuple[Any, ...]] = []
    for model in models:
        for number, best_one in enumerate(answers.chosen(model)):
            own = answers.ids[number]
            reason, detail = answers.faults.get(number, ("", ""))
            if not reason and best_one.place is None:
                reason, detail = "no answer has a score", ""
            key = None if best_one.place is None else own[best_one.place]
            rows.append(
                (model, answers.names[number], best_one.place, key, best_one.text, best_one.score, best_one.margin,
                 best_one.tied, len(own), best_one.unscored, reason, detail)
            )  # fmt: skip
    atomic.write_parquet(pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_TYPES), output)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False
