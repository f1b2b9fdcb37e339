"""What the fork server of workers that run vLLM imports; for nobody else, since importing this takes seconds.

Each worker would import it for 6 to 7 s of a core. The server makes no engine: what vLLM starts with one, threads and
connections, survives no fork.
"""

import contextlib
import gc
import importlib

from dt2it_pipeline.engines.launch.fork_server import end_at_once
from dt2it_pipeline.engines.lean_processes import quick_imports
from dt2it_pipeline.engines.vllm_start import prepare_environment
from dt2it_pipeline.observe.logs import configure_logs

configure_logs()
with quick_imports(), contextlib.suppress(Exception):  # a worker, which has to import it then, says what is wrong
    prepare_environment()
    _ = importlib.import_module("vllm").LLM  # it is imported when it is asked for
    importlib.import_module("vllm.v1.worker.cpu_worker")  # an engine imports it by its name
    gc.freeze()  # a search in a fork would copy what it shares
end_at_once()
