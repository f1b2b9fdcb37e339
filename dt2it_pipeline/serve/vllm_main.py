"""The main module of the program that serves a model: `dt2it serve` makes it the main one, with `runpy`.

vLLM's engine process is spawned, and a spawned process reads the main module before anything else. So torchvision is
made to fit there, too.
"""

from __future__ import annotations

import sys

from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

if __name__ == "__mp_main__":
    ensure_torchvision()
elif __name__ == "__main__":
    from dt2it_pipeline.serve.vllm_server import serve

    serve(sys.argv[1], sys.argv[2:])
