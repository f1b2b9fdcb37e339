"""The training loop: preparation, optimiser steps, checkpoints to resume from, the finished weights.

Only train.py imports this module: it needs torch and DeepSpeed from its first line.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch

from dt2it_pipeline import records, store
from dt2it_pipeline.recipe import TrainingSettings
from dt2it_pipeline.reward import data, resume
from dt2it_pipeline.reward.batch import Batch, Row, collate, split, with_pixels
from dt2it_pipeline.reward.checkpoint import resolve_folder
from dt2it_pipeline.reward.distributed import Group
from dt2it_pipeline.reward.loss import bradley_terry
from dt2it_pipeline.reward.model import RewardModel
from dt2it_pipeline.reward.pictures import PictureShelf
from dt2it_pipeline.reward.prompting import Prompter, load_processor
from dt2it_pipeline.reward.schedule import Schedule, cosine_with_warmup, micro_batches
from dt2it_pipeline.reward.train import GIB, TrainingError, deepspeed_config

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


class Trainer:
    """One training job on one rank."""

    def __init__(
        self,
        job: Mapping[str, Any],
        settings: TrainingSettings,
        group: Group,
        report: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.job, self.settings, self.group, self.report = job, settings, group, report
        self.work = Path(job["work"])
        self.work.mkdir(parents=True, exist_ok=True)
        self.seed = int(job["seed"])
        self.clock = data.stopwatch()
        torch.manual_seed(self.seed)
        dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        folder = resolve_folder(job["base_model"])
        self.model = RewardModel.from_pretrained(folder, seed=self.seed, dtype=dtype).to(group.device)
        self.model.freeze_vision()
        self.shared = settings.shared_prefix and self.model.shares_prefix()
        self.model.card |= {
            "name": job.get("name", ""),
            "system_prompt": settings.system_prompt,
            "max_pixels": settings.max_pixels,
            "seed": self.seed,
        }
        processor = load_processor(folder)
        self.shelf = PictureShelf(
            processor.image_processor, job["media_root"], settings.max_pixels, processor.video_processor
        )
        self.prompter = Prompter(folder, self.shelf, settings.system_prompt, processor)
        self.prepared = self._prepare()
        self.lengths = np.array([len(row) for row in self.prepared.rows])
        self.schedule = Schedule(
            len(self.prepared.rows), settings.pairs_per_step, settings.epochs, settings.max_steps, self.seed
        )
        self.engine = self._engine()
        self.log: list[dict[str, float]] = []
        self.window = [0.0, 0.0, 0.0]  # since the last report: sum of losses, pairs ranked right, pairs

    def _prepare(self) -> data.PreparedPairs:
        settings = self.settings
        pairs = store.read_parquet(self.job["pairs"], "pairs")
        prompts = store.read_parquet(self.job["prompts"], "prompts")
        prepared = data.prepare_pairs(pairs, prompts, self.prompter, settings.max_tokens)
        used = sorted({p for row in prepared.rows for p in row.prompt.pictures})
        self.features, faults = data.survey_pictures(
            self.model,
            self.shelf,
            used,
            most_bytes=settings.vision_cache_gib * GIB if settings.cache_vision else 0,
            work=self.work,
            ranks=self.group,
            device=self.group.device,
        )
        sources = dict(zip(pairs.column("pair_id").to_pylist(), pairs.column("source").to_pylist(), strict=True))
        prepared = data.drop_pictures(prepared, faults, sources)
        if not prepared.rows:
            reasons = sorted({row["reason"] for row in prepared.set_aside})
            raise TrainingError(
                f"no pair to train on: {pairs.num_rows} in {self.job['pairs']}, {len(prepared.set_aside)} set aside"
                + (f" ({'; '.join(reasons)})" if reasons else "")
            )
        return prepared

    def _engine(self) -> Any:
        if self.settings.gradient_checkpointing:
            self.model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        self.model.model.visual.eval()
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

    def fit(self) -> dict[str, Any]:
        """Run all optimiser steps that are still to be done. Returns the summary of the whole training."""
        settings, schedule = self.settings, self.schedule
        digest = resume.fingerprint(self.prepared.ids, settings.model_dump(), self.seed, self.group.size)
        state = resume.load(self.engine, self.work, digest)
        first = 0
        if state is not None:
            first, self.log, self.window = state["step"], state["log"], state["window"]
        prepared_in = self.clock()
        step_clock, since_report = data.stopwatch(), data.stopwatch()
        seen = 0
        for step in range(first, schedule.steps):
            rate = settings.learning_rate * cosine_with_warmup(step, schedule.steps, settings.warmup_ratio)
            pairs = schedule.step(step)
            norm = self._step(step, pairs, rate)
            seen += len(pairs)
            if (step + 1) % settings.report_every == 0 or step + 1 == schedule.steps:
                row = self._log_row(step, rate, norm, seen / max(since_report(), 1e-9))
                since_report, seen = data.stopwatch(), 0
                self.report(row | {"steps": schedule.steps})
            if (step + 1) % settings.checkpoint_every == 0 and step + 1 < schedule.steps:
                kept = {"step": step + 1, "log": self.log, "window": self.window}
                resume.save(self.engine, self.work, digest, kept, self.group)
        done = schedule.steps - first
        pairs_done = schedule.presentations - first * schedule.pairs_per_step
        last = self.log[-1] if self.log else {}
        return {
            "steps": schedule.steps,
            "resumed_from_step": first,
            "pairs": len(self.prepared.rows),
            "pairs_set_aside": len(self.prepared.set_aside),
            "presentations": schedule.presentations,
            "loss": last.get("loss"),
            "accuracy": last.get("accuracy"),
            "pairs_per_second": round(pairs_done / max(step_clock(), 1e-9), 2) if done else None,
            "preparation_seconds": round(prepared_in, 2),
            "training_seconds": round(step_clock(), 2),
            "ranks": self.group.size,
            "vision_cached": self.features is not None,
        }

    def _step(self, number: int, pairs: np.ndarray, rate: float) -> float:
        """One optimiser step over `pairs` at learning rate `rate`. Returns the gradient norm before clipping."""
        engine = self.engine
        for parameters in engine.optimizer.param_groups:
            parameters["lr"] = rate
        runs = micro_batches(pairs, self.lengths, self.group.rank, self.group.size, self.settings.micro_batch_pairs)
        sums = [0.0, 0.0, 0.0]
        bad: list[str] = []
        for index, run in enumerate(runs):
            engine.set_gradient_accumulation_boundary(index == len(runs) - 1)
            weight = (
                1.0 if len(run) else 0.0
            )  # a rank without pairs still takes part, with somebody else's and no weight
            members = run if len(run) else pairs[:1]
            margins, losses = self._forward(members)
            # DeepSpeed averages over ranks; the loss is the mean over the pairs of the whole step.
            engine.backward(losses.sum() * (weight * self.group.size / len(pairs)))
            if not len(run):
                continue
            values = margins.detach().double()
            sums[0] += float(losses.detach().double().sum())
            sums[1] += float((values > 0).sum())
            sums[2] += len(run)
            if not bool(torch.isfinite(values).all()):
                bad += [
                    self.prepared.ids[i] for i, ok in zip(run, torch.isfinite(values).tolist(), strict=True) if not ok
                ]
        sums = self.group.sum(sums)
        if not math.isfinite(sums[0]):
            self._stop(number, bad)
        engine.step()
        norm = float(engine.get_global_grad_norm() or 0.0)
        if not math.isfinite(norm):
            self._stop(number, [self.prepared.ids[i] for i in pairs[:8]])
        self.window = [a + b for a, b in zip(self.window, sums, strict=True)]
        return norm

    def _forward(self, members: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Margins and losses of pairs, [pairs] each."""
        rows = [self.prepared.rows[i] for i in members]
        if not self.shared:
            rows = split(rows)
        batch, features = self._load(rows)
        scores = self.engine(batch, features).view(-1, 2)
        return scores[:, 0] - scores[:, 1], bradley_terry(scores[:, 0], scores[:, 1])

    def _load(self, rows: list[Row]) -> tuple[Batch, torch.Tensor | None]:
        batch = collate(rows)
        features = None
        if batch.pictures and self.features is not None:
            features = self.features.gather(self.shelf, batch.pictures).to(self.group.device)
        elif batch.pictures:
            batch = with_pixels(batch, self.shelf, once=self.shared)
        return batch.to(self.group.device), features

    def _stop(self, step: int, bad: list[str]) -> None:
        everyone = [pair for part in self.group.gather(bad) for pair in part]
        broken = [name for name, value in self.model.named_parameters() if not bool(torch.isfinite(value).all())]
        hint = f"; weights are already not finite: {', '.join(broken[:3])}" if broken else ""
        raise TrainingError(
            f"loss or gradient is not a number at step {step + 1}, pairs {', '.join(everyone[:8])}"
            f"{' and more' if len(everyone) > 8 else ''}{hint}; lower training.learning_rate or remove the pairs"
        )

    def _log_row(self, step: int, rate: float, norm: float, speed: float) -> dict[str, float]:
        loss, right, count = self.window
        self.window = [0.0, 0.0, 0.0]
        row = {
            "step": step + 1,
            "epoch": round((step + 1) * self.schedule.pairs_per_step / self.schedule.pairs, 4),
            "loss": loss / max(count, 1),
            "accuracy": right / max(count, 1),
            "learning_rate": rate,
            "grad_norm": norm,
            "pairs_per_second": round(speed, 2),
        }
        self.log.append(row)
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
        return state

    def write_tables(self, folder: Path) -> None:
        """Write the training log and the set-aside table into the checkpoint folder."""
        lines = "".join(json.dumps(row) + "\n" for row in self.log)
        (folder / "training_log.jsonl").write_text(lines, encoding="utf-8")
        store.write_parquet(records.table(self.prepared.set_aside, "set_aside"), folder / "set_aside.parquet")
