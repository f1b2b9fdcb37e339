"""Layers under torch.compile, and what compiling them took.

PyTorch 2.13 counts for itself; a training or a scoring reads:

- seconds: wall clock between `torch._dynamo.on_compile_start` and `on_compile_end`, which PyTorch calls around each
  compilation of a function, its reading from the cache included, and of a backward pass that is compiled at its first
  use. Work of a GPU that was begun before is not waited for.
- graphs and graph breaks: `counters["stats"]["unique_graphs"]` and `counters["graph_break"]` of `torch._dynamo.utils`.
- recompilations: compilations whose id (`frame/times`) says that the function was compiled before, for other inputs.
- functions given up: the warning that `torch._dynamo.convert_frame` logs where `recompile_limit` is met.
- the cache: `fxgraph_cache_hit`, `_miss` and `_bypass` of `counters["inductor"]`. A graph with a backward pass has two
  entries.

Figures are those of a process, other users of torch.compile in it included, from its first `compile_layers` or
`compiled` on.

Does not belong here: whether layers are compiled (device.py), where code is kept (compile_cache.py), and how figures
are shown (compile_time.py).
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch._inductor import config as inductor_config

from dt2it_pipeline.reward.modeling.compile_cache import use_private_cache
from dt2it_pipeline.reward.modeling.compile_time import Compilation

_logger = logging.getLogger(__name__)


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Put layers through torch.compile, in place, each for sequences of any length.

    Layers of a kind share their code, so that each kind is compiled once. Names of weights do not change, and hooks
    (those of ZeRO-3 gather weights) run outside what is compiled. A decoder layer is one graph, and so is a block of
    the vision encoder.
    """
    use_private_cache()
    _watch.begin()
    for layer in layers:
        layer.forward = _without_base(torch.compile(layer.forward, dynamic=True, options=_options()))


def release_layers(layers: Iterable[nn.Module]) -> None:
    """Take layers out of torch.compile again, in place."""
    for layer in layers:
        layer.__dict__.pop("forward", None)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function under torch.compile, for inputs of any length; its code is kept, and counted, as that of layers."""
    use_private_cache()
    _watch.begin()
    return torch.compile(function, dynamic=True)


def compiled_so_far() -> Compilation:
    """What compiling took in this process up to now."""
    return _watch.total


def _options() -> dict[str, Any]:
    """Of Inductor: none of its choices depends on the length of a batch.

    On a GPU it computes two sums of a norm's backward pass in one kernel where a batch is long enough for that to pay,
    and compiles a layer anew beyond each bound (2,560, 4,096 and 5,120 tokens at the shape of Qwen3-VL-2B).
    """
    name = "mix_order_reduction_non_strict_mode"  # since PyTorch 2.10
    return {f"triton.{name}": True} if hasattr(inductor_config.triton, name) else {}


def _without_base(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled layer whose first argument, the hidden states, is no view of another tensor.

    PyTorch compiles views by themselves. The first layer gets one, the others do not: a second graph for the same work.
    """

    @functools.wraps(forward)
    def call(hidden_states: torch.Tensor, *given: Any, **named: Any) -> Any:
        if hidden_states._is_view():
            hidden_states = torch.ops.aten._unsafe_view(hidden_states, hidden_states.shape)
        return forward(hidden_states, *given, **named)

    return call


class _Watch:
    """Adds up what PyTorch says of each compilation."""

    def __init__(self) -> None:
        self.total = Compilation()
        self._started = 0.0
        self._before = Compilation()

    def begin(self) -> None:
        """Have PyTorch call this watch, once."""
        from torch._dynamo.callback import callback_handler

        if self._start not in callback_handler.start_callbacks:  # torch._dynamo.reset() takes them out
            callback_handler.register_start_callback(self._start)
            callback_handler.register_end_callback(self._end)
        # PyTorch calls nobody where it gives up on a function: it logs it. A logger takes the same filter once.
        logging.getLogger("torch._dynamo.convert_frame").addFilter(self._given_up)

    def _start(self, _: Any) -> None:
        self._started, self._before = time.perf_counter(), _counted()

    def _end(self, about: Any) -> None:
        from torch._dynamo.callback import CallbackTrigger

        found = _counted() - self._before
        again = about.callback_trigger == CallbackTrigger.DYNAMO and _times_compiled(about.compile_id) > 0
        seconds = time.perf_counter() - self._started
        self.total += found + Compilation(seconds=seconds, recompilations=int(again))

    def _given_up(self, record: logging.LogRecord) -> bool:
        limit = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if limit in ("recompile_limit", "accumulated_recompile_limit"):
            self.total += Compilation(given_up=1)
            if self.total.given_up == 1:
                _logger.warning(_GIVEN_UP, getattr(torch._dynamo.config, str(limit)), limit)
        return True


_GIVEN_UP = (
    "layers met more than %d kinds of batches, which is PyTorch's %s: those of a further kind are computed uncompiled, "
    "which is slower and gives the same results. For fewer kinds set attention: flex (one row for each batch) or "
    "micro_batch_size: 1; or turn compiling off with compile: false (training.compile, scoring.compile)"
)
_watch = _Watch()


def _counted() -> Compilation:
    """PyTorch's counters as they stand."""
    from torch._dynamo.utils import counters

    cache = counters["inductor"]
    return Compilation(
        graphs=counters["stats"]["unique_graphs"],
        graph_breaks=sum(counters["graph_break"].values()),
        cached=cache["fxgraph_cache_hit"],
        compiled=cache["fxgraph_cache_miss"] + cache["fxgraph_cache_bypass"],
    )


def _times_compiled(compile_id: str) -> int:
    """How often a function was compiled before, by the id of a compilation.

    >>> _times_compiled("3/0"), _times_compiled("3/2"), _times_compiled("!0/3/1")
    (0, 2, 1)
    """
    last = compile_id.rpartition("/")[2].partition("_")[0]
    return int(last) if last.isdigit() else 0
