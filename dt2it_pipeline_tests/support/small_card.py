"""A CPU that takes settings as a GPU does, and for which no kernel of torch.compile can be had.

PyTorch traces layers as ever. What it then hands to its compiler fails with Triton's own error, as Triton 3.9 raises it
on a card with too little shared memory, or as PyTorch 2.13 does for it when a kernel is first run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

from dt2it_pipeline.reward.modeling import compilation, device

NEED = "a compiled kernel needs 129 KiB of shared memory, and this GPU has 99"


def no_kernels(
    monkeypatch: pytest.MonkeyPatch, when: Literal["compiled", "run"], fault: Exception | None = None
) -> None:
    """Let settings that are left open be those of a GPU, and let every kernel fail.

    Args:
        monkeypatch: of the test.
        when: kernels fail as they are compiled, or as they are run.
        fault: what they fail with; by default they ask for too much shared memory.
    """
    from triton.runtime.errors import OutOfResources

    fault, compile = fault or OutOfResources(131_074, 101_376, "shared memory"), torch.compile

    def fails(graph: Any, inputs: Any) -> Callable[..., Any]:
        if when == "compiled":
            raise fault

        def run(*_: Any) -> Any:
            raise RuntimeError(f"No valid triton configs. {type(fault).__name__}: {fault}")

        return run

    chosen = device.attention_for

    def as_on_a_gpu(wanted: str | None, *given: Any, **named: Any) -> str:
        return "flex" if wanted in (None, "auto") else chosen(wanted, *given, **named)

    torch.compiler.reset()
    monkeypatch.setattr(device, "attention_for", as_on_a_gpu)
    monkeypatch.setattr(device, "compiles", lambda wanted, _: wanted is not False)
    monkeypatch.setattr(compilation.torch, "compile", lambda call, **_: compile(call, backend=fails, dynamic=True))
