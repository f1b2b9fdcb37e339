"""Checkpoints of a training under way: DeepSpeed's own files, and a marker that is written last.

A folder without its marker was being written when the run died, and is ignored. The marker carries what the loop itself
must remember, and the digests of all files: a state of which one has changed is not used. Restoring it gives the
weights of a run that never stopped, to the last bit where arithmetic allows. The state before is removed after the new
one is whole, so the disk must hold two.

DeepSpeed's files are pickles, which may say what is to be run when they are read. They are read as tensors, numbers and
texts alone, so nothing in them runs. Whoever writes a state decides what the model becomes. The folder is therefore for
its owner alone, and a state is read only where nobody else could have written it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dt2it_pipeline.observe.memory import ran_out
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.storage import atomic, content_ids, finished_work
from dt2it_pipeline.storage.artifacts import model_digest
from dt2it_pipeline.storage.permissions import foreign_file

if TYPE_CHECKING:  # it imports torch, which the process of a round does without
    from dt2it_pipeline.reward.data.vision_features import Ranks

_MARKER = "complete.json"
_logger = logging.getLogger(__name__)
_TORCH_WRITER = ("inline_container", "iostream error", "PytorchStreamWriter", "Parent directory")
# PyTorch then reads weights alone, whatever its caller asks for.
_WEIGHTS_ONLY = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}


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
            # A rank that cannot write removes the folder, and so the file of another may find none.
            gone = reason.startswith("Parent directory")
            reason = "the folder is gone, as where another rank could not write" if gone else f"write failed ({reason})"
        raise TrainingError(
            f"cannot write {what} {path}: {reason}; free space there or choose another folder, and start again{after}"
        ) from error


def fingerprint(pairs: str, settings: Mapping[str, Any], seed: int, ranks: int, base_model: str) -> str:
    """What a checkpoint must have been made from to be continued: same pairs, settings, seed, ranks and base model.

    `pairs` is the digest of the pairs and their labels, `base_model` that of the model's content.
    """
    return content_ids.content_hash(pairs, dict(settings), seed, ranks, base_model)


class BaseDigest:
    """The digest of the model that a training starts from. Hashing gigabytes goes on beside loading them.

    Args:
        base_model: folder or Hub id.
        ranks: the process group; its first rank reads.
    """

    def __init__(self, base_model: str, ranks: Ranks) -> None:
        self._base_model, self._ranks = base_model, ranks
        self._thread = threading.Thread(target=self._ahead, daemon=True)
        if ranks.rank == 0:
            self._thread.start()

    def _ahead(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # `of` meets a fault again; or the process is ending
            model_digest(self._base_model)  # kept by integrity.py for each file

    def of(self, source: str) -> str:
        """The digest of `base_model` and of the folder that it was loaded from; every rank must call this.

        The base model of an adapter lies elsewhere than the adapter.

        Raises:
            OSError: a file cannot be read.
        """
        read = []
        if self._ranks.rank == 0:
            self._thread.join()
            read = [model_digest(folder) for folder in (self._base_model, source)]
        return " ".join(self._ranks.gather(read)[0])


def save(engine: Any, work: Path, digest: str, state: Mapping[str, Any], ranks: Ranks, before: int) -> None:
    """Write a checkpoint and drop the one before. Every rank must call this.

    Args:
        engine: the DeepSpeed engine.
        work: the job's private folder.
        digest: `fingerprint` of the job.
        state: JSON-able; its `step` says how many optimiser steps are done.
        ranks: the process group.
        before: optimiser step of the checkpoint before, from which training goes on where this one fails.

    Raises:
        TrainingError: it cannot be written. The state before is kept. Only the rank that failed raises: the launcher
            then ends the others, which wait for it.
    """
    root = work / "checkpoints"
    folder = root / f"step-{state['step']:08d}"
    if ranks.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        with writing("the state to resume from", folder, before):
            root.mkdir(parents=True, exist_ok=True)
            root.chmod(0o700)
    ranks.barrier()
    try:
        with writing("the state to resume from", folder, before):
            engine.save_checkpoint(str(root), tag=folder.name, save_latest=False, exclude_frozen_parameters=True)
            ranks.barrier()
            files = sorted(file for file in folder.rglob("*") if file.is_file()) if ranks.rank == 0 else []
            # Every rank reads its share back: with full optimiser states that is most of the time.
            share = ranks.gather(files)[0][ranks.rank :: ranks.size]
            parts = ranks.gather(finished_work.synced_digests(folder, share))
            if ranks.rank == 0:
                digests = {name: found for part in parts for name, found in part.items()}
                finished_work.finish(folder / _MARKER, digests, dict(state) | {"digest": digest})
                atomic.sync(root)
    except TrainingError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if ranks.rank == 0:
        for old in root.iterdir():
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)


def load(
    engine: Any, work: Path, digest: str, ranks: Ranks, check: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any] | None:
    """Restore the newest whole checkpoint of this very job into the engine; None when there is none.

    One that is damaged is passed over, with one line. Every rank must call this.

    Args:
        engine: the DeepSpeed engine.
        work: the job's private folder.
        digest: `fingerprint` of the job.
        ranks: the process group.
        check: called by the first rank with a state; raises DamagedWorkError where what the state names is damaged.

    Raises:
        TrainingError: another user wrote it, or could have; or a file of it holds more than a training state does.
    """
    found = sorted((work / "checkpoints").glob("step-*"), reverse=True) if ranks.rank == 0 else []
    for folder in ranks.gather(found)[0]:
        state, fault = _state_in(folder, digest, ranks, check)
        if fault:
            if ranks.rank == 0:
                _logger.warning(
                    "the training state %s is damaged and is not used (%s); training goes on from an older one, or "
                    "starts anew",
                    folder, fault,
                )  # fmt: skip
        elif state is not None:
            if foreign := foreign_file(folder.parent):
                raise TrainingError(
                    f"the state to resume from is not read: {foreign}. Whoever writes a state decides what the model "
                    "becomes, so only a state of your own is taken. Let whoever began the training go on with it, or "
                    f"remove {folder.parent} to train from the beginning"
                )
            with nothing_run(engine):
                engine.load_checkpoint(str(folder.parent), tag=folder.name, load_module_strict=False)
            return state
    return None


@contextlib.contextmanager
def nothing_run(engine: Any) -> Iterator[None]:
    """Within it, nothing runs that the files say which a DeepSpeed engine reads.

    Args:
        engine: the DeepSpeed engine.

    Raises:
        TrainingError: a file holds a class that is not one of a training state, or cannot be read.
    """
    files = engine.checkpoint_engine
    before = {name: os.environ.get(name) for name in _WEIGHTS_ONLY}
    engine.checkpoint_engine = _PlainFiles(files)
    os.environ |= _WEIGHTS_ONLY  # for what DeepSpeed reads past its checkpoint engine
    try:
        yield
    finally:
        engine.checkpoint_engine = files
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class _PlainFiles:
    """DeepSpeed's checkpoint engine, but for how it reads: tensors, plain values and the classes of DeepSpeed's states.

    Args:
        files: the engine that DeepSpeed made, which does all else.
    """

    def __init__(self, files: Any) -> None:
        self._files = files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def load(self, path: str, map_location: Any = None) -> Any:
        """What a file holds. Raises TrainingError, which names file and class, where it is no training state."""
        import torch

        try:
            with torch.serialization.safe_globals(_classes()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about other kinds of files: the error says enough
                return torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:  # a pickle that somebody has made may raise anything
            if isinstance(error, OSError) or ran_out(error):
                raise
            named = re.search(r"GLOBAL (\S+)", str(error))
            reason = f": it names {named[1]}, which no training state holds" if named else ""
            raise TrainingError(
                f"the state to resume from is not used: {path} is not a file as DeepSpeed writes it{reason}. Nothing "
                f"in it was run. Remove {Path(path).parent.parent} to train from the beginning"
            ) from error


def _classes() -> list[Any]:
    """What DeepSpeed's states hold beside tensors and plain values, on a CPU and on a GPU, at every ZeRO stage.

    Read in DeepSpeed 0.19.8: `state_dict` of the optimisers in runtime/zero, runtime/bf16_optimizer.py and
    runtime/fp16, and `_common_checkpoint_state` of runtime/engine.py. All four hold numbers, and no method of theirs
    is called when they are read.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def _state_in(
    folder: Path, digest: str, ranks: Ranks, check: Callable[[Mapping[str, Any]], None]
) -> tuple[dict[str, Any] | None, str]:
    """The state in a folder, where it is one of this job, and what is damaged; the same on every rank."""
    state, fault = None, ""
    try:
        state = finished_work.read_marker(folder / _MARKER)
        if state is not None and state["digest"] != digest:
            state = None
        if state is not None:
            finished_work.check_files(folder / _MARKER, state, slice(ranks.rank, None, ranks.size))
            if ranks.rank == 0:
                check(state)
    except finished_work.DamagedWorkError as error:
        fault = str(error)
    faults = ranks.gather(fault)
    return state, next(filter(None, faults), "")
