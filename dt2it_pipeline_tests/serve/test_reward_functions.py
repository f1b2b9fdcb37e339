"""Reward functions as the RL libraries call them. TRL is real; the bases of the others are small fakes, so that these
tests need no installation: test_rl_libraries.py has the real ones."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.serve import RewardClient
from dt2it_pipeline.serve.client import MODEL_ENV
from dt2it_pipeline.serve.conversations import ConversationError
from dt2it_pipeline.serve.trl_reward import reward_function
from dt2it_pipeline.serve.verl_reward import compute_score, shared_client
from dt2it_pipeline_tests.support.score_server import ScoreServer, score_server

RED = Image.new("RGB", (8, 8), "red")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScoreServer]:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with score_server() as made:
        monkeypatch.setenv(MODEL_ENV, made.url)
        shared_client.cache_clear()
        yield made
    shared_client.cache_clear()


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    """A module of a library that is not installed, and the packages above it."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    for key, value in attributes.items():
        setattr(sys.modules[name], key, value)


def loaded(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    monkeypatch.delitem(sys.modules, name, raising=False)
    made = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, made)  # forgotten behind the test, with its fake base
    return made


@pytest.mark.parametrize("asynchronous", [False, True])
def test_trl_calls_it_with_prompts_completions_and_columns(server: ScoreServer, asynchronous: bool) -> None:
    reward = reward_function(RewardClient(server.url), asynchronous=asynchronous, name="mine")
    logged: dict[str, float] = {}

    def call(prompts: list[Any], completions: list[Any], **columns: Any) -> Any:
        more = {"completion_ids": [[1]] * len(prompts), "trainer_state": None, "log_metric": logged.__setitem__}
        found = reward(prompts=prompts, completions=completions, **more, **columns)
        return asyncio.run(found) if asynchronous else found

    assert reward.__name__ == "mine"
    assert call(["q", "q"], ["one", ""]) == [3.0, None]
    assert logged == {"mine/unscored": 0.5}
    said = [[{"role": "assistant", "content": "four"}]]
    filled = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "q"}]}]
    for prompt, columns in (
        (filled, {"image": [RED]}),  # TRL fills the messages and hands the column on
        ([{"role": "user", "content": "q"}], {"images": [[RED]]}),
        ([{"role": "user", "content": "q"}], {"image": [RED]}),
        ("q", {"images": [[RED]]}),
    ):
        assert call([prompt], said, **columns) == [4.0]
        assert len(server.requests[-1]["images"]) == 1
        assert server.requests[-1]["prompt"] == [{"role": "user", "text": "<image>q"}]
    assert call(["q"], said, image=[None]) == [4.0]
    with pytest.raises(ConversationError, match=r"row 1 of the batch: .* places for 1 images"):
        call(["q", "<image>"], ["a", "b"])


@pytest.mark.heavy
def test_trl_can_be_imported_after_ours_in_a_fresh_process() -> None:
    """As the tutorial does; beside a torch for the CPU, torchvision's build for CUDA stops it elsewhere."""
    code = "from dt2it_pipeline.serve.trl_reward import reward_function\nfrom trl import GRPOConfig, GRPOTrainer"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300)


def test_a_reward_may_stand_for_what_has_none(server: ScoreServer) -> None:
    assert reward_function(RewardClient(server.url), unscored=-9.0)(["q"], [" "]) == [-9.0]


def test_verl_asks_for_one_answer(server: ScoreServer) -> None:
    info = {"prompt": [{"role": "user", "content": "<image>q"}], "images": [RED], "num_turns": 2}

    def score(answer: str, extra: Any) -> Any:
        return asyncio.run(compute_score(data_source="d", solution_str=answer, ground_truth="g", extra_info=extra))

    assert score("three", info) == {"score": 5.0, "scored": 1.0}
    assert score("one", {"question": "q"}) == {"score": 3.0, "scored": 1.0}
    assert score("", info) == {"score": 3.0, "scored": 0.0}  # the lowest so far
    with pytest.raises(ConversationError, match=r"neither `prompt` nor `question`.*RewardModelManager"):
        score("one", {})


def test_verl_hands_images_to_the_reward_manager(server: ScoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class RewardManagerBase:
        def __init__(self, config: Any, tokenizer: Any, compute_score: Any) -> None:
            self.tokenizer = tokenizer

    fake(monkeypatch, "verl.experimental.reward_loop.reward_manager.base", RewardManagerBase=RewardManagerBase)
    module = loaded(monkeypatch, "dt2it_pipeline.serve.verl_manager")
    decode = lambda tokens, skip_special_tokens: "x" * len(tokens)  # noqa: E731
    manager = module.RewardModelManager(
        config={}, tokenizer=SimpleNamespace(decode=decode), compute_score=None, reward_router_address=None
    )
    messages = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "q"}]}]
    item = SimpleNamespace(
        batch={"responses": torch.zeros(6), "attention_mask": torch.tensor([1, 1, 1, 1, 1, 1, 0, 0])},
        non_tensor_batch={"raw_prompt": messages},
    )
    found = asyncio.run(manager.run_single([item]))
    assert found == {"reward_score": 4.0, "reward_extra_info": {"score": 4.0, "scored": 1.0}}
    assert len(server.requests[-1]["images"]) == 1


def test_openrlhf_generates_and_is_given_the_reward(server: ScoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class SingleTurnAgentExecutor:
        def __init__(self, remote_rm_url: Any = None) -> None: ...

        async def execute(
            self, prompt: Any, label: Any, sampling_params: Any, max_length: int, hf_tokenizer: Any, llm_engine: Any,
            images: Any = None,
        ) -> dict[str, Any]:  # fmt: skip
            return {"observation_tokens": [0, 0, 5, 6, 7], "action_ranges": [(2, 5)], "reward": None, "images": images}

    fake(monkeypatch, "openrlhf.utils.agent", SingleTurnAgentExecutor=SingleTurnAgentExecutor)
    executor = loaded(monkeypatch, "dt2it_pipeline.serve.openrlhf_reward").AgentExecutor()
    prompt = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>q<|im_end|>\n<|im_start|>assistant\n"

    def execute(images: Any, prompt: str, text: str) -> Any:
        tokenizer = SimpleNamespace(decode=lambda tokens, skip_special_tokens: text if tokens == [5, 6, 7] else "?")
        return asyncio.run(
            executor.execute(
                prompt=prompt, label="", sampling_params=None, max_length=9, hf_tokenizer=tokenizer, llm_engine=None,
                images=images,
            )
        )  # fmt: skip

    for images in (RED, [RED]):
        found = execute(images, prompt, "three")
        assert (found["reward"], found["scores"]) == (5.0, 5.0)
        assert len(server.requests[-1]["images"]) == 1
    assert execute([None], "plain text", "")["reward"] == 5.0  # the lowest so far


def test_swift_finds_a_plugin(server: ScoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class ORM:
        def __init__(self, args: Any = None, **kwargs: Any) -> None:
            self.args = args

    orms: dict[str, Any] = {}
    fake(monkeypatch, "swift.rewards", ORM=ORM, orms=orms)
    loaded(monkeypatch, "dt2it_pipeline.serve.swift_reward")
    plugin = orms["dt2it"](args=None)
    rows = [[{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": text}] for text in ("one", "")]
    found = plugin(["one", ""], messages=rows, images=[[RED], [{"bytes": None, "path": "a.png"}]], trainer_state=None)
    assert found == [3.0, None]
    with pytest.raises(ConversationError, match="row 0 of the batch"):
        plugin(["one"], messages=[[{"role": "user", "content": "<image>"}]], images=None)


@pytest.mark.heavy
@pytest.mark.parametrize(("algorithm", "steps"), [("GRPO", 2), ("RLOO", 1)])
def test_trl_trains_a_policy_with_images_on_these_rewards(tmp_path: Path, algorithm: str, steps: int) -> None:
    """TRL itself, a step or two: the columns arrive, the rewards are the model's, and the policy moves."""
    ensure_torchvision()
    import datasets
    import torch
    import trl

    from dt2it_pipeline.reward import RewardModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    client = RewardClient(RewardModel.from_pretrained(model_path("demo"), new_head_seed=0))
    seen: list[float] = []
    inner = reward_function(client)

    def reward(**given: Any) -> list[float | None]:
        found = inner(**given)
        seen.extend(value for value in found if value is not None)
        return found

    for number, color in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{number}.png")
    rows = [
        {"prompt": [{"role": "user", "content": "what color is the shape?"}], "image": str(tmp_path / f"{number}.png")}
        for number in range(2)
    ]
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    settings = getattr(trl, f"{algorithm}Config")(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=8, num_generations=4, max_completion_length=12,
        max_steps=steps, learning_rate=1e-3, beta=0.0, temperature=1.5, use_cpu=True, bf16=False,
        gradient_checkpointing=False, save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    trainer = getattr(trl, f"{algorithm}Trainer")(
        model=str(model_path("demo")), reward_funcs=reward, args=settings, train_dataset=data
    )
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    logged = [entry["rewards/reward/mean"] for entry in trainer.state.log_history if "rewards/reward/mean" in entry]
    assert len(seen) == 8 * steps and len(set(seen)) > 1
    assert logged == pytest.approx([sum(seen[at : at + 8]) / 8 for at in range(0, len(seen), 8)], abs=1e-4)
    assert any(not torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
