"""Rounds 0, 1 and 2 of the demo, trained for real, where labels are wrong to a known share: a table over cells.

    DT2IT_HOME=data dagster job execute -m dt2it_pipeline.definitions -j construct
    python -m benchmarks.rounds_under_noise --home data --output rounds_under_noise --cells even:30:0 style:30:0

A cell is KIND:PERCENT:SEED. "even" and "style" are the kinds of `benchmarks.label_noise`; "demo" takes the labels as
the demo gives them. The seed draws the wrong labels and starts the training. Four models are trained for a cell as the
pipeline trains them (DeepSpeed, the recipe's settings):

- round 0: D0 alone, which then votes on the noisy pairs; the recipe's policy and judges curate them. As many more as
  the recipe's `curation.ensemble` has seeds vote with it: round 0's models of the next seeds;
- round 1: D0 and the curated pairs;
- uncurated: D0 and the noisy pairs as they are;
- ceiling: D0 and the same pairs with true labels.

No model is trained on the recipe's trusted pairs (`curation.trusted_pairs`); all voters score them, and they are the
anchor of the policy.

Round 0 and the ceiling serve all cells of a seed; without wrong labels, "uncurated" is the ceiling. With --out-of-fold,
out-of-fold voters (`curation.out_of_fold`) are trained on what round 0 curated and vote beside round 0's, and a fifth
model, round 2, is trained on D0 and what is curated with them; its judge calls are those on pairs that were not asked
about before. With --no-judge, the table also has what is curated where neither round has a judge. With --ensembles, a
second table has the label accuracy of the most certain 85% of pairs, before any judge, where round 0's models of
several seeds vote (`curation.ensemble`): those of all cells so far. The command may be stopped at any time: every
model's figures are appended to OUTPUT/models.jsonl, and what stands there is not computed again, so that another recipe
needs another folder. It ends with the table of all that stands there; without --cells it only prints that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.environment import run_as_worker
from benchmarks.rounds_under_noise.bench import Bench
from benchmarks.rounds_under_noise.cells import Cell
from benchmarks.rounds_under_noise.results import print_table, read_results


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("data"), help="artifact home in which `construct` has run")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results, and of what is under way")
    parser.add_argument("--cells", nargs="*", default=[], metavar="KIND:PERCENT:SEED")
    parser.add_argument("--out-of-fold", type=int, metavar="FOLDS", help="also train voters, one per fold, and round 2")
    parser.add_argument(
        "--no-judge", action="store_true", help="with --out-of-fold: also report what is curated without any judge"
    )
    parser.add_argument(
        "--ensembles", action="store_true", help="also report what round 0's models of several seeds find"
    )
    given = parser.parse_args()
    if given.no_judge and given.out_of_fold is None:
        parser.error("--no-judge needs --out-of-fold")
    run_as_worker("benchmarks.rounds_under_noise")
    given.output.mkdir(parents=True, exist_ok=True)
    if given.cells or given.ensembles:
        bench = Bench(given.home, given.output)
        for cell in map(Cell.parse, given.cells):
            bench.run(cell, given.out_of_fold, given.no_judge)
    print_table(read_results(given.output))
    if given.ensembles:
        bench.print_ensembles()


if __name__ == "__main__":
    main()
