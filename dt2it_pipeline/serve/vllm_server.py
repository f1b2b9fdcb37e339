"""Serves a model over HTTP with vLLM: a reward-model checkpoint for scores, any other model as a chat endpoint.

    dt2it serve MODEL [options of `vllm serve`]

MODEL is a folder, a Hub id, or `demo` for the model that ships with the package. A folder with a head is a reward
model, served as by `vllm serve MODEL --runner pooling` with what its card asks for; another model as by
`vllm serve MODEL`, ready to be a judge (`kind: endpoint`, `base_url: http://127.0.0.1:8000/v1`): JSON that is asked for
comes without blanks between its parts, with which a weak model would fill a reply.

Beside the plain command it makes vLLM start where torchvision does not fit torch (see torchvision_shim), and on a
machine without a GPU it computes in float32. Options given on the command line win. Image size, system prompt and chat
template of a reward model are in its own files, so both commands give its scores. A reward model also gets the route
/score-responses (score_route.py). The server answers this machine alone unless --host is given, which needs a key, and
the key guards all that scores (key_guard.py). SIGTERM lets requests under way finish.

Why a command of ours: vLLM's own imports transformers before it loads any plugin, so our plugin comes too late for it,
and a hook that runs at the start of every Python process of an installation is not for a package to bring.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dt2it_pipeline.config.paths import is_hub_id, model_path
from dt2it_pipeline.engines.lean_processes import quick_imports
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.engines.vllm_engine import WITHOUT_BLANKS
from dt2it_pipeline.engines.vllm_start import register_in_process
from dt2it_pipeline.errors import UserError
from dt2it_pipeline.observe.logs import configure_vllm_logs
from dt2it_pipeline.serve.key_guard import host_options

_HUB_SECONDS = 10.0  # to ask the Hub whether it has a model
_END_SECONDS = 30  # that requests under way get at SIGTERM
_LAYERS = "dt2it_pipeline.serve"


class ServeError(UserError, ValueError):
    """A model cannot be served; the message says why and what to do."""


def serve_arguments(model: str, options: Sequence[str], *, on_cpu: bool) -> list[str]:
    """Arguments of `vllm` that serve a model; `options` are passed on and win over ours.

    Raises:
        ServeError: a folder is given that holds no model.
        CheckpointError: a folder holds a reward model without a head, or in a layout that vLLM does not read.
        OpenServerError: --host lets others in, and there is no key.
    """
    from dt2it_pipeline.reward.checkpoints.checkpoint import ADAPTER_CONFIG, CONFIG
    from dt2it_pipeline.reward.checkpoints.heads import holds_head, serving_fault
    from dt2it_pipeline.reward.checkpoints.processor_files import CARD

    folder = Path(model_path(model))
    if folder.is_dir() and not any((folder / name).is_file() for name in (CARD, CONFIG, ADAPTER_CONFIG)):
        raise ServeError(f"{model} holds no model: neither {CARD} (a reward-model checkpoint) nor {CONFIG} is there")
    scores = any((folder / name).is_file() for name in (CARD, ADAPTER_CONFIG)) or holds_head(folder)
    if scores and (fault := serving_fault(folder)):
        raise fault
    given = {option.split("=", 1)[0] for option in options if option.startswith("--")}
    ours: dict[str, list[str]] = {"--shutdown-timeout": [str(_END_SECONDS)]}
    if scores:
        ours["--runner"] = ["pooling"]
    else:
        ours |= {"--runner": ["generate"], "--served-model-name": [model]}
        ours["--structured-outputs-config"] = [json.dumps(WITHOUT_BLANKS)]
    if on_cpu:
        ours |= {"--dtype": ["float32"], "--enforce-eager": []}
        if not scores:
            ours["--no-enable-chunked-prefill"] = []  # judges send seeds; see vllm_engine._whole_prompts
    arguments = ["serve", str(folder) if folder.is_dir() else model, *host_options(options)]
    for layer in (["score_route.ScoreResponses"] if scores else []) + ["key_guard.KeyGuard"]:  # the last is outermost
        arguments += ["--middleware", f"{_LAYERS}.{layer}"]
    for name, values in ours.items():
        if name not in given:
            arguments += [name, *values]
    return [*arguments, *options]


def require_model(model: str) -> None:
    """Ask whether a model is there before minutes are spent on it: a folder, in the Hub's cache here, or on the Hub.

    Names that are more than a Hub id (with a colon, as of object stores) are left to vLLM.

    Raises:
        ServeError: it is in none of these places, or the Hub cannot be asked.
    """
    if Path(model_path(model)).is_dir() or ":" in model:
        return
    from huggingface_hub import constants, model_info
    from huggingface_hub.errors import RepositoryNotFoundError

    nowhere = f"{model} is no folder here"
    if not is_hub_id(model):
        raise ServeError(f"{nowhere}, and no id of a model on the Hub (owner/name)")
    cached = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "snapshots"
    if cached.is_dir():
        return
    nowhere += " and not in the Hub's cache on this machine"
    if constants.HF_HUB_OFFLINE:
        raise ServeError(
            f"{nowhere}, and HF_HUB_OFFLINE keeps it from being fetched; `HF_HUB_OFFLINE=0 hf download {model}` "
            "fetches it"
        )
    try:
        model_info(model, timeout=_HUB_SECONDS)
    except RepositoryNotFoundError:
        raise ServeError(f"{nowhere}, and the Hub shows no model of that name; a private one needs HF_TOKEN") from None
    except Exception as error:  # of whichever library the Hub's client uses for HTTP
        raise ServeError(f"{nowhere}, and the Hub cannot be asked for it: {type(error).__name__}: {error}") from error


def keep_interrupts() -> None:
    """Let SIGTERM and Ctrl-C end a server that waits for its engine to start.

    vLLM turns both into KeyboardInterrupt, and its `zmq_socket_ctx`, around that wait, drops it (seen in 0.32): the
    server would then wait ten minutes for an engine that it has just ended.
    """
    from vllm.v1.engine import utils

    inner = utils.zmq_socket_ctx

    @contextlib.contextmanager
    def kept(*args: Any, **options: Any) -> Iterator[Any]:
        interrupt: KeyboardInterrupt | None = None
        with inner(*args, **options) as socket:
            try:
                yield socket
            except KeyboardInterrupt as error:
                interrupt = error
                raise
        if interrupt is not None:
            raise interrupt

    utils.zmq_socket_ctx = kept


def serve(model: str, options: Sequence[str]) -> None:
    """Serve a model in this process until it is interrupted; vllm_main.py must be the program's main module.

    Args:
        model: folder, Hub id, or `demo`.
        options: of `vllm serve`.

    Raises:
        ServeError: there is no such model, or a folder is given that holds none.
        CheckpointError: a folder holds a reward model that vLLM cannot serve as it is.
        OpenServerError: --host lets others in, and there is no key.
    """
    require_model(model)
    configure_vllm_logs()
    ensure_torchvision()
    from dt2it_pipeline.engines.device import finds_gpu

    on_cpu = not finds_gpu()
    arguments = serve_arguments(model, options, on_cpu=on_cpu)
    if on_cpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        if os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind") == "nobind":
            # Else vLLM computes in a third process, which it starts to bind its threads to cores.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        register_in_process(model_path(model))
    with quick_imports():
        # Not vLLM's own `main`: it asks for the metadata of a package `vllm`, and the CPU build goes by another name.
        from vllm.entrypoints.cli.serve import cmd_init
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        gc.freeze()  # what has been imported stays

    keep_interrupts()
    cli_env_setup()
    parser = FlexibleArgumentParser()
    (command,) = cmd_init()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    parsed = parser.parse_args(arguments)
    command.validate(parsed)
    command.cmd(parsed)
