"""Scores of responses that a person brings, by any reward model: from their file to scores, and back into a file.

What belongs here: what `dt2it score` and `dt2it best-of` do with a file of responses or two tables, and what a killed
call resumes from. What does not: the forms of such files (response_files.py) and models (any_model.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.engines.jobs import Reporter
from dt2it_pipeline.reward.scoring.any_model import ModelScoreJob, is_url, run
from dt2it_pipeline.reward.scoring.response_files import ResponseFile, ResponseFileError, is_pair, read_response_file
from dt2it_pipeline.reward.too_long import TOO_LONG
from dt2it_pipeline.storage import atomic
from dt2it_pipeline.storage.artifacts import model_digest
from dt2it_pipeline.storage.content_ids import content_hash
from dt2it_pipeline.storage.table_files import no_file

_SIDES = ("chosen_score", "rejected_score")  # of a pair
_PROMPTS, _RESPONSES, _MEDIA = "prompts.parquet", "responses.parquet", "media"
_READ = (_PROMPTS, _RESPONSES, _MEDIA)  # what every call makes anew of its file


@dataclass(frozen=True)
class GivenResponses:
    """Responses as models take them, and the form in which they were brought.

    Attributes:
        prompts: Parquet of kind `prompts`.
        responses: Parquet of kind `responses`.
        media: folder from which the prompts' paths count.
        file: what the file of responses holds; None where tables were brought.
    """

    prompts: Path
    responses: Path
    media: Path
    file: ResponseFile | None = None

    def names_and_ids(self) -> tuple[list[str], list[list[str]]]:
        """Of each prompt in its order: its name, and the ids of its responses; none where it cannot be used.

        The name is the row's own id or its line; of a table it is the prompt_id.
        """
        if self.file is not None:
            return self.file.names, self.file.ids
        table = atomic.read_given_parquet(self.responses, "responses")
        by_prompt: dict[str, list[str]] = {}
        columns = (table[name].to_pylist() for name in ("prompt_id", "response_id"))
        for prompt_id, response_id in zip(*columns, strict=True):
            by_prompt.setdefault(prompt_id, []).append(response_id)
        return list(by_prompt), list(by_prompt.values())

    def texts(self) -> dict[str, str]:
        """Texts by response_id, of the responses that can be scored."""
        table = atomic.read_given_parquet(self.responses, "responses")
        return dict(zip(table["response_id"].to_pylist(), table["text"].to_pylist(), strict=True))


@dataclass(frozen=True)
class ResponseScores:
    """What a model gave.

    Attributes:
        table: of kind `scores`.
        quarantine: of kind `quarantine`, the responses without a score.
        summary: of the scoring; see any_model.run.
    """

    table: pa.Table
    quarantine: pa.Table
    summary: Mapping[str, Any]

    def by_id(self) -> dict[str, float]:
        """Scores by response_id."""
        return dict(zip(self.table["response_id"].to_pylist(), self.table["score"].to_pylist(), strict=True))

    def faults(self) -> dict[str, tuple[str, str]]:
        """Reason and detail by response_id, of the responses without a score."""
        return {row["row_id"]: (row["reason"], row["detail"]) for row in self.quarantine.to_pylist()}


@contextlib.contextmanager
def scoring_work(output: Path) -> Iterator[Path]:
    """The folder OUTPUT.work, for what a killed call resumes from; removed when the block has ended.

    After an error it stays where models have left something in it, and goes where it holds what was read alone.

    >>> import tempfile
    >>> output = Path(tempfile.mkdtemp()) / "scores.parquet"
    >>> with contextlib.suppress(ResponseFileError), scoring_work(output) as work:
    ...     (work / "media").mkdir(parents=True)
    ...     raise ResponseFileError("no row can be used")
    >>> work.name, work.exists()
    ('scores.parquet.work', False)
    """
    work = output.with_name(f"{output.name}.work")
    ended = False
    try:
        yield work
        ended = True
    finally:
        made = (file for file in work.rglob("*") if file.is_file() and file.relative_to(work).parts[0] not in _READ)
        if ended or not any(made):
            shutil.rmtree(work, ignore_errors=not ended)


def given_responses(
    responses: Path, prompts: Path | None, media: Path | None, work: Path, columns: Mapping[str, str] | None = None
) -> GivenResponses:
    """What a person brings: JSON Lines in the form of response_files.FORM, or a Parquet table with its prompts.

    Args:
        responses: the file; a name that ends with .parquet is that of a table of kind `responses`.
        prompts: Parquet of kind `prompts`, for a table.
        media: folder from which paths of images and videos count; of JSON Lines, by default their own folder.
        work: folder for the tables and media that are made of JSON Lines.
        columns: of JSON Lines, field -> the key that holds it, where rows name it otherwise.

    Raises:
        ResponseFileError: the file cannot be read, no row of it can be used, or a table comes without prompts or media.
        VideoDecoderError: there are video files, and OpenCV is not installed.
    """
    if responses.suffix == ".parquet":
        if prompts is None or media is None:
            raise ResponseFileError(f"{responses} is a table of responses, which needs --prompts and --media")
        for table in (responses, prompts):
            if not table.is_file():
                raise ResponseFileError(no_file(table))
        return GivenResponses(prompts, responses, media)
    file = read_response_file(responses, media or responses.absolute().parent, work / _MEDIA, columns=columns)
    given = GivenResponses(work / _PROMPTS, work / _RESPONSES, work / _MEDIA, file)
    atomic.write_parquet(file.prompts, given.prompts)
    atomic.write_parquet(file.responses, given.responses)
    return given


def score_responses(
    model: str,
    given: GivenResponses,
    work: Path,
    *,
    settings: ScoringSettings,
    system_prompt: str | None,
    report: Reporter,
) -> ResponseScores:
    """Score responses with any reward model; what a killed call has scored in `work` is not scored again.

    Args:
        model: checkpoint folder of ours or of another trainer, Hub id, or URL of a pooling server.
        given: the responses.
        work: folder for finished shards, which several models may share.
        settings: of the scoring.
        system_prompt: of a model whose chat template does not have it; see `ModelScoreJob`.
        report: is called with `responses` and `responses_total` as responses are scored.

    Raises:
        CheckpointError, ScoringError, ShardsError, EngineError: the model cannot be used.
    """
    # What a killed call has scored counts for the same model, settings and responses alone.
    identity = f"{model} in process {os.getpid()}" if is_url(model) else model_digest(model)
    tables = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (given.prompts, given.responses)]
    key = content_hash(identity, settings.model_dump(mode="json"), system_prompt, tables)[:12]
    job = ModelScoreJob(
        model=model,
        prompts=given.prompts,
        responses=given.responses,
        media_root=given.media,
        output=work / f"{key}.scores.parquet",
        work=work / key,
        voter=model,
        settings=settings,
        system_prompt=system_prompt,
    )
    summary = run(job, report)
    quarantine = job.output.with_name(f"{job.output.stem}.quarantine.parquet")
    return ResponseScores(
        atomic.read_parquet(job.output, "scores"), atomic.read_parquet(quarantine, "quarantine"), summary
    )


def write_scores(read: ResponseFile, found: ResponseScores, output: Path) -> tuple[list[str], dict[str, int]]:
    """Write the scores of a file of responses; returns what was not scored and why, and the counts.

    Responses that are too long are not among the faults: they are counted in one line (too_long.left_out).

    Args:
        read: what the file holds.
        found: its scores.
        output: .jsonl: the lines as read, each with `scores`, those of a pair with `chosen_score` and `rejected_score`,
            too; another name: a table with a row per response.
    """
    import pandas as pd

    scores, reasons = found.by_id(), {**read.response_faults, **found.faults()}
    columns = ("row_id", "place", "response_id", "score", "reason", "detail")
    lines: list[dict[str, Any]] = []
    rows: list[tuple[Any, ...]] = []
    faults: list[str] = []
    for number, (name, own) in enumerate(zip(read.names, read.ids, strict=True)):
        for place, key in enumerate(own):
            reason, detail = reasons.get(key, ("", ""))
            rows.append((name, place, key, scores.get(key), reason, detail))
            if key not in scores and reason != TOO_LONG:
                faults.append(f"{name}, response {place}: {reason} ({detail})")
        if number in read.faults:
            reason, detail = read.faults[number]
            rows.append((name, None, None, None, reason, detail))
            faults.append(f"{name}: {reason} ({detail})")
        lines.append(with_scores(read, number, [scores.get(key) for key in own]))
    if output.suffix == ".jsonl":
        write_lines(lines, output)
    else:
        types = {"place": "Int64", "score": "Float32", "response_id": "str", "detail": "str", "reason": "str"}
        atomic.write_parquet(pd.DataFrame(rows, columns=list(columns)).astype(types), output)
    total = sum(map(len, read.ids))
    done = sum(key in scores for own in read.ids for key in own)
    return faults, {"responses": total, "scored": done, "rows": len(read.rows), "rows_quarantined": len(read.faults)}


def with_scores(read: ResponseFile, number: int, scores: Sequence[float | None]) -> dict[str, Any]:
    """A row of a file as read with the scores of its responses; those of a pair by side, too, for `dt2it clean`."""
    row = read.rows[number]
    sides = dict(zip(_SIDES, scores, strict=True)) if is_pair(read.fields(row)) and scores else {}
    return {**row, "scores": list(scores), **sides}


def replaced_keys(read: ResponseFile, output: Path, *keys: str, sides: bool = False) -> str | None:
    """A sentence about keys that rows have already and that their lines in `output` have anew; None where none has.

    Args:
        read: what the file holds.
        output: where its rows go; only a .jsonl file has their own keys.
        keys: that are written.
        sides: whether `with_scores` writes them, which adds those of a pair's sides.
    """
    rows = [(row, {*keys, *_SIDES} if sides and is_pair(read.fields(row)) else {*keys}) for row in read.rows]
    counts = {key: sum(key in own and key in row for row, own in rows) for key in (*keys, *_SIDES)}
    found = [f"`{key}` (in {count} of {len(rows)} rows)" for key, count in counts.items() if count]
    if output.suffix != ".jsonl" or not found:
        return None
    return f"replaced in {output}, since the rows have them already: {', '.join(found)}"


def write_lines(lines: list[dict[str, Any]], output: Path) -> None:
    """Write objects as JSON Lines, whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic.replace_text(output, "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines))
