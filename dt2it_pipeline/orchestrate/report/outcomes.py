"""The report's part on outcomes: what became of each source's pairs, the most suspicious pairs, and the cost."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.policies.policy import Decision
from dt2it_pipeline.curate.tables import to_frame
from dt2it_pipeline.evaluate.report.outcomes import Cost, Outcome, SourceOutcomes, Suspect
from dt2it_pipeline.human_review.tasks import PERSON
from dt2it_pipeline.orchestrate.report.sources import ReportSources, seconds_of
from dt2it_pipeline.storage.artifacts import Artifact

SUSPECTS = 20
_NO_MODEL = "reference"  # kind of judge that compares with reference answers and asks no model
_CONTESTED = "contested"  # reason of verified_pairs for pairs that the next step decides


def outcomes_of(sources: ReportSources, number: int) -> list[SourceOutcomes]:
    """What became of the noisy pairs of each source, the largest source first."""
    table = _outcome_table(sources, number)
    contested = set(sources.rounds[number]["contested_pairs"]["pairs"]["pair_id"].to_pylist())
    found = []
    for source, part in table.groupby("source", sort=True):
        counts = part["outcome"].value_counts()
        reasons = Counter(part["reason"][part["outcome"] == "dropped"])
        found.append(
            SourceOutcomes(
                str(source),
                int(counts.get("kept", 0)),
                int(counts.get("flipped", 0)),
                dict(reasons.most_common()),
                int(part["pair_id"].isin(contested).sum()),
            )
        )
    return sorted(found, key=lambda one: -one.pairs)


def suspects_of(sources: ReportSources, number: int, decision: Decision) -> list[Suspect]:
    """The pairs whose labels, as they came, are most probably wrong, the worst first.

    Under a policy that gives no probability, those that the voters speak most clearly against.
    """
    found, table = sources.rounds[number], _outcome_table(sources, number)
    voted = to_frame(found["voted_pairs"]["pairs"])
    came = table.set_index("pair_id")["chosen_id"].reindex(voted["pair_id"]).to_numpy(dtype=object)
    turned = voted["chosen_id"].to_numpy(dtype=object) != came
    margins = {
        pair: [-vote["margin"] if swapped else vote["margin"] for vote in votes]
        for pair, swapped, votes in zip(voted["pair_id"], turned, voted["votes"], strict=True)
    }
    if len(decision.label_right):
        ranked = decision.label_right.sort_values("probability", kind="stable").head(SUSPECTS)
        probabilities = dict(zip(ranked["pair_id"], ranked["probability"].astype(float), strict=True))
        wanted: list[str] = [pair for pair, p in probabilities.items() if p < 0.5]
    else:
        probabilities = {}
        means = {pair: float(np.mean(values)) for pair, values in margins.items() if values}
        wanted = [pair for pair in sorted(means, key=lambda pair: means[pair])[:SUSPECTS] if means[pair] < 0]
    swapped = dict(zip(voted["pair_id"], turned, strict=True))
    verdicts = _verdicts(found["annotated_pairs"], set(wanted), swapped)
    raw = sources.before["raw_preferences"]
    questions = {row["prompt_id"]: row["turns"][-1]["text"] for row in raw["prompts"].to_pylist()}
    rows = {row["pair_id"]: row for row in table[table["pair_id"].isin(wanted)].to_dict("records")}
    suspects = []
    for pair in wanted:
        row = rows[pair]
        suspects.append(
            Suspect(
                pair,
                row["source"],
                row["row_id"] if isinstance(row["row_id"], str) else "",
                questions[row["prompt_id"]],
                row["chosen"],
                row["rejected"],
                probabilities.get(pair),
                row["outcome"],
                _why(margins.get(pair, []), *verdicts.get(pair, ([], []))),
            )
        )
    return suspects


def cost_of(part: str, artifacts: Iterable[Artifact], more_seconds: float = 0.0) -> Cost:
    """What the making of artifacts took, by their metadata; `more_seconds` of stages that are not among them."""
    calls = cached = read = written = 0
    seconds, gpu_seconds = more_seconds, 0.0
    for artifact in artifacts:
        metadata = artifact.metadata
        if "not_trained" in metadata:
            continue
        seconds += seconds_of(artifact)
        gpu_seconds += float(metadata.get("gpu_seconds", 0.0))
        calls += int(metadata.get("judge_calls", 0))  # of `annotated_pairs`, where not every kind of judge has a tally
        cached += int(metadata.get("cached_replies", 0))
        for judge in _scoring(metadata):
            calls += int(judge.get("asked", judge.get("calls", 0)))
            cached += int(judge.get("looked_up", 0))
        for judge in [*_scoring(metadata), *_annotating(metadata)]:
            read += int(judge.get("prompt_tokens", 0))
            written += int(judge.get("completion_tokens", 0))
    return Cost(part, calls, read, written, seconds, gpu_seconds, cached)


def _scoring(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Tallies of the judges of `judged_responses` that ask a model."""
    judges = metadata.get("judges")
    return [one for one in judges.values() if one.get("kind") != _NO_MODEL] if isinstance(judges, Mapping) else []


def _annotating(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Tallies of the judges of `annotated_pairs` that count tokens, by asking."""
    return [tally for asking in metadata.get("judging", ()) for tally in asking["asked"].values()]


def _outcome_table(sources: ReportSources, number: int) -> pd.DataFrame:
    """Every noisy pair as it came, with its outcome, and the reason where it was dropped."""
    found = sources.rounds[number]
    columns = ["pair_id", "prompt_id", "chosen", "rejected", "chosen_id", "source", "row_id"]
    raw = to_frame(sources.before["raw_preferences"]["pairs"].select(columns))
    curated = to_frame(found["curated_pairs"]["pairs"].select(["pair_id", "chosen_id"]))
    chosen = curated.set_index("pair_id")["chosen_id"].reindex(raw["pair_id"]).to_numpy(dtype=object)
    reasons: dict[str, str] = {}
    for name in ("voted_pairs", "verified_pairs", "annotated_pairs"):
        aside = found[name]["quarantine"]
        for pair, row, reason in zip(*(aside[key].to_pylist() for key in ("pair_id", "row_id", "reason")), strict=True):
            if reason != _CONTESTED:
                reasons[pair or row] = reason
    same = chosen == raw["chosen_id"].to_numpy(dtype=object)
    outcome: list[Outcome] = [
        "dropped" if pd.isna(now) else "kept" if stays else "flipped" for now, stays in zip(chosen, same, strict=True)
    ]
    return raw.assign(outcome=outcome, reason=[reasons.get(pair, "") for pair in raw["pair_id"]])


def _verdicts(
    annotated: Artifact, wanted: set[str], turned: Mapping[str, bool]
) -> dict[str, tuple[list[int], list[int]]]:
    """Verdicts of judges and of people on some pairs: +1 for the label as it came, -1 against it, 0 for a tie."""
    found: dict[str, tuple[list[int], list[int]]] = {}
    sign = {"chosen": 1, "rejected": -1, "tie": 0}
    for vote in annotated["votes"].to_pylist():
        if vote["pair_id"] in wanted and vote["verdict"] is not None:
            value = sign[vote["verdict"]] * (-1 if turned.get(vote["pair_id"], False) else 1)
            lists = found.setdefault(vote["pair_id"], ([], []))
            lists[vote["judge"].startswith(PERSON)].append(value)
    return found


def _why(margins: list[float], judges: list[int], people: list[int]) -> str:
    """Who prefers the other answer, in words."""
    parts = []
    kinds = (("voters", margins), ("judge verdicts", judges), ("people", people))
    for kind, values in kinds:
        if values:
            parts.append(f"{sum(value < 0 for value in values)} of {len(values)} {kind}")
    return f"against the label: {', '.join(parts)}" if parts else "nobody was asked"
