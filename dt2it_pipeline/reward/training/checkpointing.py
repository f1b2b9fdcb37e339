"""Checkpoints of a training under way: DeepSpeed's own files, and a marker that is written last.

A folder without its marker was being written when the run died, and is ignored. The marker carries what the loop itself
must remember. Restoring it gives the weights of a run that never stopped, to the last bit where arithmetic allows. The
state before is removed after the new one is whole, so the disk must hold two.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dt2it_pipeline.reward.data.vision_features import Ranks
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.storage import atomic, content_ids

_MARKER = "complete.json"
_TORCH_WRITER = ("inline_container", "iostream error", "PytorchStreamWriter")


@contextlib.contextmanager
def writing(what: str, path: Path, step: int | None = None) -> Iterator[None]:
    """Turn a failed write (a full disk, a read-only folder) into one clear error.

    Args:
        what: is being written, for the message.
        path: where to.
        step: optimiser step from which the training goes on when it is started again.

    Raises:
        TrainingError: the block could not write.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch's writer reports a failed write as a bare RuntimeError; any other one is not about writing.
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _TORCH_WRITER):
            raise
        after = "" if step is None else f"; training then goes on from step {step}"
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
        if isinstance(error, RuntimeError):
            reason = f"write failed ({reason})"
        raise TrainingError(
            f"cannot write {what} {path}: {reason}; free space there or choose another folder, and start again{after}"
        ) from error


def fingerprint(pair_ids: Sequence[str], settings: Mapping[str, Any], seed: int, ranks: int, base_model: str) -> str:
    """What a checkpoint must have been made from to be continued: same pairs, settings, seed, ranks and base model.

    `base_model` is the digest of the model's content.
    """
    return content_ids.content_hash(list(pair_ids), dict(settings), seed, ranks, base_model)


def save(engine: Any, work: Path, digest: str, state: Mapping[str, Any], ranks: Ranks) -> None:
    """Write a checkpoint and drop the one before. Every rank must call this.

    Args:
        engine: the DeepSpeed engine.
        work: the job's private folder.
        digest: `fingerprint` of the job.
        state: JSON-able; its `step` says how many optimiser steps are done.
        ranks: the process group.

    Raises:
        TrainingError: it cannot be written. The state before is kept. Only the rank that failed raises: the launcher
            then ends the others, which wait for it.
    """
    folder = work / "checkpoints"
    tag = f"step-{state['step']:08d}"
    before = last_step(work, digest)
    if ranks.rank == 0:
        shutil.rmtree(folder / tag, ignore_errors=True)
    ranks.barrier()
    try:
        with writing("the state to resume from", folder / tag, before):
            engine.save_checkpoint(str(folder), tag=tag, save_latest=False, exclude_frozen_parameters=True)
            ranks.barrier()
            if ranks.rank == 0:
                atomic.write_json_atomic(dict(state) | {"digest": digest}, folder / tag / _MARKER)
    except TrainingError:
        shutil.rmtree(folder / tag, ignore_errors=True)
        raise
    if ranks.rank == 0:
        for old in folder.iterdir():
            if old.name != tag:
                shutil.rmtree(old, ignore_errors=True)


def load(engine: Any, work: Path, digest: str) -> dict[str, Any] | None:
    """Restore the newest whole checkpoint of this very job into the engine; None when there is none."""
    for folder, state in _whole(work, digest):
        engine.load_checkpoint(str(folder.parent), tag=folder.name, load_module_strict=False)
        return state
    return None


def last_step(work: Path, digest: str) -> int:
    """Optimiser steps done in the newest whole checkpoint of this very job, 0 when there is none."""
    return next((int(state["step"]) for _, state in _whole(work, digest)), 0)


def _whole(work: Path, digest: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for folder in sorted((work / "checkpoints").glob("step-*"), reverse=True):
        try:
            state: dict[str, Any] = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if state.get("digest") == digest:
            yield folder, state
