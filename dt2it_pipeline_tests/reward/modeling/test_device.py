"""What suits a device, what it cannot do, and that compiled layers and rows of many examples give the same numbers."""

from __future__ import annotations

import errno
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.compile_worker.subproc_pool import SubprocException
from torch._inductor.exc import CppCompileError

from dt2it_pipeline.engines.device import DeviceError
from dt2it_pipeline.observe.memory import ran_out
from dt2it_pipeline.reward.data.collation import PackedExample, collate, with_pixels
from dt2it_pipeline.reward.modeling import device
from dt2it_pipeline.reward.modeling.attention import _blocks, block_mask, sees
from dt2it_pipeline.reward.modeling.compile_cache import write_fault
from dt2it_pipeline.reward.modeling.device import (
    Kernels,
    attention_for,
    compile_fault,
    compiles,
    kernel_error,
    kernel_fault,
)
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.scoring.scorer import Scorer
from dt2it_pipeline_tests.support.small_card import NEED
from dt2it_pipeline_tests.support.tiny import make_prompt
from dt2it_pipeline_tests.support.tolerance import gradient_tolerance, score_tolerance

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FAMILIES = ["qwen3_vl", "qwen2_5_vl"]


@pytest.fixture
def without_compilers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    device.compile_fault.cache_clear()
    yield
    device.compile_fault.cache_clear()


def test_a_gpu_without_compiler_gets_sdpa_and_says_so_once(
    without_compilers: None, caplog: pytest.LogCaptureFixture
) -> None:
    device._say_once.cache_clear()
    assert not compiles("auto", CUDA)
    assert not compiles("auto", CUDA)
    assert len(caplog.records) == 1
    assert "no compiler (gcc, clang, or" in caplog.text
    assert attention_for("auto", CUDA) == "sdpa"
    with pytest.raises(DeviceError, match="compile: true does not work here: there is no compiler"):
        compiles(True, CUDA)
    with pytest.raises(DeviceError, match="attention: flex is compiled on a GPU"):
        attention_for("flex", CUDA)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The one folder of programs, on a machine with Triton and Python's headers, where CC and CXX are not set."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(device.sysconfig, "get_path", lambda *_: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    device.compile_fault.cache_clear()
    yield tmp_path
    device.compile_fault.cache_clear()


def program(folder: Path, name: str) -> None:
    (folder / name).touch()
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(("kind", "there", "variables", "expected"), [
    ("cuda", ["gcc"], {}, None), ("cuda", ["clang"], {}, None), ("cuda", ["mine"], {"CC": "mine"}, None),
    ("cuda", ["cc", "c++"], {}, "no compiler (gcc, clang, or what CC names)"),
    ("cuda", ["gcc"], {"CC": "none"}, "CC is 'none'"), ("cuda", ["gcc"], {"CC": ""}, "CC is ''"),
    ("cuda", ["gcc", "ccache"], {"CC": "ccache gcc"}, "CC is 'ccache gcc'"),
    ("cuda", ["gcc"], {"CXX": "none"}, None),
    ("cpu", ["g++"], {}, None), ("cpu", ["mine"], {"CXX": "mine"}, None), ("cpu", ["g++"], {"CC": "none"}, None),
    ("cpu", ["clang++"], {}, "no compiler (g++, or what CXX names)"), ("cpu", ["g++"], {"CXX": "no"}, "CXX is 'no'"),
])  # fmt: skip
def test_compilers_are_found_as_triton_and_pytorch_find_them(
    tools: Path, monkeypatch: pytest.MonkeyPatch, kind: str, there: list[str], variables: dict[str, str],
    expected: str | None,
) -> None:  # fmt: skip
    for name in there:
        program(tools, name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    fault = compile_fault(torch.device(kind))
    assert fault is None if expected is None else expected in str(fault)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_without_pythons_header_nothing_is_compiled(tools: Path, kind: str) -> None:
    program(tools, "gcc")
    program(tools, "g++")
    assert compile_fault(torch.device(kind)) is None
    (tools / "Python.h").unlink()
    compile_fault.cache_clear()
    assert f"there is no {tools / 'Python.h'}" in str(compile_fault(torch.device(kind)))


def test_the_card_of_the_model_is_asked_and_not_the_current_one(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tools, "gcc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (9, 0) if place.index == 1 else (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: f"Card {place.index}")
    assert compile_fault(torch.device("cuda:1")) is None
    assert str(compile_fault(torch.device("cuda:0"))).startswith("Card 0 is older")


def test_pythons_headers_on_debian_are_those_of_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_default_scheme", lambda: "posix_local")
    assert device._python_headers() == sysconfig.get_path("include", "posix_prefix")


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "sdpa"), ((8, 6), "flex"), ((12, 0), "flex")])
def test_cards_without_blocks_for_flex_get_sdpa(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(device, "compile_fault", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: capability if place == second else (1, 0))
    second = torch.device("cuda:1")  # while the first is the current one
    assert attention_for("auto", second, compiled=True, trains=True) == expected
    assert attention_for("flex", CUDA) == "flex"  # who asks for it gets it


@pytest.mark.parametrize(("words", "reason"), [  # of Triton, and of PyTorch's InductorError
    ("out of resource: shared memory, Required: 131074, Hardware limit: 101376. Reducing block sizes or `num_stages` "
     "may help.", NEED),
    ("RuntimeError: No valid triton configs. \nOutOfMemoryError: out of resource: triton_tem_fused_flex_attention_1\n"
     "Required: 131074 Hardware limit:101376 Reducing block sizes or `num_stages` may help.", NEED),
    ("out of resource: threads, Required: 1536, Hardware limit: 1024.",
     "a compiled kernel needs 1,536 threads, and this GPU has 1,024"),
    ("No valid triton configs. PTXASError: PTXAS error: ptxas fatal: Value 'sm_121a' is not defined",
     "PyTorch cannot compile a kernel for this device (No valid triton configs. PTXASError: PTXAS error: ptxas fatal: "
     "Value 'sm_121a' is not defined)"),
])  # fmt: skip
def test_a_kernel_that_cannot_be_had_is_one_sentence(words: str, reason: str) -> None:
    assert kernel_fault(RuntimeError(words)) == reason
    assert not ran_out(RuntimeError(words))  # smaller batches would not help
    assert str(kernel_error(reason, "scoring")) == (
        f"{reason}: set scoring.attention: sdpa; where it is another kernel than that of attention, "
        "scoring.compile: false"
    )


def failed(raises: Exception) -> Exception:
    """What torch.compile raises where its backend raises this."""

    def backend(*_: Any) -> Any:
        raise raises

    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        torch.compile(torch.sin, backend=backend)(torch.ones(2))
    return caught.value


def test_what_a_compiler_fails_at_is_no_matter_of_memory() -> None:
    assert kernel_fault(failed(OSError("cannot find -lcuda"))) == (
        "PyTorch cannot compile a kernel for this device (OSError: cannot find -lcuda)"
    )
    memory = failed(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert kernel_fault(memory) is None and ran_out(memory)
    assert kernel_fault(ValueError("No image")) is None


def caused(by: Exception) -> Exception:
    error = RuntimeError("a kernel was not loaded")
    error.__cause__ = by
    return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS])
@pytest.mark.parametrize("wrap", [lambda error: error, caused, failed])
def test_a_disk_that_compiled_code_cannot_be_written_to_is_no_fault_of_a_kernel(number: int, wrap: Any) -> None:
    error = failed(wrap(OSError(number, os.strerror(number), "/cache/a.py")))
    assert kernel_fault(error) is None
    assert write_fault(error) == (
        f"torch.compile cannot write /cache/a.py: {os.strerror(number)}; free space there or choose another folder "
        "(TORCHINDUCTOR_CACHE_DIR, TMPDIR), and start again"
    )


def test_a_full_disk_of_a_process_that_compiles_is_no_fault_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/cache")
    begins = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n'
    full = "OSError: [Errno 28] No space left on device: '/cache/a'\n"
    later = "\nDuring handling of the above exception, another exception occurred:\n\n"
    words = "/usr/bin/ld: final link failed: No space left on device"
    for error in (SubprocException(begins + full, "sin"), CppCompileError(["g++", "a.cpp"], words)):
        error = failed(error)
        assert kernel_fault(error) is None
        assert str(write_fault(error)).startswith("torch.compile cannot write to /cache or /")
    other = failed(SubprocException(f"{begins}PermissionError: [Errno 13] a{later}{begins}ValueError: b\n", "sin"))
    assert kernel_fault(other) is not None and write_fault(other) is None
    missing = failed(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "ptxas"))
    assert kernel_fault(missing) is not None and write_fault(missing) is None
    assert write_fault(OSError(errno.ENOSPC, "of another file")) is None


@pytest.mark.parametrize("wrap", [lambda error: error, caused])
@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError])
def test_a_gpu_that_has_failed_before_is_no_fault_of_a_kernel(kind: type[Exception], wrap: Any) -> None:
    error = failed(wrap(kind("CUDA error: an illegal memory access was encountered")))
    assert kernel_fault(error) is None and write_fault(error) is None


ASKED: list[tuple[str | None, Any, list[Kernels]]] = [  # settings, and what is fallen back to from flex, compiled
    ("auto", "auto", [Kernels("flex", True, small_blocks=True), Kernels("sdpa", False)]),
    (None, True, [Kernels("flex", True, small_blocks=True), Kernels("sdpa", True)]),
    ("flex", "auto", [Kernels("flex", True, small_blocks=True), Kernels("flex", False, small_blocks=True)]),
    ("flex", True, [Kernels("flex", True, small_blocks=True)]),
]


@pytest.mark.parametrize(("attention", "compile", "expected"), ASKED)
def test_only_what_settings_leave_open_is_fallen_back_from(
    attention: str | None, compile: Any, expected: list[Kernels]
) -> None:
    found, now = list[Kernels](), Kernels("flex", True)
    while (less := now.lesser(attention, compile)) is not None:
        found.append(now := less)
    assert found == expected
    assert Kernels("sdpa", True).lesser("sdpa", "auto") == Kernels("sdpa", False)
    assert Kernels("sdpa", False).lesser("auto", "auto") is None


def test_attention_on_a_cpu() -> None:
    assert attention_for(None, CPU) == attention_for("auto", CPU) == "sdpa_blocks"
    assert attention_for("auto", CPU, compiled=True) == "sdpa"
    assert attention_for("eager", CPU, compiled=True) == "eager"
    assert not compiles("auto", CPU)
    with pytest.raises(DeviceError, match="flex has no gradient on a CPU"):
        attention_for("flex", CPU, trains=True)
    with pytest.raises(DeviceError, match="cannot be compiled on a CPU"):
        attention_for("flex", CPU, compiled=True)


def test_blocks_of_the_mask_are_what_the_rule_says() -> None:
    torch.manual_seed(0)
    parts = [(0, 0, 300), (0, 1, 90), (0, 2, 30), (1, 0, 60), (1, 1, 10), (2, 0, 500), (2, 1, 260), (-1, -1, 30)]
    example = torch.cat([torch.full((count,), whose) for whose, _, count in parts])[None].int()
    segment = torch.cat([torch.full((count,), kind) for _, kind, count in parts])[None].short()
    length = segment.shape[1]
    assert length % 128 == 0
    seen = sees(segment, example, torch.arange(length)[None])[0]
    partly, wholly = (blocks[0, 0] for blocks in _blocks(segment, example))
    tiles = seen.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).transpose(1, 2)
    assert not (partly & wholly).any()
    assert torch.equal(wholly, wholly & tiles.all(-1).all(-1))  # nothing that is hidden is called seen
    assert (partly | wholly)[tiles.any(-1).any(-1)].all()  # nothing that is seen is left out
    assert wholly.sum() >= 6  # and whole blocks are found
    assert (partly | wholly).sum() < tiles.any(-1).any(-1).sum() + 6
    mask = block_mask(segment, example)
    rule = mask.mask_mod(0, 0, torch.arange(length)[:, None], torch.arange(length)[None])
    assert torch.equal(rule, seen)


def several(prompt_encoder: Any, media: tuple[Path, Any]) -> list[PackedExample]:
    prompts = prompt_encoder.prompts([
        make_prompt(media[1][:2], "what colour is this " * 5), make_prompt(media[1][2:3], "and this"),
        make_prompt([], "is red a colour " * 60),
    ])  # fmt: skip
    texts = prompt_encoder.responses(["red", "it looks green to me " * 40, "a blue circle"])
    return [PackedExample(prompt, tuple(texts[: 1 + number])) for number, prompt in enumerate(prompts)]


@pytest.mark.numerics
@pytest.mark.parametrize("family", FAMILIES)
def test_one_row_of_several_examples_gives_the_scores_and_gradients_of_a_row_each(
    setup: Callable[..., Any], base: Callable[..., Path], media: tuple[Path, Any], family: str
) -> None:
    _, prompt_encoder, registry = setup(family)
    examples = several(prompt_encoder, media)
    found = []
    for one_row in (False, True):
        model = RewardModel.from_pretrained(base(family), new_head_seed=0, attention="sdpa").train()
        batch = with_pixels(collate(examples, one_row=one_row), registry)
        assert batch.input_ids.shape[0] == (1 if one_row else 3)
        scores = model(batch)
        (scores * torch.linspace(-1, 2, len(scores))).sum().backward()
        found.append((scores.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (scores, gradients), (packed, packed_gradients) = found
    assert batch.input_ids.shape[1] % 128 == 0
    assert batch.tokens < sum(map(len, examples)) + 128
    assert scores.std() > 100 * score_tolerance(model, batch.tokens)
    assert torch.allclose(packed, scores, atol=score_tolerance(model, batch.tokens), rtol=0)
    assert set(gradients) == set(packed_gradients)
    within = gradient_tolerance(model, batch.tokens, gradients.values())
    for name, gradient in gradients.items():
        assert torch.allclose(packed_gradients[name], gradient, atol=within, rtol=0), name


@pytest.mark.numerics
@pytest.mark.parametrize("family", FAMILIES)
def test_the_scorer_fills_one_row_to_its_budget(
    base: Callable[..., Path], media: tuple[Path, Any], family: str
) -> None:
    prompts = {f"p{n}": make_prompt(media[1][n % 3 : n % 3 + 1], f"question {n} " * (3 + n)) for n in range(7)}
    responses = [(f"{key}.{n}", key, text) for key in prompts for n, text in enumerate(["red", "a blue circle", "no"])]
    found = []
    for attention in ("sdpa", "flex"):
        model = RewardModel.from_pretrained(base(family), new_head_seed=0, attention=attention).eval()
        scorer = Scorer(model, media[0], max_length=512, max_pixels=65536, tokens_per_batch=512)
        scores, faults = scorer.score(prompts, responses)
        assert not faults
        found.append(scores)
    assert found[0].keys() == found[1].keys() == {name for name, _, _ in responses}
    assert max(abs(found[0][name] - found[1][name]) for name in found[0]) < score_tolerance(model, 512)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "flex"])
def test_a_layer_is_one_graph(
    setup: Callable[..., Any], base: Callable[..., Path], media: tuple[Path, Any], family: str, attention: str
) -> None:
    """Without kernels: what is checked is that tracing meets nothing that it cannot take."""
    _, prompt_encoder, registry = setup(family)
    torch._dynamo.reset()
    plain = RewardModel.from_pretrained(base(family), new_head_seed=0, attention=attention).eval()
    traced = RewardModel.from_pretrained(base(family), new_head_seed=0, attention=attention).eval()
    for layer in traced.called_whole():
        layer.forward = torch.compile(layer.forward, dynamic=True, fullgraph=True, backend="eager")
    traced.compiled = True
    examples = several(prompt_encoder, media)
    for some in (examples, examples[1:], examples[:2]):
        batch = with_pixels(collate(some, one_row=attention == "flex"), registry)
        with torch.no_grad():
            assert torch.allclose(traced(batch), plain(batch), atol=score_tolerance(plain, batch.tokens), rtol=0)
    torch._dynamo.reset()
