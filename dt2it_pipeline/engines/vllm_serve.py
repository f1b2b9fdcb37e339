"""Serves a reward-model checkpoint over HTTP: `vllm serve DIR --runner pooling` with what the checkpoint asks for.

    python -m dt2it_pipeline.engines.vllm_serve CHECKPOINT [options of `vllm serve`]

Beside the plain command it makes vLLM start where torchvision does not fit torch (see torchvision_shim), takes the
picture size of training from the checkpoint's card, and on a machine without a GPU computes in float32. Options given
on the command line win.

Why a command of ours: vLLM's own imports transformers before it loads any plugin, so our plugin comes too late for it,
and a hook that runs at the start of every Python process of an installation is not for a package to bring.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.engines.vllm_engine import _register_in_process


def serve_arguments(folder: str, options: Sequence[str], *, on_cpu: bool) -> list[str]:
    """Arguments of `vllm` that serve the checkpoint in `folder`; `options` are passed on and win over ours.

    Raises:
        SystemExit: there is no such checkpoint folder.
    """
    card = Path(folder) / "reward_model.json"
    if not card.is_file():
        raise SystemExit(f"{folder} is not a reward-model checkpoint: it has no reward_model.json")
    given = {option.split("=", 1)[0] for option in options if option.startswith("--")}
    ours = {"--runner": ["pooling"]}
    most = json.loads(card.read_text(encoding="utf-8")).get("max_pixels")
    if most:
        ours["--mm-processor-kwargs"] = [json.dumps({"max_pixels": most})]
    if on_cpu:
        ours |= {"--dtype": ["float32"], "--enforce-eager": []}
    arguments = ["serve", folder]
    for name, values in ours.items():
        if name not in given:
            arguments += [name, *values]
    return [*arguments, *options]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; runs until it is interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0].startswith("-"):
        raise SystemExit("usage: python -m dt2it_pipeline.engines.vllm_serve CHECKPOINT [options of vllm serve]")
    ensure_torchvision()
    import torch

    on_cpu = not torch.cuda.is_available()
    arguments = serve_arguments(given[0], given[1:], on_cpu=on_cpu)
    if on_cpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        _register_in_process(given[0])
    # Not vLLM's own `main`: it asks for the metadata of a package `vllm`, and the CPU build goes by another name.
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = FlexibleArgumentParser()
    (command,) = cmd_init()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    parsed = parser.parse_args(arguments)
    command.validate(parsed)
    command.cmd(parsed)


if __name__ == "__mp_main__":  # vLLM's engine process is spawned, and reads this module before anything else
    ensure_torchvision()
elif __name__ == "__main__":
    main()
