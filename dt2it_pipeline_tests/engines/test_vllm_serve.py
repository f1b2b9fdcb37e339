"""The server command: its arguments, and a real server answering one request (marked heavy)."""

from __future__ import annotations

import base64
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

from dt2it_pipeline import store
from dt2it_pipeline.engines.vllm_serve import main, serve_arguments
from dt2it_pipeline_tests.reward.tiny import make_pictures, make_prompt, make_tiny


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


def test_something_else_than_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no reward_model\.json"):
        serve_arguments(str(tmp_path), [], on_cpu=False)
    with pytest.raises(SystemExit, match="usage"):
        main([])


@pytest.mark.heavy
def test_a_server_answers_with_our_score(tmp_path: Path) -> None:
    import torch

    from dt2it_pipeline.reward.distributed import free_port
    from dt2it_pipeline.reward.model import RewardModel
    from dt2it_pipeline.reward.scorer import Scorer

    (tmp_path / "base").mkdir()
    model = RewardModel.from_pretrained(make_tiny(tmp_path / "base", hidden=128))
    model.card |= {"system_prompt": "You judge.", "max_pixels": 1024}
    model.head.weight.data *= 30
    folder = tmp_path / "checkpoint"
    with store.atomic_directory(folder) as out:
        model.save_pretrained(out)
    media = make_pictures(tmp_path / "media", 2)[1:]
    torch.set_num_threads(1)
    scorer = Scorer(folder, tmp_path / "media", max_tokens=512, max_pixels=1024, tokens_per_batch=4096)
    ours, _ = scorer.score({"p": make_prompt(media, "what colour is the shape")}, [("r", "p", "it looks red")])

    port = free_port()
    command = [sys.executable, "-m", "dt2it_pipeline.engines.vllm_serve", str(folder), "--max-model-len", "512"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    log = (tmp_path / "server.log").open("wb")
    server = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, start_new_session=True
    )
    try:
        picture = base64.b64encode((tmp_path / "media" / media[0]["path"]).read_bytes()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            {"type": "text", "text": "what colour is the shape"},
        ]
        turns = [{"role": "system", "content": "You judge."}, {"role": "user", "content": content}]
        turns.append({"role": "assistant", "content": "it looks red"})
        body = {"model": str(folder), "messages": turns, "add_generation_prompt": False}
        answer = ask(f"http://127.0.0.1:{port}/classify", body, server, tmp_path / "server.log")
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()
    assert answer["data"][0]["probs"][0] == pytest.approx(ours["r"], abs=1e-4)


def ask(
    url: str, body: dict[str, object], server: subprocess.Popen[bytes], log: Path
) -> dict[str, list[dict[str, list[float]]]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    deadline = time.monotonic() + 300
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
