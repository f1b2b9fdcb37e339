"""Everything that the report shows, from stored artifacts: arms, rounds, comparisons, wall time and versions."""

from dataclasses import replace

import pandas as pd

from dt2it_pipeline.curate.tables import to_frame
from dt2it_pipeline.evaluate.benchmarks.comparison import Comparison, compare
from dt2it_pipeline.evaluate.report.data import Arm, Quality, ReportData
from dt2it_pipeline.evaluate.report.formatting import strength_unit
from dt2it_pipeline.evaluate.report.outcomes import Cost
from dt2it_pipeline.orchestrate.arms import CONTROL
from dt2it_pipeline.orchestrate.report.outcomes import cost_of
from dt2it_pipeline.orchestrate.report.round import round_part
from dt2it_pipeline.orchestrate.report.run import head
from dt2it_pipeline.orchestrate.report.sources import BEFORE, ReportSources, counts, curve, seconds_of
from dt2it_pipeline.orchestrate.report.words import ARM_NOTES, GROUP_NOTES, POLICY_NOTES, STRENGTH_NOTES
from dt2it_pipeline.reward.too_long import left_out

_COUNTED_BEFORE = ("raw_preferences", "debiased_pairs", "t2i_pairs")


def report_data(sources: ReportSources) -> ReportData:
    """Everything that the page shows."""
    return ReportData(
        scores=pd.concat([to_frame(b["benchmark_scores"]) for b in sources.score_artifacts()], ignore_index=True),
        title=f"Reward model report: {sources.recipe.name}",
        arms=[
            Arm("round 0", "round", "D0 alone: debiased and two-image pairs"),
            *(
                Arm(f"round {k}", "round", f"D0 and the pairs curated in round {k - 1}")
                for k in range(1, len(sources.rounds))
            ),
            *(Arm(arm, "control" if arm == CONTROL else "ceiling", ARM_NOTES[arm]) for arm in sources.arms),
        ],
        rounds=[round_part(sources, number) for number in range(len(sources.rounds))],
        quality=[
            _quality(sources, "noisy preferences", "raw_preferences", graded=True),
            _quality(sources, "debiased pairs", "debiased_pairs"),
        ],
        stages=[counts(name, sources.before[name]) for name in _COUNTED_BEFORE],
        curves=[curve(arm, sources.before[f"{arm}_model"], arm) for arm in sources.arms],
        examples=[
            *sources.examples("Debiased pairs", sources.before["debiased_pairs"]),
            *sources.examples("Two-image pairs", sources.before["t2i_pairs"]),
        ],
        group_notes=GROUP_NOTES
        if sources.recipe.has_truth and sources.before["raw_benchmarks"]["benchmark_items"].num_rows
        else {},
        strength_unit=strength_unit("original", sources.recipe.curation.policy),
        comparisons=_comparisons(sources),
        seconds=_seconds(sources),
        strength_note=STRENGTH_NOTES[sources.recipe.curation.policy],
        policy_note=POLICY_NOTES[sources.recipe.curation.policy],
        costs=_costs(sources),
        metadata=head(sources),
        left_out=_left_out(sources),
    )


def _left_out(sources: ReportSources) -> list[str]:
    """What the limits on length left out: a sentence per round and stage in which they did."""
    sentences = []
    for number, found in enumerate(sources.rounds):
        model, scores = found["reward_model"], found["response_scores"]
        trained = left_out(model.tables.get("quarantine"))
        if trained is not None:
            total = trained.count + int(model.metadata["pairs"])
            limit = f"training.max_length, {trained.limit:,} tokens"
            sentences.append(
                f"Round {number} trained without {trained.count:,} of {total:,} pairs, which are too long ({limit})."
            )
        for what, scored in (("noisy preferences", scores), ("benchmark", found["benchmark_scores"])):
            lost = left_out(scored.tables.get("quarantine"))
            if lost is not None:
                sentences.append(
                    f"In round {number}, {lost.count:,} of {int(scored.metadata['rows_in']):,} responses of the {what} "
                    f"are too long to be scored (scoring.max_length, {lost.limit:,} tokens)."
                )
    return sentences


def _comparisons(sources: ReportSources) -> list[Comparison]:
    """Each round against the one before it, the last against the first, and against every arm."""
    items = to_frame(sources.before["raw_benchmarks"]["benchmark_items"])
    if not len(items):
        return []
    scores = {
        **{f"round {k}": found["benchmark_scores"] for k, found in enumerate(sources.rounds)},
        **{arm: sources.before[f"{arm}_scores"] for arm in sources.arms},
    }
    last = len(sources.rounds) - 1
    wanted = [(f"round {k - 1}", f"round {k}") for k in range(1, last + 1)]
    wanted += [("round 0", f"round {last}")] if last > 1 else []
    wanted += [(arm, f"round {last}") for arm in sources.arms]
    made = (
        compare(items, to_frame(scores[first]["scores"]), to_frame(scores[second]["scores"]), (first, second))
        for first, second in wanted
    )
    order = {group: place for place, group in enumerate(GROUP_NOTES)}  # as the columns of the headline table
    return [
        replace(one, changes=sorted(one.changes, key=lambda change: order.get(change.group, len(order))))
        for one in made
    ]


def _seconds(sources: ReportSources) -> dict[str, dict[str, float]]:
    """Wall time outside the rounds, in seconds."""
    first = {name: seconds_of(sources.before[name]) for name in BEFORE}
    groups = {"Before the rounds": {**{name: seconds_of(one) for name, one in sources.untabled.items()}, **first}}
    for arm in sources.arms:
        groups[f"Arm “{arm}”"] = {name: seconds_of(sources.before[name]) for name in (f"{arm}_model", f"{arm}_scores")}
    return groups


def _costs(sources: ReportSources) -> list[Cost]:
    """What everything took: before the rounds, every round, the arms for comparison."""
    before = [sources.before[name] for name in BEFORE] + list(sources.untabled.values())
    parts = [("before the rounds", before)]
    parts += [(f"round {k}", list(found.values())) for k, found in enumerate(sources.rounds)]
    parts += [(arm, [sources.before[f"{arm}_model"], sources.before[f"{arm}_scores"]]) for arm in sources.arms]
    return [cost_of(name, artifacts) for name, artifacts in parts]


def _quality(sources: ReportSources, shown: str, name: str, graded: bool = False) -> Quality:
    pairs = to_frame(sources.before[name]["pairs"])
    grade = sources.grade(pairs) if graded else None
    return Quality(shown, len(pairs), 1.0 if graded else None, grade, sources.probe(pairs))
