"""Reward functions in the released verl, OpenRLHF and ms-swift, called as these libraries call them: `make test-rl`.

Data travels in the libraries' own types, through the functions that load what a user names. What they need a GPU, Ray
or a served policy for is not run: the policy's answers are given.
"""

from __future__ import annotations

import asyncio
import base64
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import dt2it_pipeline.serve
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.serve.client import MODEL_ENV, RewardClient
from dt2it_pipeline.serve.conversations import ConversationError
from dt2it_pipeline.serve.verl_reward import shared_client
from dt2it_pipeline_tests.support.score_server import ScoreServer, score_server

pytestmark = pytest.mark.rl
SERVE = Path(dt2it_pipeline.serve.__file__).parent
ANSWERS = ["The shape is red.", "blue", "", "no" * 40]  # the server scores by length, and nothing above 50 characters


@pytest.fixture(autouse=True, scope="module")
def transformers() -> None:
    ensure_torchvision()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScoreServer]:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with score_server() as made:
        monkeypatch.setenv(MODEL_ENV, made.url)
        shared_client.cache_clear()
        yield made
    shared_client.cache_clear()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "red.png"
    Image.new("RGB", (64, 64), "red").save(file)
    return file


def directly(server: ScoreServer, image: Any) -> list[float | None]:
    """What a client gives for the same question and answers, and thereby what the server was asked."""
    question = {"turns": [{"role": "user", "text": "<image>What colour is it?"}], "images": [image]}
    (found,) = RewardClient(server.url).score([question], [ANSWERS])
    return found


def asked(server: ScoreServer) -> list[tuple[Any, Any]]:
    """Prompts and pixels of all requests; a library may hand on an image decoded, which is then encoded anew."""
    return [(request["prompt"], [pixels(image) for image in request["images"]]) for request in server.requests]


def pixels(data_uri: str) -> tuple[Any, ...]:
    image = Image.open(io.BytesIO(base64.b64decode(data_uri.partition(",")[2]))).convert("RGB")
    return image.size, image.tobytes()


# verl: its dataset builds the messages, its reward loop worker loads manager or function and is given a DataProto.


def verl_worker(**reward: Any) -> Any:
    from omegaconf import OmegaConf
    from verl.experimental.reward_loop import RewardLoopWorker

    defaults = {
        "custom_reward_function": {"path": None, "name": "compute_score"},
        "reward_manager": {"source": "register", "name": "naive", "module": {"path": None, "name": None}},
        "reward_model": {"enable": False},
    }
    config = {"actor_rollout_ref": {"model": {"path": str(model_path("demo")), "tokenizer_path": None}}}
    return RewardLoopWorker(OmegaConf.merge(config, {"reward": OmegaConf.merge(defaults, reward)}))


def verl_messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    from verl.utils.dataset.rl_dataset import RLHFDataset

    dataset = RLHFDataset.__new__(RLHFDataset)  # its constructor reads Parquet files and takes a processor
    dataset.processor = object()
    dataset.prompt_key, dataset.image_key, dataset.video_key, dataset.audio_key = "prompt", "images", "videos", "audios"
    found: list[dict[str, Any]] = dataset._build_messages(row, key="prompt")
    return found


def verl_data(worker: Any, answer: str, **columns: Any) -> Any:
    """One answer, as verl's agent loop hands it to a worker; two places of padding follow it."""
    import numpy as np
    import torch
    from tensordict import TensorDict
    from verl import DataProto

    prompt = torch.tensor([[1, 2, 3]])
    tokens = torch.tensor([worker.input_tokenizer.encode(answer, add_special_tokens=False)], dtype=torch.int64)
    responses = torch.nn.functional.pad(tokens, (0, 2))
    mask = torch.nn.functional.pad(torch.ones(1, 3 + tokens.shape[1], dtype=torch.int64), (0, 2))
    batch = TensorDict({"prompts": prompt, "responses": responses, "attention_mask": mask}, batch_size=1)
    columns = {"data_source": "d", "reward_model": {"ground_truth": "red"}, **columns}
    return DataProto(batch=batch, non_tensor_batch={key: np.array([value]) for key, value in columns.items()})


def verl_image(form: str, file: Path) -> Any:
    """An image as a row of verl's Parquet files holds it, or as `datasets` decodes it."""
    if form == "bytes":
        return {"bytes": file.read_bytes(), "path": None}
    return Image.open(io.BytesIO(file.read_bytes())) if form == "PIL" else {"image": str(file)}


@pytest.mark.parametrize("form", ["bytes", "PIL", "file"])
def test_verl_scores_with_the_manager(server: ScoreServer, image: Path, form: str) -> None:
    manager = {"source": "importlib", "name": "RewardModelManager"}
    worker = verl_worker(
        reward_manager={**manager, "module": {"path": "pkg://dt2it_pipeline.serve.verl_manager", "name": None}}
    )
    row = {"prompt": [{"role": "user", "content": "<image>What colour is it?"}], "images": [verl_image(form, image)]}
    messages = verl_messages(row)
    data = [verl_data(worker, answer, raw_prompt=messages) for answer in ANSWERS]

    async def rewards() -> list[dict[str, Any]]:
        return [await worker.compute_score(one) for one in data]

    found = worker.loop.run_until_complete(rewards())
    requests = asked(server)
    expected = directly(server, image)
    assert expected == [17.0, 4.0, None, None]
    assert [one["reward_score"] for one in found] == [17.0, 4.0, 4.0, 4.0]  # the lowest so far for what has none
    assert [one["reward_extra_info"]["scored"] for one in found] == [1.0, 1.0, 0.0, 0.0]
    assert requests and all(request == asked(server)[-1] for request in requests)
    scores = worker.reward_manager.assemble_rm_scores(data[0], [found[0]["reward_score"]])
    length = int(data[0].batch["attention_mask"][0, 3:].sum())
    assert scores[0, length - 1] == 17.0 and scores.sum() == 17.0


def test_verl_scores_with_the_function(server: ScoreServer, image: Path) -> None:
    worker = verl_worker(
        custom_reward_function={"path": "pkg://dt2it_pipeline.serve.verl_reward", "name": "compute_score"}
    )
    info = {"prompt": [{"role": "user", "content": "<image>What colour is it?"}], "images": [str(image)], "index": 0}
    found = worker.loop.run_until_complete(worker.compute_score(verl_data(worker, ANSWERS[0], extra_info=info)))
    requests = asked(server)
    assert found["reward_score"] == directly(server, image)[0]
    assert requests == asked(server)[:1] == asked(server)[1:]
    with pytest.raises(ConversationError, match="RewardModelManager"):
        worker.loop.run_until_complete(worker.compute_score(verl_data(worker, "red", extra_info={"index": 0})))


# OpenRLHF: its engine loads the file, and calls the executor with a processor and itself.


class Engine:
    """Answers as OpenRLHF's engine does, with given texts."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.answers = list(ANSWERS)
        self.images: list[int] = []

    async def generate(self, prompt_token_ids: list[int], sampling_params: Any, multi_modal_data: Any = None) -> Any:
        self.images.append(len((multi_modal_data or {}).get("image", [])))
        tokens = self.tokenizer.encode(self.answers.pop(0) + "<|im_end|>", add_special_tokens=False)
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, finish_reason="stop", logprobs=None)])


@pytest.mark.parametrize("form", ["path", "list", "PIL"])
def test_openrlhf_scores_with_the_executor(server: ScoreServer, image: Path, form: str) -> None:
    from openrlhf.trainer.ray.vllm_engine import _load_agent_executor
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model_path("demo"))
    content = [{"type": "image"}, {"type": "text", "text": "What colour is it?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    executor = _load_agent_executor(str(SERVE / "openrlhf_reward.py"))
    engine = Engine(processor.tokenizer)
    images = {"path": str(image), "list": [str(image)], "PIL": [Image.open(image)]}[form]
    found = [
        asyncio.run(
            executor.execute(
                prompt=prompt, label="red", sampling_params=SimpleNamespace(max_tokens=64, logprobs=None),
                max_length=512, hf_tokenizer=processor, llm_engine=engine, images=images,
            )
        )
        for _ in ANSWERS
    ]  # fmt: skip
    requests = asked(server)
    assert directly(server, image)[:2] == [17.0, 4.0]
    assert [one["reward"] for one in found] == [one["scores"] for one in found] == [17.0, 4.0, 4.0, 4.0]
    assert requests and all(request == asked(server)[-1] for request in requests)
    assert engine.images == [1] * len(ANSWERS)
    assert all("pixel_values" in one["mm_train_inputs"] for one in found)


# ms-swift: its loader imports the plugin, its registry names it, and its scoring function calls it.


@pytest.fixture
def swift_plugin() -> Iterator[Any]:
    from swift.rewards import orms
    from swift.utils import import_external_file

    before = list(sys.path)
    import_external_file(str(SERVE / "swift_reward.py"))
    yield orms["dt2it"]
    sys.path[:] = before


@pytest.mark.parametrize("form", ["bytes", "PIL", "path"])
def test_swift_scores_with_the_plugin(server: ScoreServer, image: Path, swift_plugin: Any, form: str) -> None:
    import torch
    from swift.rl_core.data import GRPOSample
    from swift.rl_core.grpo_algorithm import score_completions

    held = {
        "bytes": {"bytes": image.read_bytes(), "path": None},
        "PIL": Image.open(image),
        "path": {"bytes": None, "path": str(image)},
    }[form]
    turn = {"role": "user", "content": "<image>What colour is it?"}
    samples = [
        GRPOSample.from_row(
            {"messages": [turn, {"role": "assistant", "content": answer}], "images": [held], "solution": "red"}
        )
        for answer in ANSWERS
    ]
    found = score_completions(
        samples, reward_funcs=[swift_plugin(args=None)], reward_model_plugins=[None], use_gym_env=False,
        device=torch.device("cpu"),
    )  # fmt: skip
    requests = asked(server)
    expected = [float("nan") if score is None else score for score in directly(server, image)]
    assert found[:, 0].tolist() == pytest.approx(expected, nan_ok=True)
    assert len(requests) == 1  # equal prompts of a batch
    assert requests[0] == asked(server)[-1]
