"""Calibrates a checkpoint on pairs that a person brings: reads and scores them, fits T, keeps it in the checkpoint.

What belongs here: the way from files of pairs to margins. What does not: the fit (reward/calibration.py) and the card
(reward/checkpoints/model_card.py).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.engines.jobs import Reporter
from dt2it_pipeline.human_review.audit_answers import read_audit
from dt2it_pipeline.ingest.preferences import read_preferences
from dt2it_pipeline.reward.calibration import Calibration, CalibrationError, fit_calibration
from dt2it_pipeline.reward.checkpoints.processor_files import CARD
from dt2it_pipeline.reward.scoring.any_model import is_url
from dt2it_pipeline.reward.scoring.response_scores import GivenResponses, given_responses, score_responses, write_lines
from dt2it_pipeline.storage import atomic, schemas


@dataclass(frozen=True)
class Calibrated:
    """What came of a calibration.

    Attributes:
        calibration: the fit.
        given: pairs that were brought.
        unusable: reason -> how many of them were not used.
    """

    calibration: Calibration
    given: int
    unusable: Mapping[str, int]


@dataclass(frozen=True)
class _Pairs:
    """Pairs to score: prompt, better and other response of each, its weight; and what could not be used."""

    responses: GivenResponses
    rows: Sequence[tuple[str, str, str, float]]
    unusable: dict[str, int]
    given: int


def calibrate(
    checkpoint: str,
    pairs: Path,
    work: Path,
    *,
    prompts: Path | None = None,
    media: Path | None = None,
    audit: Path | None = None,
    sample: Path | None = None,
    columns: Mapping[str, str] | None = None,
    verdict: Mapping[str, str] | None = None,
    settings: ScoringSettings,
    report: Reporter,
) -> Calibrated:
    """Score pairs with a checkpoint and fit its temperature. The checkpoint is not changed; see model_card.py.

    Args:
        checkpoint: folder of a reward model in our layout.
        pairs: a Parquet table of kind `pairs` where `prompts` is given, else a file that `read_preferences` reads.
        work: folder for what a killed call resumes from.
        prompts: Parquet of kind `prompts`.
        media: folder from which paths of images and videos count; by default that of `pairs`.
        audit: what people said of some of the pairs (files of `dt2it review`): only these count, as people said.
        sample: the audit's drawn pairs, by which answered pairs stand for all that were drawn from.
        columns: as for `read_preferences`.
        verdict: as for `read_preferences`.
        settings: of the scoring.
        report: is called with `responses` and `responses_total`.

    Raises:
        CalibrationError: the model is none of ours, or too few pairs can be used.
        SourceError, RecordError, AuditError: the files cannot be read.
        CheckpointError, ScoringError: the model cannot be used.
    """
    if is_url(checkpoint) or not (Path(checkpoint) / CARD).is_file():
        raise CalibrationError(
            f"{checkpoint} is no folder with a {CARD}, where the temperature is kept: give a checkpoint of `dt2it "
            "train`, or write the model in our layout first with `dt2it convert`"
        )
    if audit is not None and prompts is None:
        raise CalibrationError("--audit names pairs by pair_id: give a table of kind `pairs` and its --prompts")
    if prompts is not None:
        read = _of_tables(pairs, prompts, media or pairs.absolute().parent, audit, sample, work)
    else:
        read = _of_file(pairs, media or pairs.absolute().parent, columns, verdict, work)
    scored = score_responses(checkpoint, read.responses, work, settings=settings, system_prompt=None, report=report)
    scores = scored.by_id()
    usable = [row for row in read.rows if row[1] in scores and row[2] in scores]
    if unscored := len(read.rows) - len(usable):
        read.unusable["no score for both answers"] = unscored
    margins = [scores[better] - scores[other] for _, better, other, _ in usable]
    source = f"{pairs.name}, as people said in {audit.name}" if audit is not None else pairs.name
    made = fit_calibration(
        margins, [prompt for prompt, _, _, _ in usable], weights=[row[3] for row in usable], source=source
    )
    return Calibrated(made, read.given, read.unusable)


def _of_tables(pairs: Path, prompts: Path, media: Path, audit: Path | None, sample: Path | None, work: Path) -> _Pairs:
    table = atomic.read_given_parquet(pairs, "pairs").to_pandas()
    unusable: dict[str, int] = {}
    table["weight"] = 1.0
    if audit is not None:
        table = _as_people_said(table, read_audit(audit, sample), unusable)
    responses: dict[str, dict[str, Any]] = {}
    for row in table.to_dict("records"):
        for side in ("chosen", "rejected"):
            key = row[f"{side}_id"]
            responses[key] = {
                "response_id": key, "prompt_id": row["prompt_id"], "text": row[side], "generator": ""
            }  # fmt: skip
    file = work / "responses.parquet"
    atomic.write_parquet(schemas.table([responses[key] for key in sorted(responses)], "responses"), file)
    columns = ("prompt_id", "chosen_id", "rejected_id", "weight")
    rows = list(table[list(columns)].itertuples(index=False, name=None))
    return _Pairs(GivenResponses(prompts, file, media), rows, unusable, len(table) + sum(unusable.values()))


def _as_people_said(table: pd.DataFrame, answers: pd.DataFrame, unusable: dict[str, int]) -> pd.DataFrame:
    """The pairs that people answered, the better side first; ties and other pairs' answers are counted."""
    joined = table.drop(columns="weight").merge(answers[["pair_id", "better_id", "weight"]], on="pair_id")
    if foreign := len(answers) - joined["pair_id"].nunique():
        unusable["answer about a pair that is not in the table"] = foreign
    decided = joined["better_id"].eq(joined["chosen_id"]) | joined["better_id"].eq(joined["rejected_id"])
    if ties := int((~decided).sum()):
        unusable["people prefer neither answer"] = ties
    joined = joined[decided].reset_index(drop=True)
    swapped = joined["better_id"].eq(joined["rejected_id"])
    for name in ("", "_id"):
        sides = [f"chosen{name}", f"rejected{name}"]
        joined.loc[swapped, sides] = joined.loc[swapped, sides[::-1]].to_numpy()
    if not joined["weight"].gt(0).all():  # people answered without a drawn sample: all count the same
        joined["weight"] = 1.0
    return joined


def _of_file(
    file: Path, media: Path, columns: Mapping[str, str] | None, verdict: Mapping[str, str] | None, work: Path
) -> _Pairs:
    found, quarantine = read_preferences(file, columns, verdict)
    lines = []
    for number, row in enumerate(found.to_dict("records")):
        if not len(row["turns"]):
            raise CalibrationError(f"{file}: row {row['row_id']} has no prompt, without which it has no score")
        line: dict[str, Any] = {"id": str(number), "turns": [dict(turn) for turn in row["turns"]]}
        line |= {"system": row["system"]} if row["system"] else {}
        for kind in ("images", "videos"):
            line |= {kind: [_as_text(value) for value in row[kind]]} if len(row[kind]) else {}
        lines.append({**line, "responses": [row["chosen"], row["rejected"]]})
    if not lines:
        why = "; ".join(f"{count} pairs: {reason}" for reason, count in quarantine["reason"].value_counts().items())
        raise CalibrationError(f"{file} has no pair that can be used ({why or 'it is empty'}); give other pairs")
    write_lines(lines, work / "pairs.jsonl")
    responses = given_responses(work / "pairs.jsonl", None, media, work)
    assert responses.file is not None  # JSON Lines
    unusable: dict[str, int] = {}
    lost = responses.file.response_faults
    empty = [lost[key][0] for own in responses.file.ids for key in [key for key in own if key in lost][:1]]
    for reason in [*quarantine["reason"], *(reason for reason, _ in responses.file.faults.values()), *empty]:
        unusable[reason] = unusable.get(reason, 0) + 1
    rows = [
        (prompt, own[0], own[1], 1.0)
        for prompt, own in zip(responses.file.prompt_ids, responses.file.ids, strict=True)
        if own and not lost.keys() & set(own)
    ]
    return _Pairs(responses, rows, unusable, len(found) + len(quarantine))


def _as_text(medium: str | bytes) -> str:
    return medium if isinstance(medium, str) else base64.b64encode(medium).decode()
