"""Keeps start and end of worker processes short."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

_UNUSED = ("sklearn",)


def skip_unused() -> None:
    """Make packages that a training or scoring process does not use look uninstalled; those already imported stay.

    Importing transformers' generation code pulls in scikit-learn and SciPy (2 s of 8) for one helper of assisted
    decoding. Hidden from transformers, they cost nothing. Call this only in a process that uses neither.
    """
    for name in _UNUSED:
        if name not in sys.modules and importlib.util.find_spec(name) is not None:
            sys.modules[name] = None  # type: ignore[assignment]  # find_spec then answers "not installed"


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """A block that imports large packages in three quarters of the time: nothing in it is searched for garbage.

    Importing torch, transformers, DeepSpeed or vLLM makes millions of objects that stay, and Python would look through
    them again and again. Do nothing but import in the block: garbage that it leaves is found later than usual.
    """
    searches = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searches:
            gc.enable()


def search_rarely() -> None:
    """Have this process look for garbage once in 100,000 new objects, and not once in 700.

    For the start of a program, not for a library: it holds until the process ends. What a program imports later, or
    reads into small objects, is then not searched again and again. Arrays and tensors are freed as before: only what
    refers to itself waits for a search.
    """
    gc.set_threshold(100_000, 50, 100)


def leave() -> NoReturn:
    """End this process well and at once, when all that it was to do is done.

    What is registered for the end runs, as in any process. Python would then take every module and object apart, which
    with torch, transformers and DeepSpeed takes 2 to 4 s and is of no use to anybody. What a file that is still open
    has in its buffer is lost: close it.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it is where the process was started without such a file
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
    os._exit(0)
