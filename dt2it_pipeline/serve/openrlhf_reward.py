"""A reward model as an agent of OpenRLHF, which hands images on, unlike its reward functions.

Tested in OpenRLHF 0.11.2.

    python -m openrlhf.cli.train_ppo_ray --train.agent_func_path .../dt2it_pipeline/serve/openrlhf_reward.py ...

`python -c "import dt2it_pipeline.serve as s; print(s.__path__[0])"` prints the folder. The environment variable
DT2IT_REWARD_MODEL of the workers names the model: the URL of `dt2it serve`, or a folder. Only OpenRLHF imports this
module.
"""

from __future__ import annotations

from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

from dt2it_pipeline.serve.client import RewardClient
from dt2it_pipeline.serve.conversations import as_prompt, parse_chatml


class AgentExecutor(SingleTurnAgentExecutor):
    """Generates as OpenRLHF does by itself, and asks a reward model about the answer.

    Prompts are read back from the chat template of the Qwen family; for another one override `conversation`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._client: RewardClient | None = None

    def conversation(self, prompt: str, images: list[Any]) -> dict[str, Any]:
        """The prompt as the client takes it; raises ConversationError where images and places differ in number."""
        return as_prompt(parse_chatml(prompt), images)

    async def execute(
        self,
        prompt: str,
        label: Any,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        """Generate one answer and score it; an answer without a score gets the lowest one so far (0 before any)."""
        found: dict[str, Any] = await super().execute(
            prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images
        )
        if self._client is None:
            self._client = RewardClient.from_environment()
        start, end = found["action_ranges"][-1]
        answer = hf_tokenizer.decode(found["observation_tokens"][start:end], skip_special_tokens=True)
        shown = [image for image in (images if isinstance(images, list) else [images]) if image is not None]
        (reward,) = await self._client.rewards_async([self.conversation(prompt, shown)], [answer])
        if reward is None:
            reward = self._client.lowest if self._client.lowest is not None else 0.0
        return found | {"reward": reward, "scores": reward}
