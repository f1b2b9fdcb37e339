"""What the pages' commands stand on: a file of pairs, model files, a project whose rounds 0 and 1 have really run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
from PIL import Image

from dt2it_pipeline_tests.support.benchmark_world import make_world
from dt2it_pipeline_tests.support.documents import ROOT

PROJECT = "my_project"
COLOURS = ("red", "green", "blue", "yellow", "black", "white")
# The recipe that `dt2it init` wrote would train a model of two billion parameters; this one trains the shipped one. Its
# judges may be asked about two pairs, so that some are left for people.
_RECIPE = """\
name: my_project
datasets: [t2i, pairs, held_out]
t2i: {phrasings: 1}
decontamination: {perceptual_distance: null, response_characters: null}
training: {processes: 1, deepspeed_config: zero2_cpu, global_batch_size: 8, micro_batch_size: 8, epochs: 1}
scoring: {processes: 1}
curation: {policy: paper, reuse_reward_model: true}
annotation: {judges: [{name: one}, {name: two, baseline: blank}], budget_calls: 4}
evaluation: {control_arm: false, style_probe_folds: 2}
"""
_MANIFEST = "name: {name}\nkind: {kind}\npath: {name}.jsonl\nmedia_root: photos\nlicence: CC0-1.0\n"


def shell(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block of commands as a reader would, in a folder, with this environment's programs and no network."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("DT2IT_", "DAGSTER_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own |= {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    own.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(["bash", "-ec", text], cwd=folder, env=own, capture_output=True, text=True, timeout=1200)


def make_pairs(folder: Path, count: int = 60) -> None:
    """`pairs.jsonl` and the images of its rows in `photos/`."""
    (folder / "photos").mkdir(parents=True)
    for colour in COLOURS:
        Image.new("RGB", (32, 32), colour).save(folder / "photos" / f"{colour}.png")
        Image.new("RGB", (40, 32), colour).save(folder / "photos" / f"held_out_{colour}.png")
    _write(folder / "pairs.jsonl", [_pair(n) for n in range(count)])


def make_audit(folder: Path) -> None:
    """The pairs as `pairs.parquet` with `scores.parquet`, `cleaned/` made of both, and a filled `audit/audit.csv`."""
    rows = [{"pair_id": f"p{n}", "chosen_id": f"c{n}", "rejected_id": f"r{n}", **_pair(n)} for n in range(60)]
    scores = [(row[f"{side}_id"], "one", float(side == "chosen")) for row in rows for side in ("chosen", "rejected")]
    pd.DataFrame(rows).to_parquet(folder / "pairs.parquet")
    pd.DataFrame(scores, columns=["response_id", "voter", "score"]).to_parquet(folder / "scores.parquet")
    _succeed("dt2it clean pairs.parquet --scores scores.parquet --output cleaned", folder)
    _succeed("dt2it review sample --pairs pairs.parquet --cleaned cleaned --output audit", folder)
    answers = pd.read_csv(folder / "audit/audit.csv", dtype="str", keep_default_na=False)
    answers.assign(better="first", auditor="someone").to_csv(folder / "audit/audit.csv", index=False)


def make_models(folder: Path) -> None:
    """A tiny reward model as `CHECKPOINT` and, as LLaMA-Factory saves it, `SOURCE`; `data.json`, `images/`, `a.jpg`."""
    world = make_world(folder)
    Image.new("RGB", (32, 32), "red").save(folder / "a.jpg")
    (folder / "ours").rename(folder / "CHECKPOINT")
    (folder / "theirs").rename(folder / "SOURCE")
    (folder / "data.json").write_text(json.dumps(world["rows"]), encoding="utf-8")


def make_project(folder: Path, rounds: str) -> None:
    """A project in `folder`/my_project in which `rounds`, the pages' commands, have made rounds 0 and 1.

    It holds `CHECKPOINT`, the reward model of round 1; `answers.json`, what one person decided of what judges left; and
    `pairs.jsonl`, the file of pairs that lies beside it.
    """
    project = write_project(folder)
    _succeed(rounds, project)
    (model,) = (project / "data/artifacts/reward_model/1").glob("*/reward_model.json")
    (project / "CHECKPOINT").symlink_to(model.parent)
    _succeed("dt2it review export --round 1 --format argilla --output records", project)
    entries = json.loads((project / "records/records.json").read_text(encoding="utf-8"))
    assert entries, "the judges left no pair to people"
    for entry in entries:
        entry |= {"responses": {"better": [{"value": "first", "user_id": "someone"}]}, "status": "completed"}
    (project / "answers.json").write_text(json.dumps(entries), encoding="utf-8")


def write_project(folder: Path, options: str = "") -> Path:
    """The project `folder`/my_project before anything has run, as `dt2it init` with `options` and its owner make it."""
    make_pairs(folder)
    project = folder / PROJECT
    _succeed(f"dt2it init {PROJECT} --data pairs.jsonl {options}", folder)
    for name, kind, rows in (
        ("t2i", "t2i", [_image_pair(n) for n in range(24)]),
        ("held_out", "benchmark", [_held_out(n) for n in range(8)]),
    ):
        _write(project / f"{name}.jsonl", rows)
        (project / f"configs/datasets/{name}.yaml").write_text(_MANIFEST.format(name=name, kind=kind), "utf-8")
    (project / f"configs/recipes/{PROJECT}.yaml").write_text(_RECIPE, encoding="utf-8")
    shutil.copy(folder / "pairs.jsonl", project)
    shutil.copytree(folder / "photos", project / "photos")
    return project


def _succeed(text: str, folder: Path) -> None:
    done = shell(text, folder)
    assert done.returncode == 0, f"{text}: {done.stdout[-3000:]}{done.stderr[-6000:]}"


def _pair(n: int) -> dict[str, object]:
    colour, other = COLOURS[n % 6], COLOURS[(n + 1 + n // 6 % 5) % 6]
    question = f"Which colour has image {n}?"
    answers = {"chosen": f"It is {colour}, number {n}.", "rejected": f"**It is {other}** {n}!"}
    return {"id": n, "image": f"{colour}.png", "question": question, **answers}


def _held_out(n: int) -> dict[str, object]:
    row = _pair(n)
    return row | {
        "question": f"Which colour is held out, {n}?",
        "image": f"held_out_{row['image']}",
        "group": "colours",
    }


def _image_pair(n: int) -> dict[str, object]:
    colour, other = COLOURS[n % 6], COLOURS[(n + 1 + n // 6) % 6]
    return {"caption": f"a {colour} area, number {n}", "preferred": f"{colour}.png", "other": f"{other}.png"}


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
