"""The server command: its arguments, and a real server giving our scores (marked heavy)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import MagicMock

import httpx
import numpy as np
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image
from safetensors.numpy import save_file

from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError
from dt2it_pipeline.reward.checkpoints.model_card import write_card
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.serve.vllm_server import ServeError, require_model, serve_arguments
from dt2it_pipeline.storage import atomic
from dt2it_pipeline_tests.support.benchmark_world import arguments, make_world
from dt2it_pipeline_tests.support.card_requests import request_of
from dt2it_pipeline_tests.support.commands import dt2it, failing
from dt2it_pipeline_tests.support.served import served

ROOT = Path(__file__).resolve().parents[2]


def reward_model_files(folder: Path) -> None:
    """Config, head and card of a reward model in our layout."""
    config = {
        "architectures": ["Qwen3VLForSequenceClassification"], "model_type": "qwen3_vl",
        "text_config": {"hidden_size": 4},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"score.weight": np.ones((1, 4), np.float32)}, folder / "model.safetensors")
    (folder / "reward_model.json").write_text('{"max_pixels": 4096}')


GUARD = "dt2it_pipeline.serve.key_guard.KeyGuard"
ROUTE = "dt2it_pipeline.serve.score_route.ScoreResponses"
HOST = ["--host", "127.0.0.1"]
ENDING = ["--shutdown-timeout", "30"]


def test_the_checkpoint_says_how_it_is_served(tmp_path: Path) -> None:
    reward_model_files(tmp_path)
    made = serve_arguments(str(tmp_path), ["--port", "1"], on_cpu=True)
    layers = ["--middleware", ROUTE, "--middleware", GUARD]  # the guard is outermost
    assert made[:12] == ["serve", str(tmp_path), *HOST, *layers, *ENDING, "--runner", "pooling"]
    assert made[-3:] == ["--enforce-eager", "--port", "1"]
    given = serve_arguments(str(tmp_path), ["--mm-processor-kwargs={}", "--dtype", "bfloat16"], on_cpu=True)
    assert given == [
        "serve", str(tmp_path), *HOST, *layers, *ENDING, "--runner", "pooling", "--enforce-eager",
        "--mm-processor-kwargs={}", "--dtype", "bfloat16",
    ]  # fmt: skip


def test_a_reward_model_without_a_card_is_one_by_its_head(tmp_path: Path) -> None:
    reward_model_files(tmp_path)
    (tmp_path / "reward_model.json").unlink()
    made = serve_arguments(str(tmp_path), [], on_cpu=False)
    assert made[-2:] == ["--runner", "pooling"] and ROUTE in made


def test_a_reward_model_that_vllm_would_not_score_with_is_refused(tmp_path: Path) -> None:
    """Its head would be a random one, or it would be served as a chat model."""
    reward_model_files(tmp_path)
    convert = f"dt2it convert {tmp_path} DESTINATION"
    config = json.loads((tmp_path / "config.json").read_text())
    generates = config | {"architectures": ["Qwen3VLForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(generates))  # as ms-swift leaves it
    (tmp_path / "reward_model.json").unlink()
    with pytest.raises(CheckpointError, match=convert):
        serve_arguments(str(tmp_path), [], on_cpu=False)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").rename(tmp_path / "other")
    save_file({"v_head.summary.weight": np.ones((1, 4), np.float32)}, tmp_path / "value_head.safetensors")
    with pytest.raises(CheckpointError, match=convert):
        serve_arguments(str(tmp_path), [], on_cpu=False)
    (tmp_path / "value_head.safetensors").unlink()
    (tmp_path / "reward_model.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no head"):
        serve_arguments(str(tmp_path), [], on_cpu=False)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is an adapter, .*dt2it convert"):
        serve_arguments(str(tmp_path), [], on_cpu=False)


def test_another_model_is_served_as_a_chat_endpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    made = serve_arguments(str(tmp_path), ["--port", "1"], on_cpu=True)
    start = ["serve", str(tmp_path), *HOST, "--middleware", GUARD, *ENDING]
    assert made[:12] == [*start, "--runner", "generate", "--served-model-name", str(tmp_path)]
    assert ROUTE not in made
    assert json.loads(made[made.index("--structured-outputs-config") + 1])["disable_any_whitespace"] is True
    assert "--no-enable-chunked-prefill" in made  # requests carry seeds: see vllm_engine._whole_prompts
    on_gpu = serve_arguments("some/model", ["--served-model-name=judge"], on_cpu=False)
    assert on_gpu[:2] == ["serve", "some/model"] and on_gpu[on_gpu.index("--runner") + 1] == "generate"
    assert on_gpu[-1] == "--served-model-name=judge" and on_gpu.count("--served-model-name") == 0
    assert "--dtype" not in on_gpu and "--no-enable-chunked-prefill" not in on_gpu
    shipped = serve_arguments("demo", [], on_cpu=False)
    assert Path(shipped[1], "config.json").is_file()
    assert shipped[shipped.index("--served-model-name") + 1] == "demo"


def test_something_else_than_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"neither reward_model\.json .* nor config\.json"):
        serve_arguments(str(tmp_path), [], on_cpu=False)
    assert "neither reward_model.json" in failing("serve", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "VLLM_API_KEY" in failing("serve", tmp_path, "--host", "0.0.0.0")
    assert "Missing argument 'MODEL'" in failing("serve", code=2)
    assert "MODEL comes first" in failing("serve", "--port", 1, tmp_path, code=2)


def test_a_model_that_is_nowhere_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models--some--model" / "snapshots").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for there in ("demo", str(tmp_path), "some/model", "s3://bucket/model"):
        require_model(there)
    assert failing("serve", "some/none") == (
        "some/none is no folder here and not in the Hub's cache on this machine, and HF_HUB_OFFLINE keeps it from "
        "being fetched; `HF_HUB_OFFLINE=0 hf download some/none` fetches it"
    )
    for name in (str(tmp_path / "none"), "CHECKPOINT"):
        assert failing("serve", name) == f"{name} is no folder here, and no id of a model on the Hub (owner/name)"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RepositoryNotFoundError("404", response=MagicMock()), "the Hub shows no model of that name"),
        (TimeoutError("no answer"), "the Hub cannot be asked for it: TimeoutError: no answer"),
    ],
)
def test_the_hub_is_asked_once_and_not_for_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, words: str
) -> None:
    asked: list[tuple[str, float]] = []

    def model_info(name: str, *, timeout: float) -> None:
        asked.append((name, timeout))
        raise error

    monkeypatch.setattr("huggingface_hub.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert words in failing("serve", "some/none")
    assert asked == [("some/none", 10.0)]


@dataclass(frozen=True)
class Served:
    """A checkpoint with its benchmark rows in `root`, and the server that holds it at `url`."""

    root: Path
    url: str

    @property
    def checkpoint(self) -> Path:
        return self.root / "ours"


PLAIN = pytest.mark.skipif(
    "DT2IT_TEST_VLLM_COMMAND" not in os.environ,
    reason="minutes on a CPU, in an installation mended for it; set DT2IT_TEST_VLLM_COMMAND to run it",
)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("qwen3_vl", False), id="ours"),
        pytest.param(("qwen3_vl", True), marks=PLAIN, id="vllm-serve"),
        pytest.param(("qwen2_5_vl", True), marks=PLAIN, id="vllm-serve-qwen2_5_vl"),
    ],
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Our command, and vLLM's own, `vllm serve DIR --runner pooling`, on the checkpoint as it is on disk."""
    family, plain = request.param
    root = tmp_path_factory.mktemp("served")
    make_world(root, family, hidden=128)  # the least that vLLM's attention takes on a CPU
    write_card(root / "ours", base_model="tiny")
    options = ["--max-model-len", "512", "--served-model-name", "CHECKPOINT"]
    if not plain:
        with served(root / "ours", root / "server.log", *options) as url:
            yield Served(root, url)
        return
    options += ["--runner", "pooling", "--dtype", "float32"]  # else vLLM would compute in half precision
    options += ["--enforce-eager"]  # no compilation, which takes minutes on a CPU
    environment = repaired(dict(os.environ), root / "site") | {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"
    }  # fmt: skip
    command = ("vllm", "serve")
    with served(root / "ours", root / "server.log", *options, command=command, environment=environment) as url:
        yield Served(root, url)


@pytest.mark.heavy
def test_a_server_answers_the_request_of_the_card_with_our_score(server: Served) -> None:
    import torch

    torch.set_num_threads(1)
    body = request_of((server.checkpoint / "README.md").read_text())
    turns = [{"role": "user", "text": "<image>QUESTION"}]
    asked = {"turns": turns, "images": [Image.new("RGB", (64, 64), "red")]}
    model = RewardModel.from_pretrained(server.checkpoint)
    ours = model.score([asked], [["ANSWER"]])[0][0]
    answer = httpx.post(f"{server.url}/classify", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    score = answer.json()["data"][0]["probs"][0]
    print(f"ours {ours:.6f}, served {score:.6f}")
    assert score == pytest.approx(ours, abs=1e-5)


@pytest.mark.heavy
def test_the_benchmark_command_scores_a_served_checkpoint_as_the_checkpoint(server: Served, tmp_path: Path) -> None:
    for name, model in (("served", server.url), ("loaded", str(server.checkpoint))):
        told = dt2it(*arguments(server.root, model, tmp_path / name, max_pixels=None))
        assert told.startswith("images: scaled down to at most 1,024 pixels, as in training")
    scored, loaded = (atomic.read_parquet(tmp_path / n / "results.parquet").to_pandas() for n in ("served", "loaded"))
    for side in ("chosen_score", "rejected_score"):
        assert scored[side].tolist() == pytest.approx(loaded[side].tolist(), abs=1e-4)
    assert loaded["chosen_score"].nunique() > 1


def repaired(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """An environment in which `vllm` starts here: what is wrong is the installation, none of it the checkpoint.

    The CPU build of vLLM is the package `vllm-cpu`, and its own command asks for the version of a package `vllm`.
    torchvision is a CUDA build beside a torch without CUDA. Where neither holds, nothing is changed.
    """
    from importlib.metadata import PackageNotFoundError, version

    folder.mkdir()
    hook = "from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision\nensure_torchvision()\n"
    (folder / "sitecustomize.py").write_text(hook)
    try:
        version("vllm")
    except PackageNotFoundError:
        found = version("vllm-cpu").partition("+")[0]
        metadata = folder / f"vllm-{found}+cpu.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {found}+cpu\n")
    path = [str(folder), str(ROOT), *filter(None, [environment.get("PYTHONPATH", "")])]
    return environment | {"PYTHONPATH": os.pathsep.join(path)}
