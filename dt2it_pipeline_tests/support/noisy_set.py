"""A small set of `benchmarks.real_noise` on disk."""

from pathlib import Path

import numpy as np
import pandas as pd


def write_set(folder: Path, count: int = 40, seed: int = 0) -> Path:
    """A set whose label is right in 3 of 4 pairs, two voters, two judges that are right and one that never is."""
    draw = np.random.default_rng(seed)
    right = draw.random(count) < 0.75
    pairs = pd.DataFrame(
        {
            "pair_id": [f"p{i}" for i in range(count)],
            "source": "s",
            "chosen_id": [f"p{i}-c" for i in range(count)],
            "rejected_id": [f"p{i}-r" for i in range(count)],
            "chosen": ["word " * (1 + i % 3) for i in range(count)],
            "rejected": ["word " * (1 + i % 4) for i in range(count)],
        }
    )
    better = np.where(right, pairs["chosen_id"], pairs["rejected_id"])
    scores = [
        {"response_id": response, "voter": voter, "score": (response == good) + draw.normal(0, spread)}
        for chosen, rejected, good in zip(pairs["chosen_id"], pairs["rejected_id"], better, strict=True)
        for response in (chosen, rejected)
        for voter, spread in (("sharp", 0.3), ("blunt", 0.8))
    ]
    votes = [
        {"pair_id": pair, "judge": judge, "order": "ab", "better_id": None, "verdict": verdict}
        for pair, good in zip(pairs["pair_id"], right, strict=True)
        for judge, verdict in (
            ("good", "chosen" if good else "rejected"),
            ("bad", "rejected" if good else "chosen"),
            ("lenient", "chosen" if good else "tie"),
        )
    ]
    folder.mkdir(parents=True)
    pairs.to_parquet(folder / "pairs.parquet")
    pd.DataFrame(scores).to_parquet(folder / "scores.parquet")
    pd.DataFrame(votes).to_parquet(folder / "votes.parquet")
    pd.DataFrame({"pair_id": pairs["pair_id"], "better_id": better}).to_parquet(folder / "truth.parquet")
    return folder
