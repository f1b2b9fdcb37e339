"""The bare training loop: ready batches, this project's network, torch's AdamW, and neither DeepSpeed nor a trainer.

It is what the trainer is compared with. Weights, gradients and the optimiser's state are of one type (bfloat16 on a
GPU), where the trainer keeps float32 copies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.data import encoded

if TYPE_CHECKING:
    from benchmarks.gpu.case import Case
    from dt2it_pipeline.config.compute import ComputeSettings

_READY = 4  # steps whose batches lie on the device, used in turn


def load_network(folder: Path, settings: ComputeSettings, *, trains: bool) -> Any:
    """The reward network on the device, in bfloat16 on a GPU and float32 on a CPU.

    Args:
        folder: of the model.
        settings: a recipe's section, for its `attention` and `compile`.
        trains: whether gradients go through it.
    """
    from dt2it_pipeline.engines.device import found_device
    from dt2it_pipeline.reward.modeling.model import RewardNetwork

    device = found_device()
    return RewardNetwork.from_pretrained(
        folder, new_head_seed=0, attention=settings.attention, device=device, compile=settings.compile, trains=trains
    )


def synchronise(device: Any) -> None:
    """Wait until the device has done all that it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Loop:
    """Network, optimiser and pairs of a case, set up as the trainer's settings say."""

    def __init__(self, case: Case) -> None:
        import torch

        from dt2it_pipeline.reward.data.collation import PackedExample
        from dt2it_pipeline.reward.modeling import lora

        self.settings = settings = case.settings
        self.network = network = load_network(case.base, settings, trains=True)
        network.freeze_vision()
        if settings.lora is not None:
            lora.add_adapters(network, settings.lora, 0)
            network.to(network.head.weight.device)
        if settings.gradient_checkpointing:
            network.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        network.train()
        network.model.visual.eval()
        self.shared = settings.shared_prefix and network.shares_prefix()
        self.device = network.head.weight.device
        self.trained = [value for value in network.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=settings.learning_rate, weight_decay=0.0, fused=self.device.type == "cuda"
        )
        self.registry, _, prompts, responses = encoded(
            case.base, case.data("training"), settings.max_pixels, settings.system_prompt
        )
        pairs = zip(prompts, responses, strict=True)
        self.examples = [PackedExample(prompt, tuple(sides[:2])) for prompt, sides in pairs]

    def passes(self, step: int) -> list[list[Any]]:
        """The pairs of each forward pass of a step."""
        from dt2it_pipeline.reward.training.schedule import micro_batches

        settings = self.settings
        chosen = np.arange(step, step + settings.global_batch_size) % len(self.examples)
        lengths = np.array([len(example) for example in self.examples])
        most = settings.micro_batch_size, settings.micro_batch_tokens
        runs = micro_batches(chosen, lengths, 0, 1, *most, lengths, one_row=self.network.takes_one_row)
        return [[self.examples[pair] for pair in run] for run in runs]

    def read(self, examples: list[Any]) -> Any:
        """A batch in main memory, its images read from their files."""
        from dt2it_pipeline.reward.data.collation import collate, unpack, with_pixels

        rows = examples if self.shared else unpack(examples)
        return with_pixels(collate(rows, one_row=self.network.takes_one_row), self.registry, once=self.shared)

    def features(self, batch: Any) -> Any:
        """Output of the vision encoder for the image tokens of a batch on the device."""
        found = self.network.encode_images(batch.pixels, batch.grids)
        return found if batch.feature_rows is None else found[batch.feature_rows]

    def loss(self, batch: Any, features: Any) -> Any:
        """Bradley-Terry loss of the pairs of a batch, as their share of a step's mean."""
        from dt2it_pipeline.reward.modeling.loss import bradley_terry

        scores = self.network(batch, features).view(-1, 2)
        return bradley_terry(scores[:, 0], scores[:, 1]).sum() / self.settings.global_batch_size

    def update(self) -> None:
        """Clip the gradients, take the optimiser's step and drop them."""
        import torch

        torch.nn.utils.clip_grad_norm_(self.trained, self.settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def run(case: Case) -> tuple[list[float], float]:
    """Pairs per second of each measured step, and the time at which the first step was done."""
    loop = Loop(case)
    first = 0.0

    def ready(step: int) -> Iterator[tuple[Any, Any]]:
        for examples in loop.passes(step * loop.settings.global_batch_size):
            batch = loop.read(examples).to(loop.device)
            yield batch, loop.features(batch) if loop.settings.cache_vision else None

    steps = [list(ready(step)) for step in range(min(_READY, case.warmup + case.steps))]
    rates = []
    for number in range(case.warmup + case.steps):
        synchronise(loop.device)
        began = time.perf_counter()
        for batch, features in steps[number % len(steps)]:
            loop.loss(batch, features).backward()
        loop.update()
        synchronise(loop.device)
        first = first or time.time()
        if number >= case.warmup:
            rates.append(loop.settings.global_batch_size / (time.perf_counter() - began))
    return rates, first


def profile(case: Case) -> dict[str, list[float]]:
    """Milliseconds of each part of a step, by part, of every measured step."""
    loop = Loop(case)
    parts: dict[str, list[float]] = {}
    spent: dict[str, float] = {}

    def timed(part: str, do: Callable[..., Any], *given: Any) -> Any:
        began = time.perf_counter()
        made = do(*given)
        synchronise(loop.device)
        spent[part] = spent.get(part, 0.0) + 1000 * (time.perf_counter() - began)
        return made

    for number in range(case.warmup + case.steps):
        spent.clear()
        for examples in loop.passes(number * loop.settings.global_batch_size):
            batch = timed("reading images", loop.read, examples)
            batch = timed("moving to the device", batch.to, loop.device)
            features = timed("vision encoder", loop.features, batch)
            loss = timed("decoder forward", loop.loss, batch, features)
            timed("backward", loss.backward)
        timed("optimiser", loop.update)
        if number >= case.warmup:
            for part, took in spent.items():
                parts.setdefault(part, []).append(took)
    return parts
