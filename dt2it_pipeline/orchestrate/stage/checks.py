"""Asset checks: what each of them says, declared in one place, and those that several assets share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from dt2it_pipeline.storage.artifacts import Artifact
from dt2it_pipeline.style.probe import StyleProbe


@dataclass(frozen=True)
class Check:
    """A check as an asset declares it. What does not pass a blocking one with an error stops whatever follows."""

    name: str
    description: str
    blocking: bool = False

    def spec(self, asset: str) -> dg.AssetCheckSpec:
        """Its declaration on an asset."""
        return dg.AssetCheckSpec(self.name, asset=asset, blocking=self.blocking, description=self.description)


# What becomes of a stage's rows, under the names that its metadata count them by; a stage has those that occur in it.
# Quarantined: a row that cannot be used. Dropped: a pair that curation takes out. Contested: one that judges decide.
# Held out: a pair that no model is trained on, so that curation can trust what models say of it.
ROW_COUNTS = {
    "rows_out": "out",
    "rows_contested": "contested",
    "rows_quarantined": "quarantined",
    "rows_dropped": "dropped",
    "rows_held_out": "held out",
}
ROWS_RECONCILE = Check(
    "rows_reconcile",
    "Rows in are rows out plus rows quarantined, dropped, contested or held out: nothing is lost silently.",
    blocking=True,
)
SOURCES_READABLE = Check(
    "sources_readable",
    "Every source can be read, some of its rows can be used, and images are found where its manifest promises them. "
    "An error where no source is of use, else a warning.",
    blocking=True,
)
JUDGES_ANSWER = Check("judges_answer", "Each judge gave a usable reply to at least 95% of its calls.")
STYLE_PROBE = Check(
    "style_probe",
    "Style alone does not predict which side is chosen: the probe's area under the ROC curve is below the recipe's "
    "bound. An error where its whole confidence interval is above it.",
)
REWRITING_KEEPS_PAIRS = Check(
    "rewriting_keeps_pairs",
    "Rewriting costs at most a quarter of the pairs. An error where none is left.",
    blocking=True,
)
POSITIONS_BALANCED = Check(
    "positions_balanced", "The preferred image stands first in exactly half of the questions.", blocking=True
)
NO_CONTAMINATION = Check(
    "no_contamination", "No pair of a benchmark, nor its images or answers, is in the training set.", blocking=True
)
NO_REGRESSION = Check("no_regression", "Accuracy over all benchmark pairs is not below that of the round before.")
BENCHMARKS_GIVEN = Check("benchmarks_given", "The recipe has benchmark pairs, so that an accuracy is measured.")


def reconcile(artifact: Artifact, name: str | None = None) -> dg.AssetCheckResult:
    """Check `rows_reconcile`: rows in are rows out and those of all other ROW_COUNTS, by the stage's own counts."""
    metadata = artifact.metadata
    counts = {key: int(metadata[key]) for key in ("rows_in", *ROW_COUNTS) if key in metadata}
    passed = counts["rows_in"] == sum(counts.get(key, 0) for key in ROW_COUNTS)
    return dg.AssetCheckResult(
        check_name=ROWS_RECONCILE.name,
        passed=passed,
        metadata=counts,
        description=None
        if passed
        else f"{counts['rows_in']} rows came in; the rest of the counts does not add up to that",
        **_asset(name),
    )


def style_below_bound(probe: StyleProbe, bound: float) -> dg.AssetCheckResult:
    """Check `style_probe`: style alone does not predict which side is chosen.

    An error where the area under the ROC curve is above the bound by more than chance (its whole confidence interval),
    a warning where only the point estimate is.
    """
    metadata: dict[str, Any] = {"pairs": probe.n, "bound": bound}
    if probe.auc is None or probe.ci_low is None or probe.ci_high is None:
        return dg.AssetCheckResult(
            check_name=STYLE_PROBE.name,
            passed=False,
            severity=dg.AssetCheckSeverity.WARN,
            metadata=metadata,
            description=f"style could not be measured: {probe.reason}",
        )
    metadata |= {"auc": probe.auc, "auc_low": probe.ci_low, "auc_high": probe.ci_high}
    above_by_chance = probe.ci_low <= bound
    return dg.AssetCheckResult(
        check_name=STYLE_PROBE.name,
        passed=probe.auc <= bound,
        severity=dg.AssetCheckSeverity.WARN if above_by_chance else dg.AssetCheckSeverity.ERROR,
        metadata=metadata,
        description=f"area under the ROC curve {probe.auc:.3f} ({probe.ci_low:.3f} to {probe.ci_high:.3f})",
    )


def judges_answer(judges: Mapping[str, Mapping[str, Any]], most_faulty: float = 0.05) -> dg.AssetCheckResult:
    """Check `judges_answer`: a warning where a judge gave no usable reply to more than a few of its calls."""
    shares = {name: 1 - judge["judged"] / judge["calls"] if judge["calls"] else 0.0 for name, judge in judges.items()}
    worst = max(shares, key=lambda name: shares[name])
    return dg.AssetCheckResult(
        check_name=JUDGES_ANSWER.name,
        passed=shares[worst] <= most_faulty,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={f"without_usable_reply: {name}": share for name, share in shares.items()},
        description=f"{worst}: {shares[worst]:.1%} of the calls without a usable reply",
    )


def rewriting_keeps_pairs(rewriting: Mapping[str, Any], most_lost: float = 0.25) -> dg.AssetCheckResult:
    """Check `rewriting_keeps_pairs`: a warning where rewriting costs many pairs, an error where it leaves none."""
    given, lost = int(rewriting["rows_in"]), int(rewriting["rows_quarantined"])
    return dg.AssetCheckResult(
        check_name=REWRITING_KEEPS_PAIRS.name,
        passed=lost <= most_lost * given,
        severity=dg.AssetCheckSeverity.ERROR if given and lost == given else dg.AssetCheckSeverity.WARN,
        metadata={"pairs": given, "quarantine": lost},
        description=f"rewriting (pairing.restyle) cost {lost} of {given} pairs; quarantine_by_reason says why",
    )


def _asset(name: str | None) -> dict[str, Any]:
    return {} if name is None else {"asset_key": name}
