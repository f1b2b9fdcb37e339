"""How right claims are where all that the joint model assumes holds: what an audit of so many pairs can show at best.

    python -m benchmarks.real_noise.assumed

Each world has three voters that err alike in part, two judges, one source and lengths. Its parameters are drawn from
the model's own prior, its truth and labels from the model, and the audited pairs at random. So what the claims miss
there is chance, and what the audit leaves open. Without an audit (`--audits 0`) it is what the assumptions leave open.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from scipy.special import expit

from benchmarks.real_noise.duel import one_thread
from benchmarks.real_noise.measures import Calibration, calibration, stated_level_spread
from dt2it_pipeline.curate.joint.decisions import DROPPED, FLIPPED
from dt2it_pipeline.curate.joint.evidence import gather_evidence
from dt2it_pipeline.curate.joint.model import LEAST_CHECKED
from dt2it_pipeline.curate.joint.priors import Layout, prior
from dt2it_pipeline.curate.joint.solution import Observed, Prices, solve

_VOTERS, _JUDGES = ("a", "b", "c"), ("j", "k")
_PRICES = Prices.of_wrong_label(3.0, 0.05)
_LEAST_KEPT = 20  # pairs; of fewer, a calibration error says nothing


def world(pairs: int, audited: int, seed: int) -> tuple[Observed, np.ndarray]:
    """What is observed of pairs, and whether each label is right: bool [pairs]."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((pairs, 1))
    margins = 0.7 * common + 0.7 * rng.standard_normal((pairs, len(_VOTERS)))
    verdicts = np.sign(0.5 * common + rng.standard_normal((pairs, len(_JUDGES))))
    length = 0.5 * rng.standard_normal(pairs) + 0.2 * common[:, 0]
    sources = np.full(pairs, "s")
    evidence = gather_evidence(margins, _VOTERS, verdicts, _JUDGES, length, sources)
    layout = Layout(evidence.features.shape[1], 1)
    mean, precision = prior(layout, evidence, anchored=audited >= LEAST_CHECKED, trusted=False)
    t = rng.multivariate_normal(mean, np.linalg.inv(precision))
    u = evidence.features @ t[: layout.features]
    c, a = t[layout.kappa] * u + t[layout.length_bias] * evidence.length, t[-1] + t[layout.deviations][0]
    truth = np.where(rng.random(pairs) < expit(u), 1, -1)
    label = np.where(rng.random(pairs) < expit(truth * a + c), 1, -1)
    checked, drawn = np.zeros(pairs, dtype=int), rng.permutation(pairs)
    checked[drawn[:audited]] = (truth * label)[drawn[:audited]]
    observed = Observed(
        margins * label[:, None],
        _VOTERS,
        verdicts * label[:, None],
        _JUDGES,
        length * label,
        sources,
        checked,
        rng.permutation(pairs).astype(np.uint64),
        np.zeros(pairs, dtype=bool),
    )
    return observed, truth == label


def claims_in(pairs: int, audited: int, seed: int) -> tuple[float, bool, Calibration] | None:
    """Overclaim, whether the stated range held, and the calibration of kept labels that were not audited.

    None where the audit is not believed, or fewer than 20 such pairs are kept.
    """
    observed, label_right = world(pairs, audited, seed)
    solution = solve(observed, _PRICES)
    decisions = solution.decisions
    kept, right = decisions.outcome != DROPPED, label_right ^ (decisions.outcome == FLIPPED)
    measured = kept & (observed.checked == 0)
    if solution.doubt or measured.sum() < _LEAST_KEPT:
        return None
    claimed, after = decisions.probability[measured], decisions.after
    spread = stated_level_spread(claimed, int((kept & ~measured).sum()), after.low, after.high)
    found = calibration(claimed, right[measured], seed, spread)
    held = bool(after.low <= right[kept].mean() <= after.high)
    return float(claimed.mean() - right[measured].mean()), held, found


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_noise.assumed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--worlds", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=450, help="of each world, audited ones included")
    parser.add_argument("--audits", type=int, nargs="+", default=[50, 100, 200], help="numbers of audited pairs")
    given = parser.parse_args(arguments)
    one_thread()
    print(
        "| audited | worlds | calibration error | by chance: median | by chance and stated range: mean "
        "| without chance | overclaim, mean | its root mean square | stated range holds the observed |"
    )
    print("|---" * 9 + "|")
    for audited in given.audits:
        made = [claims_in(given.pairs, audited, seed) for seed in range(given.worlds)]
        over, held, of = zip(*[one for one in made if one is not None], strict=True)
        cells = [
            np.mean([each.error for each in of]),
            np.mean([each.chance.median for each in of]),
            np.mean([each.stated.mean for each in of]),
            math.sqrt(max(np.mean([each.squared for each in of]), 0.0)),
            np.mean(over),
            math.sqrt(np.mean(np.square(over))),
        ]
        percent = " | ".join(f"{100 * cell:.1f}" for cell in cells)
        print(f"| {audited} | {len(over)} | {percent} | {sum(held)} of {len(held)} |", flush=True)


if __name__ == "__main__":
    main()
