"""Keeps start-up of worker processes short: hides packages that transformers imports and nobody needs there.

Importing transformers' generation code pulls in scikit-learn and SciPy (2 s of 8) for one helper of assisted decoding.
Hidden from transformers, they cost nothing. Call this only in a process that uses neither.
"""

from __future__ import annotations

import importlib.util
import sys

_UNUSED = ("sklearn",)


def skip_unused() -> None:
    """Make packages that a training or scoring process does not use look uninstalled; those already imported stay."""
    for name in _UNUSED:
        if name not in sys.modules and importlib.util.find_spec(name) is not None:
            sys.modules[name] = None  # type: ignore[assignment]  # find_spec then answers "not installed"
