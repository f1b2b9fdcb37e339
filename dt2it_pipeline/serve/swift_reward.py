"""A reward model as a plugin of ms-swift's GRPO (tested in ms-swift 4.6.0).

    swift rlhf --rlhf_type grpo --external_plugins .../dt2it_pipeline/serve/swift_reward.py --reward_funcs dt2it ...

`python -c "import dt2it_pipeline.serve as s; print(s.__path__[0])"` prints the folder. The environment variable
DT2IT_REWARD_MODEL names the model: the URL of `dt2it serve`, or a folder. A response without a score gets None, which
ms-swift leaves out. Only ms-swift imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swift.rewards import ORM, orms

from dt2it_pipeline.serve.client import RewardClient
from dt2it_pipeline.serve.conversations import ConversationError, as_prompt


class RewardModelORM(ORM):
    """Scores completions with their images."""

    def __init__(self, args: Any = None, **settings: Any) -> None:
        super().__init__(args, **settings)
        self._client: RewardClient | None = None

    def __call__(
        self, completions: Sequence[str], messages: Sequence[Sequence[dict[str, Any]]], images: Any = None, **_: Any
    ) -> list[float | None]:
        """Rewards of a batch.

        Args:
            completions: the answers.
            messages: conversations that end with the answer; texts hold `<image>`.
            images: list of images of each row, or None.

        Raises:
            ConversationError: a row has a form that is not understood.
        """
        if self._client is None:
            self._client = RewardClient.from_environment()
        prompts = []
        for row, conversation in enumerate(messages):
            asked = list(conversation)
            if asked and asked[-1].get("role") == "assistant":
                asked.pop()
            try:
                prompts.append(as_prompt(asked, None if images is None else images[row]))
            except ConversationError as error:
                raise ConversationError(f"row {row} of the batch: {error}") from None
        return self._client.rewards(prompts, list(completions))


orms["dt2it"] = RewardModelORM
