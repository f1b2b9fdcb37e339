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
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.environment import WORKER_ENVIRONMENT, run_as_worker
from benchmarks.label_noise import decided_by, judged, mislabelled, true_pairs

ROUND_0, ROUND_1, ROUND_2, UNCURATED, CEILING = "round 0", "round 1", "round 2", "uncurated", "ceiling"
UNJUDGED = "round 2's pairs, no judge in either round"
SURE_SHARE = 0.85  # of all pairs: the most certain, whose label accuracy before any judge is reported
GROUPS = ("style-random", "style-congruent", "style-incongruent")
KINDS = ("even", "style", "demo")


@dataclass(frozen=True)
class Cell:
    """A kind of wrong labels, their share in percent, and a seed."""

    kind: str
    percent: int
    seed: int

    @classmethod
    def parse(cls, text: str) -> Cell:
        """A cell from KIND:PERCENT:SEED."""
        kind, percent, seed = text.split(":")
        if kind not in KINDS:
            raise ValueError(f"{text}: the kind must be one of {', '.join(KINDS)}")
        return cls(kind, int(percent), int(seed))

    def key(self, model: str) -> tuple[Any, ...]:
        """What a model of this cell is found by: two cells with the same key have the same model."""
        if model == UNCURATED and self.percent == 0:
            model = CEILING
        if model in (ROUND_0, CEILING):
            return model, None, None, self.seed
        return model, self.kind if self.percent else "none", self.percent, self.seed


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


class Bench:
    """Trains and measures the models of cells, once each."""

    def __init__(self, home: Path, output: Path) -> None:
        from dt2it_pipeline.config.recipe import load_recipe
        from dt2it_pipeline.curate.policies.choice import make_policy
        from dt2it_pipeline.curate.policies.policy import Anchor
        from dt2it_pipeline.curate.tables import to_frame, to_table
        from dt2it_pipeline.storage.artifacts import Store
        from dt2it_pipeline.storage.atomic import read_parquet, write_parquet

        self.store, self.recipe, self.output = Store(home), load_recipe(), output
        self.policy = make_policy(self.recipe.curation)
        if self.policy.has_verifier:
            raise SystemExit(f"the policy `{self.policy.name}` trains a verifier, which is not done here")
        self.benchmarks = self.store.read("raw_benchmarks")
        training = self._joined(None)
        self.anchor = Anchor(to_frame(training["trusted_pairs"]))
        self.pairs, self.demo_wrong = true_pairs(self.store)
        verdicts = output / "verdicts.parquet"
        if not verdicts.exists():
            write_parquet(to_table(judged(self.store, self.recipe, self.pairs, training), "votes"), verdicts)
        self.verdicts = to_frame(read_parquet(verdicts, "votes"))
        self.done = {_key(row) for row in read_results(output)}

    def run(self, cell: Cell, folds: int | None = None, unjudged: bool = False) -> None:
        """Whatever of a cell is not there yet; with `folds` round 2 too, with `unjudged` its pairs without a judge."""
        wrong = (
            self.demo_wrong
            if cell.kind == "demo"
            else mislabelled(self.pairs, cell.percent / 100, cell.kind, cell.seed)
        )
        if round(100 * wrong.mean()) != cell.percent:
            raise SystemExit(f"{cell}: {wrong.mean():.0%} of the labels are wrong in such pairs, not {cell.percent}%")
        from dt2it_pipeline.curate.pair_frames import swap_sides

        seeds = self._voters(cell)
        for seed in seeds:
            self._model(Cell(cell.kind, cell.percent, seed), ROUND_0, None)
        self._model(cell, CEILING, self.pairs)
        noisy, voters = swap_sides(self.pairs, wrong), [self._scores(seed) for seed in seeds]
        curated, votes, metadata = self._curated(noisy, voters)
        self._model(cell, ROUND_1, curated, metadata)
        self._model(cell, UNCURATED, noisy, {"label_accuracy": float(1 - wrong.mean()), "kept": 1.0})
        if folds is not None and cell.key(ROUND_2) not in self.done:
            with self._out_of_fold(cell, ROUND_2, noisy, curated, folds) as further:
                again, more, metadata = self._curated(noisy, voters + further)
                metadata["judge_calls"] = int((~more["pair_id"].isin(votes["pair_id"])).sum())
                self._model(cell, ROUND_2, again, metadata)
        if folds is not None and unjudged and cell.key(UNJUDGED) not in self.done:
            curated, *_ = self._curated(noisy, voters, judged=False)
            with self._out_of_fold(cell, UNJUDGED, noisy, curated, folds) as further:
                *_, metadata = self._curated(noisy, voters + further, judged=False)
                self._append(cell.key(UNJUDGED), metadata)

    def _voters(self, cell: Cell) -> range:
        """Seeds of the round 0's models that vote."""
        ensemble = self.recipe.curation.ensemble
        return range(cell.seed, cell.seed + 1 + (ensemble.seeds if ensemble else 0))

    @contextmanager
    def _out_of_fold(
        self, cell: Cell, model: str, noisy: pd.DataFrame, curated: pd.DataFrame, folds: int
    ) -> Iterator[list[Path]]:
        """Scores of a voter per fold, trained on D0 and the other folds' curated pairs; deleted where all goes well.

        Round 1's own reward model does not vote on pairs that it was trained on; there are no others.
        """
        from dt2it_pipeline.curate.tables import to_table
        from dt2it_pipeline.curate.voters.out_of_fold import judged_by, learned_by, voter_name
        from dt2it_pipeline.orchestrate.assets.anchors import with_trusted

        name, files = _name(cell.key(model)), []
        joined, prompts = self._joined(curated), self.store.read("raw_preferences")["prompts"]
        for fold in range(folds):
            work = self.output / "work" / f"{name}-fold-{fold}"
            files.append(work / "scores.parquet")
            if files[-1].exists():
                continue
            judged = judged_by(to_table(noisy, "pairs"), fold, folds)
            pairs, used = learned_by(joined["pairs"], joined["prompts"], judged)
            print(f"{name}, fold {fold}: {pairs.num_rows} pairs", flush=True)
            self._train({"pairs": pairs, "prompts": used}, cell.seed, work)
            self._score(work, *with_trusted(judged, prompts, joined), files[-1], voter_name(1, fold))
        yield files
        for file in files:
            shutil.rmtree(file.parent)

    def print_ensembles(self, percent: int = 30, draws: int = 3) -> None:
        """What one, two, ... of round 0's models find together: a table over kinds of noise and numbers of voters."""
        from dt2it_pipeline.curate.pair_frames import swap_sides
        from dt2it_pipeline.curate.tables import to_frame
        from dt2it_pipeline.storage.atomic import read_parquet

        seeds = sorted(row["seed"] for row in read_results(self.output) if row["model"] == ROUND_0)
        scores = [to_frame(read_parquet(self._scores(seed), "scores")) for seed in seeds]
        print(
            f"\n| wrong labels | draws | voters | label accuracy of the most certain {SURE_SHARE:.0%} |"
            "\n|---|---|---|---|"
        )
        for kind in KINDS:
            wrongs = [self.demo_wrong]
            if kind != "demo":
                wrongs = [mislabelled(self.pairs, percent / 100, kind, draw) for draw in range(draws)]
            for count in range(1, len(seeds) + 1):
                found = [self._right_of_the_surest(swap_sides(self.pairs, wrong), scores[:count]) for wrong in wrongs]
                print(f"| {percent}%, {kind} | {len(wrongs)} | {count} | {_spread(found)} |")

    def _right_of_the_surest(self, noisy: pd.DataFrame, scores: list[pd.DataFrame]) -> float:
        """Label accuracy of the most certain pairs, after a vote."""
        better = dict(zip(self.pairs["pair_id"], self.pairs["chosen_id"], strict=True))
        vote = self.policy.vote(noisy, pd.concat(scores, ignore_index=True), {}, self.anchor)
        certain = _most_certain(vote.result.voted, len(noisy))
        return float((certain["chosen_id"] == certain["pair_id"].map(better)).mean())

    def _curated(
        self, noisy: pd.DataFrame, voters: list[Path], judged: bool = True
    ) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
        """What a round makes of the noisy pairs from its voters' scores, by the steps of the assets of `rounds`.

        Returns the curated pairs, the judges' votes, and figures.
        """
        from dt2it_pipeline.curate.published_algorithm import merge
        from dt2it_pipeline.curate.tables import to_frame
        from dt2it_pipeline.storage.atomic import read_parquet

        better = dict(zip(self.pairs["pair_id"], self.pairs["chosen_id"], strict=True))
        scores = pd.concat([to_frame(read_parquet(file, "scores")) for file in voters], ignore_index=True)
        judges, calls = len(self.recipe.annotation.judges), None if judged else 0
        voted, checked, decided = decided_by(
            self.policy, noisy, scores, better, self.verdicts, judges, self.anchor, calls
        )
        curated = merge(decided.kept, decided.annotated)

        def right(found: pd.DataFrame) -> float:
            return float((found["chosen_id"] == found["pair_id"].map(better)).mean()) if len(found) else float("nan")

        metadata = {
            "label_accuracy": right(curated),
            "kept": len(curated) / len(noisy),
            "label_accuracy_without_judges": right(checked.verified),
            "kept_without_judges": len(checked.verified) / len(noisy),
            "label_accuracy_of_the_most_certain": right(_most_certain(voted, len(noisy))),
            "pairs_asked_about": len(decided.asked),
            "judge_calls": len(decided.votes),
        }
        return curated, decided.votes, metadata

    def _model(
        self, cell: Cell, model: str, preferences: pd.DataFrame | None, metadata: dict[str, Any] | None = None
    ) -> None:
        """Train a model of a cell, test it, and append its figures; nothing where that is done already."""
        from dt2it_pipeline.curate.tables import to_frame
        from dt2it_pipeline.evaluate.benchmarks.metrics import ALL, OVERALL, score_items
        from dt2it_pipeline.orchestrate.assets.anchors import with_trusted
        from dt2it_pipeline.orchestrate.stage.model_jobs import responses_of
        from dt2it_pipeline.storage.atomic import read_parquet

        key = cell.key(model)
        if key in self.done:
            return
        started, load = time.monotonic(), os.getloadavg()[0]
        raw, joined = self.store.read("raw_preferences"), self._joined(preferences)
        work = self.output / "work" / _name(key)
        print(f"{_name(key)}: {joined['pairs'].num_rows} pairs", flush=True)
        trained = self._train(joined, cell.seed, work)
        if model == ROUND_0:
            responses, prompts = with_trusted(raw["pairs"], raw["prompts"], joined)
            self._score(work, responses, prompts, self._scores(cell.seed), f"seed/{cell.seed}")
        items = self.benchmarks["benchmark_items"]
        self._score(work, responses_of(items), self.benchmarks["prompts"], work / "benchmark.parquet", key[0])
        scores = to_frame(read_parquet(work / "benchmark.parquet", "scores"))
        found = score_items(to_frame(items), scores, model=model).benchmark_scores
        row = dict(metadata or {})
        for group in GROUPS:
            row[group] = float(found.loc[found["group"] == group, "accuracy"].iloc[0])
        pooled = found[(found["group"] == OVERALL) & (found["benchmark"] != ALL)]
        row["all"] = float(pooled["correct"].sum() / pooled["pairs"].sum())
        row |= {"training_pairs": joined["pairs"].num_rows, "weights_sha256": trained["weights_sha256"]}
        self._append(key, row | {"seconds": round(time.monotonic() - started, 1), "load": load})
        shutil.rmtree(work)

    def _joined(self, preferences: pd.DataFrame | None) -> Any:
        """D0 and the given pairs, or D0 alone, as a training set of the pipeline; trusted pairs are held out."""
        from dt2it_pipeline.curate.tables import to_table
        from dt2it_pipeline.orchestrate.assets.rounds import joined_pairs
        from dt2it_pipeline.storage.artifacts import Artifact

        parts = {name: self.store.read(name) for name in ("debiased_pairs", "t2i_pairs")}
        if preferences is not None:
            prompts = self.store.read("raw_preferences")["prompts"]
            parts["preferences"] = Artifact({"pairs": to_table(preferences, "pairs"), "prompts": prompts}, {})
        trusted = self.recipe.curation.trusted_pairs
        return joined_pairs(parts, self.benchmarks, self.recipe.decontamination, self.store.media, trusted)

    def _append(self, key: tuple[Any, ...], figures: dict[str, Any]) -> None:
        row = dict(zip(("model", "kind", "percent", "seed"), key, strict=True)) | figures
        with (self.output / "models.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.done.add(key)

    def _train(self, joined: Any, seed: int, work: Path) -> dict[str, Any]:
        """The training of the pipeline, as its assets start it (orchestrate/stage/model_jobs.py); it resumes in
        `work`.
        """
        from dt2it_pipeline.config.paths import model_path
        from dt2it_pipeline.engines.launch.ranks import rank_environment, ranks_command
        from dt2it_pipeline.reward.training.job import TrainJob

        settings = self.recipe.training
        work.mkdir(parents=True, exist_ok=True)
        _write(joined, work)
        job = TrainJob(
            name="reward_model",
            base_model=model_path(settings.base_model),
            pairs=work / "pairs.parquet",
            prompts=work / "prompts.parquet",
            media_root=self.store.media,
            output=work / "checkpoint",
            work=work / "training",
            settings=settings,
            seed=seed,
        )
        path = work / "train.json"
        job.write(path)
        command = ranks_command(["dt2it_pipeline.engines.jobs", str(path)], settings.processes)
        return _run(command, rank_environment(settings.processes))

    def _score(self, work: Path, responses: Any, prompts: Any, output: Path, voter: str) -> None:
        """Scores of the model in `work`, as the pipeline computes them."""
        from dt2it_pipeline.reward.scoring.job import ScoreJob
        from dt2it_pipeline.storage.atomic import write_parquet

        shards = work / f"{output.stem}-shards"
        shards.mkdir(exist_ok=True)
        write_parquet(responses, shards / "responses.parquet")
        write_parquet(prompts, shards / "prompts.parquet")
        job = ScoreJob(
            checkpoint=str(work / "checkpoint"),
            prompts=shards / "prompts.parquet",
            responses=shards / "responses.parquet",
            media_root=self.store.media,
            output=output,
            work=shards,
            voter=voter,
            settings=self.recipe.scoring,
        )
        path = work / "score.json"
        job.write(path)
        _run([sys.executable, "-m", "dt2it_pipeline.engines.jobs", str(path)], {})

    def _scores(self, seed: int) -> Path:
        return self.output / f"scores-{seed}.parquet"


def _most_certain(voted: pd.DataFrame, pairs: int) -> pd.DataFrame:
    """The certain SURE_SHARE of so many pairs."""
    return voted.nlargest(round(SURE_SHARE * pairs), "strength", keep="first")


def _write(joined: Any, work: Path) -> None:
    from dt2it_pipeline.storage.atomic import write_parquet

    for name in ("pairs", "prompts"):
        write_parquet(joined[name], work / f"{name}.parquet")


def _run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a job's command line; returns its summary, which is the last line that it prints."""
    done = subprocess.run(
        command, env={**os.environ, **WORKER_ENVIRONMENT, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stdout}\n{done.stderr}")
    summary: dict[str, Any] = json.loads(next(x for x in reversed(done.stdout.splitlines()) if x.startswith("{")))
    return summary


def read_results(output: Path) -> list[dict[str, Any]]:
    """What stands in the results, in the order in which it was computed."""
    path = output / "models.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def _name(key: tuple[Any, ...]) -> str:
    return "-".join(str(part) for part in key if part is not None).replace(" ", "_")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["kind"], row["percent"], row["seed"]


def print_table(rows: list[dict[str, Any]]) -> None:
    """The results as Markdown: mean (least to greatest) over seeds, in percent.

    Cells with the same seeds stand together, below the models that they share.
    """
    print(
        "| wrong labels | seeds | model | style-random | style-congruent | style-incongruent | all | label accuracy "
        "| kept | judge calls "
        "| no judge: label accuracy | kept | label accuracy of the most certain 85% |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    cells: dict[tuple[int, ...], set[tuple[int, str]]] = {}
    seeds_of: dict[tuple[int, str], list[int]] = {}
    for row in rows:
        if row["model"] == ROUND_1:
            seeds_of.setdefault((row["percent"], row["kind"]), []).append(row["seed"])
    for cell, seeds in seeds_of.items():
        cells.setdefault(tuple(sorted(seeds)), set()).add(cell)
    for shared, together in sorted(cells.items()):
        for model in (ROUND_0, CEILING):
            _print_row("any", model, [row for row in rows if row["model"] == model and row["seed"] in shared])
        for percent, kind in sorted(together):
            keys = {
                (model, kind, percent, seed) for model in (UNCURATED, ROUND_1, ROUND_2, UNJUDGED) for seed in shared
            }
            found = [row for row in rows if _key(row) in keys]
            for model in (UNCURATED, ROUND_1, ROUND_2, UNJUDGED):
                label = f"{percent}%" if kind == "none" else f"{percent}%, {kind}"
                _print_row(label, model, [row for row in found if row["model"] == model])


def _print_row(label: str, model: str, found: list[dict[str, Any]]) -> None:
    """A line of the table: a model with its rows of all seeds; nothing without any."""
    if not found:
        return

    def cells_of(*names: str) -> list[str]:
        values = ([row[name] for row in found if name in row] for name in names)
        return [_spread(given) if given else "" for given in values]

    calls = [row["judge_calls"] for row in found if "judge_calls" in row]
    cells = [*cells_of(*GROUPS, "all", "label_accuracy", "kept"), f"{np.mean(calls):.0f}" if calls else ""]
    cells += cells_of("label_accuracy_without_judges", "kept_without_judges", "label_accuracy_of_the_most_certain")
    print(f"| {label} | {len(found)} | {model} | {' | '.join(cells)} |")


def _spread(shares: list[float]) -> str:
    """Mean of shares in percent, with the least and greatest where there are several."""
    values = [100 * share for share in shares]
    middle = f"{np.mean(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
