"""The training loop: preparation, optimiser steps, checkpoints to resume from, the finished weights.

Only train.py imports this module: it needs torch and DeepSpeed from its first line.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import deepspeed
import numpy as np
import torch

from dt2it_pipeline.engines.jobs import Reporter, Summary
from dt2it_pipeline.reward.data import preparation
from dt2it_pipeline.reward.data.collation import PackedExample, collate, unpack, with_pixels
from dt2it_pipeline.reward.data.encoding import PromptEncoder, load_processor
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline.reward.data.vision_features import survey_images
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.modeling import lora, model_card
from dt2it_pipeline.reward.modeling.batch import Batch
from dt2it_pipeline.reward.modeling.loss import pair_losses
from dt2it_pipeline.reward.modeling.model import RewardNetwork
from dt2it_pipeline.reward.too_long import TOO_LONG, length_limit
from dt2it_pipeline.reward.training import checkpointing, validation
from dt2it_pipeline.reward.training.deepspeed_settings import deepspeed_config
from dt2it_pipeline.reward.training.distributed import Group
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.schedule import Schedule, cosine_with_warmup, micro_batches
from dt2it_pipeline.reward.training.step_metrics import PairSizes, Tally
from dt2it_pipeline.reward.training.tracking import FOLDER as TRACKING_FOLDER
from dt2it_pipeline.reward.training.tracking import Tracker, require_packages
from dt2it_pipeline.storage import artifacts, atomic, content_ids, schemas

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

_GIB = 2**30


class Trainer:
    """One training job on one rank."""

    def __init__(self, job: TrainJob, group: Group, report: Reporter) -> None:
        self.job, self.settings, self.group, self.report = job, job.settings, group, report
        settings, self.seed, self.work = job.settings, job.seed, job.work
        require_packages(settings)
        with checkpointing.writing("the work folder", self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        self.clock = preparation.stopwatch()
        torch.manual_seed(self.seed)
        dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        model = RewardNetwork.from_pretrained(job.base_model, new_head_seed=self.seed, dtype=dtype)
        self.model = model.to(group.device)
        self.model.freeze_vision()
        self.shared = settings.shared_prefix and self.model.shares_prefix()
        folder = self.model.source
        assert folder is not None  # a loaded model has one
        processor = load_processor(self.model.processor_source or folder, settings.system_prompt, self.model.family)
        max_pixels = min(settings.max_pixels, int(processor.image_processor.size["longest_edge"]))
        self.model.card = {"name": job.name, "system_prompt": settings.system_prompt, "seed": self.seed}
        self.model.card |= {"image_newlines": True, "max_pixels": max_pixels}  # as load_processor has made them
        self.registry = ImageRegistry(
            processor.image_processor, str(job.media_root), max_pixels, processor.video_processor
        )
        self.prompt_encoder = PromptEncoder(folder, self.registry, processor)
        self.prepared = self._prepare()
        self.sizes = PairSizes(self.prepared.rows, self.shared)
        self.strengths = torch.tensor([math.nan if s is None else s for s in self.prepared.strengths])
        self.trained, self.held_out = self._split()
        self.schedule = Schedule(
            len(self.trained), settings.global_batch_size, settings.epochs, settings.max_steps, self.seed
        )
        self.engine = self._engine()
        self.log: list[dict[str, float]] = []
        self.evaluations: list[validation.Row] = []
        self.best = validation.BestWeights(self.work)
        self.window = [0.0, 0.0, 0.0]  # since the last report: sum of losses, pairs ranked right, pairs
        self.cells = [0.0, 0.0]  # since the start: cells of all batches, those of them that hold a token
        self.evaluation_seconds = 0.0

    def _prepare(self) -> preparation.PreparedPairs:
        settings = self.settings
        pairs = atomic.read_parquet(self.job.pairs, "pairs")
        prompts = atomic.read_parquet(self.job.prompts, "prompts")
        columns = (pairs.column(name).to_pylist() for name in ("pair_id", "chosen_id", "strength"))
        self.content = content_ids.content_hash(*columns)
        longest = length_limit(settings.max_length, self.model.config.text_config)
        prepared = preparation.prepare_pairs(
            pairs, prompts, self.prompt_encoder, longest, use_strength=settings.loss.kind != "bradley_terry"
        )
        used = sorted({p for row in prepared.rows for p in row.prompt.images})
        with checkpointing.writing("the vision encoder's features in", self.work):
            self.features, faults = survey_images(
                self.model,
                self.registry,
                used,
                most_bytes=settings.vision_cache_gib * _GIB if settings.cache_vision else 0,
                work=self.work,
                ranks=self.group,
                device=self.group.device,
            )
        prepared = preparation.drop_images(prepared, faults, pairs)
        if not prepared.rows:
            reasons = sorted({row["reason"] for row in prepared.quarantine})
            raise TrainingError(
                f"no pair to train on: {pairs.num_rows} in {self.job.pairs}, {len(prepared.quarantine)} quarantined"
                + (f" ({'; '.join(reasons)})" if reasons else "")
            )
        return prepared

    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs to train on and pairs to hold out."""
        settings, pairs = self.settings, len(self.prepared.ids)
        count = validation.held_out_pairs(pairs, settings.validation_fraction, settings.validation_pairs)
        trained, held_out = preparation.split_by_prompt(self.prepared.prompt_ids, count, self.seed)
        if not len(trained):
            raise TrainingError(
                f"no pair is left to train on: {len(held_out)} of {pairs} pairs are held out, all pairs of a prompt "
                "together; lower training.validation_pairs or training.validation_fraction"
            )
        return trained, held_out

    def _engine(self) -> Any:
        if self.settings.lora is not None:
            lora.add_adapters(self.model, self.settings.lora, self.seed)
        if self.settings.gradient_checkpointing:
            self.model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        self._train_mode()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        # As everywhere, weight decay is for matrices: norms and biases (one dimension) are left alone.
        decay = self.settings.weight_decay
        groups: list[dict[str, Any]] = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": decay}]
        groups.append({"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0})
        if decay == 0:
            groups = [{"params": trained, "weight_decay": 0.0}]
        config = deepspeed_config(self.settings, decay)
        return deepspeed.initialize(model=self.model, model_parameters=groups, config=config, dist_init_required=False)[
            0
        ]

    def _train_mode(self) -> None:
        self.model.train()
        self.model.model.visual.eval()

    def _tracker(self, digest: str) -> Tracker:
        settings = self.settings
        if self.group.rank:  # curves come from one process
            settings = settings.model_copy(update={"tensorboard": False, "wandb_project": None})
        tracker = Tracker(settings, self.work, name=self.job.name, run_id=digest)
        tracker.replay(self.log, self.evaluations)
        return tracker

    def fit(self) -> Summary:
        """Run all optimiser steps that are still to be done. Returns the summary of the whole training."""
        settings, schedule = self.settings, self.schedule
        # The base model of an adapter lies elsewhere than the adapter. Read by one rank.
        sources = (str(self.job.base_model), str(self.model.source))
        read = [artifacts.model_digest(source) for source in sources] if self.group.rank == 0 else []
        base = " ".join(self.group.gather(read)[0])
        digest = checkpointing.fingerprint(
            [*self.prepared.ids, self.content], settings.model_dump(), self.seed, self.group.size, base
        )
        state = checkpointing.load(self.engine, self.work, digest)
        first = 0
        if state is not None:
            first, self.log, self.window = state["step"], state["log"], state["window"]
            self.evaluations, self.cells = state["evaluations"], state["cells"]
        self.state_step = first  # of the state that a new start goes on from
        self.tracker = self._tracker(digest)
        prepared_in = self.clock()
        step_clock, since_report = preparation.stopwatch(), preparation.stopwatch()
        seen, evaluated = 0, 0.0
        for step in range(first, schedule.steps):
            rate = settings.learning_rate * cosine_with_warmup(step, schedule.steps, settings.warmup_ratio)
            pairs = self.trained[schedule.step(step)]
            norm = self._step(step, pairs, rate)
            seen += len(pairs)
            if (step + 1) % settings.logging_steps == 0 or step + 1 == schedule.steps:
                spent = since_report() - (self.evaluation_seconds - evaluated)
                row = self._log_row(step, rate, norm, seen / max(spent, 1e-9))
                since_report, seen, evaluated = preparation.stopwatch(), 0, self.evaluation_seconds
                self.report(row | {"steps": schedule.steps})
            if len(self.held_out) and validation.is_due(step + 1, schedule.steps, settings.eval_steps):
                self._evaluate(step + 1)
            if (step + 1) % settings.save_steps == 0 and step + 1 < schedule.steps:
                self._save_state(step + 1, digest)
        self.tracker.close()
        return self._summary(first, prepared_in, step_clock() - self.evaluation_seconds)

    def _save_state(self, done: int, digest: str) -> None:
        kept = {
            "step": done,
            "log": self.log,
            "window": self.window,
            "evaluations": self.evaluations,
            "cells": self.cells,
        }
        checkpointing.save(self.engine, self.work, digest, kept, self.group)
        self.state_step = done
        if self.group.rank == 0:
            self.best.drop_all_but(validation.best_of(self.evaluations))

    def _summary(self, first: int, prepared_in: float, trained_in: float) -> Summary:
        schedule = self.schedule
        pairs_done = schedule.samples_seen - first * schedule.global_batch_size
        last = self.log[-1] if self.log else {}
        summary = {
            "steps": schedule.steps,
            "resumed_from_step": first,
            "pairs": len(self.prepared.rows),
            "pairs_quarantined": len(self.prepared.quarantine),
            "pairs_too_long": sum(row["reason"] == TOO_LONG for row in self.prepared.quarantine),
            "samples_seen": schedule.samples_seen,
            "loss": last.get("loss"),
            "accuracy": last.get("accuracy"),
            "pairs_per_second": round(pairs_done / max(trained_in, 1e-9), 2) if schedule.steps > first else None,
            "padding_share": round(1 - self.cells[1] / self.cells[0], 4) if self.cells[0] else None,
            "preparation_seconds": round(prepared_in, 2),
            "training_seconds": round(trained_in, 2),
            "ranks": self.group.size,
            "vision_cached": self.features is not None,
        }
        if self.settings.loss.kind != "bradley_terry":
            summary["pairs_without_strength"] = int(self.strengths.isnan().sum())
        if self.evaluations:
            shown = (validation.best_of if self.settings.keep == "best" else lambda rows: rows[-1])(self.evaluations)
            assert shown is not None
            summary |= {
                "validation_pairs": len(self.held_out),
                "validation_loss": shown["loss"],
                "validation_accuracy": shown["accuracy"],
                "kept_step": int(shown["step"]),
                "validation_seconds": round(self.evaluation_seconds, 2),
            }
        return summary

    def _step(self, number: int, pairs: np.ndarray, rate: float) -> float:
        """One optimiser step over `pairs` at learning rate `rate`. Returns the gradient norm before clipping."""
        engine = self.engine
        for parameters in engine.optimizer.param_groups:
            parameters["lr"] = rate
        if self.settings.lora is not None and self.settings.lora.dropout:
            # Dropout is drawn anew from the step's own seed, so that a resumed run draws what the first one did.
            stream = np.random.SeedSequence([self.seed, number, self.group.rank])
            torch.manual_seed(int(stream.generate_state(1)[0]))
        runs = self._passes(pairs)
        tally = Tally()
        for index, run in enumerate(runs):
            engine.set_gradient_accumulation_boundary(index == len(runs) - 1)
            # A rank without pairs still takes part, with somebody else's and no weight.
            weight = 1.0 if len(run) else 0.0
            margins, losses = self._forward(run if len(run) else pairs[:1])
            # DeepSpeed averages over ranks; the loss is the mean over the pairs of the whole step.
            engine.backward(losses.sum() * (weight * self.group.size / len(pairs)))
            tally.add(run, margins, losses, self.sizes)
        sums = self._total(tally, number)
        engine.step()
        norm = float(engine.get_global_grad_norm() or 0.0)
        if not math.isfinite(norm):
            self._stop(number, pairs[:8] if self.group.rank == 0 else (), gradient=True)
        self.window = [a + b for a, b in zip(self.window, sums[:3], strict=True)]
        self.cells = [a + b for a, b in zip(self.cells, sums[4:], strict=True)]
        return norm

    def _evaluate(self, done: int) -> None:
        """Loss and accuracy of the held-out pairs after `done` steps; the best weights so far are kept if wanted."""
        clock = preparation.stopwatch()
        tally = Tally()
        self.model.eval()
        with torch.no_grad():
            for run in self._passes(self.held_out):
                tally.add(run, *self._forward(run if len(run) else self.held_out[:1]), self.sizes)
        self._train_mode()
        loss, right, pairs, *_ = self._total(tally, done - 1)
        row = {"step": done, "loss": loss / pairs, "accuracy": right / pairs, "pairs": int(pairs)}
        self.evaluations.append(row)
        if self.settings.keep == "best" and validation.best_of(self.evaluations) is row:
            state = self.full_weights()
            if self.group.rank == 0:
                with checkpointing.writing("the best weights", self.best.folder(done), self.state_step):
                    self.best.save(done, lambda folder: self.model.save_pretrained(folder, state))
        self.tracker.validation(row)
        self.report({"step": done, "validation_loss": row["loss"], "validation_accuracy": row["accuracy"]})
        self.evaluation_seconds += clock()

    def _passes(self, pairs: np.ndarray) -> list[np.ndarray]:
        settings, group = self.settings, self.group
        most = settings.micro_batch_size, settings.micro_batch_tokens
        return micro_batches(pairs, self.sizes.lengths, group.rank, group.size, *most, self.sizes.widths)

    def _total(self, tally: Tally, number: int) -> list[float]:
        """Sums over all ranks; stops the training where a score or loss is not a number."""
        sums = self.group.sum(tally.sums)
        if sums[3]:
            self._stop(number, tally.bad)
        return sums

    def _forward(self, members: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Margins and losses of pairs, [pairs] each."""
        rows = [self.prepared.rows[i] for i in members]
        if not self.shared:
            rows = unpack(rows)
        batch, features = self._load(rows)
        chosen, rejected = self.engine(batch, features).view(-1, 2).unbind(1)
        strengths = self.strengths[members].to(chosen.device)
        return chosen - rejected, pair_losses(chosen, rejected, strengths, self.settings.loss)

    def _load(self, rows: list[PackedExample]) -> tuple[Batch, torch.Tensor | None]:
        batch = collate(rows)
        features = None
        if batch.images and self.features is not None:
            features = self.features.gather(self.registry, batch.images).to(self.group.device)
        elif batch.images:
            batch = with_pixels(batch, self.registry, once=self.shared)
        return batch.to(self.group.device), features

    def _stop(self, step: int, bad: Sequence[int] | np.ndarray, *, gradient: bool = False) -> NoReturn:
        """End the training; every rank calls this, each with the pairs that it saw fail."""
        everyone = [self.prepared.ids[pair] for part in self.group.gather([int(i) for i in bad]) for pair in part]
        broken: list[str] = []
        if not gradient:  # else the step has just been taken, and the weights say nothing about the cause
            shards = ((name, getattr(value, "ds_tensor", value)) for name, value in self.model.named_parameters())
            mine = [name for name, value in shards if not bool(torch.isfinite(value).all())]
            broken = list(dict.fromkeys(name for part in self.group.gather(mine) for name in part))
        hint = f"; weights are already not finite: {', '.join(broken[:3])}" if broken else ""
        what, whose = ("gradient", "one of the pairs") if gradient else ("loss", "pairs")
        raise TrainingError(
            f"{what} is not a number at step {step + 1}, {whose} {', '.join(everyone[:8])}"
            f"{' and more' if len(everyone) > 8 else ''}{hint}; lower training.learning_rate or remove the pairs"
        )

    def _log_row(self, step: int, rate: float, norm: float, speed: float) -> dict[str, float]:
        loss, right, count = self.window
        self.window = [0.0, 0.0, 0.0]
        row = {
            "step": step + 1,
            "epoch": round((step + 1) * self.schedule.global_batch_size / self.schedule.pairs, 4),
            "loss": loss / max(count, 1),
            "accuracy": right / max(count, 1),
            "learning_rate": rate,
            "grad_norm": norm,
            "pairs_per_second": round(speed, 2),
        }
        self.log.append(row)
        self.tracker.training(row)
        return row

    def full_weights(self) -> dict[str, torch.Tensor]:
        """All weights on rank 0, in the type of training, the head from its float32 master. Every rank must call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        head = safe_get_full_fp32_param(self.model.head.weight)
        if self.engine.zero_optimization_partition_weights():
            state = self.engine._zero3_consolidated_16bit_state_dict() or {}
        else:
            state = dict(self.model.state_dict())
        if head is not None:
            state["head.weight"] = head.reshape(1, -1).float()
        return state if self.settings.lora is None else lora.merge(state, self.settings.lora)

    def save(self, output: Path, summary: Mapping[str, Any]) -> None:
        """Write the finished checkpoint with its logs and card, whole or not at all. Every rank must call this."""
        kept = validation.best_of(self.evaluations) if self.settings.keep == "best" else None
        state = self.full_weights() if kept is None else {}
        if self.group.rank:
            return
        with (
            checkpointing.writing("the checkpoint", output, self.state_step),
            atomic.atomic_directory(output) as folder,
        ):
            if kept is None:
                self.model.save_pretrained(folder, state)
            else:
                shutil.copytree(self.best.folder(kept["step"]), folder, dirs_exist_ok=True)
            self.write_tables(folder)
            model_card.write_card(
                folder,
                base_model=self.job.base_model,
                pairs=str(self.job.pairs),
                sources=self.job.sources,
                settings=self.settings,
                summary=summary,
            )

    def write_tables(self, folder: Path) -> None:
        """Write the logs, the curves and the quarantine table into the checkpoint folder."""
        logs = {"training_log": self.log} | ({"validation_log": self.evaluations} if self.evaluations else {})
        for name, rows in logs.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        if self.settings.tensorboard:
            shutil.copytree(self.work / TRACKING_FOLDER, folder / TRACKING_FOLDER)
        atomic.write_parquet(schemas.table(self.prepared.quarantine, "quarantine"), folder / "quarantine.parquet")
