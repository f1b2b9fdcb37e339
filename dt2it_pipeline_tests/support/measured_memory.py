"""A worker of training jobs that measures the memory it takes; see test_memory.py.

    python -m dt2it_pipeline_tests.support.measured_memory job.json

Every rank leaves `memory.rank0.json` beside the job's file: the most bytes that it has had to itself (pages of files
that it maps do not count) before the model was loaded (`base`), until it was loaded (`loaded`), until DeepSpeed was
handed it (`divided`), and until the last step was done (`trained`: the greater of `forward`, in forward passes, and
`elsewhere`). Also: what it has after the last step beside `base` and all tensors, which libraries have kept from their
calls (`libraries`), the most bytes that ZeRO-3 gathered at once (`gathered`), and the most bytes that saving the
checkpoint took on top of what the rank had before (`saving`).
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dt2it_pipeline.engines.launch import worker

# What training and its libraries import on their way, which is no memory of the model.
_IMPORTED = (
    "deepspeed",
    "deepspeed.module_inject",
    "peft",
    "torch._inductor.compile_fx",
    "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "transformers.integrations.deepspeed",
)

SHARD_BYTES = 30_000_000  # of a file of the checkpoint


def own_memory() -> int:
    """Bytes of memory that this process has to itself now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


def tensor_bytes() -> int:
    """Bytes of all tensors of this process, each piece of memory once."""
    import torch

    pieces: dict[int, int] = {}
    for each in gc.get_objects():
        if isinstance(each, torch.Tensor):
            for tensor in (each, each.grad if each.is_leaf else None, getattr(each, "ds_tensor", None)):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    pieces[storage.data_ptr()] = storage.nbytes()
    return sum(pieces.values())


def main(arguments: list[str] | None = None) -> None:
    """Run the job that the command line names."""
    import deepspeed
    import deepspeed.comm as exchange

    from dt2it_pipeline.reward.checkpoints import checkpoint
    from dt2it_pipeline.reward.training import trainer

    for name in _IMPORTED:
        importlib.import_module(name)
    most, found = {"": 0, "forward": 0, "save": 0}, {"gathered": 0}
    phase = [""]

    def watch() -> None:
        while True:
            now = phase[0]
            most[now] = max(most[now], own_memory())
            time.sleep(0.001)

    def noting(name: str, function: Callable[..., Any], *, before: bool = True) -> Callable[..., Any]:
        @functools.wraps(function)
        def noted(*given: Any, **named: Any) -> Any:
            if before:
                found[name] = max(most.values())
            result = function(*given, **named)
            if not before:
                found[name] = max(most.values())
            return result

        return noted

    def during(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any, **named: Any) -> Any:
            phase[0] = name
            try:
                return function(*given, **named)
            finally:
                phase[0] = ""

        return called

    def saving(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any, **named: Any) -> Any:
            gc.collect()
            held = own_memory()
            result = during("save", function)(*given, **named)
            found["saving"] = most["save"] - held
            return result

        return called

    def step(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any, **named: Any) -> Any:
            result = function(*given, **named)
            found["forward"], found["elsewhere"] = most["forward"], most[""]
            found["libraries"] = own_memory() - found["base"] - tensor_bytes()
            return result

        return called

    def gather(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(output: Any, *given: Any, **named: Any) -> Any:
            found["gathered"] = max(found["gathered"], output.nbytes)
            return function(output, *given, **named)

        return called

    checkpoint._SHARD_BYTES = SHARD_BYTES
    trainer.load_network = noting("base", noting("loaded", trainer.load_network, before=False))
    deepspeed.initialize = noting("divided", deepspeed.initialize)
    trainer.Trainer._step = step(noting("trained", trainer.Trainer._step, before=False))  # type: ignore[method-assign]
    trainer.Trainer._forward = during("forward", trainer.Trainer._forward)  # type: ignore[method-assign]
    exchange.allgather_fn = gather(exchange.allgather_fn)
    trainer.Trainer.save = saving(trainer.Trainer.save)  # type: ignore[method-assign]
    threading.Thread(target=watch, daemon=True).start()
    time.sleep(0.1)
    worker.main(arguments)
    file = Path(sys.argv[-1]).with_name(f"memory.rank{os.environ.get('RANK', '0')}.json")
    file.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
