"""One checkpoint, one score: in the pipeline, notebooks and commands, and behind a real vLLM server (marked heavy)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dt2it_pipeline_tests.serve.test_vllm_server import PLAIN, repaired
from dt2it_pipeline_tests.support import parity
from dt2it_pipeline_tests.support.parity import Questions, Scores
from dt2it_pipeline_tests.support.real_data import FOLDER
from dt2it_pipeline_tests.support.served import OUR_COMMAND, served

FLOAT32 = 1e-5  # largest difference, in standard deviations of the scores
LIMITS = (65_536, 4_096)  # pixels, above and below the trained size


@dataclass(frozen=True)
class World:
    """A checkpoint, the questions to it with our scores, and the server that holds it."""

    checkpoint: Path
    questions: Questions
    scores: Scores
    url: str
    ours: bool  # whether `dt2it serve` serves it

    def differ(self, other: Scores, reference: Scores | None = None) -> dict[str, float]:
        return parity.differences(self.scores if reference is None else reference, other, self.questions.kind_of)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("qwen2_5_vl", False), id="dt2it-serve"),
        pytest.param(("qwen3_vl", True), marks=PLAIN, id="vllm-serve"),
        pytest.param(("qwen2_5_vl", True), marks=PLAIN, id="vllm-serve-qwen2_5_vl"),
    ],
)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    import torch

    torch.set_num_threads(1)
    family, plain = request.param
    root = tmp_path_factory.mktemp("parity")
    checkpoint = parity.make_checkpoint(root, family)
    photos = FOLDER / "photos"
    questions = parity.make_questions(root / "media", photos if photos.is_dir() else None)
    scores = parity.by_pipeline(checkpoint, questions)
    options = ["--max-model-len", "4096", "--trust-request-mm-kwargs"]  # positions of the tiny model
    command: Sequence[str] = OUR_COMMAND
    environment = dict(os.environ)
    if plain:
        options += ["--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
        command = ("vllm", "serve")
        environment = repaired(environment, root / "site")
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with served(checkpoint, root / "server.log", *options, command=command, environment=environment) as url:
        yield World(checkpoint, questions, scores, url, not plain)


@pytest.mark.heavy
def test_a_checkpoint_has_one_score_wherever_it_is_asked(world: World, tmp_path: Path) -> None:
    checkpoint, questions = world.checkpoint, world.questions
    found = {
        "notebook": world.differ(parity.by_notebook(checkpoint, questions)),
        "command": world.differ(parity.by_command(str(checkpoint), questions, tmp_path / "folder")),
        "client": world.differ(parity.by_client(world.url, questions)),
        "command, URL": world.differ(parity.by_command(world.url, questions, tmp_path / "url")),
        "requests": world.differ(parity.by_plain_requests(world.url, questions)),
    }
    if world.ours:
        found["rewards"] = world.differ(parity.by_rewards(str(checkpoint), questions))
        found["rewards, URL"] = world.differ(parity.by_rewards(world.url, questions))
        found["/score-responses"] = world.differ(parity.by_score_responses(world.url, questions))
    print(parity.table(found, list(dict.fromkeys(questions.kinds.values()))))
    clipped = found["requests"].pop("16-bit")  # vLLM's decoder clips 16-bit values; our client sends them scaled
    assert clipped > 0.1, "vLLM scales 16-bit values now: docs/results/parity.md and score_endpoint._content say not"
    worst = {way: max(differences.items(), key=lambda item: item[1]) for way, differences in found.items()}
    assert all(value < FLOAT32 for _, value in worst.values()), worst


@pytest.mark.heavy
def test_another_image_size_is_the_same_one_behind_a_server(world: World) -> None:
    for limit in LIMITS:
        ours = parity.by_pipeline(world.checkpoint, world.questions, max_pixels=limit)
        assert max(world.differ(ours).values()) > 0.01  # it shows
        asked = parity.by_client(world.url, world.questions, max_pixels=limit)
        assert max(world.differ(asked, ours).values()) < FLOAT32
