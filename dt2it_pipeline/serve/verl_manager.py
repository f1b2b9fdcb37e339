"""A reward manager of verl that scores answers with their images (tested in verl 0.9.1).

    reward.reward_manager.source=importlib
    reward.reward_manager.name=RewardModelManager
    reward.reward_manager.module.path=pkg://dt2it_pipeline.serve.verl_manager

It sees the whole row: the messages of `raw_prompt`, with images in them. The model is named as in verl_reward.py. Only
verl imports this module.
"""

from __future__ import annotations

from typing import Any

from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from dt2it_pipeline.serve.conversations import as_prompt
from dt2it_pipeline.serve.verl_reward import scored, shared_client


class RewardModelManager(RewardManagerBase):
    """Asks a reward model about every answer."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **_: Any) -> None:
        super().__init__(config, tokenizer, compute_score)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Reward of the last sequence of one row; raises ConversationError for a prompt of another form."""
        item = data[-1:][0]
        tokens = item.batch["responses"]
        length = int(item.batch["attention_mask"][-tokens.shape[-1] :].sum())
        answer = self.tokenizer.decode(tokens[:length], skip_special_tokens=True)
        found = await scored(shared_client(), as_prompt(list(item.non_tensor_batch["raw_prompt"])), answer)
        return {"reward_score": found["score"], "reward_extra_info": found}
