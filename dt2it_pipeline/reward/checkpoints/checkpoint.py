"""Files of a checkpoint: where they lie, their names for weights, and what is wrong with damaged ones.

Which head a folder holds is the business of heads.py, how adapters are merged that of adapters.py.
"""

from __future__ import annotations

import functools
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import is_hub_id
from dt2it_pipeline.errors import UserError
from dt2it_pipeline.reward.families import FAMILIES, Family

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS = "*.safetensors"
HEAD = "head.weight"  # in the model; families have names of their own for it
PICKLED_WEIGHTS = ("value_head.bin", "adapter_model.bin", "pytorch_model*.bin")
_SHARD_BYTES = 5 * 10**9
# What trainers and libraries put before the names of a model's own weights, and what they put in between.
_AROUND = {"base_model", "language_model", "model", "module", "pretrained_model"}
_BETWEEN = {"_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod", "base_layer"}

BACKBONE = ("layers.", "embed_tokens.", "norm.", "visual.")  # how the plain names of its weights begin
_COUNTS = ("I64", "I32", "I16", "U64", "U32", "U16", "BOOL")  # types of buffers, which no weight has
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class CheckpointError(UserError, ValueError):
    """A model folder is not one that this reward model can be made from."""

    help_page: ClassVar[str] = "troubleshooting#checkpoint"


def resolve_folder(path: str | Path) -> Path:
    """Folder of a model: `path` itself when it exists, else a snapshot of the Hub repository of that name.

    Raises CheckpointError where it is neither, or has models one level below, as an artifact's versions are.
    """
    if not isinstance(path, (str, Path)):
        raise CheckpointError(f"expected the path or Hub id of a model, found {type(path).__name__}")
    folder = Path(path)
    if path == "":  # as a path it would be the working directory
        raise CheckpointError("the name of a model is empty: give a folder or a Hub id (owner/name)")
    if folder.is_dir():
        own = any((folder / name).exists() for name in (CONFIG, "adapter_config.json"))
        if not own and (inside := _model_inside(folder)) is not None:
            raise CheckpointError(f"{folder} holds models and is none itself: it has no {CONFIG}. Name {inside}")
        return folder
    seen = "" if folder.is_absolute() else f" (seen from {Path.cwd()})"
    if not is_hub_id(str(path)):
        more = ""
        if str(path) == DEMO_BASE_MODEL:
            more = ". The model `demo` of recipes is a base model, which gives no score: `dt2it train` trains it"
        raise CheckpointError(f"there is no model folder {path}{seen}{more}")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return Path(snapshot_download(str(path)))
    except (OSError, ValueError) as error:  # the Hub's own errors are of these kinds
        offline = constants.HF_HUB_OFFLINE
        if folder.parent.is_dir() and (offline or isinstance(error, RepositoryNotFoundError)):  # a path, and no owner
            raise CheckpointError(f"there is no model folder {path}{seen}") from error
        if offline:
            raise CheckpointError(
                f"{str(path)!r} is neither a folder{seen} nor in the Hub's cache on this machine, and HF_HUB_OFFLINE "
                f"keeps it from being fetched; `HF_HUB_OFFLINE=0 hf download {path}` fetches it"
            ) from error
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{str(path)!r} is neither a folder{seen} nor a model that the Hub gives: {reason}"
        ) from error


def _model_inside(folder: Path) -> Path | None:
    """A model one level below a folder: of an artifact's versions the one in force; None where there is none."""
    inside = sorted(file.parent for file in folder.glob(f"*/{CONFIG}"))
    current: Path | None
    try:
        current = folder / (folder / "current").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):  # not a folder of versions
        current = None
    return current if current in inside else inside[-1] if inside else None


def family_of(folder: Path) -> Family:
    """Family of the model in `folder`, by `model_type` of its config.json; the architecture's name does not matter.

    Raises CheckpointError where config.json is missing or names no family that is supported, or a type of weights that
    torch does not know, or weights are quantised.
    """
    config = read_json(folder / CONFIG)
    kind = str(config.get("model_type", ""))
    if kind not in FAMILIES:
        names = ", ".join(map(str, config.get("architectures") or [])) or "a nameless architecture"
        raise CheckpointError(
            f"{folder / CONFIG} describes {names} of type {kind or 'unknown'!r}; a reward model is made of "
            f"{' or '.join(FAMILIES)}: choose such a model"
        )
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{folder / CONFIG} has a quantization_config; quantised weights are not supported: use the model in "
            "bfloat16, float16 or float32"
        )
    for part in (config, config.get("text_config"), config.get("vision_config")):
        for key in ("dtype", "torch_dtype"):
            name = part.get(key) if isinstance(part, dict) else None
            if name is not None and not (isinstance(name, str) and isinstance(getattr(torch, name, None), torch.dtype)):
                raise CheckpointError(
                    f"{folder / CONFIG} names the {key} {name!r}, which torch does not know: write that of the "
                    "weights, such as bfloat16, or remove it"
                )
    return FAMILIES[kind]


def hidden_size(folder: Path) -> int:
    """Hidden size of the language model in `folder`. Raises CheckpointError where its config.json does not say it."""
    config = read_json(folder / CONFIG)
    text = config.get("text_config")
    size = (text.get("hidden_size") if isinstance(text, dict) else None) or config.get("hidden_size")
    if not isinstance(size, int):
        raise CheckpointError(f"{folder / CONFIG} names no hidden_size of the language model")
    return size


def stored_types(folder: Path) -> dict[str, torch.dtype]:
    """Types in which the weights of the backbone lie on disk, by their plain names; config.json may name another.

    Raises:
        CheckpointError: a file is damaged, or a weight is of a type that is not supported.
    """
    found: dict[str, torch.dtype] = {}
    # Transformers takes safetensors where both are there.
    for file in sorted(weight_files(folder), key=lambda file: file.suffix != ".bin"):
        for name, kind in _types(file):
            plain = plain_name(name)
            if not plain.startswith(BACKBONE) or kind in _COUNTS:
                continue
            if kind not in _TYPES:
                raise CheckpointError(
                    f"{file}: {name} is of type {kind}, which is not supported: use the model in bfloat16, float16 or "
                    "float32"
                )
            found[plain] = _TYPES[kind]
    return found


def stored_type(folder: Path) -> torch.dtype:
    """The narrowest type that holds every weight of the backbone in `folder` as it lies on disk.

    Raises CheckpointError as `stored_types` does.
    """
    kinds = set(stored_types(folder).values()) or {torch.float32}
    return functools.reduce(torch.promote_types, kinds)


def _types(file: Path) -> Iterator[tuple[str, str]]:
    """Name and type, as safetensors calls it, of every weight of a file. Raises CheckpointError where it is damaged."""
    if file.suffix == ".bin":
        names = {kind: name for name, kind in _TYPES.items()}
        for name, value in _unpickled(file).items():
            is_count = not (value.is_floating_point() or value.is_complex()) and value.itemsize > 1
            yield name, _COUNTS[0] if is_count else names.get(value.dtype, str(value.dtype))
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as weights:
            yield from ((name, weights.get_slice(name).get_dtype()) for name in weights.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file ({error})") from error


def weight_files(folder: Path) -> list[Path]:
    """Files of a model folder that may hold weights, by name: safetensors, and pickles of known names."""
    found = {path for pattern in (WEIGHTS, *PICKLED_WEIGHTS) for path in folder.glob(pattern)}
    return sorted(found)


def weight_names(file: Path) -> set[str]:
    """Names of the weights in a file. Raises CheckpointError where it is damaged."""
    if file.suffix == ".bin":
        return set(_unpickled(file))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as weights:
            return set(weights.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file ({error}); copy or export the checkpoint again"
        ) from error


def read_weights(file: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Weights of a file by their names there. Raises CheckpointError where it is damaged."""
    if file.suffix == ".bin":
        found = _unpickled(file)
        return {name: found[name] for name in names}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as weights:
            return {name: weights.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); copy or export the checkpoint again") from error


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of a pickle by name; nothing in the file is executed."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged pickle may raise anything
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{file} cannot be read as weights alone: {reason}; save it as safetensors") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(f"{file} does not hold tensors by name; save it as safetensors")
    return {str(name): value for name, value in found.items()}


def plain_name(name: str) -> str:
    """Name of a weight without what trainers put around it: `score.weight`, `layers.0.…`, `visual.blocks.0.…`.

    >>> plain_name("base_model.model.score.modules_to_save.default.weight")
    'score.weight'
    >>> plain_name("module.model.language_model.layers.0.mlp.up_proj.weight")
    'layers.0.mlp.up_proj.weight'
    """
    name = name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
    parts = [part for part in name.split(".") if part not in _BETWEEN]
    while len(parts) > 1 and parts[0] in _AROUND:
        parts.pop(0)
    return ".".join(parts)


def file_name(name: str, family: Family) -> str:
    """Name of a model's weight in a file, which is that of the family's published checkpoints."""
    if name == HEAD:
        return family.head_name
    for ours, outside in family.file_names:
        name = name.replace(ours, outside, 1)
    return name


class WeightSource(Protocol):
    """Weights of a model, each read when its file is written: they need not lie in memory all at once."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each weight, by its name in the model."""

    def read(self, name: str) -> torch.Tensor:
        """A weight, in the host's memory."""


class HeldWeights:
    """Weights that lie in memory, by their names in the model."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights
        self.sizes = {name: value.numel() * value.element_size() for name, value in weights.items()}

    def read(self, name: str) -> torch.Tensor:
        """A weight, in the host's memory."""
        return self._weights[name].detach().cpu()


def shards_of(sizes: Mapping[str, int], family: Family) -> list[dict[str, str]]:
    """The weights of each file of a checkpoint: names in the file, in order, and in the model.

    A file holds no more than 5 GB, or one weight.
    """
    shards: list[dict[str, str]] = [{}]
    size = 0
    for outside, name in sorted((file_name(name, family), name) for name in sizes):
        if shards[-1] and size + sizes[name] > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][outside] = name
        size += sizes[name]
    return shards


def save_weights(source: WeightSource, family: Family, folder: Path) -> None:
    """Write weights as safetensors, in several files with an index where one would be too large.

    The weights of one file are in memory at a time.
    """
    from safetensors.torch import save_file

    shards = shards_of(source.sizes, family)
    index: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        weights = {outside: source.read(name).contiguous() for outside, name in shard.items()}
        save_file(weights, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(weights, file)
        total += sum(value.numel() * value.element_size() for value in weights.values())
        del weights  # before those of the next file are read
    if len(shards) > 1:
        write_json({"metadata": {"total_size": total}, "weight_map": index}, folder / "model.safetensors.index.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file. Raises CheckpointError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Write a JSON object for people to read, keys in order."""
    path.write_text(json.dumps(value, ensure_ascii=False, sort_keys=True, indent=2) + "\n", encoding="utf-8")
