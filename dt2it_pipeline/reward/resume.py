"""Checkpoints of a training under way: DeepSpeed's own files, and a marker that is written last.

A folder without its marker was being written when the run died, and is ignored. The marker carries what the loop itself
must remember. Restoring it gives the weights of a run that never stopped, to the last bit where arithmetic allows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dt2it_pipeline import records, store
from dt2it_pipeline.reward.data import Ranks

_MARKER = "complete.json"


def fingerprint(pair_ids: Sequence[str], settings: Mapping[str, Any], seed: int, ranks: int) -> str:
    """What a checkpoint must have been made from to be continued: same pairs, settings, seed and number of ranks."""
    return records.content_hash(list(pair_ids), dict(settings), seed, ranks)


def save(engine: Any, work: Path, digest: str, state: Mapping[str, Any], ranks: Ranks) -> None:
    """Write a checkpoint and drop the one before. Every rank must call this.

    Args:
        engine: the DeepSpeed engine.
        work: the job's private folder.
        digest: `fingerprint` of the job.
        state: JSON-able; its `step` says how many optimiser steps are done.
        ranks: the process group.
    """
    folder = work / "checkpoints"
    tag = f"step-{state['step']:08d}"
    if ranks.rank == 0:
        shutil.rmtree(folder / tag, ignore_errors=True)
    ranks.barrier()
    engine.save_checkpoint(str(folder), tag=tag, save_latest=False, exclude_frozen_parameters=True)
    ranks.barrier()
    if ranks.rank == 0:
        store.write_json_atomic(dict(state) | {"digest": digest}, folder / tag / _MARKER)
        for old in folder.iterdir():
            if old.name != tag:
                shutil.rmtree(old, ignore_errors=True)


def load(engine: Any, work: Path, digest: str) -> dict[str, Any] | None:
    """Restore the newest whole checkpoint of this very job into the engine; None when there is none."""
    for folder in sorted((work / "checkpoints").glob("step-*"), reverse=True):
        try:
            state: dict[str, Any] = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if state.get("digest") != digest:
            continue
        engine.load_checkpoint(str(folder.parent), tag=folder.name, load_module_strict=False)
        return state
    return None
