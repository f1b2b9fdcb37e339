"""Training as a whole: fast in one process, and under the DeepSpeed launcher in two (marked heavy)."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline import records, store
from dt2it_pipeline.reward.train import TrainingError, run, weights_digest
from dt2it_pipeline_tests.reward.training_jobs import changed, command, environment, log_of, train


def digest(folder: str) -> str:
    return weights_digest(Path(folder))


def test_one_process_trains_and_sets_bad_pairs_aside(job: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(job["media_root"], tmp_path / "media")
    prompts = store.read_parquet(job["prompts"], "prompts").to_pylist()
    shown = list(dict.fromkeys(p["media"][0]["path"] for p in prompts if p["media"]))
    cut = tmp_path / "media" / shown[0]
    cut.write_bytes(cut.read_bytes()[:70])
    (tmp_path / "media" / shown[1]).unlink()
    pairs = store.read_parquet(job["pairs"], "pairs").to_pylist()
    long = records.make_pair(prompts[0]["prompt_id"], "red " * 600, "no", source="test")
    stray = records.make_pair("p-unknown", "yes", "no", source="test")
    store.write_parquet(records.table([*pairs, long, stray], "pairs"), tmp_path / "pairs.parquet")
    job |= {"media_root": str(tmp_path / "media"), "pairs": str(tmp_path / "pairs.parquet")}

    reports: list[Mapping[str, Any]] = []
    summary = run(job, reports.append)
    assert reports[-1]["step"] == reports[-1]["steps"] == summary["steps"]
    out = Path(job["output"])
    aside = store.read_parquet(out / "set_aside.parquet", "set_aside").to_pylist()
    assert {row["reason"] for row in aside} == {
        "picture unreadable", "picture missing", "prompt not in the table", "longer than max_tokens"
    }  # fmt: skip
    assert summary["pairs"] + summary["pairs_set_aside"] == len(pairs) + 2
    log = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == summary["steps"]
    assert log[-1]["loss"] < log[0]["loss"]
    assert {"step", "loss", "accuracy", "learning_rate", "grad_norm", "pairs_per_second"} <= log[0].keys()
    card = json.loads((out / "reward_model.json").read_text())
    assert card["system_prompt"] == "You judge."


def test_nothing_to_train_on_is_one_clear_error(job: dict[str, Any], tmp_path: Path) -> None:
    job["settings"] = job["settings"] | {"max_tokens": 16}
    with pytest.raises(TrainingError, match=r"no pair to train on: 24 in .* 24 set aside \(longer than max_tokens\)"):
        run(job, [].append)
    assert not Path(job["output"]).exists()


def test_an_empty_table_is_one_clear_error(job: dict[str, Any], tmp_path: Path) -> None:
    store.write_parquet(records.table([], "pairs"), tmp_path / "none.parquet")
    with pytest.raises(TrainingError, match=r"no pair to train on: 0 in .*none\.parquet, 0 set aside"):
        run(job | {"pairs": str(tmp_path / "none.parquet")}, [].append)
    assert not Path(job["output"]).exists()


def test_bfloat16_follows_float32(job: dict[str, Any], tmp_path: Path) -> None:
    """As on a GPU, but on this CPU: half-precision weights, score in float32, several passes a step."""
    norms = {}
    for precision in ("float32", "bfloat16"):
        run(changed(job, precision, tmp_path, precision=precision, micro_batch_pairs=1, max_steps=2), [].append)
        (row,) = log_of(tmp_path / precision)
        norms[precision] = row["grad_norm"], row["loss"]
    assert norms["bfloat16"] == pytest.approx(norms["float32"], rel=0.01)


def test_nan_stops_the_run_and_names_pairs(job: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(job["base_model"], tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.language_model.norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="not a number at step 1") as caught:
        run(job | {"base_model": str(tmp_path / "base")}, [].append)
    ids = store.read_parquet(job["pairs"], "pairs").column("pair_id").to_pylist()
    assert any(name in str(caught.value) for name in ids)
    assert "language_model.norm.weight" in str(caught.value)
    assert not Path(job["output"]).exists()


def test_nan_of_one_pair_is_named_where_batches_accumulate(job: dict[str, Any], tmp_path: Path) -> None:
    job, guilty = poisoned(job, tmp_path)
    with pytest.raises(TrainingError, match="loss is not a number") as caught:
        run(changed(job, "out", tmp_path, micro_batch_pairs=2), [].append)
    ids = store.read_parquet(job["pairs"], "pairs").column("pair_id").to_pylist()
    assert [name for name in ids if name in str(caught.value)] == [guilty]
    assert "embed_tokens.weight" in str(caught.value)


def poisoned(job: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    """The job with one more pair, whose score alone is not a number, and that pair's id."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    shutil.copytree(job["base_model"], folder / "base")
    token = Tokenizer.from_file(str(folder / "base" / "tokenizer.json")).encode("Z").ids
    weights = load_file(folder / "base" / "model.safetensors")
    weights["model.language_model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    prompts = store.read_parquet(job["prompts"], "prompts").to_pylist()
    pair = records.make_pair(prompts[0]["prompt_id"], "Z", "no", source="test")
    pairs = [*store.read_parquet(job["pairs"], "pairs").to_pylist(), pair]
    store.write_parquet(records.table(pairs, "pairs"), folder / "pairs.parquet")
    return dict(job) | {"base_model": str(folder / "base"), "pairs": str(folder / "pairs.parquet")}, pair["pair_id"]


@pytest.mark.heavy
@pytest.mark.parametrize("config", ["zero2_cpu", "zero3_cpu"])
def test_nan_of_one_pair_is_named_over_two_ranks(job: dict[str, Any], tmp_path: Path, config: str) -> None:
    job, guilty = poisoned(job, tmp_path)
    done = train(changed(job, "out", tmp_path, micro_batch_pairs=2, deepspeed_config=config), tmp_path, 2)
    assert done.returncode != 0
    message = next(line for line in done.stderr.splitlines() if "TrainingError: " in line)
    ids = store.read_parquet(job["pairs"], "pairs").column("pair_id").to_pylist()
    assert [name for name in ids if name in message] == [guilty]
    assert "embed_tokens.weight" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.heavy
def test_a_full_disk_ends_both_ranks_and_leaves_nothing_half_written(job: dict[str, Any], tmp_path: Path) -> None:
    done = train(job, tmp_path, 2, limit="ulimit -f 150")  # kB: room for everything but the state to resume from
    assert done.returncode != 0
    assert "TrainingError: cannot write the state to resume from" in done.stderr
    assert "training then goes on from step 0" in done.stderr
    assert not list(Path(job["work"]).glob("checkpoints/step-*"))
    assert not Path(job["output"]).exists()


EVERYTHING = {
    "validation_fraction": 0.2, "evaluate_every": 1, "keep": "best", "micro_batch_tokens": 120, "tensorboard": True,
    "loss": {"kind": "margin", "center_coefficient": 0.01},
}  # fmt: skip
LORA = {"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.2}}


@pytest.mark.heavy
@pytest.mark.timeout(1800)  # five starts of two ranks, each half a minute on a busy machine
@pytest.mark.parametrize(
    "settings",
    [
        {"deepspeed_config": "zero2_cpu"},
        {"deepspeed_config": "zero3_cpu"},
        {"deepspeed_config": "zero2_cpu"} | EVERYTHING,
        {"deepspeed_config": "zero3_cpu"} | EVERYTHING | LORA,
    ],
    ids=["zero2", "zero3", "zero2-everything", "zero3-everything-lora"],
)
def test_killed_training_ends_in_the_same_weights(
    job: dict[str, Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    longer = {"epochs": 8.0, "checkpoint_every": 3} | settings  # 24 steps, or some less where pairs are held out
    whole, job = (changed(job, name, tmp_path, **longer) for name in ("whole", "killed"))
    done = train(whole, tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]

    # Killed three times, each time a random while after the state of a random step was whole: within a step, an
    # evaluation, the next state, or the start where that step had been passed before. Then started once more.
    generator = random.Random(json.dumps(settings, sort_keys=True))
    marks = Path(job["work"]) / "checkpoints"
    for wanted in sorted(generator.sample(range(10), 3)):
        before = killed_behind(job, tmp_path, wanted, pause=generator.uniform(0, 0.2))
    (marks / "step-00000999").mkdir()  # half written: no marker

    done = train(job, tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    resumed = re.search(r'"resumed_from_step": (\d+)', done.stdout)
    assert resumed is not None
    assert int(resumed[1]) == before
    assert digest(job["output"]) == digest(whole["output"])
    names = ["training_log"] + (["validation_log"] if "keep" in settings else [])
    for name in names:
        assert log_of(job["output"], name) == log_of(whole["output"], name)


def killed_behind(job: Mapping[str, Any], folder: Path, step: int, pause: float) -> int:
    """Start the training, kill it `pause` seconds after a state of more than `step` steps is whole; that state's steps.

    The pause may let it write another state, or catch it while it does.
    """
    marks = Path(job["work"]) / "checkpoints"
    launcher = subprocess.Popen(
        command(job, folder / "killed.json", 2), env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while whole_state(marks) <= step and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(pause)
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert not Path(job["output"]).exists(), "the training ended before it was killed"
    assert whole_state(marks) > step
    return whole_state(marks)


def whole_state(marks: Path) -> int:
    """Steps of the newest state with its marker, 0 when there is none."""
    found = (int(mark.parent.name.removeprefix("step-")) for mark in marks.glob("*/complete.json"))
    return max(found, default=0)


@pytest.mark.heavy
def test_zero_stages_ranks_and_layouts_agree(job: dict[str, Any], tmp_path: Path) -> None:
    variants: dict[str, tuple[dict[str, Any], int]] = {
        "zero2": ({}, 2),
        "zero3": ({"deepspeed_config": "zero3_cpu"}, 2),
        "alone": ({}, 1),
        "separate": ({"shared_prefix": False}, 2),
        "tower": ({"cache_vision": False}, 2),
        "checkpointing": ({"gradient_checkpointing": True}, 2),
        "tokens": ({"micro_batch_tokens": 100, "micro_batch_pairs": 64}, 2),
    }
    losses = {}
    for name, (changes, processes) in variants.items():
        done = train(changed(job, name, tmp_path, **{"max_steps": 4} | changes), tmp_path, processes)
        assert done.returncode == 0, (name, done.stderr[-3000:])
        losses[name] = [row["loss"] for row in log_of(tmp_path / name)]
    for name, found in losses.items():
        assert found == pytest.approx(losses["zero2"], abs=1e-5), name


def test_another_base_model_does_not_go_on_from_the_state_of_the_one_before(
    job: dict[str, Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(job["base_model"], tmp_path / "base")
    job = changed(job, "out", tmp_path, max_steps=2, checkpoint_every=1) | {"base_model": str(tmp_path / "base")}
    assert run(job, [].append)["resumed_from_step"] == 0
    shutil.rmtree(job["output"])
    assert run(job, [].append)["resumed_from_step"] == 1
    shutil.rmtree(job["output"])
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.language_model.norm.weight"] *= 1.5
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    assert run(job, [].append)["resumed_from_step"] == 0
