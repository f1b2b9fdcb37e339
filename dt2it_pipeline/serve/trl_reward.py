"""A reward model as a reward function of TRL's GRPO and RLOO trainers (tested in TRL 1.16).

    trainer = GRPOTrainer(model=..., reward_funcs=reward_function(RewardClient("http://127.0.0.1:8000")), ...)

TRL calls it with prompts and completions (texts or lists of messages) and every column of the dataset; images are in
the prompts' messages, and in the column `image` or `images`. A response without a score gets None, which TRL leaves out
of its group's mean and gives no advantage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.serve.conversations import ConversationError, as_prompt, response_text

ensure_torchvision()  # so that TRL can be imported after this, beside a torch for the CPU, too

if TYPE_CHECKING:
    from dt2it_pipeline.serve.client import RewardClient


def reward_function(
    client: RewardClient,
    *,
    asynchronous: bool = False,
    unscored: float | None = None,
    name: str = "reward_model",
) -> Callable[..., Any]:
    """A function for `reward_funcs`.

    Args:
        client: that scores.
        asynchronous: make a coroutine function; TRL runs several of these at the same time.
        unscored: reward of a response without a score; None: it does not count.
        name: under which TRL logs the rewards.

    Returns:
        A function of prompts, completions and columns that gives a reward per completion. It raises ConversationError
        where a row has a form that is not understood, and what the client raises.
    """

    def filled(rewards: Sequence[float | None], log_metric: Callable[[str, float], None] | None) -> list[float | None]:
        if log_metric is not None:
            log_metric(f"{name}/unscored", sum(reward is None for reward in rewards) / max(1, len(rewards)))
        return [unscored if reward is None else reward for reward in rewards]

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        texts = [response_text(completion) for completion in completions]
        return filled(client.rewards(_prompts(prompts, columns), texts), columns.get("log_metric"))

    async def reward_async(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        texts = [response_text(completion) for completion in completions]
        return filled(await client.rewards_async(_prompts(prompts, columns), texts), columns.get("log_metric"))

    made: Callable[..., Any] = reward_async if asynchronous else reward
    made.__name__ = name
    return made


def _prompts(prompts: Sequence[Any], columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Prompts as the client takes them."""
    images = columns.get("images")
    if images is None and (single := columns.get("image")) is not None:
        images = [None if image is None else [image] for image in single]
    made = []
    for row, prompt in enumerate(prompts):
        try:
            made.append(as_prompt(prompt, _unshown(prompt, None if images is None else images[row])))
        except ConversationError as error:
            raise ConversationError(f"row {row} of the batch: {error}") from None
    return made


def _unshown(prompt: Any, images: Any) -> Sequence[Any] | None:
    """Images that are not in the prompt's messages; TRL puts them there, and hands the column on all the same."""
    if images is None:
        return None
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    if isinstance(prompt, str):
        return images
    parts = [part for message in prompt if isinstance(message.get("content"), list) for part in message["content"]]
    filled = [part for part in parts if part.get("type") == "image" and part.get("image") is not None]
    return None if filled else images
