"""What the fork server of workers that run a model with transformers imports; for nobody else: it takes seconds.

Each worker would import it for 4 s of a core. The server loads no model.
"""

import contextlib
import gc
import importlib

from dt2it_pipeline.engines.launch.fork_server import end_at_once
from dt2it_pipeline.engines.lean_processes import quick_imports
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.observe.logs import configure_logs

configure_logs()
with quick_imports(), contextlib.suppress(Exception):  # a worker, which has to import it then, says what is wrong
    ensure_torchvision()
    _ = [
        getattr(importlib.import_module("transformers"), name)
        for name in ("AutoModelForImageTextToText", "AutoProcessor")
    ]
    gc.freeze()  # a search in a fork would copy what it shares
end_at_once()
