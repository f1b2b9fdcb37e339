"""The data of a report, filled in by whatever ran the rounds; only the benchmark rows are required.

What belongs here: the structures and the numbers that follow from them. What does not: HTML (html.py) and figures
(figures.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from dt2it_pipeline.evaluate.benchmarks.comparison import Comparison
from dt2it_pipeline.evaluate.benchmarks.metrics import ALL, MACRO, OVERALL, wilson_interval
from dt2it_pipeline.evaluate.grading import Grade
from dt2it_pipeline.evaluate.report.outcomes import Cost, SourceOutcomes, Suspect
from dt2it_pipeline.style.probe import StyleProbe

HELD_OUT = "held out"  # part of a stage's rows that no model learns from


@dataclass(frozen=True)
class Arm:
    """One row of the headline table. `model` is the name in `ReportData.scores`; `note`: what it was trained on."""

    model: str
    kind: Literal["round", "control", "ceiling"] = "round"
    note: str = ""


@dataclass(frozen=True)
class StageCounts:
    """Rows into a stage and where they went.

    `rows_out` counts by label or by the part they went to ("verified", "contested"); `quarantine` by reason; `words`
    describe the stage.
    """

    stage: str
    rows_in: int
    rows_out: Mapping[str, int]
    quarantine: Mapping[str, int] = field(default_factory=dict)
    words: str = ""

    @property
    def unaccounted(self) -> int:
        """Rows in less rows out less rows quarantined; 0 when nothing was lost."""
        return self.rows_in - sum(self.rows_out.values()) - sum(self.quarantine.values())


@dataclass(frozen=True)
class Funnel:
    """The outcomes of the noisy pool in one round, in pairs.

    Attributes:
        pool: pairs that came in.
        flipped: labels that the vote flipped.
        passed: pairs kept that nobody was asked about.
        contested: pairs that the vote left in doubt.
        asked: pairs that judges were asked about, contested ones and others.
        confirmed: pairs kept that people or judges were asked about.
        left_out: reason -> dropped pairs.
        curated: label -> pairs in the curated set.
        right: label -> label accuracy, 0 to 1; empty without truth.
        judge_calls: questions that judge models were asked.
        cached_replies: replies of judges that were found in the cache.
    """

    pool: int
    flipped: int
    passed: int
    contested: int
    confirmed: int
    left_out: Mapping[str, int]
    curated: Mapping[str, int]
    right: Mapping[str, float] = field(default_factory=dict)
    asked: int = 0
    judge_calls: int = 0
    cached_replies: int = 0

    @property
    def unaccounted(self) -> int:
        """Pairs in, less pairs curated, less pairs left out; 0 when nothing was lost."""
        return self.pool - sum(self.curated.values()) - sum(self.left_out.values())


@dataclass(frozen=True)
class Quality:
    """How good one set of pairs is. `kept_share` is its size as a share of the uncurated pool (0 to 1)."""

    name: str
    pairs: int
    kept_share: float | None = None
    grade: Grade | None = None
    probe: StyleProbe | None = None
    judge_calls: int | None = None
    cached_replies: int | None = None


@dataclass(frozen=True)
class LabelEstimate:
    """How right the labels of one round are by the joint model, without hidden truth.

    Attributes:
        before: label accuracy of the pool as it came, 0 to 1: estimate, and its 95% interval.
        after: the same of the curated pairs; None where there are none.
        anchored: whether pairs of known truth anchor it; otherwise it is assumed.
        rests_on: what it rests on, in words: an audit, trusted pairs, or an assumption.
        kept: curated pairs.
        notes: sentences: what it rests on, what was not used.
        sensitivity: where it is assumed, rows of annotator_accuracy, label_accuracy, accuracy_after, after_low,
            after_high (0 to 1): what follows if voters and judges together are that accurate.
        calibration: rows of kind, pairs, claimed, observed (0 to 1): pairs of known truth that the fit did not see.
    """

    before: tuple[float, float, float]
    after: tuple[float, float, float] | None
    anchored: bool
    notes: Sequence[str] = ()
    sensitivity: Sequence[Mapping[str, float]] = ()
    calibration: Sequence[Mapping[str, Any]] = ()
    rests_on: str = "an assumption"
    kept: int = 0

    @property
    def expected_right(self) -> int | None:
        """Expected number of right labels among the curated pairs; None where there are none."""
        return None if self.after is None or not self.kept else round(self.after[0] * self.kept)


@dataclass(frozen=True)
class CallCurve:
    """What a round would have curated with fewer judge calls, decided by `rule`.

    `calls`, ascending from 0; `kept`: curated pairs as a share of the pool; `right`: their label accuracy, 0 to
    1, None without truth.
    """

    rule: str
    calls: Sequence[int]
    kept: Sequence[float]
    right: Sequence[float] | None = None


@dataclass(frozen=True)
class Curve:
    """The log of one training: columns step, loss, accuracy and others (`training_log.jsonl`); `kind` as of its arm."""

    name: str
    log: pd.DataFrame
    kind: Literal["round", "control", "ceiling"] = "round"


@dataclass(frozen=True)
class Example:
    """A pair to look at.

    `images` are files or encoded bytes; `before` is (chosen, rejected) as they stood before curation, where they
    changed; `truth`: which of the present sides is truly better, where that is known; `strength` is
    never printed without `strength_unit`, since it differs between kinds of pairs; `row_id` is the row of the source.
    """

    kind: str
    question: str
    chosen: str
    rejected: str
    images: Sequence[Path | str | bytes] = ()
    before: tuple[str, str] | None = None
    truth: Literal["chosen", "rejected"] | None = None
    label: str = ""
    strength: float | None = None
    strength_unit: str = ""
    source: str = ""
    note: str = ""
    row_id: str | None = None


@dataclass(frozen=True)
class Round:
    """What one round did: `strengths` by name ("original", "flipped"), `seconds` of wall time by step.

    `note`: how its curation differs from that of the round before; `call_curves` begin with the recipe's own rule;
    `estimate`: None under a policy that estimates nothing; `outcomes` by source; `suspects`: the most suspicious first.
    """

    number: int
    quality: Sequence[Quality] = ()
    stages: Sequence[StageCounts] = ()
    curves: Sequence[Curve] = ()
    strengths: Mapping[str, np.ndarray] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    funnel: Funnel | None = None
    note: str = ""
    call_curves: Sequence[CallCurve] = ()
    estimate: LabelEstimate | None = None
    outcomes: Sequence[SourceOutcomes] = ()
    suspects: Sequence[Suspect] = ()


@dataclass(frozen=True)
class ReportData:
    """All of a report.

    Attributes:
        scores: benchmark rows (table kind `benchmark_scores`) of all arms.
        arms: the arms in the order of the table; models of `scores` that are not named here follow as rounds.
        rounds: the rounds so far, in order.
        quality: sets that exist before any round: the noisy preferences, debiased pairs, T2I pairs.
        stages: counts of the stages before any round.
        curves: trainings outside the rounds (control, ceiling).
        examples: examples from before the rounds (debiased, T2I).
        group_notes: what a benchmark group tests, one sentence per group name; the columns follow this order.
        policy_note: how labels were curated, in a sentence or two.
        strength_note: what a pair's strength means under that policy.
        strength_unit: unit of the rounds' `strengths`.
        comparisons: paired comparisons of arms, by name; those of a round with the one before it, and with the control.
        seconds: wall time of steps outside the rounds: group ("Before the rounds", "Control") -> step -> seconds.
        costs: what the parts of the run took, in their order.
        metadata: name -> value, for the head: date, recipe, seed, digests, hardware, versions.
        left_out: sentences about what a length limit left out, for the summary.
    """

    scores: pd.DataFrame
    title: str = "Reward model report"
    arms: Sequence[Arm] = ()
    rounds: Sequence[Round] = ()
    quality: Sequence[Quality] = ()
    stages: Sequence[StageCounts] = ()
    curves: Sequence[Curve] = ()
    examples: Sequence[Example] = ()
    group_notes: Mapping[str, str] = field(default_factory=dict)
    policy_note: str = ""
    strength_note: str = ""
    strength_unit: str = ""
    comparisons: Sequence[Comparison] = ()
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    costs: Sequence[Cost] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[str] = ()

    def all_arms(self) -> list[Arm]:
        """Arms that have benchmark rows: the named ones in order, then the others."""
        present = list(dict.fromkeys(self.scores["model"])) if len(self.scores) else []
        named = [arm for arm in self.arms if arm.model in present]
        known = {arm.model for arm in named}
        return named + [Arm(str(model)) for model in present if model not in known]


@dataclass(frozen=True)
class Cell:
    """Accuracy of one arm on one benchmark group (share), and the counts behind it."""

    accuracy: float
    pairs: int
    correct: int
    ties: int
    unscored: int

    @property
    def against_guessing(self) -> Literal["better", "same", "worse"]:
        """The accuracy against chance: its whole 95% interval (Wilson) above or below 50%, or neither."""
        low, high = wilson_interval(self.correct, self.pairs)
        return "better" if low > 0.5 else "worse" if high < 0.5 else "same"


@dataclass(frozen=True)
class Headline:
    """The headline table: `columns` are (benchmark, group); `rows` are arms with a cell per column, or None."""

    columns: list[tuple[str, str]]
    rows: list[tuple[Arm, list[Cell | None]]]

    def best(self, column: int) -> float | None:
        """Highest accuracy of a column among the arms that could be built without truth, None without any."""
        found = [
            cell.accuracy
            for arm, cells in self.rows
            if arm.kind != "ceiling" and (cell := cells[column]) is not None and not np.isnan(cell.accuracy)
        ]
        return max(found, default=None)


def headline(data: ReportData) -> Headline:
    """The headline table: per benchmark its groups, the pooled accuracy and the macro mean; all benchmarks last."""
    scores = data.scores
    if not len(scores):
        return Headline([], [])
    seen = scores.drop_duplicates(["benchmark", "group"])
    pairs = list(zip(seen["benchmark"], seen["group"], strict=True))
    # Groups in the order of their explanations, where there are any, and else by name; summaries behind them.
    order = {group: place for place, group in enumerate(data.group_notes)}
    last = {OVERALL: len(order) + 1, MACRO: len(order) + 2}

    def rank(column: tuple[str, str]) -> tuple[bool, str, int, str]:
        benchmark, group = column
        return benchmark == ALL, str(benchmark), last.get(group, order.get(group, len(order))), str(group)

    columns = sorted(pairs, key=rank)
    cells = {
        (row["model"], row["benchmark"], row["group"]): Cell(
            float("nan") if pd.isna(row["accuracy"]) else float(row["accuracy"]),
            int(row["pairs"]),
            int(row["correct"]),
            int(row["ties"]),
            int(row["unscored"]),
        )
        for row in scores.to_dict("records")
    }
    return Headline(
        columns, [(arm, [cells.get((arm.model, *column)) for column in columns]) for arm in data.all_arms()]
    )
