"""Runs LLaMA-Factory's training in this process, which must be of its environment; theirs.py starts it.

    LLAMA_FACTORY_ENVIRONMENT/bin/python -m benchmarks.gpu.their_process ARGUMENTS.json EVENTS.jsonl

It calls `run_exp`, as `llamafactory-cli train ARGUMENTS.json` does on one device, with a callback that appends lines to
EVENTS.jsonl: versions, tokens of a pair, every optimiser step, and what failed. The training ends with its last step,
before a model is saved.

This module imports nothing of the project before it knows that LLaMA-Factory is installed, so that an environment
without it gets an error that says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("llamafactory", "torch", "transformers", "accelerate", "peft", "trl", "flash-attn", "liger-kernel")
_READ = 256  # pairs whose tokens are counted


class Unfit(Exception):
    """The environment cannot run the training; the message is a sentence that says why."""


class _Enough(Exception):
    """The last step has been measured."""


def versions() -> dict[str, str]:
    """Of the packages that are installed here, among those that matter."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def train(arguments: dict[str, Any], events: Path) -> None:
    """Train, and append what happens to `events`.

    Raises:
        Unfit: this environment cannot run the training.
    """

    def event(**values: Any) -> None:
        with events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    event(versions=versions())
    if "llamafactory" not in versions():
        raise Unfit("LLaMA-Factory is not installed in the environment of --llamafactory-python")
    from benchmarks.llamafactory import make_importable

    make_importable()
    import torch

    cuda = not arguments["use_cpu"]
    if cuda and not torch.cuda.is_available():
        raise Unfit(f"PyTorch {torch.__version__} of LLaMA-Factory's environment sees no GPU")
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    class Events(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rows = kwargs["train_dataloader"].dataset.select(range(min(_READ, len(kwargs["train_dataloader"].dataset))))
            counts = [len(ids) for side in ("chosen", "rejected") for ids in rows[f"{side}_input_ids"]]
            event(tokens=sum(counts) / len(rows))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if cuda:
                torch.cuda.synchronize()  # else the time would be that at which the step's kernels were queued
            event(step=state.global_step, time=time.time(), memory=peak_memory(cuda))
            if state.global_step >= args.max_steps:
                raise _Enough

    if arguments.get("deepspeed"):
        os.environ |= _group_of_one()
    with contextlib.suppress(_Enough):
        run_exp(arguments, callbacks=[Events()])


def _group_of_one() -> dict[str, str]:
    """What `torchrun` gives its only process, without which LLaMA-Factory refuses DeepSpeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def peak_memory(cuda: bool) -> int:
    """Bytes: what torch held on the GPU, or this process in main memory."""
    if cuda:
        import torch

        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Command line."""
    arguments, events = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        train(json.loads(arguments.read_text(encoding="utf-8")), events)
    except Exception as error:
        traceback.print_exc()
        line = (str(error).strip().splitlines() or [""])[0]
        with events.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"failed": type(error).__name__, "message": line}) + "\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
