"""Command line and environment that start a module in several ranks: on this machine, or on several by DeepSpeed.

On one machine rank_starter.py starts them. With a hostfile the `deepspeed` command does: it starts DeepSpeed's own
per-node launcher on every machine through pdsh and ssh without a password. This machine stands first in the file, since
rank 0 talks to the step that started it; project, Python and DT2IT_HOME lie under the same paths on all machines, the
artifact home on a file system that they share.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dt2it_pipeline.observe.cores import usable_cores

# DeepSpeed hands the variables in the file that this variable names to the ranks of every machine.
REMOTE_ENVIRONMENT = "DS_ENV_FILE"
# Of our own environment, what a rank on another machine needs as well.
_PASSED_ON = ("DT2IT_", "HF_", "OMP_", "TOKENIZERS_", "TORCH_", "WANDB_")
# DeepSpeed writes what it passes on into its log and command line, so secrets stay where they are: a rank that needs
# one must find it in the environment of its own machine.
_SECRET = re.compile("TOKEN$|KEY|SECRET|PASSWORD")
# Linux's ip_local_port_range starts at 32768.
_PORTS = range(20_000, 32_768)


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Of an environment, the variables that processes on other machines need; none that names a secret."""
    return {
        k: v
        for k, v in environment.items()
        if k.startswith(_PASSED_ON) and k != "DT2IT_PARENT_PID" and not _SECRET.search(k)
    }


def write_remote_environment(path: str | Path, environment: Mapping[str, str], extra: Mapping[str, str]) -> None:
    """Write the file for REMOTE_ENVIRONMENT: our variables of `environment`, all of `extra`; for our eyes only."""
    passed = passed_on(environment) | dict(extra)
    text = "".join(f"{key}={value}\n" for key, value in sorted(passed.items()) if "\n" not in value)
    path = Path(path)
    path.touch(mode=0o600)
    path.chmod(0o600)  # one that was there before
    path.write_text(text, encoding="utf-8")


def ranks_command(
    module_args: Sequence[str], processes: int, *, hostfile: str | Path | None = None, port: int | None = None
) -> list[str]:
    """Command that runs `python -m MODULE ARGS...` in `processes` ranks.

    Args:
        module_args: the module and its arguments.
        processes: ranks on this machine, or on each machine of the hostfile.
        hostfile: machines of a multi-node run, in DeepSpeed's format (`host slots=n` per line).
        port: where ranks meet; a free one by default (with a hostfile: DeepSpeed's default).

    Raises:
        ValueError: no module, or fewer than one process.
    """
    if not module_args or processes < 1:
        raise ValueError(f"need a module and at least one process, found {list(module_args)} and {processes}")
    if hostfile is not None:
        chosen = ["--master_port", str(port)] if port else []
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)]
        command += ["--num_accelerators", str(processes), *chosen, "--no_local_rank", "--module"]
        return command + list(module_args)
    starter = [sys.executable, "-m", "dt2it_pipeline.engines.launch.rank_starter", str(port or free_port())]
    return [*starter, str(processes), *module_args]


def rank_environment(processes: int) -> dict[str, str]:
    """Environment to add to this process's, so that ranks share the machine's cores instead of each taking all of them.

    A setting of OMP_NUM_THREADS that is already there is respected.
    """
    cores = usable_cores()
    share = {"OMP_NUM_THREADS": str(max(1, cores // max(1, processes)))}
    environment = {key: value for key, value in share.items() if key not in os.environ}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return environment


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now.

    It lies below the ports that Linux gives to outgoing connections, so that none of them takes it before it is used,
    and is drawn at random, so that two jobs that start at once rarely draw the same.

    Raises:
        OSError: no port of many is free.
    """
    drawn = random.SystemRandom().sample(_PORTS, 64)
    for port in drawn:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port among {len(drawn)} between {_PORTS.start} and {_PORTS.stop - 1}")
