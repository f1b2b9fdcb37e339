"""Scores from vLLM's pooling engine, behind a protocol so that a test can hand in a fake.

The engine gets token ids, never text: what is scored is then exactly what the reward model was trained on, whatever
vLLM would make of a chat template or of special tokens spelled out in a response. An image stands in the ids as one
placeholder, which vLLM repeats as often as its own image processor says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dt2it_pipeline.config.compute import VllmRunSettings
from dt2it_pipeline.engines.vllm_engine import EngineError, run_arguments
from dt2it_pipeline.engines.vllm_start import request_errors, vllm_for, weight_format

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class PoolingRequest:
    """One conversation to be scored: token ids with one placeholder per image, and the images in that order."""

    token_ids: tuple[int, ...]
    images: tuple[Image.Image, ...] = ()


class PoolingEngine(Protocol):
    """What gives conversations their scores: vLLM, or a test's own."""

    def score(self, requests: Sequence[PoolingRequest]) -> list[float | EngineError]:
        """One score per request, or the error that only this request met."""
        ...


class VllmPoolingEngine:
    """vLLM's offline `LLM` with `runner="pooling"` for one reward-model checkpoint.

    Args:
        model: checkpoint folder as `RewardModel.save_pretrained` writes it; remote code is not trusted.
        max_model_len: tokens of prompt and response together.
        size: pixels per image, `shortest_edge` and `longest_edge`, as the image processor takes them.
        max_images: most images in one prompt.
        tokens_per_batch: tokens that the engine computes in one step.
        precision: type of the weights: float32, bfloat16, or auto: bfloat16 on a GPU that computes in it, float32
            elsewhere.
        run: GPUs, memory and quantisation.

    Raises:
        EngineError: the checkpoint cannot be loaded.
        DeviceError: the GPU does not compute in this format.
    """

    def __init__(
        self,
        model: str,
        max_model_len: int,
        size: Mapping[str, int],
        max_images: int,
        tokens_per_batch: int,
        precision: str,
        run: VllmRunSettings | None = None,
    ) -> None:
        from dt2it_pipeline.engines.device import DeviceError

        try:
            with vllm_for(model) as (vllm, on_cpu):
                self._llm = vllm.LLM(
                    model=model,
                    runner="pooling",
                    dtype=weight_format(precision, on_cpu),
                    enforce_eager=on_cpu,
                    max_model_len=max_model_len,
                    max_num_batched_tokens=max(max_model_len, tokens_per_batch),
                    limit_mm_per_prompt={"image": max_images, "video": 0},
                    mm_processor_kwargs={"size": dict(size)},
                    **run_arguments(run or VllmRunSettings()),
                    disable_log_stats=True,
                )
        except DeviceError:
            raise
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise EngineError(
                f"vLLM cannot load the reward model {model} for {max_model_len} tokens: {error}"
            ) from error

    def score(self, requests: Sequence[PoolingRequest]) -> list[float | EngineError]:
        """Score a batch; see PoolingEngine.

        vLLM refuses a batch for one bad request. Halving finds it, so that only that request gets an error.
        """
        if not requests:
            return []
        try:
            outputs = self._llm.encode([_prompt(r) for r in requests], pooling_task="classify", use_tqdm=False)
        except request_errors() as error:  # the whole batch, for one request: find it
            if len(requests) == 1:
                return [EngineError(str(error))]
            middle = len(requests) // 2
            return self.score(requests[:middle]) + self.score(requests[middle:])
        return [float(output.outputs.data.reshape(-1)[0]) for output in outputs]


def _prompt(request: PoolingRequest) -> Any:
    prompt: dict[str, Any] = {"prompt_token_ids": list(request.token_ids)}
    if request.images:
        prompt["multi_modal_data"] = {"image": list(request.images)}
    return prompt
