"""The report's part on one round: what became of the noisy pool, label accuracy, counts, curves and examples."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from dt2it_pipeline.curate.annotation.budget import within_budget
from dt2it_pipeline.curate.pair_frames import stack
from dt2it_pipeline.curate.policies.choice import make_policy
from dt2it_pipeline.curate.policies.policy import Anchor, Decision
from dt2it_pipeline.curate.published_algorithm import decide_by_people, merge, resolve_annotations
from dt2it_pipeline.curate.tables import to_frame
from dt2it_pipeline.evaluate.report.call_curve import call_curve
from dt2it_pipeline.evaluate.report.data import CallCurve, Funnel, LabelEstimate, Quality, Round, StageCounts
from dt2it_pipeline.evaluate.report.text import curation_note
from dt2it_pipeline.human_review.tasks import PERSON
from dt2it_pipeline.orchestrate.report.outcomes import outcomes_of, suspects_of
from dt2it_pipeline.orchestrate.report.sources import ReportSources, counts, curve, seconds_of
from dt2it_pipeline.orchestrate.report.words import STAGE_WORDS
from dt2it_pipeline.storage.artifacts import Artifact


def round_part(sources: ReportSources, number: int) -> Round:
    """Everything that the page shows of one round."""
    found = sources.rounds[number]
    pool = sources.before["raw_preferences"]["pairs"].num_rows
    paper = sources.recipe.curation.policy == "paper"
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
        asked = found["annotated_pairs"].metadata if name in ("annotated_pairs", "curated_pairs") else {}
        calls, cached = int(asked.get("judge_calls", 0)), int(asked.get("cached_replies", 0))
        probe = sources.probe(pairs) if name in ("voted_pairs", "curated_pairs") else None
        quality.append(
            Quality(shown, len(pairs), len(pairs) / pool if pool else None, sources.grade(pairs), probe, calls, cached)
        )
    voted = to_frame(found["voted_pairs"]["pairs"])
    decide = _decisions(sources, number)
    whole = decide(sources.recipe.annotation.budget_calls)
    return Round(
        number,
        quality=quality,
        stages=[
            counts("training_pairs", found["training_pairs"]),
            counts("voted_pairs", found["voted_pairs"]),
            _verification_counts(found),
            counts("annotated_pairs", found["annotated_pairs"]),
        ],
        curves=[
            curve(f"round {number}: {name.replace('_', ' ')}", found[name])
            for name in ("reward_model", "verifier_model")
            if "not_trained" not in found[name].metadata
        ],
        strengths={
            str(label): part["strength"].dropna().to_numpy() for label, part in voted.groupby("label", sort=True)
        },
        examples=[
            *sources.examples(f"Flipped in round {number}", found["voted_pairs"], label="flipped"),
            *sources.examples(f"Annotated in round {number}", found["annotated_pairs"]),
        ],
        seconds={name: seconds_of(one) for name, one in found.items() if "not_trained" not in one.metadata},
        funnel=_funnel(sources, number),
        note=_note(sources, number),
        call_curves=_call_curves(sources, number, decide, whole),
        estimate=_estimate(found),
        outcomes=outcomes_of(sources, number),
        suspects=suspects_of(sources, number, whole),
    )


def _estimate(found: Mapping[str, Artifact]) -> LabelEstimate | None:
    """What the joint model says of a round's labels; None under another policy."""
    metadata = found["annotated_pairs"].metadata
    if "label_accuracy_before" not in metadata:
        return None
    before, after = metadata["label_accuracy_before"], metadata["label_accuracy_after"]
    if before[0] is None:  # there is no pair
        return None
    return LabelEstimate(
        before=tuple(before),
        after=None if after[0] is None else tuple(after),
        anchored=metadata["anchored"],
        notes=metadata["notes"],
        sensitivity=metadata["sensitivity"],
        calibration=metadata.get("claimed_and_observed", []),
        rests_on=_rests_on(found["voted_pairs"].metadata, anchored=metadata["anchored"]),
        kept=found["curated_pairs"]["pairs"].num_rows,
    )


def _rests_on(voted: Mapping[str, Any], *, anchored: bool) -> str:
    """What the estimate rests on, in words."""
    audited, trusted = int(voted["audited_pairs"]), int(voted["trusted_pairs"])
    parts = [f"an audit of {audited:,} pairs"] if audited else []
    parts += [f"{trusted:,} trusted pairs, whose better answers are known"] if trusted else []
    if anchored and parts:
        return " and ".join(parts)
    few = f"; {' and '.join(parts)} are too few to replace it" if parts else ""
    return f"the assumption that voters and judges are right more often than wrong{few}"


def _funnel(sources: ReportSources, number: int) -> Funnel:
    """What became of the noisy pool in a round."""
    found = sources.rounds[number]
    curated = to_frame(found["curated_pairs"]["pairs"])
    trusted = set(found["voted_pairs"]["trusted_pairs"]["pair_id"].to_pylist())
    votes = found["annotated_pairs"]["votes"].select(["pair_id", "judge"]).to_pylist()
    votes = [vote for vote in votes if vote["pair_id"] not in trusted]
    judged = int(curated["pair_id"].isin({vote["pair_id"] for vote in votes}).sum())
    grade = sources.grade(curated)
    left_out: Counter[str] = Counter()
    for name in ("voted_pairs", "verified_pairs", "annotated_pairs"):
        left_out.update(found[name]["quarantine"]["reason"].to_pylist())
    del left_out["contested"]  # these went on to the judges
    return Funnel(
        pool=sources.before["raw_preferences"]["pairs"].num_rows,
        flipped=int(found["voted_pairs"].metadata["flipped"]),
        passed=len(curated) - judged,
        contested=found["contested_pairs"]["pairs"].num_rows,
        asked=len({vote["pair_id"] for vote in votes if not vote["judge"].startswith(PERSON)}),
        confirmed=judged,
        left_out=dict(left_out.most_common()),
        curated={str(label): int(count) for label, count in curated["label"].value_counts().items()},
        right={} if grade is None else {label: right / count for label, (count, right) in grade.by_label.items()},
        judge_calls=int(found["annotated_pairs"].metadata["judge_calls"]),
        cached_replies=int(found["annotated_pairs"].metadata["cached_replies"]),
    )


def audit_of_round(annotated: Artifact) -> pd.DataFrame:
    """The audit that a round was curated with, which later ones do not change: pair_id, better_id."""
    none = Anchor().audit
    kept = annotated.metadata.get("audit", [])
    return pd.DataFrame(kept, columns=list(none.columns)).astype(none.dtypes.to_dict()) if kept else none


def _decisions(sources: ReportSources, number: int) -> Callable[[int | None], Decision]:
    """A round's decision again, from the verdicts that it has, under any budget of calls: no judge is asked."""
    found, settings = sources.rounds[number], sources.recipe
    policy, judges = make_policy(settings.curation), len(settings.annotation.judges)
    votes = to_frame(found["annotated_pairs"]["votes"])
    people = votes["judge"].str.startswith(PERSON)
    verified, contested = (to_frame(found[name]["pairs"]) for name in ("verified_pairs", "contested_pairs"))
    anchor = Anchor(to_frame(found["voted_pairs"]["trusted_pairs"]), audit_of_round(found["annotated_pairs"]))

    def ask(pairs: pd.DataFrame) -> pd.DataFrame:
        return votes[~people & votes["pair_id"].isin(pairs["pair_id"])]

    def decided(calls: int | None) -> Decision:
        return policy.decide(verified, contested, votes[people], ask, judges, calls, anchor)

    return decided


def _call_curves(
    sources: ReportSources, number: int, decided: Callable[[int | None], Decision], whole: Decision
) -> list[CallCurve]:
    """What a round would have curated with fewer judge calls: by its own rule, and by the judges' word alone."""
    found, settings = sources.rounds[number], sources.recipe
    policy, judges = make_policy(settings.curation), len(settings.annotation.judges)
    votes = to_frame(found["annotated_pairs"]["votes"])
    people = votes["judge"].str.startswith(PERSON)
    verified, contested = (to_frame(found[name]["pairs"]) for name in ("verified_pairs", "contested_pairs"))
    asked = len(whole.votes) // judges  # trusted pairs among them

    def by_policy(calls: int) -> pd.DataFrame:
        made = decided(calls) if calls < asked * judges else whole
        return merge(made.kept, made.annotated)

    truth = to_frame(sources.before["demo_truth"]["pairs"]) if settings.has_truth else None
    rules = {f"“{policy.name}”": by_policy}
    if policy.name != "paper" and truth is not None:
        settled, _ = decide_by_people(stack(verified, contested), votes[people])

        def by_judges(calls: int) -> pd.DataFrame:
            asked, _ = within_budget(whole.asked, calls, judges)
            return stack(whole.kept, settled.annotated, resolve_annotations(asked, whole.votes, judges).annotated)

        rules["if the judges alone decided"] = by_judges
    pool = sources.before["raw_preferences"]["pairs"].num_rows
    return [call_curve(name, rule, asked, judges, pool, truth) for name, rule in rules.items()]


def _note(sources: ReportSources, number: int) -> str:
    """How a round's curation differs from that of the round before."""
    if number == 0:
        return ""
    before, now = (to_frame(sources.rounds[k]["curated_pairs"]["pairs"]) for k in (number - 1, number))
    trained_on = None
    if make_policy(sources.recipe.curation).takes_anchor:
        trained_on = set(sources.rounds[number]["training_pairs"]["pairs"]["pair_id"].to_pylist())
    return curation_note(number, before, now, sources.rounds[number]["voted_pairs"]["pairs"], trained_on)


def _verification_counts(found: Mapping[str, Artifact]) -> StageCounts:
    """Counts of step 2, whose contested pairs go on to step 3 and are not quarantined."""
    verified, contested = found["verified_pairs"], found["contested_pairs"]
    reasons = Counter(verified["quarantine"]["reason"].to_pylist())
    reasons.pop("contested", None)
    out = {"verified": verified["pairs"].num_rows, "contested": contested["pairs"].num_rows}
    return StageCounts(
        "verified_pairs", int(verified.metadata["rows_in"]), out, dict(reasons), STAGE_WORDS["verified_pairs"]
    )
