"""What compiling took is counted, and too many kinds of batches are logged with the setting that bounds them."""

from __future__ import annotations

import doctest
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dt2it_pipeline.reward.modeling import attention, compilation, compile_cache, compile_time
from dt2it_pipeline.reward.modeling.compilation import compile_layers, compiled_so_far
from dt2it_pipeline.reward.modeling.compile_time import Compilation, log_compilation, slowest


class Layer(nn.Module):
    """A layer that is compiled quickly."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, hidden_states: torch.Tensor, breaks: bool = False) -> torch.Tensor:
        out = self.inner(hidden_states)
        if breaks:
            out = out * float(out.detach().sum())
        return out + 1


@pytest.fixture(autouse=True)
def _traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without kernels, which would take seconds each."""
    torch._dynamo.reset()
    whole = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda layer, dynamic, options=None: whole(layer, dynamic=dynamic, backend="eager")
    )
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("module", [compilation, compile_time])
def test_examples_in_docstrings_are_true(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_attention_that_is_compiled_alone_has_the_private_folder_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("DT2IT_HOME", str(tmp_path))
    monkeypatch.setenv(compile_cache.VARIABLE, "")
    attention._compiled_flex.cache_clear()
    before = compiled_so_far()
    compiled = attention._compiled_flex()
    assert Path(os.environ[compile_cache.VARIABLE]).parent.name == "compiled"
    query = torch.randn(1, 2, 128, 16)
    expected = nn.functional.scaled_dot_product_attention(query, query, query)
    assert torch.allclose(compiled(query, query, query), expected, atol=1e-5)
    assert (compiled_so_far() - before).graphs == 1
    attention._compiled_flex.cache_clear()


def test_graphs_recompilations_and_breaks_are_counted() -> None:
    layers = [Layer(), Layer()]
    expected = [layer(torch.ones(3, 4)) for layer in layers]
    before = compiled_so_far()
    compile_layers(layers)
    assert compiled_so_far() == before
    for layer, wanted in zip(layers, expected, strict=True):
        assert torch.equal(layer(torch.ones(3, 4)), wanted)
    first = compiled_so_far() - before
    assert (first.graphs, first.recompilations, first.graph_breaks, first.given_up) == (1, 0, 0, 0)
    assert 0 < first.seconds < 60
    layers[0](torch.ones(5, 4))  # of another length: the same graph
    layers[1](torch.ones(6, 8)[:, :4].contiguous().view(6, 4))  # a view: likewise
    assert compiled_so_far() - before == first
    with torch.no_grad():
        layers[1](torch.ones(5, 4))
    second = compiled_so_far() - before
    assert (second.graphs, second.recompilations) == (2, 1) and second.seconds > first.seconds
    layers[0](torch.ones(5, 4), breaks=True)
    third = compiled_so_far() - before
    assert (third.graph_breaks, third.recompilations) == (1, 2) and third.graphs == 4


def test_inductor_knows_its_options() -> None:
    """PyTorch 2.10 and later; an unknown one would stop every training on a GPU."""
    options = compilation._options()
    assert options and set(options) <= set(torch._inductor.list_options())


def test_too_many_kinds_of_batches_are_logged_with_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    layers = [Layer(), Layer()]
    compilation._watch.total = before = Compilation()
    compile_layers(layers)
    with torch._dynamo.config.patch(recompile_limit=1), caplog.at_level(logging.WARNING):
        layers[0](torch.ones(3, 4))
        assert not caplog.records
        for layer in layers * 2:
            with torch.no_grad():
                assert torch.isfinite(layer(torch.ones(3, 4))).all()
    found = compiled_so_far() - before
    assert (found.graphs, found.recompilations, found.given_up) == (1, 0, 1)
    said = [each.getMessage() for each in caplog.records if each.name == compilation.__name__]
    assert len(said) == 1
    assert "recompile_limit" in said[0] and "training.compile, scoring.compile" in said[0]


def test_the_log_has_one_line_and_the_summary_all_figures(caplog: pytest.LogCaptureFixture) -> None:
    slow = Compilation(40.0, graphs=6, recompilations=1, cached=0, compiled=8)
    found = slowest([Compilation(7.0, graphs=6, cached=8), slow])
    assert found is slow and slow - Compilation(40.0) + Compilation(40.0) == slow
    with caplog.at_level(logging.INFO):
        log_compilation(found)
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.startswith("torch.compile: 40.0 s for 6 graphs, 1 recompilation, 0 graph breaks; 0 of 8 pieces of code")
    assert found.summary() == {
        "compile_seconds": 40.0, "compile_graphs": 6, "compile_recompilations": 1, "compile_graph_breaks": 0,
        "compile_cached": 0, "compile_compiled": 8, "compile_given_up": 0,
    }  # fmt: skip
