"""The flight check: what can be known before a run spends hours or money, line by line.

What belongs here: which things are looked at, in which order, and what to do about each. What does not: looking itself,
which the packages concerned do (ingest/first_rows.py, judges/trial.py, reward/training/memory.py). Where jobs run and
where artifacts are shared is in places.py.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dt2it_pipeline.cli.checks.lines import Line
from dt2it_pipeline.cli.checks.places import launcher_lines, object_store_lines
from dt2it_pipeline.cli.options import CHOOSE_RECIPE, no_project
from dt2it_pipeline.config.paths import artifact_home, model_path
from dt2it_pipeline.config.recipe import Recipe, RecipeError, chosen_recipe, is_chosen, load_recipe, recipe_path
from dt2it_pipeline.config.recipe_files import read_deepspeed_config, require_files
from dt2it_pipeline.config.sections.judging import (
    EndpointJudgeSettings,
    LikelihoodJudgeSettings,
    ReferenceJudgeSettings,
    WordsCheckSettings,
)
from dt2it_pipeline.errors import INSTALL_ENGINES
from dt2it_pipeline.evaluate.benchmarks.spec import BenchmarkError, find_entry
from dt2it_pipeline.ingest.first_rows import SourceError, look_at_source
from dt2it_pipeline.ingest.landing import landed_manifests
from dt2it_pipeline.ingest.manifest import SOURCES, Manifest, ManifestError, load_catalogue, require_first_training_set
from dt2it_pipeline.judges.protocol import PAIRWISE, JudgeError
from dt2it_pipeline.judges.trial import LocalJudge, Trial, try_judge, try_local_judge
from dt2it_pipeline.reward.training.memory import (
    GIB,
    Parameters,
    WeightsError,
    amount,
    count_parameters,
    training_memory,
)

_GB = 1e9
_STATE_BYTES = 14  # per parameter, of a saved training state: weights, float32 copy and AdamW's two moments
_ROOM = 0.75  # share of a GPU's memory that the estimate may take, since activations come on top


def flight_check(
    recipe: str | Path | None = None, home: Path | None = None, rows: int = 50, call_judges: bool = False
) -> Iterator[Line]:
    """Look at everything that a run of the recipe needs.

    Nothing is started, and nothing is written but a small object in the object store, which is removed.

    Args:
        recipe: as `load_recipe` takes it.
        home: the artifact home; the usual one when None.
        rows: how many rows of every source are read.
        call_judges: whether judges are called once each: behind endpoints, which may cost money, and on this machine,
            where each loads its model. No other model is loaded.
    """
    home = home or artifact_home()
    if not is_chosen(recipe):
        yield Line("error", "recipe", f"none is chosen: {no_project()}", CHOOSE_RECIPE)
        return
    try:
        found = load_recipe(recipe)
        file = recipe_path(chosen_recipe(recipe))
    except RecipeError as error:
        yield Line("error", "recipe", str(error), "correct the file; `dt2it settings KEY` describes a setting")
        return
    yield Line("ok", "recipe", f"{found.name}: every setting is valid; rounds 0 to {found.rounds - 1}; {file}")
    yield from _files(found)
    yield from _engines(found)
    manifests: list[Manifest] = []
    try:
        manifests = load_catalogue(found.datasets)
        require_first_training_set(manifests, found.name)
    except ManifestError as error:
        yield Line("error", "sources", str(error), "correct the recipe's `datasets`, or the manifest that is named")
    yield from _sources(found, manifests, home, rows)
    yield from _benchmarks(manifests)
    yield from _models(found)
    yield from _memory(found)
    yield from _disk(found, home)
    yield from object_store_lines()
    yield from launcher_lines(found, home)
    yield from _judges(found, call_judges)


def installation_check(recipe: Recipe, home: Path) -> Iterator[Line]:
    """The part that takes no time: files that the recipe names, engines, models, and room for what it makes."""
    yield from _files(recipe)
    yield from _engines(recipe)
    yield from _models(recipe)
    yield from _disk(recipe, home)


def _files(recipe: Recipe) -> Iterator[Line]:
    try:
        require_files(recipe)
    except RecipeError as error:
        yield Line("error", "files", str(error), "correct the recipe, or put the file where it says")
    else:
        yield Line("ok", "files", "every file and folder that the recipe names is there; models of the Hub come below")


def _engines(recipe: Recipe) -> Iterator[Line]:
    """Whether what computes is installed; nothing is imported."""
    needed = {"torch", "transformers", "deepspeed", "vllm", "accelerate"}
    needed |= {"peft"} if recipe.training.lora is not None else set()
    needed |= {"ray"} if recipe.ray is not None else set()
    needed |= {"easy_vqa"} if recipe.demo is not None else set()
    needed |= {"tensorboard"} if recipe.training.tensorboard else set()
    needed |= {"wandb"} if recipe.training.wandb_project is not None else set()
    needed |= {"mlflow"} if recipe.training.mlflow_experiment is not None else set()
    missing = sorted(name for name in needed if importlib.util.find_spec(name) is None)
    if missing:
        advice = f"{INSTALL_ENGINES}; [demo] brings easy_vqa, [ray] ray"
        yield Line("error", "engines", f"not installed: {', '.join(missing)}", advice, {"missing": missing})
    else:
        yield Line("ok", "engines", f"installed: {', '.join(sorted(needed))}")


def _sources(recipe: Recipe, manifests: list[Manifest], home: Path, rows: int) -> Iterator[Line]:
    landed = landed_manifests(home, recipe.landing, tuple(one.name for one in manifests), settle_seconds=0)
    for file, fault in landed.faults.items():
        yield Line("warning", f"landed {file}", fault, "correct the manifest in the landing folder, or remove it")
    for manifest in (*manifests, *landed.manifests):
        yield _source(manifest, recipe, home / "sources", rows)


def _source(manifest: Manifest, recipe: Recipe, sources: Path, rows: int) -> Line:
    topic = f"source {manifest.name}"
    data = manifest.located(sources)[0]
    if recipe.demo is not None and (manifest.path or "").startswith(f"{SOURCES}/demo/") and not _exists(data):
        return Line("ok", topic, f"{manifest.kind}; its files are made by the job `construct`")
    try:
        found = look_at_source(manifest, sources, rows)
    except SourceError as error:
        fault = str(error).removeprefix(f"source {manifest.name!r}: ")  # the topic has the name
        write = "write this file, or " if isinstance(error.__cause__, FileNotFoundError) else ""
        return Line("error", topic, fault, f"{write}correct the manifest's path, format or columns")
    except OSError as error:  # of the network, where a source lies on the Hub
        return Line("error", topic, f"cannot be read: {error}", "check the path, or the connection to the Hub")
    counts = ", ".join(f"{count} {reason}" for reason, count in found.quarantined.items())
    text = f"{manifest.kind}; {found.usable} of the first {found.items} items are usable"
    text += f"; quarantined: {counts}" if counts else ""
    details = {
        "kind": manifest.kind,
        "columns": list(found.columns),
        "items": found.items,
        "usable": found.usable,
        "quarantined": found.quarantined,
        "example": found.example,
    }
    advice = f"the first one is {found.example}" if found.example else ""
    if not found.usable:
        return Line("error", topic, text, advice or "the source holds no rows", details)
    return Line("warning" if 2 * found.usable < found.items else "ok", topic, text, advice, details)


def _benchmarks(manifests: list[Manifest]) -> Iterator[Line]:
    held_out = [one for one in manifests if one.kind in ("benchmark", "t2i_benchmark")]
    if not held_out:
        advice = "name a source of kind `benchmark` under `datasets`: held-out pairs of yours, or a published benchmark"
        yield Line("warning", "benchmarks", "the recipe has none, so no accuracy is measured", advice)
    for manifest in held_out:
        name = manifest.benchmark or manifest.name
        try:
            entry = find_entry(name)
        except BenchmarkError as error:
            yield Line("error", f"benchmark {name}", str(error), "correct the file in configs/benchmarks")
            continue
        known = "accuracy by group" if entry is None else f"{entry.title or entry.name}, version {entry.version}"
        yield Line("ok", f"benchmark {name}", f"{known}; rows come from source {manifest.name}")


def _local_models(recipe: Recipe) -> dict[str, list[str]]:
    """Models that run on this machine -> the settings that name them."""
    named = [(f"sampling.models.{n}", name) for n, name in enumerate(recipe.sampling.models)]
    named = named or [("sampling.model", recipe.sampling.model)]
    named.append(("training.base_model", recipe.training.base_model))
    restyle = recipe.pairing.restyle
    judges = [(f"judging.judges.{n}", judge) for n, judge in enumerate(recipe.judging.judges)]
    judges += [(f"annotation.judges.{n}", judge) for n, judge in enumerate(recipe.annotation.judges)]  # type: ignore[misc]
    judges += [] if restyle is None else [("pairing.restyle.rewriter", restyle.rewriter)]
    judges += [] if restyle is None or restyle.check is None else [("pairing.restyle.check", restyle.check)]  # type: ignore[list-item]
    for key, judge in judges:
        if not isinstance(judge, EndpointJudgeSettings | ReferenceJudgeSettings | WordsCheckSettings):
            named.append((f"{key}.model", judge.model))
    models: dict[str, list[str]] = {}
    for key, name in named:
        models.setdefault(name, []).append(key)
    return models


def _models(recipe: Recipe) -> Iterator[Line]:
    for name, keys in _local_models(recipe).items():
        topic, users = f"model {name}", ", ".join(keys)
        folder = _model_folder(name)
        if folder is None:
            here = recipe.launcher is None and recipe.ray is None  # else other machines may have it
            yield _absent_model(topic, name, f"not on this machine; named by {users}", here)
            continue
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        text = f"{amount(size)} in {folder}; named by {users}"
        yield Line("ok", topic, text, details={"found": True, "folder": str(folder), "bytes": size})


def _absent_model(topic: str, name: str, text: str, here: bool) -> Line:
    """A model that is not here: a run fetches it, or fails where it runs here and may not use the network."""
    from huggingface_hub.constants import is_offline_mode

    if here and is_offline_mode():
        advice = f"HF_HUB_OFFLINE=0 hf download {name}    (HF_HUB_OFFLINE is set, so a run does not fetch it)"
        return Line("error", topic, text, advice, {"found": False})
    advice = f"hf download {name}    (or a run fetches it, where it may use the network)"
    return Line("warning", topic, text, advice, {"found": False})


def _model_folder(name: str) -> Path | None:
    """Where a model's files lie: its folder, or its snapshot in the Hub's cache; None where they are not here."""
    folder = Path(model_path(name))
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no id of the Hub; `files` reports that
        return None
    return Path(config).parent if isinstance(config, str) else None


def _parameters(recipe: Recipe) -> Parameters | None:
    folder = _model_folder(recipe.training.base_model)
    try:
        return None if folder is None else count_parameters(folder)
    except WeightsError:
        return None


def _memory(recipe: Recipe) -> Iterator[Line]:
    """GPU memory of training against the estimate of reward/training/memory.py."""
    topic, parameters = "GPU memory", _parameters(recipe)
    if parameters is None:
        text = f"no estimate: the weights of {recipe.training.base_model} are not on this machine in safetensors"
        text += "" if _gpus() or _driver_fault() else "; no GPU here, so training runs on the CPU"
        yield Line("warning", topic, text, "download the model, then check again")
        return
    try:
        zero = read_deepspeed_config(recipe.training.deepspeed_config).get("zero_optimization") or {}
    except RecipeError:
        return  # `files` reports it
    estimate, stage = training_memory(parameters, recipe.training, zero), int(zero.get("stage", 0))
    text = estimate.in_words(parameters, recipe.training, stage)
    details: dict[str, Any] = {"parameters": parameters.total, "bytes_per_rank": round(estimate.total), "stage": stage}
    gpus = _gpus()
    if fault := _driver_fault():
        yield Line("error", topic, fault, "a training or a scoring ends with this error", {**details, "gpus": []})
        return
    if not gpus:
        yield Line("ok", topic, f"no GPU here, so training runs on the CPU; {text}", details={**details, "gpus": []})
        return
    details["gpus"] = gpus
    smallest = min(gpus)
    there = f"{text}; here: {len(gpus)} GPU(s) of {smallest / GIB:.0f} GiB"
    if estimate.total > _ROOM * smallest:
        advice = (
            "set training.lora, deepspeed_config: zero3 or more processes; the estimate should leave a quarter free"
        )
        yield Line("error" if estimate.total > smallest else "warning", topic, there, advice, details)
    elif len(gpus) < recipe.training.processes and recipe.training.hostfile is None:
        advice = "set training.processes to the number of GPUs"
        yield Line("warning", topic, f"{there}, for {recipe.training.processes} ranks", advice, details)
    else:
        yield Line("ok", topic, there, details=details)


def _gpus() -> list[int]:
    """Bytes of memory of each GPU that PyTorch sees; none where it is not installed."""
    try:
        import torch
    except ImportError:
        return []
    return [torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())]


def _driver_fault() -> str | None:
    """Why PyTorch uses no GPU of a machine with NVIDIA's driver; None where it is not installed, too."""
    try:
        from dt2it_pipeline.engines.device import driver_fault
    except ImportError:
        return None
    return driver_fault()


def _disk(recipe: Recipe, home: Path) -> Iterator[Line]:
    place = next(folder for folder in (home, *home.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    parameters = _parameters(recipe)
    text = f"{home}: {free / _GB:.0f} GB free"
    details: dict[str, Any] = {"home": str(home), "free_bytes": free}
    if parameters is None:
        yield Line("ok", "artifact home", text, details=details)
        return
    seeds = recipe.curation.ensemble.seeds if recipe.curation.ensemble else 0
    folds = recipe.curation.out_of_fold.folds if recipe.curation.out_of_fold else 0
    verifier = recipe.curation.policy == "paper" and not recipe.curation.reuse_reward_model
    arms = recipe.evaluation.control_arm + recipe.evaluation.ceiling_arm
    count = recipe.rounds * (1 + verifier + folds) + seeds + arms
    width = 2 if recipe.training.precision == "bfloat16" else 4
    needed = count * width * parameters.total + _STATE_BYTES * parameters.total
    details["needed_bytes"] = needed
    text += (
        f"; {count} checkpoint(s) and one training state take about {needed / _GB:.1f} GB, tables and media not counted"
    )
    if needed > free:
        yield Line("error", "artifact home", text, "set DT2IT_HOME to a larger disk", details)
    else:
        yield Line("ok", "artifact home", text, details=details)


def _judges(recipe: Recipe, call: bool) -> Iterator[Line]:
    named: list[tuple[str, Any]] = [(f"judging.judges.{n}", one) for n, one in enumerate(recipe.judging.judges)]
    named += [(f"annotation.judges.{n}", one) for n, one in enumerate(recipe.annotation.judges)]
    if recipe.pairing.restyle is not None:
        named.append(("pairing.restyle.rewriter", recipe.pairing.restyle.rewriter))
        named += [("pairing.restyle.check", recipe.pairing.restyle.check)] if recipe.pairing.restyle.check else []
    for key, judge in named:
        mode = recipe.judging.modes[0] if key.startswith("judging.") else PAIRWISE  # as the section asks
        if isinstance(judge, LikelihoodJudgeSettings) and not judge.scores:
            mode = PAIRWISE
        topic = f"judge {judge.name} ({key})"
        if isinstance(judge, WordsCheckSettings | ReferenceJudgeSettings):
            yield Line("ok", topic, f"{judge.kind}: compares with the reference answer; no model is asked")
        elif isinstance(judge, EndpointJudgeSettings):
            yield _endpoint_judge(topic, judge, mode if call else None)
        else:
            yield from _local_judge(topic, judge, mode if call else None)


def _local_judge(topic: str, judge: LocalJudge, mode: str | None) -> Iterator[Line]:
    """What is known about a judge whose model is loaded here; one call in `mode`, none where that is None."""
    text = f"{judge.kind}: loads {judge.model} on this machine"
    if mode is None:
        advice = "`dt2it check --call-judges` loads it and asks it once"
        yield Line("ok", topic, f"{text}; not called, since it must be loaded first", advice)
    elif _model_folder(judge.model) is None:
        yield Line("warning", topic, f"{text}; not called, since it is not here", f"hf download {judge.model}")
    else:
        yield Line("ok", topic, f"{text} now and is asked once; a large model takes minutes to load")
        yield _called(topic, judge.model, lambda: try_local_judge(judge, mode))


def _endpoint_judge(topic: str, judge: EndpointJudgeSettings, mode: str | None) -> Line:
    """What is known about a judge behind an endpoint; one call in `mode`, none where that is None."""
    try:
        judge.key()
    except ValueError as error:
        return Line("error", topic, str(error), f"export {judge.api_key_env}=...")
    if mode is None:
        text = f"endpoint {judge.base_url}, model {judge.model}: not called, since a call may cost money"
        return Line("ok", topic, text, "`dt2it check --call-judges` sends it one small request")
    return _called(topic, "base_url, model and the key", lambda: try_judge(judge, mode))


def _called(topic: str, what: str, ask: Callable[[], Trial]) -> Line:
    """One call, and what came back; `what` is to be checked where it fails."""
    try:
        trial = ask()
    except JudgeError as error:
        return Line("error", topic, f"the test call failed: {error}", f"check {what}")
    details = {**vars(trial)}
    reply = f"reply: {_short(trial.reply)}; " if trial.reply else ""
    text = f"asked: {trial.request}; {reply}understood: {trial.understood}"
    text += f"; {trial.seconds:.1f} s" + ("" if trial.cost is None else f", cost {trial.cost:.6f}")
    if not trial.usable:
        advice = "try another `structured`, a larger max_new_tokens, or a stronger model"
        return Line("error", topic, text, advice, details)
    if not trial.right:
        advice = "the right answer was response 1: this model may be too weak to judge, or may not see images"
        return Line("warning", topic, text, advice, details)
    return Line("ok", topic, text, details=details)


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 300 else f"{plain[:300]}... ({len(plain):,} characters)"


def _exists(path: Path | None) -> bool:
    return path is not None and path.exists()


def has_errors(lines: Iterable[Line]) -> bool:
    """Whether a run would fail."""
    return any(line.level == "error" for line in lines)
