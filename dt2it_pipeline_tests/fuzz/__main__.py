"""Feed every surface with damaged input for a while: `python -m dt2it_pipeline_tests.fuzz --seconds 300`.

Each surface has a process of its own, since a fault may end it. An input is used, or refused as a whole: by Dt2itError,
or since none of its rows can be used. It counts as a fault where an input raises anything else, breaks an assertion of
its surface, takes longer than 20 s or more than 2 GiB, or ends the process. Inputs follow from the seed, the surface
and a number, so that each can be made again.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import secrets
import shlex
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from random import Random
from typing import Any

from dt2it_pipeline.errors import Dt2itError
from dt2it_pipeline_tests.fuzz import files, words
from dt2it_pipeline_tests.fuzz.surface import Make
from dt2it_pipeline_tests.support.mutation import mutated_bytes, mutated_value

SURFACES: dict[str, Make] = {**files.SURFACES, **words.SURFACES}
_SLOW = 20  # seconds for one input
_MEMORY = 2 << 20  # KiB
_FAULTS = 3  # of a surface, after which it ends
_ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    0.5,
    10**400,
    1e308,
    "",
    " ",
    "x" * 300,
    "../a",
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    [None],
]


class SlowInput(Exception):
    """An input took too long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code, 1 where there was a fault."""
    parser = argparse.ArgumentParser("python -m dt2it_pipeline_tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all surfaces together")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9), help="drawn when absent")
    parser.add_argument("--surface", action="append", choices=list(SURFACES), help="all when absent")
    parser.add_argument("--input", type=int, help="the number of one input, to make it again: needs --surface")
    given = parser.parse_args(arguments)
    names = given.surface or list(SURFACES)
    print(f"seed {given.seed}", flush=True)
    print(f"{'surface':24} {'inputs':>8} {'used':>8} {'refused':>8} {'faults':>7}", flush=True)
    totals = [0, 0, 0, 0]
    for name in names:
        counts, accounts = fed(name, given.seed, given.seconds / len(names), given.input)
        print(f"{name:24} {counts[0]:8} {counts[1]:8} {counts[2]:8} {counts[3]:7}", flush=True)
        print("".join(accounts), end="", flush=True)
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
    print(f"{'all':24} {totals[0]:8} {totals[1]:8} {totals[2]:8} {totals[3]:7}", flush=True)
    return 1 if totals[3] else 0


def fed(name: str, seed: int, seconds: float, only: int | None = None) -> tuple[list[int], list[str]]:
    """Feed one surface; how many inputs it had, used, refused and failed at, and an account of each fault."""
    context = multiprocessing.get_context("fork")
    number: Synchronized[int] = context.Value("q", -1)
    results, send = context.Pipe(duplex=False)
    process = context.Process(target=_feed, args=(name, seed, seconds, only, number, send))
    process.start()
    send.close()
    counts, accounts = [0, 0, 0, 0], []
    try:
        if results.poll(seconds + 4 * _SLOW):
            counts, accounts = results.recv()
        else:
            process.kill()
            accounts = ["it did not end in time, and was killed\n"]
    except EOFError:
        pass
    process.join()
    if not counts[0]:
        counts = [number.value + 1, 0, 0, 1]
        accounts += [f"the process ended with {process.exitcode}\n{_again(name, seed, number.value)}"]
    return counts, accounts


def _feed(
    name: str, seed: int, seconds: float, only: int | None, number: Synchronized[int], send: Any
) -> None:  # in a process of its own
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ |= {"OPENCV_LOG_LEVEL": "OFF", "OPENCV_FFMPEG_LOGLEVEL": "-8"}  # it writes a line for each damaged part
    signal.signal(signal.SIGALRM, _too_slow)
    counts, accounts = [0, 0, 0, 0], []
    with tempfile.TemporaryDirectory() as folder:
        surface = SURFACES[name](Path(folder))
        for content in surface.sound[:1]:
            assert surface.read(content), f"{name}: a sound input is not used"
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ends = time.monotonic() + seconds
        while (only is None and time.monotonic() < ends and counts[3] < _FAULTS) or not counts[0]:
            number.value = number.value + 1 if only is None else only
            content = made_again(name, seed, number.value, surface.sound)
            counts[0] += 1
            fault = ""
            signal.alarm(_SLOW)
            try:
                counts[1 if surface.read(content) else 2] += 1
            except Dt2itError:
                counts[2] += 1
            except Exception:
                fault = traceback.format_exc()
            finally:
                signal.alarm(0)
            taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
            if taken > _MEMORY:
                fault += f"{taken >> 10} MiB of memory\n"
                base += taken
            if fault:
                counts[3] += 1
                accounts.append(f"{fault}{_again(name, seed, number.value)}")
    send.send((counts, accounts))


def made_again(name: str, seed: int, number: int, sound: Sequence[bytes]) -> bytes:
    """One input: bytes of a sound one altered, or a value in its JSON."""
    random = Random(f"{seed} {name} {number}")
    chosen = random.choice(sound)
    if chosen.startswith((b"{", b"[")) and random.random() < 0.5:
        try:
            value = mutated_value(random, {"all": json.loads(chosen)}, _ODD)
            return json.dumps(value.get("all"), ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
        except ValueError:  # several JSON texts, line by line
            pass
    return mutated_bytes(random, chosen, sound)


def _again(name: str, seed: int, number: int) -> str:
    return f"again: python -m dt2it_pipeline_tests.fuzz --surface {shlex.quote(name)} --seed {seed} --input {number}\n"


def _too_slow(*_: object) -> None:
    raise SlowInput(f"took longer than {_SLOW} s")


if __name__ == "__main__":
    sys.exit(main())
