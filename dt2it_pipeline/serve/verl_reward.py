"""A reward model as verl's custom reward function (tested in verl 0.9.1).

    reward.custom_reward_function.path=pkg://dt2it_pipeline.serve.verl_reward
    reward.custom_reward_function.name=compute_score

The environment variable DT2IT_REWARD_MODEL of the workers names the model: the URL of `dt2it serve`, or a folder. verl
hands such a function the answer and the row's `extra_info`, which must hold the prompt; where the prompt or its images
are not there, use the reward manager (verl_manager.py), which sees the whole row.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from dt2it_pipeline.serve.client import RewardClient
from dt2it_pipeline.serve.conversations import ConversationError, as_prompt


@functools.cache
def shared_client() -> RewardClient:
    """The client of this process, made when it is first asked for; errors are those of the client."""
    return RewardClient.from_environment()


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, float]:
    """The reward of one answer.

    Args:
        data_source: of the row; not used.
        solution_str: the answer.
        ground_truth: of the row; not used.
        extra_info: of the row: `prompt` (messages or a text) or `question` (a text), and `images` where there are any.

    Returns:
        `score`, and `scored`: 0.0 where the answer has no score of its own. It then gets the lowest one so far (0 where
        there is none), since verl needs a number.

    Raises:
        ConversationError: `extra_info` holds no prompt, or one that is not understood.
    """
    info = extra_info or {}
    prompt = info.get("prompt")
    prompt = info.get("question") if prompt is None else prompt
    if prompt is None:
        raise ConversationError(
            f"extra_info of a row of {data_source!r} holds neither `prompt` nor `question`, so it is not known what is "
            "answered: add one to the dataset, or use the reward manager RewardModelManager of "
            "dt2it_pipeline.serve.verl_manager"
        )
    return await scored(shared_client(), as_prompt(_plain(prompt), _plain(info.get("images"))), solution_str)


async def scored(client: RewardClient, prompt: Mapping[str, Any], answer: str) -> dict[str, float]:
    """Score and `scored` of one answer, as verl takes them; see `compute_score`."""
    (reward,) = await client.rewards_async([prompt], [answer])
    if reward is not None:
        return {"score": reward, "scored": 1.0}
    return {"score": client.lowest if client.lowest is not None else 0.0, "scored": 0.0}


def _plain(value: Any) -> Any:
    """Lists in place of the arrays in which verl keeps them."""
    return value.tolist() if hasattr(value, "tolist") else value
