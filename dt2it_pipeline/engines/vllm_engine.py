"""Sampling with vLLM's offline engine, behind a protocol so that a test can hand in a fake.

The same code runs on a GPU and on a CPU. On a CPU the engine runs inside this process (it starts in seconds instead of
half a minute) and computes in float32 without compilation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from dt2it_pipeline.config.compute import VllmRunSettings
from dt2it_pipeline.engines.chat import ChatPrompt
from dt2it_pipeline.engines.control_tokens import OwnControlTokens
from dt2it_pipeline.engines.vllm_start import request_errors, vllm_for
from dt2it_pipeline.errors import UserError

# JSON without blanks between its parts: a weak model would write nothing else to the length limit.
WITHOUT_BLANKS = {"backend": "xgrammar", "disable_any_whitespace": True}


class EngineError(UserError, RuntimeError):
    """The engine cannot start, or it cannot take one particular request."""

    help_page: ClassVar[str] = "troubleshooting#engine"


@dataclass(frozen=True)
class SampleRequest:
    """`n` answers to one prompt, drawn with `seed`; the answers depend on nothing else in the batch but rounding.

    `temperature` replaces the batch's where it is given, and `json_schema` fixes the form of the answers.
    """

    prompt: ChatPrompt
    n: int
    seed: int
    temperature: float | None = None
    json_schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Sample:
    """One answer: its text, its length in tokens, and whether it ended by itself rather than at the length limit.

    `prompt_tokens` is what was read for it; answers to one request share the reading, and the first carries it.
    """

    text: str
    tokens: int
    finished: bool
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Decoding:
    """How the answers of a batch are drawn; `max_new_tokens` bounds their length."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64


class SamplingEngine(Protocol):
    """Whatever can answer prompts with images."""

    def sample(self, requests: Sequence[SampleRequest], decoding: Decoding) -> list[list[Sample] | EngineError]:
        """One list of answers per request, or the error that only this request met."""
        ...


@runtime_checkable
class StreamingEngine(SamplingEngine, Protocol):
    """An engine that hands on each result as it comes, so that it can be kept before the next one costs anything."""

    def stream(
        self, requests: Sequence[SampleRequest], decoding: Decoding
    ) -> Iterator[tuple[int, list[Sample] | EngineError]]:
        """Results with the places of their requests, in any order. Raises EngineError when none can be had any more."""
        ...


def stream(
    engine: SamplingEngine, requests: Sequence[SampleRequest], decoding: Decoding
) -> Iterator[tuple[int, list[Sample] | EngineError]]:
    """Results of any engine with the places of their requests, as they come where the engine can do that."""
    if isinstance(engine, StreamingEngine):
        yield from engine.stream(requests, decoding)
    else:
        yield from enumerate(engine.sample(requests, decoding))


class VllmEngine:
    """vLLM's offline `LLM` for one model folder or Hub id.

    Args:
        model: folder or Hub id; its own chat template and processor are used, remote code is not trusted.
        max_model_len: tokens of prompt and answer together.
        max_images: most images in one prompt.
        seed: engine seed; requests carry their own.
        run: GPUs, memory and quantisation.

    Raises:
        EngineError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        max_model_len: int,
        max_images: int = 2,
        seed: int = 0,
        run: VllmRunSettings | None = None,
    ) -> None:
        try:
            with vllm_for(model) as (vllm, on_cpu):
                from transformers import AutoProcessor

                self._processor = AutoProcessor.from_pretrained(model)
                self._control_tokens = OwnControlTokens(self._processor.tokenizer)
                self._llm = vllm.LLM(
                    model=model,
                    dtype="float32" if on_cpu else "auto",
                    enforce_eager=on_cpu,
                    max_model_len=max_model_len,
                    **(_whole_prompts(max_model_len) if on_cpu else {}),
                    limit_mm_per_prompt={"image": max_images, "video": 0},
                    seed=seed,
                    **run_arguments(run or VllmRunSettings()),
                    disable_log_stats=True,
                    structured_outputs_config=WITHOUT_BLANKS,
                )
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise EngineError(f"vLLM cannot load the model {model}: {error}") from error

    def sample(self, requests: Sequence[SampleRequest], decoding: Decoding) -> list[list[Sample] | EngineError]:
        """Answer a batch; see SamplingEngine. What earlier batches left in the prefix cache does not enter."""
        self._llm.reset_prefix_cache()
        return self._sample(list(requests), decoding)

    def _sample(self, requests: list[SampleRequest], decoding: Decoding) -> list[list[Sample] | EngineError]:
        if not requests:
            return []
        try:
            outputs = self._llm.generate(
                [self._vllm_prompt(request.prompt) for request in requests],
                [self._parameters(request, decoding) for request in requests],
                use_tqdm=False,
            )
        except request_errors() as error:  # the whole batch, for one prompt that is too long: find it
            if len(requests) == 1:
                return [EngineError(str(error))]
            middle = len(requests) // 2
            return self._sample(requests[:middle], decoding) + self._sample(requests[middle:], decoding)
        return [_samples(output) for output in outputs]

    def _vllm_prompt(self, prompt: ChatPrompt) -> Any:
        messages = self._control_tokens.broken_in(prompt.messages)
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return {"prompt": text, "multi_modal_data": {"image": list(prompt.images)}} if prompt.images else text

    @staticmethod
    def _parameters(request: SampleRequest, decoding: Decoding) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        structured = StructuredOutputsParams(json=request.json_schema) if request.json_schema else None
        return SamplingParams(
            n=request.n,
            seed=request.seed,
            temperature=decoding.temperature if request.temperature is None else request.temperature,
            top_p=decoding.top_p,
            max_tokens=decoding.max_new_tokens,
            structured_outputs=structured,
        )


def _samples(output: Any) -> list[Sample]:
    read = len(output.prompt_token_ids or ())
    return [
        Sample(made.text, len(made.token_ids), made.finish_reason == "stop", 0 if place else read)
        for place, made in enumerate(output.outputs)
    ]


def run_arguments(run: VllmRunSettings) -> dict[str, Any]:
    """Arguments of `vllm.LLM`; what is unset is left to vLLM, whose defaults depend on the device."""
    chosen = {
        "gpu_memory_utilization": run.gpu_memory_utilization,
        "max_num_seqs": run.max_num_seqs,
        "quantization": run.quantization,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    return {"tensor_parallel_size": run.tensor_parallel} | given


def _whole_prompts(max_model_len: int) -> dict[str, Any]:
    """Settings under which no prompt is computed in parts.

    After each part vLLM winds the request's own random generator back, which a CPU generator does not support: a batch
    larger than the token budget, with seeds, would end the engine.
    """
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_model_len, 8192)}
