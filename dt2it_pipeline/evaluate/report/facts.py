"""What one run came to, in numbers: kept beside its report, so that runs can be compared later."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from dt2it_pipeline.evaluate.report.data import Quality, ReportData
from dt2it_pipeline.evaluate.report.outcomes import together

FACTS_FILE = "facts.json"
Three = tuple[float, float, float]  # estimate, low and high end of its 95% interval


class RunFacts(BaseModel):
    """The numbers of a run after its last round.

    Attributes:
        settings: the whole recipe as JSON values.
        preferences: digest of the noisy preferences.
        round: number of the last round.
        kept, flipped, dropped, contested: noisy pairs, as `SourceOutcomes` counts them.
        estimated_before, estimated_after: label accuracy by the joint model, 0 to 1; None where nothing is estimated.
        rests_on: what the estimate rests on; empty without one.
        true_before, true_after: label accuracy against hidden truth, 0 to 1; None without truth.
        style_before, style_after: AUC of the style probe on the noisy and on the curated pairs.
        judge_calls, cached_replies, tokens: of judges; tokens read and written together.
        hours, gpu_hours: of wall time, and of GPUs in training, scoring and sampling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    settings: dict[str, Any]
    preferences: str
    round: int
    kept: int
    flipped: int
    dropped: int
    contested: int
    estimated_before: Three | None = None
    estimated_after: Three | None = None
    rests_on: str = ""
    true_before: float | None = None
    true_after: float | None = None
    style_before: Three | None = None
    style_after: Three | None = None
    judge_calls: int = 0
    cached_replies: int = 0
    tokens: int = 0
    hours: float = 0.0
    gpu_hours: float = 0.0

    def numbers(self) -> dict[str, float]:
        """The numbers that a tracker draws a curve of from round to round, by name; those that are known.

        >>> facts = RunFacts(name="mine", settings={}, preferences="", round=1, kept=80, flipped=15, dropped=5,
        ...                  contested=30, estimated_after=(0.9, 0.8, 0.95))
        >>> facts.numbers()["label_accuracy_after"], facts.numbers()["pairs_kept"]
        (0.9, 80.0)
        """
        found: dict[str, float | None] = {
            "label_accuracy_before": self.estimated_before[0] if self.estimated_before else None,
            "label_accuracy_after": self.estimated_after[0] if self.estimated_after else None,
            "true_label_accuracy_before": self.true_before,
            "true_label_accuracy_after": self.true_after,
            "style_auc_before": self.style_before[0] if self.style_before else None,
            "style_auc_after": self.style_after[0] if self.style_after else None,
            "pairs_kept": self.kept,
            "pairs_flipped": self.flipped,
            "pairs_dropped": self.dropped,
            "pairs_contested": self.contested,
        }
        return {name: float(value) for name, value in found.items() if value is not None}


def facts_of(data: ReportData, place: int, settings: dict[str, Any], preferences: str) -> RunFacts:
    """The numbers after one round of a report.

    Args:
        data: of the report.
        place: of the round in `data.rounds`.
        settings: the recipe as JSON values.
        preferences: digest of the noisy preferences.
    """
    one, estimate = data.rounds[place], data.rounds[place].estimate
    cost = together(data.costs)
    before, after = (data.quality[0] if data.quality else None), (one.quality[-1] if one.quality else None)
    return RunFacts(
        name=str(settings.get("name", "")),
        settings=settings,
        preferences=preferences,
        round=one.number,
        kept=sum(each.kept for each in one.outcomes),
        flipped=sum(each.flipped for each in one.outcomes),
        dropped=sum(sum(each.dropped.values()) for each in one.outcomes),
        contested=sum(each.contested for each in one.outcomes),
        estimated_before=estimate.before if estimate else None,
        estimated_after=estimate.after if estimate else None,
        rests_on=estimate.rests_on if estimate else "",
        true_before=_accuracy(before),
        true_after=_accuracy(after),
        style_before=_style(before),
        style_after=_style(after),
        judge_calls=cost.judge_calls,
        cached_replies=cost.cached_replies,
        tokens=cost.prompt_tokens + cost.completion_tokens,
        hours=cost.seconds / 3600,
        gpu_hours=cost.gpu_seconds / 3600,
    )


def _accuracy(quality: Quality | None) -> float | None:
    grade = quality.grade if quality else None
    return grade.accuracy if grade is not None and grade.graded else None


def _style(quality: Quality | None) -> Three | None:
    probe = quality.probe if quality else None
    if probe is None or probe.auc is None or probe.ci_low is None or probe.ci_high is None:
        return None
    return probe.auc, probe.ci_low, probe.ci_high
