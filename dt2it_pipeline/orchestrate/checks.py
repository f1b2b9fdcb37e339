"""Asset checks that several assets share. Each returns the result of a check that its asset declares by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from dt2it_pipeline.storage.artifacts import Artifact
from dt2it_pipeline.style.probe import StyleProbe


def reconcile(artifact: Artifact, name: str | None = None) -> dg.AssetCheckResult:
    """Check `rows_reconcile`: rows in = rows out + rows quarantined, by the stage's own counts and by its tables."""
    metadata = artifact.metadata
    counts = {key: int(metadata[key]) for key in ("rows_in", "rows_out", "rows_quarantined")}
    passed = counts["rows_in"] == counts["rows_out"] + counts["rows_quarantined"]
    return dg.AssetCheckResult(
        check_name="rows_reconcile",
        passed=passed,
        metadata=counts,
        description=None
        if passed
        else f"{counts['rows_in']} rows came in; the rest of the counts does not add up to that",
        **_asset(name),
    )


def style_below_bound(probe: StyleProbe, bound: float) -> dg.AssetCheckResult:
    """Check `style_probe`: style alone does not tell which side is chosen.

    An error where the area under the ROC curve is above the bound by more than chance (its whole confidence interval),
    a warning where only the point estimate is.
    """
    metadata: dict[str, Any] = {"pairs": probe.n, "bound": bound}
    if probe.auc is None or probe.ci_low is None or probe.ci_high is None:
        return dg.AssetCheckResult(
            check_name="style_probe",
            passed=False,
            severity=dg.AssetCheckSeverity.WARN,
            metadata=metadata,
            description=f"style could not be measured: {probe.reason}",
        )
    metadata |= {"auc": probe.auc, "auc_low": probe.ci_low, "auc_high": probe.ci_high}
    above_by_chance = probe.ci_low <= bound
    return dg.AssetCheckResult(
        check_name="style_probe",
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
        check_name="judges_answer",
        passed=shares[worst] <= most_faulty,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={f"without_usable_reply: {name}": share for name, share in shares.items()},
        description=f"{worst}: {shares[worst]:.1%} of the calls without a usable reply",
    )


def rewriting_keeps_pairs(rewriting: Mapping[str, Any], most_lost: float = 0.25) -> dg.AssetCheckResult:
    """Check `rewriting_keeps_pairs`: a warning where rewriting costs many pairs, an error where it leaves none."""
    given, lost = int(rewriting["rows_in"]), int(rewriting["rows_quarantined"])
    return dg.AssetCheckResult(
        check_name="rewriting_keeps_pairs",
        passed=lost <= most_lost * given,
        severity=dg.AssetCheckSeverity.ERROR if given and lost == given else dg.AssetCheckSeverity.WARN,
        metadata={"pairs": given, "quarantine": lost},
        description=f"rewriting (pairing.restyle) cost {lost} of {given} pairs; quarantine_by_reason says why",
    )


def _asset(name: str | None) -> dict[str, Any]:
    return {} if name is None else {"asset_key": name}
