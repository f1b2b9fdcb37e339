"""vLLM as the scoring engine: fast with a fake engine, and real vLLM on saved checkpoints (marked heavy)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.engines import lean_processes
from dt2it_pipeline.engines.launch.launcher import WorkerPlace
from dt2it_pipeline.engines.vllm_engine import EngineError, run_arguments
from dt2it_pipeline.engines.vllm_pooling import PoolingRequest
from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError
from dt2it_pipeline.reward.data.preparation import prompt_rows
from dt2it_pipeline.reward.errors import ScoringError
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.scoring import job as scoring_job
from dt2it_pipeline.reward.scoring import vllm_scorer
from dt2it_pipeline.reward.scoring.job import ScoreJob
from dt2it_pipeline.reward.scoring.vllm_scorer import VllmScorer
from dt2it_pipeline.storage import atomic, content_ids, schemas
from dt2it_pipeline_tests.support.tiny import make_prompt, make_tiny
from dt2it_pipeline_tests.support.tolerance import score_tolerance

SMALL_IMAGES = 1024  # pixels; less than most test images have, so that both sides must scale them down


class FakeEngine:
    """Scores a conversation by its length, and refuses some."""

    def __init__(self, refuse: int | None = None) -> None:
        self.refuse = refuse
        self.seen: list[PoolingRequest] = []

    def score(self, requests: Sequence[PoolingRequest]) -> list[float | EngineError]:
        self.seen += requests
        values: list[float | EngineError] = [float(len(r.token_ids)) for r in requests]
        if self.refuse is not None:
            values[self.refuse] = EngineError("too long for me")
        return values


def saved(folder: Path, family: str, hidden: int = 32) -> Path:
    (folder / "base").mkdir(parents=True)
    model = RewardModel.from_pretrained(make_tiny(folder / "base", family, hidden=hidden), new_head_seed=0)
    model.card |= {"system_prompt": "You judge.", "max_pixels": SMALL_IMAGES}
    model.head.weight.data *= 30  # spread the scores
    with atomic.atomic_directory(folder / "checkpoint") as out:
        model.save_pretrained(out)
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("fake"), "qwen3_vl")


def scorer(checkpoint: Path, media_root: str | Path, engine: Any, **changes: int) -> VllmScorer:
    settings = {"max_length": 512, "max_pixels": SMALL_IMAGES, "tokens_per_batch": 8192, "max_images": 2} | changes
    return VllmScorer(checkpoint, media_root, engine=engine, **settings)


def rows_of(tables: Mapping[str, str]) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    responses = atomic.read_parquet(tables["responses"], "responses").to_pylist()
    triples = [(row["response_id"], row["prompt_id"], row["text"]) for row in responses]
    return prompt_rows(atomic.read_parquet(tables["prompts"], "prompts"), {t[1] for t in triples}), triples


def test_one_placeholder_per_image_and_every_response_once(checkpoint: Path, tables: dict[str, str]) -> None:
    engine = FakeEngine()
    made = scorer(checkpoint, tables["media_root"], engine)
    prompts, responses = rows_of(tables)
    scores, faults = made.score(prompts, responses)
    assert set(scores) == {name for name, _, _ in responses}
    assert not faults
    placeholders = [request.token_ids.count(made.prompt_encoder.image_token) for request in engine.seen]
    assert placeholders == [len(request.images) for request in engine.seen]
    assert set(placeholders) == {0, 1, 2}


def test_what_cannot_be_scored_is_quarantined(checkpoint: Path, tables: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(tables["media_root"], tmp_path / "media")
    prompts, responses = rows_of(tables)
    shown = list(dict.fromkeys(p["media"][0]["path"] for p in prompts.values() if p["media"]))
    (tmp_path / "media" / shown[0]).unlink()
    (tmp_path / "media" / shown[1]).write_bytes((tmp_path / "media" / shown[1]).read_bytes()[:60])
    responses += [("r-stray", "p-unknown", "x"), ("r-long", responses[0][1], "red " * 600)]
    made = scorer(checkpoint, tmp_path / "media", FakeEngine(refuse=0))
    scores, faults = made.score(prompts, responses)
    assert set(scores) | set(faults) == {name for name, _, _ in responses}
    assert set(scores).isdisjoint(faults)
    assert {reason for reason, _ in faults.values()} == {
        "missing image", "unreadable image", "prompt not in the table", "longer than max_length", "refused by vLLM"
    }  # fmt: skip


def test_what_is_read_ahead_changes_nothing(
    checkpoint: Path, tables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tables["media_root"], tmp_path / "media")
    prompts, responses = rows_of(tables)
    shown = list(dict.fromkeys(medium["path"] for p in prompts.values() for medium in p["media"]))
    broken = tmp_path / "media" / shown[1]
    broken.write_bytes(broken.read_bytes()[:-40])  # the header is whole
    monkeypatch.setattr(vllm_scorer, "_CONVERSATIONS_AT_ONCE", 5)
    found: list[Any] = []
    for threads in (0, 3):
        monkeypatch.setattr(vllm_scorer, "threads_for", lambda device, threads=threads: threads)
        engine = FakeEngine()
        scores, faults = scorer(checkpoint, tmp_path / "media", engine).score(prompts, responses)
        asked = [(request.token_ids, [image.tobytes() for image in request.images]) for request in engine.seen]
        found.append((asked, scores, faults))
    assert found[0] == found[1]
    hit = {key for key, p in prompts.items() if shown[1] in [medium["path"] for medium in p["media"]]}
    assert set(found[0][2]) == {name for name, key, _ in responses if key in hit} != set()
    assert {reason for reason, _ in found[0][2].values()} == {"unreadable image"}


def test_without_a_limit_the_positions_of_the_model_are_the_limit(checkpoint: Path, tmp_path: Path) -> None:
    made = VllmScorer(
        checkpoint, tmp_path, max_length=None, max_pixels=10**6, tokens_per_batch=64, max_images=1, engine=FakeEngine()
    )
    assert made.max_length == 4096


def test_a_base_model_or_a_lost_head_is_refused(checkpoint: Path, base: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(CheckpointError, match="has no head"):
        scorer(base(), tmp_path, FakeEngine())
    shutil.copytree(checkpoint, tmp_path / "headless")
    weights = load_file(tmp_path / "headless" / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, tmp_path / "headless" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        scorer(tmp_path / "headless", tmp_path, FakeEngine())


def conversations(tables: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """The tables, and beside their prompts some with earlier turns, a system prompt of their own, and both."""
    prompts, responses = (atomic.read_parquet(tables[kind], kind).to_pylist() for kind in ("prompts", "responses"))
    shown = next(row["media"] for row in prompts if len(row["media"]) == 2)
    for media, system, earlier in [([], "", True), (shown[:1], "Look closely.", False), (shown, "Be brief.", True)]:
        row = make_prompt(media, "what colour", system)
        if earlier:
            row["turns"] = [*row["turns"], {"role": "assistant", "text": "red"}, {"role": "user", "text": "and shape"}]
            row["prompt_id"] = content_ids.prompt_id(system, row["turns"], [medium["sha256"] for medium in media])
        prompts.append(row)
        for text in ("the shape is red", "no"):
            name = content_ids.response_id(row["prompt_id"], text)
            made = {"response_id": name, "prompt_id": row["prompt_id"], "text": text, "generator": "test"}
            responses.append(made)
    atomic.write_parquet(schemas.table(prompts, "prompts"), folder / "prompts.parquet")
    atomic.write_parquet(schemas.table(responses, "responses"), folder / "responses.parquet")
    paths = {kind: folder / f"{kind}.parquet" for kind in ("prompts", "responses")}
    return paths | {"media_root": Path(tables["media_root"])}


def test_videos_are_refused_before_any_work(checkpoint: Path, tables: dict[str, str], tmp_path: Path) -> None:
    prompts, responses = (atomic.read_parquet(tables[kind], kind).to_pylist() for kind in ("prompts", "responses"))
    row = make_prompt([{"kind": "video", "sha256": "v", "path": "v.avi"}], "what moves")
    unasked = make_prompt([{"kind": "video", "sha256": "w", "path": "w.avi"}], "nobody answers this")
    name = content_ids.response_id(row["prompt_id"], "it")
    responses.append({"response_id": name, "prompt_id": row["prompt_id"], "text": "it", "generator": "test"})
    atomic.write_parquet(schemas.table([*prompts, row, unasked], "prompts"), tmp_path / "prompts.parquet")
    atomic.write_parquet(schemas.table(responses, "responses"), tmp_path / "responses.parquet")
    job = ScoreJob(
        checkpoint=str(checkpoint), prompts=tmp_path / "prompts.parquet", responses=tmp_path / "responses.parquet",
        media_root=Path(tables["media_root"]), voter="round-0", output=tmp_path / "out.parquet",
        work=tmp_path / "work", settings=ScoringSettings(engine="vllm"),
    )  # fmt: skip
    with pytest.raises(ScoringError, match=rf"vllm takes .* no video; 1 prompts .* {row['prompt_id']}"):
        scoring_job.run(job, lambda progress: None)
    assert not (tmp_path / "work").exists()


@pytest.mark.heavy
def test_the_engine_runs_as_the_recipe_says(tables: dict[str, str], tmp_path: Path) -> None:
    """The settings arrive in the configuration of a real engine; a quantisation that it does not know is its error."""
    paths = conversations(tables, tmp_path)
    settings = ScoringSettings(engine="vllm", gpu_memory_utilization=0.4, max_num_seqs=3)
    job = ScoreJob(
        checkpoint=str(saved(tmp_path, "qwen3_vl", hidden=128)), output=tmp_path / "out.parquet", voter="v",
        work=tmp_path / "work", settings=settings, **paths,
    )  # fmt: skip
    prompts = atomic.read_parquet(job.prompts, "prompts")
    configured = scoring_job._load(job, prompts, WorkerPlace("auto")).engine._llm.llm_engine.vllm_config
    assert configured.scheduler_config.max_num_seqs == 3
    assert configured.cache_config.gpu_memory_utilization == 0.4
    assert configured.parallel_config.tensor_parallel_size == 1
    other = job.model_copy(update={"settings": settings.model_copy(update={"quantization": "by_hand"})})
    with pytest.raises(EngineError, match="by_hand"):
        scoring_job._load(other, prompts, WorkerPlace("auto"))


def test_only_what_is_set_is_handed_to_vllm() -> None:
    assert run_arguments(ScoringSettings(engine="vllm")) == {"tensor_parallel_size": 1}
    set_all = ScoringSettings(
        engine="vllm", tensor_parallel=4, gpu_memory_utilization=0.5, max_num_seqs=8, quantization="fp8"
    )
    assert run_arguments(set_all) == {
        "tensor_parallel_size": 4, "gpu_memory_utilization": 0.5, "max_num_seqs": 8, "quantization": "fp8",
    }  # fmt: skip
    with pytest.raises(ValueError, match="max_num_seqs, quantization of scoring need engine: vllm"):
        ScoringSettings(max_num_seqs=8, quantization="fp8")


@pytest.mark.heavy
@pytest.mark.parametrize(("family", "processes"), [("qwen2_5_vl", 1), ("qwen3_vl", 2)])
def test_vllm_gives_our_scores(
    family: str, processes: int, tables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real vLLM on a checkpoint as it is on disk, in one process and in two; with shards resumed.

    No image, one and two, scaled down; earlier turns; the model's system prompt and the prompt's own.
    """
    paths = conversations(tables, tmp_path)
    folder = saved(tmp_path, family, hidden=128)

    def job_of(engine: str, processes: int) -> ScoreJob:
        settings = ScoringSettings(engine=engine, processes=processes, shard_responses=20, max_pixels=SMALL_IMAGES)
        return ScoreJob(
            checkpoint=str(folder), output=tmp_path / f"{engine}.parquet", voter="round-0",
            work=tmp_path / engine, settings=settings, **paths,
        )  # fmt: skip

    # Other tests of this process may need the packages that a scoring process hides.
    monkeypatch.setattr(lean_processes, "skip_unused", lambda: None)
    assert scoring_job.run(job_of("transformers", 1), lambda progress: None)["quarantined"] == 0
    job = job_of("vllm", processes)
    job.write(tmp_path / "job.json")
    done = subprocess.run(
        [sys.executable, "-m", "dt2it_pipeline.engines.jobs", str(tmp_path / "job.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["quarantined"] == 0
    found: dict[str, dict[str, float]] = {}
    for engine in ("transformers", "vllm"):
        table = atomic.read_parquet(tmp_path / f"{engine}.parquet", "scores")
        found[engine] = dict(
            zip(table.column("response_id").to_pylist(), table.column("score").to_pylist(), strict=True)
        )
    assert found["vllm"].keys() == found["transformers"].keys()
    differences = [abs(found["vllm"][name] - value) for name, value in found["transformers"].items()]
    print(f"{family}: largest difference {max(differences):.2e} over {len(differences)} responses")
    assert max(differences) < score_tolerance(RewardModel.from_pretrained(folder), tokens=512)
    values = found["transformers"].values()
    assert max(values) - min(values) > 1
    again = scoring_job.run(job, lambda progress: None)  # every shard is there: nothing is loaded
    assert again["shards_resumed"] == again["shards"] > 1
