"""Four pairs with evidence, small enough to reckon by hand."""

import pandas as pd

from benchmarks.real_noise.evidence import Evidence


def four_pairs(audit: pd.DataFrame | None = None) -> Evidence:
    """Margins +1, -3, +1, 0 by voter v and +1, +1, -1, none by w (before scaling); judges j and k."""
    sides = [(f"c{i}", f"r{i}") for i in range(4)]
    pairs = pd.DataFrame(
        [(f"p{i}", "s", chosen, rejected) for i, (chosen, rejected) in enumerate(sides)],
        columns=["pair_id", "source", "chosen_id", "rejected_id"],
    )
    margins = {"v": (1.0, -3.0, 1.0, 0.0), "w": (1.0, 1.0, -1.0, None)}
    scores = pd.DataFrame(
        [
            (side, voter, value if side == chosen else 0.0)
            for voter, values in margins.items()
            for (chosen, rejected), value in zip(sides, values, strict=True)
            for side in (chosen, rejected)
            if value is not None
        ],
        columns=["response_id", "voter", "score"],
    )
    said = {"j": ("chosen", "rejected", "tie", None), "k": ("chosen", "rejected", "rejected", "chosen")}
    votes = pd.DataFrame(
        [(f"p{i}", judge, "ab", None, verdict) for judge, all_ in said.items() for i, verdict in enumerate(all_)],
        columns=["pair_id", "judge", "order", "better_id", "verdict"],
    )
    return Evidence(pairs, scores, votes, audit)
