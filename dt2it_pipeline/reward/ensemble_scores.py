"""Scores of given responses by several models, side by side and combined, for `dt2it score`.

What belongs here: from the scores of each model to the columns and lines of one file. What does not: scoring
(scoring/response_scores.py) and the rules by which scores are combined (ensemble.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dt2it_pipeline.reward.calibration import CalibrationError, calibration_of
from dt2it_pipeline.reward.checkpoints.processor_files import read_card
from dt2it_pipeline.reward.ensemble import Rule, combine_scores
from dt2it_pipeline.reward.scoring.response_scores import GivenResponses, ResponseScores, with_scores, write_lines
from dt2it_pipeline.reward.too_long import TOO_LONG
from dt2it_pipeline.storage import atomic


@dataclass(frozen=True)
class SeveralScores:
    """Scores of the responses of one file by several models, row by row; NaN where there is none.

    Attributes:
        rule: by which `combined` is made.
        by_model: scores by the model's name, one array per row, [its responses].
        combined: standardised and combined, likewise; NaN where a model has no score.
        spread: standard deviation of the standardised scores over models, likewise.
        unsure: prompts whose best response is less far above another one than the spread of the two on average.
        compared: prompts with at least two responses that all models scored.
    """

    rule: Rule
    by_model: Mapping[str, Sequence[np.ndarray]]
    combined: Sequence[np.ndarray]
    spread: Sequence[np.ndarray]
    unsure: int
    compared: int

    @property
    def mean_spread(self) -> float:
        """Mean spread of all responses that all models scored; NaN where there is none."""
        known = np.concatenate([*self.spread, np.empty(0)])
        known = known[np.isfinite(known)]
        return float(known.mean()) if len(known) else float("nan")


def calibrated_scales(models: Sequence[str]) -> list[float] | None:
    """Temperatures of models where all are calibrated checkpoints on this machine, else None.

    >>> calibrated_scales(["http://127.0.0.1:8000"]) is None
    True

    Raises:
        CalibrationError: a checkpoint's calibration cannot be read; the message names the checkpoint.
    """
    found = []
    for model in models:
        try:
            found.append(calibration_of(read_card(model)))
        except CalibrationError as error:
            raise CalibrationError(f"{model}: {error}") from error
    known = [one.temperature for one in found if one is not None]
    return known if len(known) == len(models) else None


def several_scores(
    ids: Sequence[Sequence[str]], found: Mapping[str, Mapping[str, float]], rule: Rule, scales: Sequence[float] | None
) -> SeveralScores:
    """Combine the scores of several models.

    >>> made = several_scores([["a", "b"]], {"one": {"a": 1.0, "b": 0.0}, "two": {"a": 0.0, "b": 9.0}}, "mean", None)
    >>> made.spread[0].round(3).tolist(), made.unsure
    ([0.707, 0.707], 1)

    Args:
        ids: response ids of each row; none where a row cannot be used.
        found: scores by model and response_id.
        rule: `mean` or `worst`.
        scales: what the models' scores are divided by; see reward.ensemble.
    """
    by_model = {
        name: [np.array([scores.get(key, np.nan) for key in own], dtype=np.float64) for own in ids]
        for name, scores in found.items()
    }
    made = combine_scores(list(by_model.values()), rule, scales)
    unsure = compared = 0
    for scores, spread in zip(made.scores, made.spread, strict=True):
        known = np.flatnonzero(np.isfinite(scores))
        if len(known) > 1:
            compared += 1
            best, *others = known[np.argsort(-scores[known], kind="stable")]
            unsure += any(scores[best] - scores[other] < (spread[best] + spread[other]) / 2 for other in others)
    return SeveralScores(rule, by_model, made.scores, made.spread, unsure, compared)


def write_several(
    given: GivenResponses, found: Mapping[str, ResponseScores], made: SeveralScores, output: Path
) -> tuple[list[str], dict[str, int]]:
    """Write the scores of several models; returns what was not scored and why, and the counts.

    Responses that are too long are not among the faults: they are counted in one line per model (too_long.left_out).

    Args:
        given: the responses.
        found: what each model gave, by name.
        made: the same, combined.
        output: .jsonl, where `given.file` is: the lines as read, each with `scores` (combined), `spread` and
            `scores_by_model`; another name: a table with a row per response, its `score` (combined), `spread`, and a
            column `score NAME` for each model.
    """
    names, ids = given.names_and_ids()
    faults = {} if given.file is None else given.file.faults
    unusable = {} if given.file is None else given.file.response_faults
    reasons = {name: scores.faults() for name, scores in found.items()}
    rows: list[dict[str, Any]] = []
    lost: list[str] = []
    for number, (name, own) in enumerate(zip(names, ids, strict=True)):
        for place, key in enumerate(own):
            lacking = {model: known[key] for model, known in reasons.items() if key in known}
            rows.append(
                {
                    "row_id": name,
                    "place": place,
                    "response_id": key,
                    "score": made.combined[number][place],
                    "spread": made.spread[number][place],
                    **{f"score {model}": scores[number][place] for model, scores in made.by_model.items()},
                    "reason": "; ".join(f"{model}: {reason}" for model, (reason, _) in lacking.items()),
                    "detail": "; ".join(f"{model}: {detail}" for model, (_, detail) in lacking.items() if detail),
                }
            )
            if key in unusable:
                rows[-1]["reason"], rows[-1]["detail"] = unusable[key]
                lost.append(f"{name}, response {place}: {rows[-1]['reason']} ({rows[-1]['detail']})")
            if any(reason != TOO_LONG for reason, _ in lacking.values()):
                lost.append(f"{name}, response {place}: {rows[-1]['reason']} ({rows[-1]['detail']})")
        if number in faults:
            reason, detail = faults[number]
            lost.append(f"{name}: {reason} ({detail})")
            rows.append({"row_id": name, "reason": reason, "detail": detail})
    if output.suffix == ".jsonl" and given.file is not None:
        lines = [
            {
                **with_scores(given.file, number, _listed(made.combined[number])),
                "spread": _listed(made.spread[number]),
                "scores_by_model": {model: _listed(scores[number]) for model, scores in made.by_model.items()},
            }
            for number in range(len(given.file.rows))
        ]
        write_lines(lines, output)
    else:
        numbers = ("score", "spread", *(f"score {model}" for model in made.by_model))
        columns = ("row_id", "place", "response_id", *numbers, "reason", "detail")
        types = {"place": "Int64", "response_id": "str", "reason": "str", "detail": "str"}
        table = pd.DataFrame(rows, columns=list(columns)).astype({**types, **dict.fromkeys(numbers, "Float32")})
        atomic.write_parquet(table, output)
    total = sum(map(len, ids))
    scored = sum(int(np.isfinite(scores).sum()) for scores in made.combined)
    counts = {"responses": total, "scored": scored, "rows": len(names), "rows_quarantined": len(faults)}
    return lost, counts


def _listed(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
