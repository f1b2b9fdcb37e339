"""Whole trainers: pairs per second of this project's DeepSpeed trainer against LLaMA-Factory's reward-modelling stage.

    taskset -c 0 python -m benchmarks.llamafactory --python LLAMA_FACTORY_ENVIRONMENT/bin/python

LLaMA-Factory needs other versions of transformers and datasets than this project, so it lives in an environment of its
own that this script takes and never makes:

    python3.11 -m venv lf_venv && lf_venv/bin/pip install llamafactory==0.9.5 torch torchvision torchaudio

Both train the same float32 model on the same pairs, one image each: same batch, learning rate, optimiser (AdamW) and
thread count, one process, vision encoder and projector frozen, no gradient checkpointing. Ours runs as the command
`python -m dt2it_pipeline.engines.jobs job.json` (ZeRO-2 on the CPU), with the vision encoder's output cached
and without; LLaMA-Factory runs through its own entry point `run_exp`, with a callback that prints a line per step.

All trainers live at once and take turns: one runs a few steps while the others are stopped (SIGSTOP), so that a noisy
machine meets all alike. Every turn's first two steps are not counted, nor is the warm-up before the first turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dt2it_pipeline.storage import atomic, records

if TYPE_CHECKING:
    from dt2it_pipeline.reward.training.job import TrainJob

ROOT = Path(__file__).resolve().parents[1]
THEIRS = "LLaMA-Factory"
_STEP = re.compile(r"step=(\d+)\b")
_LEARNING_RATE = 5e-4
_UNCOUNTED = 2  # steps at the start of a turn: one was under way when it was stopped, one more for a late signal


def make_importable() -> None:
    """Let LLaMA-Factory import in this process beside a torch without CUDA, whose sister packages are CUDA builds."""
    from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    if sys.modules.get("torchaudio", ...) is None:  # it imports the package, but uses it for audio only
        import importlib.machinery
        import types

        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)


def train_with_llamafactory(arguments: dict[str, Any]) -> None:
    """Run LLaMA-Factory in this process, which must be of its environment."""
    make_importable()
    import torch
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            print(f"step={state.global_step} memory={torch.cuda.max_memory_allocated()}", flush=True)

    run_exp(arguments, callbacks=[Steps()])


def make_data(folder: Path, pairs: int) -> dict[str, Any]:
    """Write the pairs as tables of this project and as a ranking data set of LLaMA-Factory."""
    from benchmarks.scoring import SYSTEM, make_rows
    from dt2it_pipeline.storage import schemas

    media = folder / "media"
    media.mkdir()
    prompts, responses = make_rows(media, pairs, 2)
    texts: dict[str, list[str]] = {}
    for _, key, text in responses:
        texts.setdefault(key, []).append(text)
    rest = {"source": "benchmark", "reference": None, "language": "en", "meta": "{}"}
    atomic.write_parquet(schemas.table([row | rest for row in prompts.values()], "prompts"), folder / "prompts.parquet")
    made = [records.make_pair(key, *both, source="benchmark") for key, both in texts.items()]
    atomic.write_parquet(schemas.table(made, "pairs"), folder / "pairs.parquet")
    write_ranking(folder, media, prompts, texts, SYSTEM)
    return {"pairs": str(folder / "pairs.parquet"), "prompts": str(folder / "prompts.parquet"), "media": str(media)}


def write_ranking(
    folder: Path, media: Path, prompts: dict[str, dict[str, Any]], texts: dict[str, list[str]], system: str
) -> None:
    """Write pairs (chosen and rejected text by prompt_id) as a ranking data set of LLaMA-Factory, named `pairs`."""
    rows = [
        {
            "conversations": [
                {"from": "system", "value": system},
                {"from": "human", "value": prompts[key]["turns"][0]["text"]},
            ],
            "chosen": {"from": "gpt", "value": chosen},
            "rejected": {"from": "gpt", "value": rejected},
            "images": [str(media / prompts[key]["media"][0]["path"])],
        }
        for key, (chosen, rejected) in texts.items()
    ]
    (folder / "pairs.json").write_text(json.dumps(rows), encoding="utf-8")
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    entry = {"file_name": "pairs.json", "ranking": True, "formatting": "sharegpt", "columns": columns}
    (folder / "dataset_info.json").write_text(json.dumps({"pairs": entry}), encoding="utf-8")


def make_model(source: Path, folder: Path) -> None:
    """The base model in float32, as LLaMA-Factory keeps frozen weights in the type that the files have."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"dtype": "float32", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file in folder.glob("*.safetensors"):
        weights = {name: value.to(torch.float32) for name, value in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})


def our_job(folder: Path, data: dict[str, Any], batch: int, steps: int, *, cached: bool) -> TrainJob:
    """Job of this project's trainer."""
    from benchmarks.scoring import SYSTEM
    from dt2it_pipeline.config.sections.training import TrainingSettings
    from dt2it_pipeline.reward.training.job import TrainJob

    settings = TrainingSettings(
        base_model=str(folder / "model"),
        processes=1,
        global_batch_size=batch,
        micro_batch_size=batch,
        epochs=100,
        max_steps=steps,
        learning_rate=_LEARNING_RATE,
        cache_vision=cached,
        system_prompt=SYSTEM,
        logging_steps=1,
        save_steps=steps,
    )
    place = folder / ("cached" if cached else "uncached")
    return TrainJob(
        base_model=str(folder / "model"),
        pairs=Path(data["pairs"]),
        prompts=Path(data["prompts"]),
        media_root=Path(data["media"]),
        output=place / "checkpoint",
        work=place / "work",
        settings=settings,
        seed=0,
        name="benchmark",
    )


def their_arguments(folder: Path, batch: int, steps: int) -> dict[str, Any]:
    """Arguments of LLaMA-Factory for the same training."""
    return {
        "model_name_or_path": str(folder / "model"),
        "stage": "rm",
        "do_train": True,
        "finetuning_type": "full",
        "freeze_vision_tower": True,
        "freeze_multi_modal_projector": True,
        "disable_gradient_checkpointing": True,
        "template": "qwen3_vl_nothink",
        "dataset": "pairs",
        "dataset_dir": str(folder),
        "cutoff_len": 512,
        "output_dir": str(folder / "theirs"),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "learning_rate": _LEARNING_RATE,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "use_cpu": True,
        "dataloader_num_workers": 0,
        "save_strategy": "no",
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


class Running:
    """A trainer in a process of its own, which prints a line per step and can be stopped and continued."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        import psutil

        self.name, self.log = name, log
        started = time.perf_counter()
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, env=environment, cwd=log.parent, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.watched = psutil.Process(self.process.pid)
        try:
            self.step()
        except BaseException:
            self.process.kill()
            raise
        self.start_seconds = time.perf_counter() - started

    def step(self) -> tuple[float, float]:
        """Wait for the end of a step: wall clock and CPU time of the process, in seconds.

        Raises:
            SystemExit: the trainer has ended.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if _STEP.match(line):
                used = self.watched.cpu_times()
                return time.perf_counter(), used.user + used.system
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
        raise SystemExit(f"{self.name} ended before its turn was over:\n{tail}")

    def turn(self, steps: int) -> tuple[float, float]:
        """Run a few steps while everybody else stands still: seconds of the wall clock and of CPU time."""
        self.process.send_signal(signal.SIGCONT)
        for _ in range(_UNCOUNTED):
            before = self.step()
        for _ in range(steps):
            after = self.step()
        self.process.send_signal(signal.SIGSTOP)
        return after[0] - before[0], after[1] - before[1]


@contextlib.contextmanager
def running(commands: dict[str, list[str]], environment: dict[str, str], folder: Path) -> Iterator[list[Running]]:
    """Start the trainers one after the other; each stands still after its first step."""
    out: list[Running] = []
    try:
        for number, (name, command) in enumerate(commands.items()):
            out.append(Running(name, command, environment, folder / f"{number}.log"))
            out[-1].process.send_signal(signal.SIGSTOP)
        yield out
    finally:
        for trainer in out:
            trainer.process.kill()
            trainer.process.wait()


def measure(given: argparse.Namespace, folder: Path) -> None:
    """Run all trainers and print the table."""
    from benchmarks.environment import WORKER_ENVIRONMENT, spread
    from dt2it_pipeline.config.paths import model_path

    make_model(Path(model_path(given.model)), folder / "model")
    data = make_data(folder, given.pairs)
    steps = given.warm_up + given.rounds * (given.steps + _UNCOUNTED) + 100
    commands: dict[str, list[str]] = {}
    jobs = {"ours": True, "ours, vision encoder at every step": False}
    for name, cached in jobs.items():
        job = folder / f"{'cached' if cached else 'uncached'}.json"
        our_job(folder, data, given.batch, steps, cached=cached).write(job)
        commands[name] = [sys.executable, "-m", "dt2it_pipeline.engines.jobs", str(job)]
    theirs = folder / "theirs.json"
    theirs.write_text(json.dumps(their_arguments(folder, given.batch, steps)), encoding="utf-8")
    commands[THEIRS] = [given.python, "-m", "benchmarks.llamafactory", "--arguments", str(theirs)]
    environment = os.environ | WORKER_ENVIRONMENT
    environment |= {"OMP_NUM_THREADS": str(given.threads), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"HF_HOME": str(folder / "cache"), "DISABLE_VERSION_CHECK": "1", "DS_ACCELERATOR": "cpu"}
    with running(commands, environment, folder) as trainers:
        for trainer in trainers:
            trainer.turn(given.warm_up)
        turns: dict[str, list[tuple[float, float]]] = {trainer.name: [] for trainer in trainers}
        for _ in range(given.rounds):
            for trainer in trainers:
                turns[trainer.name].append(trainer.turn(given.steps))
    done = given.steps * given.batch
    print(f"{given.rounds} turns of {given.steps} steps of {given.batch} pairs, {given.threads} thread(s)\n")
    print("| trainer | clock | pairs/s, median (range) | times LLaMA-Factory, median (range) | start, s |")
    print("|---|---|---|---|---|")
    for clock, label in enumerate(("wall", "cpu")):
        for trainer in trainers:
            mine = [turn[clock] for turn in turns[trainer.name]]
            ratios = [other[clock] / own for other, own in zip(turns[THEIRS], mine, strict=True)]
            speeds = [done / seconds for seconds in mine]
            print(
                f"| {trainer.name} | {label} | {spread(speeds)} | {spread(ratios, 2)} | {trainer.start_seconds:.0f} |"
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="python of an environment with LLaMA-Factory 0.9.5; see above how to make one")
    parser.add_argument("--model", default="demo", help="base model folder; `demo` ships with the package")
    parser.add_argument("--pairs", type=int, default=512, help="in the data set, one image each")
    parser.add_argument("--batch", type=int, default=32, help="pairs per step")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before the first turn")
    parser.add_argument("--steps", type=int, default=5, help="steps that count in a turn")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each trainer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arguments", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arguments:
        train_with_llamafactory(json.loads(Path(given.arguments).read_text(encoding="utf-8")))
        return
    if not given.python or shutil.which(given.python) is None:
        parser.error("--python: name the python of an environment with LLaMA-Factory; --help says how to make one")
    with tempfile.TemporaryDirectory() as folder:
        measure(given, Path(folder))


if __name__ == "__main__":
    main()
