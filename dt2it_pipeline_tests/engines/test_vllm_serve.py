"""The server command: its arguments, and a real server answering one request (marked heavy)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from dt2it_pipeline import store
from dt2it_pipeline.engines.vllm_serve import main, serve_arguments
from dt2it_pipeline.reward.card import write_card
from dt2it_pipeline.reward.distributed import free_port
from dt2it_pipeline.reward.model import RewardModel
from dt2it_pipeline_tests.reward.test_card import request_of
from dt2it_pipeline_tests.reward.tiny import make_tiny

ROOT = Path(__file__).resolve().parents[2]


def test_the_checkpoint_says_how_it_is_served(tmp_path: Path) -> None:
    (tmp_path / "reward_model.json").write_text('{"max_pixels": 4096}')
    made = serve_arguments(str(tmp_path), ["--port", "1"], on_cpu=True)
    assert made[:4] == ["serve", str(tmp_path), "--runner", "pooling"]
    assert json.loads(made[made.index("--mm-processor-kwargs") + 1]) == {"max_pixels": 4096}
    assert made[-3:] == ["--enforce-eager", "--port", "1"]
    given = serve_arguments(str(tmp_path), ["--mm-processor-kwargs={}", "--dtype", "bfloat16"], on_cpu=True)
    assert given == [
        "serve", str(tmp_path), "--runner", "pooling", "--enforce-eager", "--mm-processor-kwargs={}", "--dtype",
        "bfloat16",
    ]  # fmt: skip


def test_another_model_is_served_as_a_chat_endpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    made = serve_arguments(str(tmp_path), ["--port", "1"], on_cpu=True)
    assert made[:6] == ["serve", str(tmp_path), "--runner", "generate", "--served-model-name", str(tmp_path)]
    assert json.loads(made[made.index("--structured-outputs-config") + 1])["disable_any_whitespace"] is True
    assert "--no-enable-chunked-prefill" in made  # requests carry seeds: see vllm_engine._whole_prompts
    on_gpu = serve_arguments("some/model", ["--served-model-name=judge"], on_cpu=False)
    assert on_gpu[:4] == ["serve", "some/model", "--runner", "generate"]
    assert on_gpu[-1] == "--served-model-name=judge" and on_gpu.count("--served-model-name") == 0
    assert "--dtype" not in on_gpu and "--no-enable-chunked-prefill" not in on_gpu
    shipped = serve_arguments("demo", [], on_cpu=False)
    assert Path(shipped[1], "config.json").is_file() and shipped[5] == "demo"


def test_something_else_than_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"neither reward_model\.json .* nor config\.json"):
        serve_arguments(str(tmp_path), [], on_cpu=False)
    with pytest.raises(SystemExit, match="usage"):
        main([])


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize(
    "plain",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                "DT2IT_TEST_VLLM_COMMAND" not in os.environ,
                reason="minutes on a CPU, in an installation mended for it; set DT2IT_TEST_VLLM_COMMAND to run it",
            ),
        ),
    ],
    ids=["ours", "vllm-serve"],
)
def test_a_server_answers_the_request_of_the_card_with_our_score(tmp_path: Path, family: str, plain: bool) -> None:
    """Our command, and vLLM's own, `vllm serve DIR --runner pooling`, on the checkpoint as it is on disk."""
    import torch

    (tmp_path / "base").mkdir()
    model = RewardModel.from_pretrained(make_tiny(tmp_path / "base", family, hidden=128))
    model.card |= {"system_prompt": "You judge.", "max_pixels": 1024}
    model.head.weight.data *= 30
    folder = tmp_path / "checkpoint"
    with store.atomic_directory(folder) as out:
        model.save_pretrained(out)
        write_card(out, base_model="tiny")
    torch.set_num_threads(1)
    body = request_of((folder / "README.md").read_text())
    turns = [{"role": "user", "text": "<image>QUESTION"}]
    # vLLM's own command knows nothing of the pixels that the model was trained with: it takes the processor's.
    pixels = 65536 if plain else 1024
    asked = {"turns": turns, "images": [Image.new("RGB", (64, 64), "red")]}
    ours = RewardModel.from_pretrained(folder).score([asked], [["ANSWER"]], max_pixels=pixels)[0][0]

    port = free_port()
    command = ["vllm", "serve"] if plain else [sys.executable, "-m", "dt2it_pipeline.engines.vllm_serve"]
    command += [str(folder), "--max-model-len", "512", "--served-model-name", "CHECKPOINT"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if plain:
        command += ["--runner", "pooling", "--dtype", "float32"]  # else vLLM would compute in half precision
        environment = repaired(environment, tmp_path / "site") | {
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"
        }  # fmt: skip
        # No compilation, which takes minutes on a CPU, and one process less.
        command += ["--enforce-eager", "--distributed-executor-backend", "uni"]
    log = (tmp_path / "server.log").open("wb")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        answer = ask(f"http://127.0.0.1:{port}/classify", body, server, tmp_path / "server.log")
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()
    score = answer["data"][0]["probs"][0]
    print(f"{family}: ours {ours:.6f}, served {score:.6f}")
    assert score == pytest.approx(ours, abs=1e-5)


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


def ask(
    url: str, body: dict[str, object], server: subprocess.Popen[bytes], log: Path
) -> dict[str, list[dict[str, list[float]]]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    deadline = time.monotonic() + 500
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except OSError:
            assert server.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)
