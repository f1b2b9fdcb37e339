"""A worker of training jobs that measures the memory it takes; see test_memory.py.

    python -m dt2it_pipeline_tests.support.measured_memory job.json

Every rank leaves `memory.rank0.json` beside the job's file: the most bytes that it has had to itself (pages of files
that it maps do not count) before the model was loaded (`base`), until it was loaded (`loaded`), until DeepSpeed was
handed it (`divided`), until the last step was done (`trained`), and while the checkpoint was saved (`saved`).
"""

from __future__ import annotations

import functools
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


def own_memory() -> int:
    """Bytes of memory that this process has to itself now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


def main() -> None:
    """Run the job that the command line names."""
    import deepspeed

    from dt2it_pipeline.reward.training import trainer

    for name in _IMPORTED:
        importlib.import_module(name)
    most, found = [0], dict[str, int]()

    def watch() -> None:
        while True:
            most[0] = max(most[0], own_memory())
            time.sleep(0.002)

    def noting(name: str, function: Callable[..., Any], *, before: bool = True) -> Callable[..., Any]:
        @functools.wraps(function)
        def noted(*given: Any, **named: Any) -> Any:
            if before:
                found[name] = most[0]
            result = function(*given, **named)
            if not before:
                found[name] = most[0]
            return result

        return noted

    trainer.load_network = noting("base", noting("loaded", trainer.load_network, before=False))
    deepspeed.initialize = noting("divided", deepspeed.initialize)
    trainer.Trainer._step = noting("trained", trainer.Trainer._step, before=False)  # type: ignore[method-assign]
    trainer.Trainer.save = noting("saved", trainer.Trainer.save, before=False)  # type: ignore[method-assign]
    threading.Thread(target=watch, daemon=True).start()
    time.sleep(0.1)
    worker.main()
    file = Path(sys.argv[-1]).with_name(f"memory.rank{os.environ.get('RANK', '0')}.json")
    file.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
