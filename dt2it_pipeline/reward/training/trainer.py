"""The training loop: preparation, optimiser steps, checkpoints to resume from, the finished weights.

Only train.py imports this module: it needs torch and DeepSpeed from its first line.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from dt2it_pipeline.engines.jobs import Reporter, Summary
from dt2it_pipeline.observe.progress import Progress
from dt2it_pipeline.reward.calibration import CARD_KEY
from dt2it_pipeline.reward.checkpoints import model_card
from dt2it_pipeline.reward.data import preparation
from dt2it_pipeline.reward.data.encoding_workers import EncoderSource
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.modeling.compilation import compiled_so_far
from dt2it_pipeline.reward.modeling.compile_time import recorded
from dt2it_pipeline.reward.modeling.list_loss import comparison_losses
from dt2it_pipeline.reward.too_long import TOO_LONG
from dt2it_pipeline.reward.training import checkpointing, validation
from dt2it_pipeline.reward.training.deepspeed_engine import TrainedWeights, load_network, make_engine, reading
from dt2it_pipeline.reward.training.distributed import Group
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.restarts import Place
from dt2it_pipeline.reward.training.schedule import Schedule, cosine_with_warmup, examples_per_step
from dt2it_pipeline.reward.training.step_metrics import Tally
from dt2it_pipeline.reward.training.tracking import Tracker, copy_files, require_packages, untracked
from dt2it_pipeline.reward.training.training_data import TrainingData
from dt2it_pipeline.storage import atomic

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

_MANY = 8  # pairs; where none of so many can be read, no file is damaged: the storage is gone


class Trainer:
    """One training job on one rank.

    Args:
        job: to do.
        group: of all ranks.
        report: is handed the progress.
        place: where the rank is; kept up to date, so that it is known where memory runs out.
    """

    def __init__(self, job: TrainJob, group: Group, report: Reporter, place: Place) -> None:
        self.job, self.settings, self.group, self.report, self.place = job, job.settings, group, report, place
        settings, self.seed, self.work = job.settings, job.seed, job.work
        require_packages(settings)
        with checkpointing.writing("the work folder", self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        self.clock, self.compiled_before = preparation.stopwatch(), compiled_so_far()
        self.base_digest = checkpointing.BaseDigest(str(job.base_model), group)
        torch.manual_seed(self.seed)
        self.model = load_network(job.base_model, settings, self.seed, group.device, job.fallbacks)
        self.shared = settings.shared_prefix and self.model.shares_prefix()
        folder = self.model.source
        assert folder is not None  # a loaded model has one
        processor_folder = self.model.processor_source or folder
        source = EncoderSource(
            folder, processor_folder, settings.system_prompt, self.model.family, job.media_root, settings.max_pixels
        )
        self.model.card = {"name": job.name, "system_prompt": settings.system_prompt, "seed": self.seed}
        self.data = TrainingData(job, self.model, source, group, shared=self.shared)
        # As load_processor has made them.
        self.model.card |= {"image_newlines": True, "system_default": False, "system_suppressed": False}
        self.model.card |= {"max_pixels": self.data.registry.max_pixels}
        self.prepared, self.sizes, self.strengths = self.data.prepared, self.data.sizes, self.data.strengths
        self.examples, self.trained, self.held_out = self.data.examples, self.data.trained, self.data.held_out
        self.pair_counts = self.examples.pair_counts
        size = examples_per_step(
            len(self.trained), int(self.pair_counts[self.trained].sum()), settings.global_batch_size
        )
        self.schedule = Schedule(len(self.trained), size, settings.epochs, settings.max_steps, self.seed)
        self.engine = make_engine(self.model, settings, self.seed, group.device)
        self.log: list[dict[str, float]] = []
        self.evaluations: list[validation.Row] = []
        self.best = validation.BestWeights(self.work, wanted=settings.keep == "best")
        self.unread: list[tuple[int, Tally, torch.Tensor]] = []  # steps, their sums and gradient norms on the device
        self.window = [0.0] * 4  # since the last report: sum of losses, their number, pairs ranked right, pairs
        self.cells = [0.0, 0.0]  # since the start: cells of all batches, those of them that hold a token
        self.evaluation_seconds = 0.0

    def _train_mode(self) -> None:
        self.model.train()
        self.model.model.visual.eval()

    def _tracker(self, digest: str) -> Tracker:
        settings = self.settings
        if self.group.rank:  # curves come from one process
            settings = untracked(settings)
        tracker = Tracker(settings, self.work, name=self.job.name, run_id=digest)
        tracker.replay(self.log, self.evaluations)
        return tracker

    def fit(self) -> Summary:
        """Run all optimiser steps that are still to be done. Returns the summary of the whole training."""
        settings, schedule = self.settings, self.schedule
        base = self.base_digest.of(str(self.model.source))
        content = self.prepared.content
        # How batches are made changes nothing of what they hold.
        asked = settings.model_dump(exclude={"loader_workers"})
        digest = checkpointing.fingerprint(content, asked, self.seed, self.group.size, base)
        state = checkpointing.load(self.engine, self.work, digest, self.group, self.best.check)
        first = 0
        if state is not None:
            first, self.log, self.window = state["step"], state["log"], state["window"]
            self.evaluations, self.cells = state["evaluations"], state["cells"]
            self.prepared.leave_out({pair: (reason, message) for pair, reason, message in state["left_out"]})
        self.state_step = first  # of the state that a new start goes on from
        self.tracker = self._tracker(digest)
        self.data.start(schedule, first)
        prepared_in = self.clock()
        step_clock, since_report = preparation.stopwatch(), preparation.stopwatch()
        progress = Progress(self.report, "steps", schedule.steps, first=first)
        seen, evaluated = 0, 0.0
        for step in range(first, schedule.steps):
            rate = settings.learning_rate * cosine_with_warmup(step, schedule.steps, settings.warmup_ratio)
            members = self.trained[schedule.step(step)]
            self.place.at = f"at step {step + 1}"
            self._step(step, members, rate, checked=step == first)
            seen += int(self.pair_counts[members].sum())
            if (step + 1) % settings.logging_steps == 0 or step + 1 == schedule.steps:
                norm = self._read()
                spent = since_report() - (self.evaluation_seconds - evaluated)
                row = self._log_row(step, rate, norm, seen / max(spent, 1e-9))
                since_report, seen, evaluated = preparation.stopwatch(), 0, self.evaluation_seconds
                progress.at(step + 1, **{name: value for name, value in row.items() if name != "step"})
            if len(self.held_out) and validation.is_due(step + 1, schedule.steps, settings.eval_steps):
                self._evaluate(step + 1)
            if (step + 1) % settings.save_steps == 0 and step + 1 < schedule.steps:
                self._save_state(step + 1, digest)
        self.tracker.close()
        self.data.close()
        self.data.share_faults()
        return self._summary(first, prepared_in, step_clock() - self.evaluation_seconds)

    def _save_state(self, done: int, digest: str) -> None:
        self._read()
        self.data.share_faults()
        self.place.saves(f"the state after step {done}")
        kept = {
            "step": done,
            "log": self.log,
            "window": self.window,
            "evaluations": self.evaluations,
            "cells": self.cells,
            "left_out": [[pair, *why] for pair, why in self.prepared.left_out().items()],
        }
        checkpointing.save(self.engine, self.work, digest, kept, self.group, self.state_step)
        self.state_step = done
        if self.group.rank == 0:
            self.best.drop_all_but(validation.best_of(self.evaluations))

    def _summary(self, first: int, prepared_in: float, trained_in: float) -> Summary:
        schedule = self.schedule
        steps = [int(self.pair_counts[self.trained[schedule.step(step)]].sum()) for step in range(schedule.steps)]
        last = self.log[-1] if self.log else {}
        reasons = self.prepared.quarantine().column("reason").to_pylist()
        summary = {
            "steps": schedule.steps,
            "resumed_from_step": first,
            "pairs": int(self.prepared.usable.sum()),
            "pairs_quarantined": len(reasons),
            "pairs_too_long": reasons.count(TOO_LONG),
            "samples_seen": sum(steps),
            "loss": last.get("loss"),
            "accuracy": last.get("accuracy"),
            "pairs_per_second": round(sum(steps[first:]) / max(trained_in, 1e-9), 2)
            if schedule.steps > first
            else None,
            "padding_share": round(1 - self.cells[1] / self.cells[0], 4) if self.cells[0] else None,
            "preparation_seconds": round(prepared_in, 2),
            "training_seconds": round(trained_in, 2),
            "ranks": self.group.size,
            "vision_cached": self.data.vision_cached,
        }
        if self.model.runs_compiled:
            found = self.group.gather(compiled_so_far() - self.compiled_before)
            summary |= recorded(found, log=self.group.rank == 0)
        if self.job.micro_batch is not None:
            summary["micro_batch"] = self.job.micro_batch.in_words()
        summary |= self.examples.report()
        if self.settings.loss.kind != "bradley_terry":
            summary["pairs_without_strength"] = int(self.strengths.isnan().sum())
        if self.evaluations:
            shown = (validation.best_of if self.settings.keep == "best" else lambda rows: rows[-1])(self.evaluations)
            assert shown is not None
            summary |= {
                "validation_pairs": int(self.pair_counts[self.held_out].sum()),
                "validation_loss": shown["loss"],
                "validation_accuracy": shown["accuracy"],
                "kept_step": int(shown["step"]),
                "validation_seconds": round(self.evaluation_seconds, 2),
            }
        return summary

    def _step(self, number: int, members: np.ndarray, rate: float, *, checked: bool) -> None:
        """One optimiser step over the examples `members` at learning rate `rate`.

        Its sums are read later, with those of other steps, so that the device is not waited for at every step. With
        `checked` they are read before the weights change: where a base model is damaged, its weights still show it.
        """
        engine = self.engine
        for parameters in engine.optimizer.param_groups:
            parameters["lr"] = rate
        if self.settings.lora is not None and self.settings.lora.dropout:
            # Dropout is drawn anew from the step's own seed, so that a resumed run draws what the first one did.
            stream = np.random.SeedSequence([self.seed, number, self.group.rank])
            torch.manual_seed(int(stream.generate_state(1)[0]))
        runs = self.data.passes(members)
        tally, terms = self._tally(), int(self.examples.terms[members].sum())
        for index, planned in enumerate(runs):
            engine.set_gradient_accumulation_boundary(index == len(runs) - 1)
            run, margins, losses = self._forward(planned, members)
            # A rank without examples still takes part, with somebody else's and no weight.
            weight = 1.0 if len(run) else 0.0
            # DeepSpeed averages over ranks; the loss is the mean over all that the whole step has.
            engine.backward(losses.sum() * (weight * self.group.size / terms))
            tally.add(run, margins, losses)
        if checked:
            self._check(self.group.sum(tally.sums()), tally, number, members, weights=True)
        engine.step()
        norm = engine.get_global_grad_norm()  # on the device: nothing here may ask whether it is zero
        kept = torch.as_tensor(0.0 if norm is None else norm, device=self.group.device).detach()
        self.unread.append((number, tally, kept))

    def _read(self) -> float:
        """Take in the sums of all steps since the last call. Returns the last gradient norm before clipping.

        Stops the training where something is not a number or nothing could be read. Every rank must call this.
        """
        if not self.unread:
            return 0.0
        unread, self.unread = self.unread, []
        sums = np.array(self.group.sum([value for _, tally, _ in unread for value in tally.sums()])).reshape(-1, 7)
        norms = torch.stack([norm.float() for _, _, norm in unread]).tolist()
        for (number, tally, _), row, norm in zip(unread, sums.tolist(), norms, strict=True):
            members = self.trained[self.schedule.step(number)]
            self._check(row, tally, number, members)
            if not math.isfinite(norm) or norm < 0:  # DeepSpeed's -1 stands for what is not finite
                pairs = self.examples.pairs_of(members[:8])[:8]
                self._stop(number, pairs if self.group.rank == 0 else (), what="gradient")
        self.window = [a + b for a, b in zip(self.window, sums[:, [0, 6, 1, 2]].sum(0).tolist(), strict=True)]
        self.cells = [a + b for a, b in zip(self.cells, sums[:, 4:6].sum(0).tolist(), strict=True)]
        return float(norms[-1])

    def _tally(self) -> Tally:
        return Tally(self.examples, self.sizes)

    def _check(
        self, sums: list[float], tally: Tally, number: int, members: np.ndarray, *, weights: bool = False
    ) -> None:
        """Stop the training where a score or loss is not a number, or nothing can be read. `sums` are of all ranks."""
        if sums[3]:
            self._stop(number, tally.bad(), weights=weights)
        planned = int(self.pair_counts[members].sum())
        if not sums[2] and planned >= _MANY:
            raise self.data.all_unreadable(number + 1, planned, self.state_step)

    def _evaluate(self, done: int) -> None:
        """Loss and accuracy of the held-out pairs after `done` steps; the best weights so far are kept if wanted."""
        self._read()
        self.place.at = f"in the evaluation after step {done}"
        clock = preparation.stopwatch()
        tally, margins = self._tally(), validation.Margins()
        self.model.eval()
        with torch.no_grad():
            for run in self.data.passes(self.held_out):
                counted, found, losses = self._forward(run, self.held_out)
                tally.add(counted, found, losses)
                margins.add(self.examples.pairs_of(counted), found)
        self._train_mode()
        sums = self.group.sum(tally.sums())
        self._check(sums, tally, done - 1, self.held_out, weights=True)
        loss, right, pairs, *_, terms = sums
        if not pairs:
            raise TrainingError("no held-out pair can be read any more; make the media readable and start again")
        row = {"step": done, "loss": loss / terms, "accuracy": right / pairs, "pairs": int(pairs)}
        self.evaluations.append(row)
        # Of these weights, whose card is saved with them.
        everyone = [pair for part in self.group.gather(margins.pairs()) for pair in part]
        self.model.card.pop(CARD_KEY, None)
        self.model.card |= validation.calibration(everyone, self.prepared.prompt_ranks())
        if self.best.wanted and validation.best_of(self.evaluations) is row:
            self.place.saves(f"the best model, of step {done},")
            with checkpointing.writing("the best weights", self.best.folder(done), self.state_step):
                self._write_weights(lambda write: self.best.save(done, write))
        self.tracker.validation(row)
        self.report({"validation_loss": row["loss"], "validation_accuracy": row["accuracy"], "at_step": done})
        self.evaluation_seconds += clock()

    def _forward(self, run: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
        """Those examples of `run`, a pass over `members`, that count, with margins of their pairs, and losses.

        Where none counts, margins and losses are of examples that do not.
        """
        this = self.data.take(run, members)
        self.data.show(this.members, self.place)
        scores = self.engine(this.batch, this.features).view(-1)
        return this.members[this.counts], *comparison_losses(scores, this.comparisons, self.settings.loss)

    def _stop(
        self, step: int, bad: Sequence[int] | np.ndarray, *, what: str = "loss", weights: bool = False
    ) -> NoReturn:
        """End the training; every rank calls this, each with the pairs that it saw fail.

        With `weights`, those that are not finite are named: they are from before the failure.
        """
        everyone = [self.prepared.pair_id(pair) for part in self.group.gather([int(i) for i in bad]) for pair in part]
        broken: list[str] = []
        if weights:
            shards = ((name, getattr(value, "ds_tensor", value)) for name, value in self.model.named_parameters())
            mine = [name for name, value in shards if not bool(torch.isfinite(value).all())]
            broken = list(dict.fromkeys(name for part in self.group.gather(mine) for name in part))
        hint = f"; weights are already not finite: {', '.join(broken[:3])}" if broken else ""
        whose = "one of the pairs" if what == "gradient" else "pairs"
        raise TrainingError(
            f"{what} is not a number at step {step + 1}, {whose} {', '.join(everyone[:8])}"
            f"{' and more' if len(everyone) > 8 else ''}{hint}; lower training.learning_rate or remove the pairs"
        )

    def _log_row(self, step: int, rate: float, norm: float, speed: float) -> dict[str, float]:
        loss, terms, right, count = self.window
        self.window = [0.0] * 4
        row = {
            "step": step + 1,
            "epoch": round((step + 1) * self.schedule.batch_size / self.schedule.examples, 4),
            "loss": loss / max(terms, 1),
            "accuracy": right / max(count, 1),
            "learning_rate": rate,
            "grad_norm": norm,
            "pairs_per_second": round(speed, 2),
        }
        self.log.append(row)
        self.tracker.training(row)
        return row

    def _write_weights(self, into: Callable[[Callable[[Path], None]], None]) -> None:
        """Let `into` have the weights written into a folder of its choice; it is called on rank 0 alone."""
        with reading(self.engine):
            weights = TrainedWeights(self.model, self.settings.lora, self.group.rank)
            if self.group.rank:
                weights.take_part()
            else:
                into(lambda folder: self.model.save_pretrained(folder, weights))

    def save(self, output: Path, summary: Mapping[str, Any]) -> None:
        """Write the finished checkpoint with its logs and card, whole or not at all. Every rank must call this."""

        def whole(write: Callable[[Path], None]) -> None:
            with atomic.atomic_directory(output) as folder:
                write(folder)
                self.write_tables(folder)
                model_card.write_card(
                    folder,
                    base_model=self.job.base_model,
                    pairs=str(self.job.pairs),
                    sources=self.job.sources,
                    settings=self.settings,
                    summary=summary,
                )

        with checkpointing.writing("the checkpoint", output, self.state_step):
            if not (self.best.wanted and self.evaluations):
                self._write_weights(whole)
            elif self.group.rank == 0:
                whole(lambda folder: self.best.copy(self.evaluations, folder))

    def write_tables(self, folder: Path) -> None:
        """Write the logs, the curves and the quarantine table into the checkpoint folder."""
        logs = {"training_log": self.log} | ({"validation_log": self.evaluations} if self.evaluations else {})
        for name, rows in logs.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        copy_files(self.work, folder)
        atomic.write_parquet(self.prepared.quarantine(), folder / "quarantine.parquet")
