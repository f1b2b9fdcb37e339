"""Benchmarks any reward model on published rows.

    dt2it benchmark MODEL --benchmark NAME --rows FILE --media FOLDER --output OUT

MODEL is a checkpoint folder of ours or of another trainer, a Hub id, or the URL of a server (`vllm serve CHECKPOINT
--runner pooling`); FILE holds the benchmark's rows as published (JSON, JSON Lines or Parquet). Several benchmarks are
given as several --benchmark, --rows and --media, in the same order; both overalls are then computed too. The output
folder holds figures.parquet, results.parquet (one row per pair), comparison.md and the scores; a killed run goes on
there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.engines.jobs import Reporter, print_progress
from dt2it_pipeline.evaluate.benchmarks.metrics import ALL, BenchmarkResult, combined, score_benchmark
from dt2it_pipeline.evaluate.benchmarks.reference_results import comparison, comparison_markdown
from dt2it_pipeline.evaluate.benchmarks.rows import published_rows
from dt2it_pipeline.evaluate.benchmarks.spec import get_entry
from dt2it_pipeline.reward.scoring.any_model import ModelScoreJob, is_url, run
from dt2it_pipeline.reward.scoring.image_size import image_size_line
from dt2it_pipeline.storage import atomic, content_ids, schemas
from dt2it_pipeline.storage.artifacts import model_digest


@dataclass(frozen=True)
class ModelBenchmark:
    """What a model scores on a benchmark.

    Attributes:
        result: figures and results per pair.
        quarantine: rows that could not be read (table kind `quarantine`).
        responses: how many different responses the others have.
        unscored: those of them that the model gave no score (table kind `quarantine`).
        max_pixels: pixels to which images were scaled down; None where only a server elsewhere knows.
        trained_max_pixels: those of the model's training; None where they are not known.
    """

    result: BenchmarkResult
    quarantine: pa.Table
    responses: int
    unscored: pa.Table
    max_pixels: int | None
    trained_max_pixels: int | None

    @property
    def image_size(self) -> str:
        """A line that says at which size images were scored, and at which the model was trained."""
        return image_size_line({"max_pixels": self.max_pixels, "trained_max_pixels": self.trained_max_pixels})


def benchmark_model(
    model: str,
    name: str,
    rows: Path,
    media: Path,
    output: Path,
    *,
    settings: ScoringSettings | None = None,
    system_prompt: str | None = None,
    columns: Mapping[str, str] | None = None,
    report: Reporter = print_progress,
) -> ModelBenchmark:
    """Score a benchmark's published rows with a model and compute the authors' figures.

    Args:
        model: checkpoint folder, Hub id or URL.
        name: of an entry in configs/benchmarks.
        rows: file of published rows.
        media: folder that no media path may leave.
        output: folder for the scores, and for what a killed run resumes from.
        settings: of the scoring; those of a recipe's defaults when absent.
        system_prompt: of a server or of another trainer's model; see `ModelScoreJob`.
        columns: field of the entry -> column, where the rows call it otherwise.
        report: is called with how many of the responses are scored.

    Raises:
        BenchmarkError: the rows are not those of the benchmark.
        CheckpointError, EngineError, ScoringError: the model cannot be used.
        VideoDecoderError: there are video files, and OpenCV is not installed.
        OSError: the output cannot be written.
    """
    entry = get_entry(name).with_columns(columns or {})
    settings = settings or ScoringSettings()
    media_store = output / "media"
    published, loaded = published_rows(entry, rows, media, media_store)
    scored = (model if is_url(model) else model_digest(model), settings.model_dump(mode="json"), system_prompt)
    ids = loaded.responses["response_id"].to_pylist()
    folder = output / f"{entry.name}-{content_ids.content_hash(scored, ids)[:12]}"
    atomic.write_parquet(loaded.prompts, folder / "prompts.parquet")
    atomic.write_parquet(loaded.responses, folder / "responses.parquet")
    job = ModelScoreJob(
        model=model,
        prompts=folder / "prompts.parquet",
        responses=folder / "responses.parquet",
        media_root=media_store,
        output=folder / "scores.parquet",
        work=folder / "work",
        voter=model,
        settings=settings,
        system_prompt=system_prompt,
    )
    summary = run(job, report)
    if is_url(model):
        shutil.rmtree(folder / "work")  # another model may stand behind the same URL the next time
    table = atomic.read_parquet(folder / "scores.parquet", "scores")
    found = dict(zip(table["response_id"].to_pylist(), table["score"].to_pylist(), strict=True))
    sides = ([None if i is None else found.get(i) for i in part] for part in (loaded.chosen, loaded.rejected))
    unscored = atomic.read_parquet(folder / "scores.quarantine.parquet", "quarantine")
    result = score_benchmark(entry.name, published, *sides, columns=columns)
    return ModelBenchmark(
        result, loaded.quarantine, len(set(ids)), unscored, summary["max_pixels"], summary["trained_max_pixels"]
    )


def figure_rows(model: str, results: Sequence[BenchmarkResult]) -> pd.DataFrame:
    """Rows of table kind `benchmark_figures` of one model: every figure of every benchmark, and both overalls."""
    rows = [
        (model, result.name, f.name, f.value, f.low, f.high, f.count)
        for result in results
        for f in result.figures.values()
    ]
    if len(results) > 1:
        rows += [(model, ALL, f.name, f.value, f.low, f.high, f.count) for f in combined(results).values()]
    return pd.DataFrame(rows, columns=list(schemas.SCHEMAS["benchmark_figures"].names))


def write_results(model: str, results: Sequence[BenchmarkResult], output: Path) -> str:
    """Write figures, results per pair and the comparison; returns what a person reads, in Markdown."""
    figures = figure_rows(model, results)
    atomic.write_parquet(figures, output / "figures.parquet")
    pairs = pd.concat([result.results.assign(benchmark=result.name) for result in results], ignore_index=True)
    atomic.write_parquet(pairs, output / "results.parquet")
    lines = []
    for result in results:
        expected = get_entry(result.name).pairs
        lines.append(f"\n{result.name} (entry version {result.version}): {result.pairs} pairs")
        if expected not in (None, result.pairs):
            lines[-1] += f", where the public file has {expected}"
        lines[-1] += f"; {result.ties} ties and {result.unscored} unscored, both counted as wrong\n"
        lines += ["| figure | % | 95% interval | of |", "| --- | ---: | ---: | ---: |"]
        lines += [
            f"| {f.name} | {100 * f.value:.1f} | {100 * f.low:.1f} to {100 * f.high:.1f} | {f.count} |"
            for f in result.figures.values()
        ]
    text = "\n".join(lines) + "\n\n" + comparison_markdown(comparison(figures))
    (output / "comparison.md").write_text(text, encoding="utf-8")
    return text
