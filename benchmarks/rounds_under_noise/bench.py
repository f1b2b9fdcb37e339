"""Trains and measures the models of cells, once each."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.label_noise import decided_by, judged, mislabelled, true_pairs
from benchmarks.rounds_under_noise.cells import (
    CEILING,
    GROUPS,
    KINDS,
    ROUND_0,
    ROUND_1,
    ROUND_2,
    SURE_SHARE,
    UNCURATED,
    UNJUDGED,
    Cell,
    name_of,
    row_key,
)
from benchmarks.rounds_under_noise.pipeline import Jobs
from benchmarks.rounds_under_noise.results import mean_spread, read_results


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
        self.jobs = Jobs(self.recipe, self.store.media)
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
        self.done = {row_key(row) for row in read_results(output)}

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

        name, files = name_of(cell.key(model)), []
        joined, prompts = self._joined(curated), self.store.read("raw_preferences")["prompts"]
        for fold in range(folds):
            work = self.output / "work" / f"{name}-fold-{fold}"
            files.append(work / "scores.parquet")
            if files[-1].exists():
                continue
            judged = judged_by(to_table(noisy, "pairs"), fold, folds)
            pairs, used = learned_by(joined["pairs"], joined["prompts"], judged)
            print(f"{name}, fold {fold}: {pairs.num_rows} pairs", flush=True)
            self.jobs.train({"pairs": pairs, "prompts": used}, cell.seed, work)
            self.jobs.score(work, *with_trusted(judged, prompts, joined), files[-1], voter_name(1, fold))
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
                print(f"| {percent}%, {kind} | {len(wrongs)} | {count} | {mean_spread(found)} |")

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
        work = self.output / "work" / name_of(key)
        print(f"{name_of(key)}: {joined['pairs'].num_rows} pairs", flush=True)
        trained = self.jobs.train(joined, cell.seed, work)
        if model == ROUND_0:
            responses, prompts = with_trusted(raw["pairs"], raw["prompts"], joined)
            self.jobs.score(work, responses, prompts, self._scores(cell.seed), f"seed/{cell.seed}")
        items = self.benchmarks["benchmark_items"]
        self.jobs.score(work, responses_of(items), self.benchmarks["prompts"], work / "benchmark.parquet", key[0])
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

    def _scores(self, seed: int) -> Path:
        return self.output / f"scores-{seed}.parquet"


def _most_certain(voted: pd.DataFrame, pairs: int) -> pd.DataFrame:
    """The certain SURE_SHARE of so many pairs."""
    return voted.nlargest(round(SURE_SHARE * pairs), "strength", keep="first")
