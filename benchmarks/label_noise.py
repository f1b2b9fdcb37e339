"""What the curation policies make of labels that are wrong to a known share: a table over shares and kinds of noise.

    make demo && python -m benchmarks.label_noise --home data

It takes the pairs, the hidden truth and round 0's scores of a finished demo. The voter never saw a label of these
pairs, so that labels can be made wrong anew without training anew: the figures are what round 0 would curate from them.
The trusted pairs that round 0's training left out are the anchor; an audit in the home does not count.

- "even" noise: any label may be wrong.
- "style" noise: the wrong labels prefer the longer side, as far as there are pairs whose better side is shorter.

The judges are the recipe's own models; each answers once about every pair, and its verdicts serve all rows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.environment import run_as_worker, spread

if TYPE_CHECKING:
    from dt2it_pipeline.curate.policies.policy import Anchor, Decision, Policy
    from dt2it_pipeline.curate.published_algorithm import VerifyResult

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4)
KINDS = ("even", "style")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("data"), help="artifact home of a finished demo")
    parser.add_argument("--seeds", type=int, default=3, help="draws of wrong labels")
    given = parser.parse_args()
    run_as_worker("benchmarks.label_noise")
    from dt2it_pipeline.config.recipe import load_recipe
    from dt2it_pipeline.curate.policies.choice import make_policy
    from dt2it_pipeline.curate.policies.policy import Anchor
    from dt2it_pipeline.curate.tables import to_frame
    from dt2it_pipeline.storage.artifacts import Store

    store, recipe = Store(given.home), load_recipe()
    anchor = Anchor(to_frame(store.read("training_pairs", "0")["trusted_pairs"]))
    pairs, scores, verdicts = measured(store, recipe)
    policy, judges = make_policy(recipe.curation), len(recipe.annotation.judges)
    print(
        f"{len(pairs):,} pairs, {scores['voter'].nunique()} voters, {len(anchor.trusted):,} trusted pairs, policy "
        f"{policy.name}, {judges} judges; percent, median (least to greatest) of {given.seeds} draws; asked: pairs "
        "that judges are asked about\n"
    )
    print("| wrong labels | noise | paper's step 1: right | no judge: right | kept | judges: right | kept | asked |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in KINDS:
        for share in SHARES:
            draws = [mislabelled(pairs, share, kind, seed) for seed in range(given.seeds)]
            rows = [curate(policy, pairs, scores, verdicts, wrong, judges, anchor) for wrong in draws]
            cells = [spread([100 * row[name] for row in rows]) for name in rows[0]]
            print(f"| {np.mean(draws):.0%} | {kind} | {' | '.join(cells)} |", flush=True)


def measured(store: Any, recipe: Any) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Pairs with the truly better side chosen, round 0's voters' scores, and each judge's verdict on every pair."""
    import pyarrow as pa

    from dt2it_pipeline.curate.tables import to_frame
    from dt2it_pipeline.orchestrate.assets.voters import ENSEMBLE_SCORES

    pairs, _ = true_pairs(store)
    voters = ["response_scores", *([ENSEMBLE_SCORES] if recipe.curation.ensemble else [])]
    scores = pa.concat_tables([store.read(name, "0")["scores"] for name in voters])
    return pairs, to_frame(scores), judged(store, recipe, pairs, store.read("training_pairs", "0"))


def true_pairs(store: Any) -> tuple[pd.DataFrame, np.ndarray]:
    """Pairs with the truly better side chosen, and bool [pairs]: which of them the demo labels wrongly."""
    from dt2it_pipeline.curate.pair_frames import swap_sides
    from dt2it_pipeline.curate.tables import to_frame

    pairs = to_frame(store.read("raw_preferences")["pairs"])
    truth = store.read("demo_truth")["pairs"]
    better = dict(zip(truth["pair_id"].to_pylist(), truth["chosen_id"].to_pylist(), strict=True))
    pairs = pairs[pairs["pair_id"].isin(better)].reset_index(drop=True)
    wrong = (pairs["chosen_id"] != pairs["pair_id"].map(better)).to_numpy(dtype=bool)
    return swap_sides(pairs.assign(strength=0.0), wrong), wrong


def judged(store: Any, recipe: Any, pairs: pd.DataFrame, training: Any) -> pd.DataFrame:
    """Verdicts of all of the recipe's judges about all pairs, and about the trusted ones that `training` left out."""
    import pyarrow as pa

    from dt2it_pipeline.config.paths import model_path
    from dt2it_pipeline.curate.annotation.annotate import AnnotateJob
    from dt2it_pipeline.curate.tables import to_frame, to_table
    from dt2it_pipeline.orchestrate.assets.anchors import prompts_with_trusted
    from dt2it_pipeline.storage.atomic import read_parquet, write_parquet

    judges = tuple(judge.model_copy(update={"model": model_path(judge.model)}) for judge in recipe.annotation.judges)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        own = to_table(pairs, "pairs")
        asked = pa.concat_tables([own, training["trusted_pairs"].select(own.column_names)])
        write_parquet(asked, work / "pairs.parquet")
        prompts = prompts_with_trusted(store.read("raw_preferences")["prompts"], training)
        write_parquet(prompts, work / "prompts.parquet")
        job = AnnotateJob(
            pairs=work / "pairs.parquet",
            prompts=work / "prompts.parquet",
            media_root=store.media,
            output=work / "votes.parquet",
            work=work / "judging",
            cache=store.cache / "judge_replies.sqlite",
            settings=recipe.annotation.model_copy(update={"judges": judges}),
            seed=recipe.seed,
        )
        path = work / "job.json"
        job.write(path)
        # In a process of its own, which gives its memory back, and whose progress bars stay out of the table.
        command = [sys.executable, "-m", "dt2it_pipeline.engines.jobs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr}")
        return to_frame(read_parquet(work / "votes.parquet", "votes"))


def verdicts_on(pairs: pd.DataFrame, better: dict[str, str], verdicts: pd.DataFrame) -> pd.DataFrame:
    """Verdicts on pairs with the truly better side chosen, as verdicts on these `pairs`, some of whose sides are the
    other way round; those on other pairs are left out.
    """
    there = pairs["pair_id"].map(better).fillna(pairs["chosen_id"])  # trusted pairs have their better side chosen
    turned = set(pairs.loc[pairs["chosen_id"] != there, "pair_id"])
    other = {"chosen": "rejected", "rejected": "chosen"}
    theirs = verdicts[verdicts["pair_id"].isin(pairs["pair_id"])]
    flip = theirs["pair_id"].isin(turned)
    return theirs.assign(verdict=theirs["verdict"].where(~flip, theirs["verdict"].replace(other)))


def mislabelled(pairs: pd.DataFrame, share: float, kind: str, seed: int) -> np.ndarray:
    """Bool [n]: the pairs whose label is made wrong."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    if kind == "style":
        shorter = (pairs["chosen"].str.len() < pairs["rejected"].str.len()).to_numpy(dtype=bool)
        order = order[shorter[order]]
    wrong = np.zeros(len(pairs), dtype=bool)
    wrong[order[: round(share * len(pairs))]] = True
    return wrong


def curate(
    policy: Policy,
    pairs: pd.DataFrame,
    scores: pd.DataFrame,
    verdicts: pd.DataFrame,
    wrong: np.ndarray,
    judges: int,
    anchor: Anchor,
) -> dict[str, float]:
    """Label accuracy, and shares of kept pairs and of pairs asked about; `wrong` marks the wrong labels."""
    from dt2it_pipeline.curate.pair_frames import swap_sides
    from dt2it_pipeline.curate.published_algorithm import merge, vote_and_flip

    better = dict(zip(pairs["pair_id"], pairs["chosen_id"], strict=True))
    given = swap_sides(pairs, wrong)

    def right(found: pd.DataFrame) -> float:
        return float((found["chosen_id"] == found["pair_id"].map(better)).mean())

    _, checked, decided = decided_by(policy, given, scores, better, verdicts, judges, anchor)
    curated = merge(decided.kept, decided.annotated)
    return {
        "paper": right(vote_and_flip(given, scores).voted),
        "alone right": right(checked.verified),
        "alone kept": len(checked.verified) / len(pairs),
        "right": right(curated),
        "kept": len(curated) / len(pairs),
        "asked": len(decided.asked) / len(pairs),
    }


def decided_by(
    policy: Policy,
    given: pd.DataFrame,
    scores: pd.DataFrame,
    better: dict[str, str],
    verdicts: pd.DataFrame,
    judges: int,
    anchor: Anchor,
    calls: int | None = None,
) -> tuple[pd.DataFrame, VerifyResult, Decision]:
    """The voted pairs, the checked ones and the decision of a round, by a policy without a verifier.

    `better` and `verdicts` are as for `verdicts_on`. Voters were not trained on the given pairs; people say nothing.
    """
    vote = policy.vote(given, scores, {}, anchor)
    checked = policy.check(vote.result.voted, scores.iloc[:0])
    decided = policy.decide(
        checked.verified,
        checked.contested,
        verdicts.iloc[:0],
        lambda pairs: verdicts_on(pairs, better, verdicts),
        judges,
        calls,
        replace(anchor, trusted=vote.trusted),
    )
    return vote.result.voted, checked, decided


if __name__ == "__main__":
    main()
