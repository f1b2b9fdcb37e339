"""Models of random weights at the shapes of public ones, written as folders that the pipeline loads like any other.

The numbers are those of the published config.json files. Tokenizer and chat template are those of the demo's base
model, whose tokens are the first of the vocabulary; the embedding keeps the shape's own size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.storage.atomic import atomic_directory

FACTS = "facts.json"  # of a model folder: its parameters by part
_SHARD_BYTES = 4 * 10**9
_HEAD_FILE, _SCORE_FILE = "lm_head.safetensors", "score.safetensors"


@dataclass(frozen=True)
class Shape:
    """Shape of a model.

    Attributes:
        family: `model_type` of config.json.
        text: of the language model, in the names of config.json.
        vision: of the vision encoder, likewise.
        tied: whether the LM head is the embedding.
        pixels: least and most pixels of an image, as the published processor has them.
        workload: name of the texts and images that it is measured on; see data.py.
    """

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    tied: bool
    pixels: tuple[int, int]
    workload: str = "photographs"


def _rope(theta: float, sections: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, "mrope_section": sections, **more}}


def _language(hidden: int, intermediate: int, layers: int, heads: int, key_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "rms_norm_eps": 1e-6,
        "vocab_size": 151_936,
    }


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool, vision: dict[str, Any]) -> Shape:
    text = _language(hidden, intermediate, layers, heads, 8) | {"head_dim": 128, "max_position_embeddings": 262_144}
    text |= _rope(5_000_000.0, [24, 20, 20], mrope_interleaved=True)
    common = {"patch_size": 16, "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": hidden}
    return Shape("qwen3_vl", text, common | vision, tied, (65_536, 16_777_216))


def _qwen25(language: dict[str, Any], *, tied: bool) -> Shape:
    text = language | {"max_position_embeddings": 128_000} | _rope(1_000_000.0, [16, 24, 24])
    vision: dict[str, Any] = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
    }
    vision |= {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2}
    return Shape("qwen2_5_vl", text, vision | {"out_hidden_size": text["hidden_size"]}, tied, (3_136, 12_845_056))


_SMALL_ENCODER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_LARGE_ENCODER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
_TINY = _language(128, 384, 4, 4, 2) | {"vocab_size": 1024, "max_position_embeddings": 4096}
_TINY_ENCODER = {"depth": 2, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": 128}
SHAPES = {
    "qwen3-vl-2b": _qwen3(2048, 6144, 28, 16, tied=True, vision=_SMALL_ENCODER),
    "qwen3-vl-4b": _qwen3(2560, 9728, 36, 32, tied=True, vision=_SMALL_ENCODER),
    "qwen3-vl-8b": _qwen3(4096, 12_288, 36, 32, tied=False, vision=_LARGE_ENCODER),
    "qwen2.5-vl-3b": _qwen25(_language(2048, 11_008, 36, 16, 2), tied=True),
    "qwen2.5-vl-7b": _qwen25(_language(3584, 18_944, 28, 28, 4) | {"vocab_size": 152_064}, tied=False),
    "tiny": Shape(
        "qwen3_vl",
        _TINY | {"head_dim": 32} | _rope(10_000.0, [6, 5, 5], mrope_interleaved=True),
        _TINY_ENCODER | {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        False,
        (1024, 65_536),
        "small",
    ),
    "tiny-qwen2.5": Shape(
        "qwen2_5_vl",
        _TINY | _rope(10_000.0, [4, 6, 6]),
        _TINY_ENCODER | {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]},
        True,
        (784, 65_536),
        "small",
    ),
}
for _name in ("qwen3-vl-2b", "qwen2.5-vl-3b"):  # for machines without a GPU; DeepStack reaches into three layers
    _whole = SHAPES[_name]
    SHAPES[f"{_name}-4-layers"] = replace(_whole, text=_whole.text | {"num_hidden_layers": 4})


def base_folder(work: Path, name: str) -> Path:
    """Where the model of a shape lies that generates text, for training and sampling."""
    return work / "models" / name / "base"


def checkpoint_folder(work: Path, name: str) -> Path:
    """Where the reward model of a shape lies, for scoring; its weights are links to those of the base model."""
    return work / "models" / name / "checkpoint"


def make_models(work: Path, name: str, max_pixels: int, system_prompt: str) -> dict[str, int]:
    """Write base model and reward model of a shape where they are not there yet; returns its parameters by part.

    Args:
        work: folder that is kept between runs.
        name: of the shape.
        max_pixels: of an image, with which the reward model says that it was trained.
        system_prompt: likewise.
    """
    base, checkpoint = base_folder(work, name), checkpoint_folder(work, name)
    if not base.exists():
        with atomic_directory(base) as folder:
            write_base(folder, SHAPES[name])
    if not checkpoint.exists():
        with atomic_directory(checkpoint) as folder:
            _write_checkpoint(folder, base, max_pixels, system_prompt)
    facts: dict[str, int] = json.loads((base / FACTS).read_text(encoding="utf-8"))
    return facts


def part_of(weight: str) -> str:
    """Which part of a model a weight counts for: decoder, encoder, merger, or other (what multiplies nothing).

    >>> part_of("model.language_model.layers.0.mlp.up_proj.weight"), part_of("model.visual.merger.linear_fc1.weight")
    ('decoder', 'merger')
    >>> part_of("model.visual.patch_embed.proj.weight"), part_of("model.language_model.embed_tokens.weight")
    ('encoder', 'other')
    """
    if ".visual." in weight:
        return "merger" if "merger" in weight else "other" if "pos_embed" in weight else "encoder"
    return "decoder" if ".layers." in weight else "other"


def write_base(folder: Path, shape: Shape) -> None:
    """Configuration, processor files and random weights in bfloat16, drawn on the GPU where there is one."""
    from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText, GenerationConfig

    from dt2it_pipeline.reward.checkpoints.checkpoint import file_name
    from dt2it_pipeline.reward.families import FAMILIES

    tokenizer = _write_processor(folder, shape)
    config = _config(shape, tokenizer)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if shape.tied:
        shapes.pop("lm_head.weight", None)
    generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(0)
    index: dict[str, str] = {}
    for number, names in enumerate(_shards(shapes)):
        file = _HEAD_FILE if names == ["lm_head.weight"] else f"model-{number:05d}.safetensors"
        drawn = {name: _draw(name, shapes[name], generator) for name in names}
        weights = {file_name(name, FAMILIES[shape.family]): value for name, value in drawn.items()}
        save_file(weights, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(weights, file)
    _write_index(folder, index)
    config.architectures = [FAMILIES[shape.family].base_architecture]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    GenerationConfig(**ids).save_pretrained(folder)
    facts = dict.fromkeys(("decoder", "encoder", "merger", "other"), 0)
    for name, size in shapes.items():
        facts[part_of(name)] += math.prod(size)
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Names of the weights of each file; the LM head has one of its own, which the reward model does without."""
    part: list[str] = []
    size = 0
    for name in sorted(shapes.keys() - {"lm_head.weight"}):
        bytes_here = 2 * math.prod(shapes[name])
        if part and size + bytes_here > _SHARD_BYTES:
            yield part
            part, size = [], 0
        part.append(name)
        size += bytes_here
    yield part
    if "lm_head.weight" in shapes:
        yield ["lm_head.weight"]


def _draw(name: str, size: tuple[int, ...], generator: Any) -> Any:
    """Normal values of standard deviation 0.02; ones for norms and zeros for biases."""
    import torch

    value = torch.empty(size, dtype=torch.bfloat16, device=generator.device)
    if len(size) > 1:
        return value.normal_(0.0, 0.02, generator=generator)
    return value.fill_(0.0 if name.endswith(".bias") else 1.0)


def _write_index(folder: Path, files: dict[str, str]) -> None:
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _config(shape: Shape, tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

    token = tokenizer.convert_tokens_to_ids
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    made: Any = Qwen3VLConfig if shape.family == "qwen3_vl" else Qwen2_5_VLConfig
    return made(
        text_config=shape.text | ends | {"tie_word_embeddings": shape.tied},
        vision_config=shape.vision | {"spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=shape.tied,
    )


def _write_processor(folder: Path, shape: Shape) -> Any:
    """The demo's tokenizer and chat template with image and video processors of the shape; returns the tokenizer."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    from dt2it_pipeline.reward.families import FAMILIES

    demo = Path(model_path(DEMO_BASE_MODEL))
    tokenizer: Any = AutoTokenizer.from_pretrained(demo)
    tokenizer.model_max_length = shape.text["max_position_embeddings"]
    least, most = shape.pixels
    common: dict[str, Any] = {
        "size": {"shortest_edge": least, "longest_edge": most},
        "patch_size": shape.vision["patch_size"],
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    videos: Any = Qwen3VLVideoProcessor if shape.family == "qwen3_vl" else Qwen2VLVideoProcessor
    processor = FAMILIES[shape.family].processor_class()(
        image_processor=Qwen2VLImageProcessor(**common),
        tokenizer=tokenizer,
        video_processor=videos(**common),
        chat_template=(demo / "chat_template.jinja").read_text(encoding="utf-8"),
    )
    processor.save_pretrained(folder)
    return tokenizer


def _write_checkpoint(folder: Path, base: Path, max_pixels: int, system_prompt: str) -> None:
    """The layout that `RewardNetwork.save_pretrained` writes, without a copy of the weights."""
    import torch
    from safetensors.torch import save_file

    from dt2it_pipeline.reward.checkpoints.checkpoint import CONFIG, family_of, hidden_size, read_json, write_json
    from dt2it_pipeline.reward.checkpoints.processor_files import CARD, write_processor_files

    family, hidden = family_of(base), hidden_size(base)
    weight = torch.randn(1, hidden, generator=torch.Generator().manual_seed(0)) * (0.1 / hidden**0.5)
    save_file({family.head_name: weight}, folder / _SCORE_FILE, metadata={"format": "pt"})
    files = read_json(base / "model.safetensors.index.json")["weight_map"]
    files = {name: file for name, file in files.items() if file != _HEAD_FILE}
    for file in set(files.values()):
        (folder / file).symlink_to(Path("..") / base.name / file)
    _write_index(folder, files | {family.head_name: _SCORE_FILE})
    classifier = {"architectures": [family.reward_architecture], "num_labels": 1, "problem_type": "regression"}
    write_json(read_json(base / CONFIG) | classifier, folder / CONFIG)
    card = {"system_prompt": system_prompt, "image_newlines": True, "max_pixels": max_pixels}
    write_json(card, folder / CARD)
    write_processor_files(base, folder, card)
