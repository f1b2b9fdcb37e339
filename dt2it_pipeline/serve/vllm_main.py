"""The main module of the program that serves a model: `dt2it serve` makes it the main one, with `runpy`.

vLLM's engine process is spawned, and a spawned process reads the main module before anything else. So torchvision is
made to fit there, too, and what the engine consists of is imported as in the other processes (see lean_processes).
"""

from __future__ import annotations

import gc
import importlib
import sys

from dt2it_pipeline.engines.lean_processes import leave, quick_imports
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

if __name__ == "__mp_main__":
    with quick_imports():
        ensure_torchvision()
        importlib.import_module("vllm.v1.engine.core")
        gc.freeze()
elif __name__ == "__main__":
    from dt2it_pipeline.serve.vllm_server import serve

    serve(sys.argv[1], sys.argv[2:])
    leave()
