"""Training, scoring and sampling at the shapes of public models: one command, no download.

    python -m benchmarks.gpu                                        # on a GPU: Qwen3-VL 2B; on a CPU: a tiny model
    python -m benchmarks.gpu --shapes qwen3-vl-8b --cases train,bare --lora 16
    python -m benchmarks.gpu --cases train --set training.gradient_checkpointing=true --profile

Models have random weights, images are made, both once, into `--work` (18 GB for 8 B). It takes one GPU. Cases:

- train: this project's trainer, as `dt2it` starts it, images read from JPEG files.
- bare: a plain loop over ready batches with the same network and torch's AdamW, no DeepSpeed: what can be reached.
- score: one response at a time without LM head; this project's scorer; vLLM where it is installed. 4 responses each.
- sample: `generate` of transformers in batches, and vLLM where it is installed. 4 answers each.
- parity: margins in bfloat16 against float32, and attention against the dense mask, forward and backward (parity.py).
- llamafactory: LLaMA-Factory's trainer on the same model and pairs, where --llamafactory-python names its environment.

Every case has a process of its own. What fails, out of memory included, is a line of the table; its log is kept.
--also runs cases again with other settings, --minutes bounds it all, and --json is written after every case.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from benchmarks.gpu import figures
from benchmarks.gpu.case import Case
from benchmarks.gpu.data import WORKLOADS
from benchmarks.gpu.figures import Result
from benchmarks.gpu.parity import PARITY_NOTE, parity_table
from benchmarks.gpu.processes import NOT_BEGUN, commit, log_of, start
from benchmarks.gpu.shapes import SHAPES
from dt2it_pipeline.config.base import fault_message
from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.config.strict_yaml import load_yaml
from dt2it_pipeline.storage.atomic import write_json_atomic

CASES = ("train", "bare", "score", "sample", "parity", "llamafactory")
_MEASURED = ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "use_cpu")
# The section of the recipe that a kind of case depends on, of those that --also runs again.
_DEPENDS_ON = {
    "train": "training",
    "bare": "training",
    "llamafactory": "training",
    "naive": "scoring",
    "score": "scoring",
}
_SECTIONS: dict[str, type[TrainingSettings] | type[ScoringSettings]] = {
    "training": TrainingSettings,
    "scoring": ScoringSettings,
}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=_list_of(SHAPES), help=f"of {', '.join(SHAPES)}; separated by commas")
    parser.add_argument("--cases", type=_list_of(CASES), help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--work", type=Path, default=Path("data/gpu_benchmark"), help="kept between runs")
    parser.add_argument(
        "--lora", type=_positive, metavar="RANK", help="train adapters of this rank instead of all weights"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE",
        help="a setting of the recipe's section `training` or `scoring`, its value in YAML; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--also", action="append", default=[], type=str.split, metavar='"SECTION.KEY=VALUE ..."',
        help="run the cases that a change of settings concerns once more with it; may be given several times",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, help="what has not ended by then is stopped, and is no figure")
    parser.add_argument("--steps", type=_positive, help="measured steps; default 10, of a tiny shape 4")
    parser.add_argument("--warmup", type=_positive, help="steps before them; default 3, of a tiny shape 1")
    parser.add_argument("--answer-tokens", type=_positive, default=128, help="of the longest sampled answer")
    parser.add_argument("--prompts", type=_positive, help="of 192, that `parity` takes; default: all")
    parser.add_argument("--profile", action="store_true", help="also show where a training step's time goes")
    parser.add_argument(
        "--llamafactory-python", metavar="PATH",
        help="python of an environment with LLaMA-Factory; benchmarks/README.md says how to make one",
    )  # fmt: skip
    parser.add_argument(
        "--llamafactory-set", action="append", default=[], metavar="KEY=VALUE",
        help="an argument of llamafactory-cli train, such as flash_attn=fa2; may be given several times",
    )  # fmt: skip
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of a card that is not known here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
    return parser


def _list_of(known: Any) -> Any:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not known; choose of {', '.join(known)}")
        return names

    return parse


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def settings(section: str, given: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """A section of the recipe as JSON: `given`, and what --set changes of it.

    Raises:
        ValueError: a change cannot be read, or a setting is unknown or wrong; the message names it.
    """
    for change in changes:
        name, equals, text = change.partition("=")
        path = name.split(".")
        if not equals or len(path) < 2 or path[0] not in _SECTIONS:
            raise ValueError(f"--set {change}: write training.KEY=VALUE or scoring.KEY=VALUE")
        if path[0] != section:
            continue
        try:
            value = load_yaml(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {change}: the value is not valid YAML: {error}") from error
        here = given
        for key in path[1:-1]:
            here[key] = dict(here.get(key) or {})
            here = here[key]
        here[path[-1]] = value
    try:
        found: dict[str, Any] = _SECTIONS[section].model_validate(given).model_dump(mode="json")
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        words = "is no setting" if fault["type"] == "extra_forbidden" else fault_message(fault)
        raise ValueError(f"{section}.{key}: {words}") from None
    return found


def their_settings(changes: list[str]) -> dict[str, Any]:
    """Arguments of LLaMA-Factory that --llamafactory-set gives. Raises ValueError where one cannot be read."""
    found = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--llamafactory-set {change}: write KEY=VALUE")
        if name in _MEASURED:
            raise ValueError(f"--llamafactory-set {change}: the benchmark sets {name}")
        try:
            found[name] = load_yaml(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--llamafactory-set {change}: the value is not valid YAML: {error}") from error
    return found


def make_case(shape: str, given: argparse.Namespace, changes: Sequence[str] = (), *, cuda: bool) -> Case:
    """What all cases of a shape have in common, with changes on top. Raises ValueError as `settings` does."""
    tiny = SHAPES[shape].workload == "small"
    steps, warmup = given.steps or (4 if tiny else 10), given.warmup or (1 if tiny else 3)
    pixels = {name: part.max_pixels for name, part in WORKLOADS[SHAPES[shape].workload].items()}
    training: dict[str, Any] = {
        "processes": 1,
        "deepspeed_config": "zero2_one_gpu" if cuda else "zero2_cpu",
        "global_batch_size": 4 if tiny else 32,
        "micro_batch_size": 2 if tiny else 8,
        "micro_batch_tokens": 16_384,
        "epochs": 100.0,
        "max_steps": warmup + steps,
        "learning_rate": 1e-6,
        "precision": "bfloat16" if cuda else "float32",
        "lora": None if given.lora is None else {"rank": given.lora},
        "cache_vision": False,
        "max_pixels": pixels["training"],
        "logging_steps": 1,
        "save_steps": warmup + steps + 1,
    }
    scoring = {"processes": 1, "shard_responses": 8 if tiny else 128, "max_pixels": pixels["scoring"]}
    scoring |= {} if tiny else {"tokens_per_batch": 16_384}
    return Case(
        kind="prepare",
        label="",
        shape=shape,
        work=str(given.work.resolve()),
        place="",
        training=settings("training", training, [*given.set, *changes]),
        scoring=settings("scoring", scoring, [*given.set, *changes]),
        steps=steps,
        warmup=warmup,
        answer_tokens=min(given.answer_tokens, 16) if tiny else given.answer_tokens,
        prompts=given.prompts,
        python=given.llamafactory_python,
        their_settings=their_settings(given.llamafactory_set),
    )


def cases_of(shape: str, given: argparse.Namespace, *, cuda: bool) -> list[Case]:
    """The processes of a shape, in order: all cases, then those that a change with --also concerns.

    Raises:
        ValueError: a setting is unknown or wrong, or a change concerns none of the cases.
    """
    chosen = _with_changes(make_case(shape, given, cuda=cuda), given)
    for changes in given.also:
        sections = {change.partition(".")[0] for change in changes}
        varied = _with_changes(make_case(shape, given, changes, cuda=cuda), given)
        concerned = list({case.label: case for case in varied if _DEPENDS_ON.get(case.kind) in sections}.values())
        if not concerned:
            raise ValueError(f"--also {' '.join(changes)}: none of the cases depends on it")
        words = ", ".join(change.partition(".")[2] for change in changes)
        chosen += [replace(case, label=f"{case.label}, {words}") for case in concerned]
    seen: Counter[str] = Counter()
    for place, case in enumerate(chosen):  # a case may be asked for again, and has a log of its own then
        seen[case.label] += 1
        if seen[case.label] > 1:
            chosen[place] = replace(case, label=f"{case.label} ({seen[case.label]})")
    return chosen


def _with_changes(common: Case, given: argparse.Namespace) -> list[Case]:
    lora = common.training["lora"]
    trained = f", LoRA {lora['rank']}" if lora else ""
    naive = replace(common, steps=4 * common.steps, warmup=4 * common.warmup)
    vllm = replace(common, scoring=common.scoring | {"engine": "vllm"})
    made = {
        "train": [(common, "train", f"train{trained}")],
        "bare": [(common, "bare", f"bare{trained}")],
        "score": [
            (naive, "naive", "score one at a time"),
            (common, "score", f"score ({common.scoring['engine']})"),
            *([(vllm, "score", "score (vllm)")] if common.scoring["engine"] != "vllm" else []),
        ],
        "sample": [(common, "sample generate", "sample (generate)"), (common, "sample vllm", "sample (vllm)")],
        "parity": [(common, "parity", "parity")],
        "llamafactory": [(common, "llamafactory", f"LLaMA-Factory{trained}")],
    }
    chosen = [
        replace(case, kind=kind, label=label) for name in given.cases or CASES for case, kind, label in made[name]
    ]
    if given.profile:
        chosen.append(replace(common, kind="profile", label="profile"))
    return chosen


def started(case: Case, until: float | None) -> dict[str, Any]:
    """The same of what all others need. Raises SystemExit where it failed."""
    found = start(case, until)
    if "error" in found:
        raise SystemExit(f"\nerror: cannot {case.kind} {case.shape}: {found['error']}; see {log_of(case)}")
    return found


def main() -> None:
    """Run all cases and print the tables; ends with code 1 where a case failed for another reason than memory."""
    parser = arguments()
    given = parser.parse_args()
    if given.llamafactory_python:
        found = shutil.which(given.llamafactory_python)
        if found is None:
            parser.error(f"--llamafactory-python: {given.llamafactory_python} is no program")
        given.llamafactory_python = str(Path(found).absolute())  # not resolved: where a link lies is its environment
    if "llamafactory" in (given.cases or ()) and not given.llamafactory_python:
        parser.error("--cases llamafactory needs --llamafactory-python")
    until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    for ending in (signal.SIGTERM, signal.SIGHUP):  # so that no case goes on alone
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    try:
        common = make_case("tiny", given, cuda=False)
        machine = started(replace(common, kind="describe"), until)
        cuda = machine["card"] is not None
        names = given.shapes or ["qwen3-vl-2b" if cuda else "tiny"]
        planned = [cases_of(name, given, cuda=cuda) for name in names]
    except ValueError as error:
        parser.error(str(error))
    machine |= {"commit": commit(), "command": sys.argv[1:]}
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['card'] or 'no GPU'}, {machine['cores']} cores; driver {machine['driver'] or 'none'}; {versions}")
    if machine["compile_fault"]:
        print(f"layers are NOT compiled, and attention is sdpa unless set: {machine['compile_fault']}")
    peak = given.peak_tflops or figures.peak_tflops(machine["card"])
    results: list[Result] = []
    for cases in planned:
        for result in run_shape(cases, until):
            results.append(result)
            if given.json:  # after every case, so that a command that is ended leaves what it has measured
                given.json.parent.mkdir(parents=True, exist_ok=True)
                write_json_atomic(figures.as_json(results, peak, machine), given.json)
    measured = [result for result in results if not (result.profile or result.parity)]
    if measured:
        print("\n" + figures.table(measured, peak))
        print("\n" + figures.notes(machine["card"], peak))
    if ratios := figures.against_theirs(measured):
        print("\n" + ratios + ("" if machine["card"] else "\n" + figures.CPU_NOTE))
    if profiled := [result for result in results if result.profile]:
        print("\n" + figures.profile_table(profiled) + "\n\n" + figures.PROFILE_NOTE)
    if compared := [result for result in results if result.parity]:
        print("\n" + parity_table(compared) + "\n\n" + PARITY_NOTE)
    if any(result.error and result.error != figures.OUT_OF_MEMORY for result in results):
        raise SystemExit(1)


def run_shape(cases: list[Case], until: float | None) -> Iterator[Result]:
    """All cases of a shape; prints on the way what is being done, and where the log of what failed lies."""
    common = cases[0]
    if until is not None and time.monotonic() >= until:
        yield from (Result(case.label, case.shape, error=NOT_BEGUN) for case in cases)
        return
    print(f"{common.shape}: models and images in {common.work} ... ", end="", flush=True)
    began = time.perf_counter()
    made = started(replace(common, kind="prepare", label=""), until)
    print(f"{sum(made.values()) / 1e6:,.0f} million parameters, {time.perf_counter() - began:.0f} s", flush=True)
    for case in cases:
        if "vllm" in (*case.kind.split(), case.scoring["engine"]) and importlib.util.find_spec("vllm") is None:
            yield Result(case.label, case.shape, skipped="vLLM is not installed")
            continue
        if case.kind == "llamafactory" and case.python is None:
            yield Result(case.label, case.shape, skipped="not run without --llamafactory-python")
            continue
        print(f"{case.shape}: {case.label} ... ", end="", flush=True)
        began = time.perf_counter()
        result = Result(**start(case, until))
        rate = "" if result.rate is None else f"{result.rate:,.4g} {result.unit}/s, "
        failed = f"{result.error}; see {log_of(case)}" if result.error not in (None, NOT_BEGUN) else result.error
        print(failed or f"{rate}{time.perf_counter() - began:.0f} s", flush=True)
        yield result


if __name__ == "__main__":
    main()
