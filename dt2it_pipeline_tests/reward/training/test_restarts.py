"""What a training does where memory runs out, or a kernel does not fit the GPU. Trainings and their processes are real;
only the error is made, at a forward pass of many rows (support/small_memory.py) or by the compiler (small_card.py).
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dt2it_pipeline.config.sections.training import LoraSettings
from dt2it_pipeline.engines.device import DeviceError
from dt2it_pipeline.engines.jobs import Summary
from dt2it_pipeline.engines.launch.launcher import JobFailed, Resources
from dt2it_pipeline.engines.launch.local_launcher import LocalLauncher
from dt2it_pipeline.observe.memory import ran_out
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.modeling.model import RewardNetwork
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.training.job import MicroBatch, TrainJob
from dt2it_pipeline.reward.training.restarts import Place, launch_training, memory_error, note_fallback
from dt2it_pipeline.reward.training.train import run, weights_digest
from dt2it_pipeline_tests.support.small_card import NEED, no_kernels
from dt2it_pipeline_tests.support.training_jobs import FORKS, changed, log_of, with_settings

NOTE = "out_of_memory.json"
FULL = Place("at step 3", examples=4, pairs=4, cells=1000)


class Launches:
    """Launches a job in ranks whose memory is small, and counts."""

    def __init__(self, folder: Path, ranks: int = 1, **faults: int) -> None:
        self.folder, self.ranks, self.jobs, self.lines = folder, ranks, list[TrainJob](), list[str]()
        environment = {"OMP_NUM_THREADS": "1"} | {f"SMALL_MEMORY_{key.upper()}": str(n) for key, n in faults.items()}
        worker = "dt2it_pipeline_tests.support.small_memory"
        self.launcher = LocalLauncher(worker, environment, on_line=[].append, forks=FORKS)

    def __call__(self, job: TrainJob) -> Summary:
        self.jobs.append(job)
        return self.launcher.launch(job, work=self.folder, resources=Resources(self.ranks))

    def train(self, job: TrainJob) -> Summary:
        return launch_training(job, self, self.lines.append)


@pytest.mark.heavy
def test_the_training_is_that_of_the_smaller_micro_batch(job: TrainJob, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "validation_pairs": 6, "eval_steps": 2}
    small = changed(job, "small", tmp_path, micro_batch_size=2, **settings)
    assert "micro_batch" not in Launches(tmp_path / "of its own", rows=99)(small)  # as many threads: the same bytes
    job, launches = changed(job, "out", tmp_path, **settings), Launches(tmp_path, rows=2)
    summary = launches.train(job)
    assert [each.micro_batch for each in launches.jobs] == [None, MicroBatch(pairs=2)]
    assert launches.lines == [
        "memory ran out at step 1, rank 0 of 1 (CUDA out of memory. Tried to allocate 2.00 GiB); training goes on from "
        "its last saved state with half the micro-batch, 2 pairs: each step has the same pairs, so that the result "
        "differs by rounding alone. Later starts with these settings do the same; with more memory, remove "
        f"{job.work / NOTE} first"
    ]
    assert (summary["resumed_from_step"], summary["micro_batch"]) == (0, "2 pairs")
    assert weights_digest(job.output) == weights_digest(small.output)
    for log in ("training_log", "validation_log"):
        assert log_of(job.output, log) == log_of(small.output, log)


@pytest.mark.heavy
@pytest.mark.timeout(300)
@pytest.mark.parametrize("config", ["zero2_cpu", "zero3_cpu"])
def test_one_rank_of_two_runs_out_after_a_state_was_saved(job: TrainJob, tmp_path: Path, config: str) -> None:
    settings = {"global_batch_size": 16, "epochs": 4.0, "save_steps": 2, "logging_steps": 1, "deepspeed_config": config}
    small = changed(job, "small", tmp_path, micro_batch_size=2, **settings)
    run(small, [].append)  # on one rank, which changes rounding alone
    # Two passes a step: the third step ends in the middle, and rank 0 waits for rank 1.
    launches = Launches(tmp_path, ranks=2, rows=2, rank=1, after=5)
    job = changed(job, "out", tmp_path, **settings)
    summary = launches.train(job)
    assert (len(launches.jobs), summary["resumed_from_step"], summary["steps"]) == (2, 2, 6)
    assert "at step 3, rank 1 of 2 (CUDA out of memory" in launches.lines[0] and len(launches.lines) == 1
    losses = [row["loss"] for row in log_of(small.output)]
    assert len(losses) == 6
    assert [row["loss"] for row in log_of(job.output)] == pytest.approx(losses, abs=1e-5)
    weights = RewardModel.from_pretrained(small.output).state_dict()
    made = RewardModel.from_pretrained(job.output).state_dict()
    assert all(torch.allclose(made[key], value, atol=1e-4) for key, value in weights.items())


@pytest.mark.heavy
def test_a_second_time_ends_the_training_and_a_later_start_goes_on_as_it_did(job: TrainJob, tmp_path: Path) -> None:
    job, launches = changed(job, "out", tmp_path, save_steps=1, max_length=512), Launches(tmp_path, rows=1, after=2)
    with pytest.raises(JobFailed, match="memory ran out at step 2, rank 0") as caught:
        launches.train(job)
    message = str(caught.value)
    assert "TrainingError: memory ran out" in message and "halved already, to 2 pairs" in message
    for setting in ("micro_batch_size (now 4)", "micro_batch_tokens (now without limit)", "max_length (now 512)"):
        assert f"training.{setting}" in message
    for setting in ("gradient_checkpointing: true", "lora", "deepspeed_config: zero3"):
        assert f"training.{setting}" in message
    assert len(launches.jobs) == 2 and len(launches.lines) == 1 and not job.output.exists()

    later = Launches(tmp_path, rows=2)
    assert later.train(job)["micro_batch"] == "2 pairs"
    assert len(later.jobs) == 1 and len(later.lines) == 1


@pytest.mark.heavy
def test_a_rank_that_was_killed_is_not_started_again(job: TrainJob, tmp_path: Path) -> None:
    launches = Launches(tmp_path, ranks=2, rows=1, rank=1, kills=1)
    with pytest.raises(JobFailed, match=r"rank 1 \(process \d+\) was killed by signal 9") as caught:
        launches.train(job)
    assert caught.value.was_killed and len(launches.jobs) == 1 and not launches.lines
    assert not (job.work / NOTE).exists()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("function", "where"),
    [
        ("save_pretrained", "while the checkpoint was saved"),
        ("state_dict", "while the best model, of step 1, was saved"),
    ],
)
def test_weights_that_cannot_be_saved_are_not_tried_again(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, where: str
) -> None:
    """Half the micro-batch would leave no more memory then."""

    def fails(*given: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    best = {"keep": "best", "validation_pairs": 6} if function == "state_dict" else {}
    job = changed(job, "out", tmp_path, max_steps=1, **best)
    monkeypatch.setattr(RewardNetwork, function, fails)
    with pytest.raises(TrainingError, match=f"memory ran out {where}, rank 0 of 1"):
        run(job, [].append)
    assert not (job.work / NOTE).exists()


def test_without_kernels_that_fit_the_gpu_the_training_is_that_of_sdpa(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 2, "save_steps": 1}
    plain = changed(job, "plain", tmp_path, attention="sdpa", compile=False, **settings)
    run(plain, [].append)
    no_kernels(monkeypatch, "run")
    jobs, lines = list[TrainJob](), list[str]()

    def launch(job: TrainJob) -> Summary:
        jobs.append(job)
        return run(job, [].append)

    small = changed(job, "small", tmp_path, **settings)
    launch_training(small, launch, lines.append)
    assert [each.fallbacks for each in jobs] == [0, 1, 2]
    note = small.work / "kernel_fallbacks.json"
    assert lines == [
        f"{NEED}; training goes on from its last saved state with attention {less}: the result differs by rounding "
        f"alone. Later starts with these settings do the same; on another GPU, remove {note} first"
        for less in ("flex in small blocks, compiled layers", "sdpa, layers that are not compiled")
    ]
    assert weights_digest(small.output) == weights_digest(plain.output)


def test_a_kernel_that_is_asked_for_and_does_not_fit_the_gpu_ends_the_training(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_kernels(monkeypatch, "compiled")
    job = changed(job, "out", tmp_path, max_steps=1, attention="sdpa", compile=True)
    with pytest.raises(DeviceError, match=rf"{NEED}: set training\.attention: sdpa; .*training\.compile: false"):
        launch_training(job, lambda job: run(job, [].append), [].append)
    assert not list(job.work.glob("*.json"))


def test_a_full_disk_under_the_compiler_leaves_no_note(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_kernels(monkeypatch, "compiled", OSError(errno.ENOSPC, "No space left on device", "/cache/a"))
    job = changed(job, "out", tmp_path, max_steps=1)
    with pytest.raises(TrainingError, match=r"torch\.compile cannot write /cache/a: No space left on device; free"):
        launch_training(job, lambda job: run(job, [].append), [].append)
    assert not list(job.work.glob("*.json"))


def test_a_start_after_a_fallback_asks_as_much_as_the_last_one(job: TrainJob) -> None:
    job.work.mkdir()
    jobs, lines = list[TrainJob](), list[str]()
    note_fallback(job, NEED, "attention sdpa")
    memory_error(job, FULL, 0, 1, MemoryError())

    def launch(job: TrainJob) -> Summary:
        jobs.append(job)
        return {}

    launch_training(job, launch, lines.append)
    assert (jobs[-1].fallbacks, jobs[-1].micro_batch) == (1, MicroBatch(pairs=2)) and len(lines) == 2
    other = with_settings(job, micro_batch_size=8)
    launch_training(other, launch, lines.append)
    for content in ("{", "[]", json.dumps({"fallbacks": "1"})):
        (job.work / "kernel_fallbacks.json").write_text(content)
        (job.work / NOTE).unlink(missing_ok=True)
        launch_training(job, launch, lines.append)
    assert [each.fallbacks for each in jobs[1:]] == [0, 0, 0, 0] and len(lines) == 2


@pytest.fixture
def noted(job: TrainJob) -> Callable[..., tuple[str, MicroBatch | None]]:
    """The error of a rank whose memory ran out, and the micro-batch that its note asks for."""

    def get(place: Place, ranks: int = 1, job: TrainJob = job) -> tuple[str, MicroBatch | None]:
        job.work.mkdir(exist_ok=True)
        message, jobs = str(memory_error(job, place, 0, ranks, MemoryError())), list[TrainJob]()
        launch_training(job, lambda job: jobs.append(job) or {}, [].append)  # type: ignore[func-returns-value]
        return message, jobs[0].micro_batch

    return get


def test_the_pass_that_failed_is_halved(job: TrainJob, noted: Any) -> None:
    assert noted(FULL)[1] == MicroBatch(pairs=2)
    assert noted(Place("at step 1", 3, 3, 90), job=with_settings(job, micro_batch_size=64))[1] == MicroBatch(pairs=1)
    budget = with_settings(job, micro_batch_size=64, micro_batch_tokens=4096)
    assert noted(FULL, job=budget)[1] == MicroBatch(pairs=64, tokens=500)
    assert noted(Place("at step 1", 9, 9, 4090), job=budget)[1] == MicroBatch(pairs=64, tokens=2045)
    assert noted(Place("at step 1", 2, 2, 20), job=budget)[1] == MicroBatch(pairs=64, tokens=16)


def test_a_note_that_cannot_be_written_hides_nothing(job: TrainJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    lost = job.model_copy(update={"work": tmp_path / "file" / "work"})
    assert "memory ran out at step 3" in str(memory_error(lost, FULL, 0, 1, MemoryError()))


@pytest.mark.parametrize("place", [Place("at step 3", 1, 1, 1000), Place()])
def test_what_a_smaller_micro_batch_cannot_help_is_not_tried_again(noted: Any, place: Place) -> None:
    message, smaller = noted(place)
    assert smaller is None and place.at in message and "training.max_length" in message
    assert "training.max_pixels (now " in message
    assert ("a single pair or list did not fit" in message) == ("micro_batch" not in message) == bool(place.examples)


def test_settings_that_are_set_are_not_asked_for(job: TrainJob, noted: Any) -> None:
    thrifty = with_settings(job, gradient_checkpointing=True, lora=LoraSettings(rank=4), deepspeed_config="zero3_cpu")
    message, _ = noted(FULL, ranks=2, job=thrifty)
    assert not any(word in message for word in ("gradient_checkpointing", "lora", "deepspeed_config"))
    assert "training.processes higher (now 2)" in message
    assert "set training.gradient_checkpointing: true" in noted(FULL, ranks=2)[0]
    assert "training.deepspeed_config: zero3 (ZeRO stage 3; now zero2_cpu, stage 2)" in noted(FULL, ranks=2)[0]


def test_each_start_says_which_file_to_remove_and_what_may_differ(job: TrainJob, noted: Any) -> None:
    jobs, lines = list[TrainJob](), list[str]()

    def launch(job: TrainJob) -> Summary:
        jobs.append(job)
        return {}

    lora = with_settings(job, lora=LoraSettings(rank=4, dropout=0.1))
    for each, differs in ((job, "rounding alone."), (lora, "rounding and by what dropout draws.")):
        noted(FULL, job=each)
        for _ in range(2):
            launch_training(each, launch, lines.append)
            assert differs in lines[-1] and f"remove {job.work / NOTE} first" in lines[-1]
        (job.work / NOTE).unlink()
        launch_training(each, launch, lines.append)
        assert jobs[-1].micro_batch is None
    assert len(lines) == 4


def test_a_note_of_other_settings_or_a_damaged_one_counts_for_nothing(job: TrainJob, noted: Any) -> None:
    assert noted(FULL)[1] is not None
    note, jobs = job.work / NOTE, list[TrainJob]()

    def launch(job: TrainJob) -> Summary:
        jobs.append(job)
        return {}

    other = with_settings(job, micro_batch_size=8)
    launch_training(other, launch, [].append)
    launch_training(with_settings(job, loader_workers=1), launch, [].append)
    for content in ("{", "[]", json.dumps(json.loads(note.read_text()) | {"micro_batch": {"pairs": 0}})):
        note.write_text(content)
        launch_training(job, launch, [].append)
    assert [each.micro_batch for each in jobs] == [None, None, None, None, None]


def test_other_errors_are_not_taken_for_memory() -> None:
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory.")) and ran_out(MemoryError())
    for words in (
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "NCCL error in: NCCLUtils.hpp:275, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
        "NCCL error in: NCCLUtils.hpp:317, unhandled cuda error\nLast error:\nFailed to CUDA calloc 6291456 bytes",
        "backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    ):
        assert ran_out(RuntimeError(words))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)  # the allocator's own words
    assert ran_out(caught.value)
    for other in (
        RuntimeError("Connection closed by peer"),
        RuntimeError("Cuda failure 1 'invalid argument'"),
        ValueError("can't allocate memory"),
        OSError(12, "memory"),
    ):
        assert not ran_out(other)
