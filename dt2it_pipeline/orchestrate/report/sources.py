"""The stored artifacts that the report is made of, and what its parts share: grades, probes, counts and examples.

What belongs here: which artifacts the report reads, and how one of them is graded or shown. What does not: the parts
themselves (round.py, outcomes.py, run.py, data.py), their words (words.py), the asset (assets/report.py), and
arithmetic or layout (evaluate/).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from dt2it_pipeline.curate.tables import to_frame
from dt2it_pipeline.evaluate.grading import Grade, grade_labels
from dt2it_pipeline.evaluate.report.data import HELD_OUT, Curve, Example, StageCounts
from dt2it_pipeline.evaluate.report.formatting import strength_unit
from dt2it_pipeline.orchestrate.arms import CEILING, CONTROL, arms
from dt2it_pipeline.orchestrate.report.words import STAGE_WORDS
from dt2it_pipeline.orchestrate.sections import ReportSections
from dt2it_pipeline.orchestrate.stage.model_jobs import training_log
from dt2it_pipeline.storage.artifacts import Artifact
from dt2it_pipeline.style.probe import StyleProbe, style_probe

BEFORE = ("raw_preferences", "raw_benchmarks", "debiased_pairs", "t2i_pairs")
UNTABLED = ("raw_prompts", "raw_t2i_preferences", "candidate_responses", "judged_responses")
IN_ROUND = (
    "training_pairs",
    "reward_model",
    "response_scores",
    "voted_pairs",
    "verifier_model",
    "verified_pairs",
    "contested_pairs",
    "annotated_pairs",
    "curated_pairs",
    "benchmark_scores",
)


@dataclass(frozen=True)
class ReportSources:
    """Stored artifacts that a report is made of.

    Attributes:
        recipe: sections of the recipe that the report computes by and prints.
        before: artifacts that no round made, by asset.
        rounds: artifacts of every round so far, by asset.
        media: root of the media store.
        untabled: stages whose tables the report does not show, by asset: their metadata alone is read.
    """

    recipe: ReportSections
    before: Mapping[str, Artifact]
    rounds: list[dict[str, Artifact]]
    media: Path
    untabled: Mapping[str, Artifact]

    @property
    def arms(self) -> list[str]:
        """Arms for comparison that were trained; without a benchmark none is."""
        return [
            arm for arm in arms(self.recipe.evaluation) if "not_trained" not in self.before[f"{arm}_model"].metadata
        ]

    def score_artifacts(self) -> list[Artifact]:
        """Artifacts with benchmark scores: of every round, then of every arm."""
        own = [found["benchmark_scores"] for found in self.rounds]
        return own + [self.before[f"{arm}_scores"] for arm in self.arms]

    def grade(self, pairs: pd.DataFrame) -> Grade | None:
        """Label accuracy of pairs against the true labels; None where there are none."""
        if not self.recipe.has_truth:
            return None
        return grade_labels(
            pairs, to_frame(self.before["demo_truth"]["pairs"]), to_frame(self.before["raw_preferences"]["pairs"])
        )

    def probe(self, pairs: pd.DataFrame) -> StyleProbe:
        """How well style alone predicts which side of the pairs is chosen."""
        return style_probe(pairs, self.recipe.evaluation.style_probe_folds, self.recipe.seed)

    def examples(self, kind: str, artifact: Artifact, label: str | None = None) -> list[Example]:
        """The first pairs of an artifact (of one label), with what their labels were before and really are."""
        columns = ("pair_id", "prompt_id", "chosen", "rejected", "strength", "label", "source", "row_id")
        rows = [row for row in artifact["pairs"].select(columns).to_pylist() if label is None or row["label"] == label]
        rows = rows[: self.recipe.evaluation.examples]
        prompts = {row["prompt_id"]: row for row in artifact["prompts"].to_pylist()}
        before = _sides(self.before["raw_preferences"]["pairs"])
        truth = _sides(self.before["demo_truth"]["pairs"]) if self.recipe.has_truth else {}
        examples = []
        for row in rows:
            prompt = prompts[row["prompt_id"]]
            stood, really = before.get(row["pair_id"]), truth.get(row["pair_id"])
            changed = stood is not None and stood[0] != row["chosen"]
            examples.append(
                Example(
                    kind=kind,
                    question=prompt["turns"][-1]["text"],
                    chosen=row["chosen"],
                    rejected=row["rejected"],
                    images=[self.media / medium["path"] for medium in prompt["media"]],
                    before=stood if changed else None,
                    truth=None if really is None else ("chosen" if really[0] == row["chosen"] else "rejected"),
                    label=row["label"],
                    strength=row["strength"],
                    strength_unit=strength_unit(row["label"], self.recipe.curation.policy),
                    source=row["source"],
                    row_id=row["row_id"],
                )
            )
        return examples


def counts(name: str, artifact: Artifact) -> StageCounts:
    """Rows in, pairs by label and quarantined rows by reason of one stage."""
    labels = Counter(artifact["pairs"]["label"].to_pylist())
    reasons = Counter(artifact["quarantine"]["reason"].to_pylist())
    if held_out := int(artifact.metadata.get("rows_held_out", 0)):
        labels[HELD_OUT] = held_out
    return StageCounts(name, int(artifact.metadata["rows_in"]), dict(labels), dict(reasons), STAGE_WORDS[name])


def curve(name: str, checkpoint: Artifact, arm: str = "") -> Curve:
    """Training curve of a checkpoint; `arm` is the arm for comparison that it belongs to."""
    log = training_log(checkpoint) if (checkpoint.folder / "training_log.jsonl").exists() else []
    return Curve(name, pd.DataFrame(log), "control" if arm == CONTROL else "ceiling" if arm == CEILING else "round")


def seconds_of(artifact: Artifact) -> float:
    """Wall time that its making took."""
    return float(artifact.metadata.get("seconds", 0.0))


def _sides(pairs: pa.Table) -> dict[str, tuple[str, str]]:
    columns = (pairs[name].to_pylist() for name in ("pair_id", "chosen", "rejected"))
    return {key: (chosen, rejected) for key, chosen, rejected in zip(*columns, strict=True)}
