"""The reward model: a vision-language backbone without language-model head, and one linear head without bias.

The score of a response is read at the last token of the assistant turn. The backbone's own tower encodes pictures;
tower and projector are frozen in training, so their output may be computed once and handed in (pictures.py).
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

ensure_torchvision()

import torch  # noqa: E402  (the shim must come before the first import of transformers)
from torch import nn  # noqa: E402

if TYPE_CHECKING:
    from dt2it_pipeline.reward.batch import Batch

CARD = "reward_model.json"  # what a scorer must know of the training: system prompt, pixels per picture
_FAMILIES = {"qwen3_vl": "Qwen3VL", "qwen2_5_vl": "Qwen2_5_VL"}
_PROCESSOR_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
    "chat_template.json", "chat_template.jinja",
)  # fmt: skip
_SHARD_BYTES = 5 * 10**9


class CheckpointError(ValueError):
    """A model folder is not one that this reward model can be made from."""


class ScoreHead(nn.Linear):
    """Linear map from hidden size to one score, without bias, computed in float32 whatever the type of its weight."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Scores of hidden states [..., hidden] as [...], float32."""
        return nn.functional.linear(input.float(), self.weight.float()).squeeze(-1)


class RewardModel(nn.Module):
    """Backbone and head. Weight names are those of the Hugging Face checkpoint: `model.*` and `score.weight`."""

    def __init__(self, backbone: Any, card: Mapping[str, Any] | None = None, source: Path | None = None) -> None:
        super().__init__()
        self.model = backbone
        self.score = ScoreHead(backbone.config.text_config.hidden_size)
        self.card = dict(card or {})
        self.source = source

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self.model.config

    @property
    def family(self) -> str:
        """`qwen3_vl` or `qwen2_5_vl`."""
        return str(self.config.model_type)

    @property
    def levels(self) -> int:
        """Feature rows per picture token: one for the input embedding, one for each DeepStack injection."""
        return 1 + len(getattr(self.config.vision_config, "deepstack_visual_indexes", None) or ())

    @classmethod
    def from_pretrained(cls, path: str | Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> RewardModel:
        """Load a reward-model checkpoint, or a base model whose head is then drawn from `seed`.

        A fresh head is normal with standard deviation 0.1 / sqrt(hidden size), so that first scores are small but the
        gradient reaches the backbone from the first step.

        Raises:
            CheckpointError: the folder holds no supported architecture, or a reward model without its head.
        """
        folder = resolve_folder(path)
        config = _read_json(folder / "config.json")
        family, is_reward_model = _architecture(config, folder)
        backbone = _load_backbone(folder, family, dtype)
        card = _read_json(folder / CARD) if (folder / CARD).exists() else {}
        model = cls(backbone, card, folder)
        if is_reward_model:
            model.score.weight.data = _load_head(folder, backbone.config.text_config.hidden_size)
        else:
            generator = torch.Generator().manual_seed(seed)
            hidden = backbone.config.text_config.hidden_size
            model.score.weight.data = torch.randn(1, hidden, generator=generator) * (0.1 / hidden**0.5)
        return model

    def freeze_vision(self) -> None:
        """Keep tower and projector as they are: they take no gradient and stay in evaluation mode."""
        self.model.visual.requires_grad_(False)
        self.model.visual.eval()

    def encode_pictures(self, pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Run tower and projector over patches.

        Args:
            pixels: flattened patches of all pictures, [patches, channels * temporal patch * patch * patch].
            grids: patches per picture in time, height and width, [pictures, 3].

        Returns:
            [tokens of all pictures, levels * hidden]: input embedding, then one block per DeepStack level.
        """
        tower = self.model.visual
        dtype = next(tower.parameters()).dtype
        with torch.no_grad():
            out = tower(pixels.to(dtype), grid_thw=grids, return_dict=True)
        return torch.cat([out.pooler_output, *(getattr(out, "deepstack_features", None) or ())], dim=-1)

    def forward(self, batch: Batch, features: torch.Tensor | None = None) -> torch.Tensor:
        """Scores of every response in the batch, in its order, [responses], float32.

        Args:
            batch: token ids, positions, mask and the places of scores and picture tokens.
            features: rows of `encode_pictures` for `batch.picture_slots`; else the tower encodes `batch.pixels`.
        """
        language = self.model.language_model
        hidden = language.embed_tokens(batch.input_ids)
        deepstack: list[torch.Tensor] = []
        if batch.picture_slots.numel():
            if features is None:
                if batch.pixels is None or batch.grids is None:
                    raise ValueError("the batch has picture tokens, but neither features nor pixels were given")
                features = self.encode_pictures(batch.pixels, batch.grids)
                if batch.feature_rows is not None:
                    features = features[batch.feature_rows]
            first, *deepstack = features.to(hidden.dtype).split(hidden.shape[-1], dim=-1)
            hidden = _put_rows(hidden, batch.picture_slots, first, add=False)
        rotary = language.rotary_emb(hidden, batch.position_ids)
        mask = None if batch.mask is None else batch.mask.to(hidden.dtype)
        last = len(language.layers) - 1
        lean_end = self.family == "qwen3_vl" and last >= len(deepstack)
        for index, layer in enumerate(language.layers):
            if index == last and lean_end:
                hidden = _last_layer(layer, hidden, rotary, mask, batch)
                break
            out = layer(hidden, attention_mask=mask, position_embeddings=rotary, position_ids=None)
            hidden = out[0] if isinstance(out, tuple) else out
            if index < len(deepstack):
                hidden = _put_rows(hidden, batch.picture_slots, deepstack[index], add=True)
        else:
            hidden = hidden.reshape(-1, hidden.shape[-1])[batch.ends]
        return self.score(language.norm(hidden))

    def save_pretrained(self, folder: str | Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write the checkpoint files (Hugging Face layout that vLLM pooling serves) into an existing folder.

        Args:
            folder: where to write; make it with `store.atomic_directory`, so that nobody sees it half written.
            state: full weights by name, where a sharded optimiser holds them; this module's own otherwise.
        """
        folder = Path(folder)
        weights = {name: value.detach().cpu().contiguous() for name, value in (state or self.state_dict()).items()}
        _save_weights(_outside_names(weights, self.family), folder)
        config = self.config.to_dict()
        for noise in ("_name_or_path", "transformers_version", "_attn_implementation_autoset", "id2label", "label2id"):
            config.pop(noise, None)
        config |= {
            "architectures": [f"{_FAMILIES[self.family]}ForSequenceClassification"],
            "num_labels": 1,
            "problem_type": "regression",
        }
        _write_json(config, folder / "config.json")
        _write_json(self.card, folder / CARD)
        if self.source is not None:
            for name in _PROCESSOR_FILES:
                if (self.source / name).exists():
                    shutil.copyfile(self.source / name, folder / name)
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone


def resolve_folder(path: str | Path) -> Path:
    """Folder of a model: `path` itself when it exists, else a snapshot of the Hub repository of that name."""
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(path).startswith("."):
        raise CheckpointError(f"there is no model folder {path}")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(path)))


def _put_rows(hidden: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor, *, add: bool) -> torch.Tensor:
    """Write (or add) `rows` [n, hidden] at flat positions `slots` of `hidden` [batch, length, hidden], out of place."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    flat = flat.index_add(0, slots, rows) if add else flat.index_copy(0, slots, rows)
    return flat.view_as(hidden)


def _last_layer(
    layer: Any, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None, batch: Batch
) -> torch.Tensor:
    """The last decoder layer, computed only where a score is read: keys and values of all tokens, the rest of the ends.

    Returns [responses, hidden], the same numbers as running the whole layer and picking the ends.
    """
    from transformers.models.qwen3_vl.modeling_qwen3_vl import rotate_half

    attention = layer.self_attn
    rows, length, width = hidden.shape
    slots = batch.end_grid  # [rows, most ends of a row], flat positions; rows with fewer ends repeat their last
    normed = layer.input_layernorm(hidden)
    picked = normed.reshape(-1, width)[slots]  # [rows, ends, hidden]
    heads = (-1, attention.head_dim)
    query = attention.q_norm(attention.q_proj(picked).view(*slots.shape, *heads)).transpose(1, 2)
    key = attention.k_norm(attention.k_proj(normed).view(rows, length, *heads)).transpose(1, 2)
    value = attention.v_proj(normed).view(rows, length, *heads).transpose(1, 2)
    cos, sin = rotary
    key = key * cos.unsqueeze(1) + rotate_half(key) * sin.unsqueeze(1)
    cos, sin = (part.reshape(-1, part.shape[-1])[slots].unsqueeze(1) for part in (cos, sin))
    query = query * cos + rotate_half(query) * sin
    within = slots - torch.arange(rows, device=slots.device).unsqueeze(1) * length  # column of each end in its row
    if mask is None:
        columns = torch.arange(length, device=slots.device)
        seen = (columns <= within.unsqueeze(-1)).unsqueeze(1)  # causal, single responses
    else:
        seen = mask.squeeze(1).gather(1, within.unsqueeze(-1).expand(-1, -1, length)).unsqueeze(1)
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=attention.scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    out = attention.o_proj(out.transpose(1, 2).reshape(*slots.shape, -1))
    picked = hidden.reshape(-1, width)[slots] + out
    picked = picked + layer.mlp(layer.post_attention_layernorm(picked))
    return picked.reshape(-1, width)[batch.end_order]


def _architecture(config: Mapping[str, Any], folder: Path) -> tuple[str, bool]:
    family = str(config.get("model_type", ""))
    names = list(config.get("architectures") or [])
    known = _FAMILIES.get(family)
    if known is None or not any(
        name in (f"{known}ForConditionalGeneration", f"{known}ForSequenceClassification") for name in names
    ):
        raise CheckpointError(
            f"{folder} is a {names or 'nameless architecture'} of type {family or 'unknown'!r}; "
            f"supported: {', '.join(_FAMILIES)}"
        )
    return family, any(name.endswith("ForSequenceClassification") for name in names)


def _load_backbone(folder: Path, family: str, dtype: torch.dtype) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()  # a missing lm_head is expected here, and would be reported as a fault
    if hasattr(transformers.logging, "disable_progress_bar"):
        transformers.logging.disable_progress_bar()
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    backbone = getattr(module, f"{_FAMILIES[family]}Model")
    made, found = backbone.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True, output_loading_info=True
    )
    missing = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if missing:  # the library would go on with random weights in their place
        raise CheckpointError(f"{folder} lacks {len(missing)} weights of its own architecture, such as {missing[0]}")
    return made


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _load_head(folder: Path, hidden: int) -> torch.Tensor:
    from safetensors import safe_open

    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as weights:
            names = set(weights.keys())
            for name in ("score.weight", "language_model.score.weight"):
                if name in names:
                    head = weights.get_tensor(name).float()
                    if head.shape != (1, hidden):
                        raise CheckpointError(f"{folder}: {name} has shape {tuple(head.shape)}, expected (1, {hidden})")
                    return head
    raise CheckpointError(f"{folder} says it is a reward model, but has no score.weight")


def _outside_names(weights: Mapping[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    """Names in the file, which are those of the published checkpoints.

    Qwen2.5-VL keeps the layout of its first release, and vLLM reads its head from inside the language model.
    """
    if family == "qwen3_vl":
        return dict(weights)
    renamed = {}
    for name, value in weights.items():
        name = name.replace("model.visual.", "visual.", 1).replace("model.language_model.", "model.", 1)
        renamed["language_model.score.weight" if name == "score.weight" else name] = value
    return renamed


def _save_weights(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name in sorted(weights):
        bytes_here = weights[name].numel() * weights[name].element_size()
        if shards[-1] and size + bytes_here > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = weights[name]
        size += bytes_here
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
    total = sum(value.numel() * value.element_size() for value in weights.values())
    _write_json({"metadata": {"total_size": total}, "weight_map": index}, folder / "model.safetensors.index.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def _write_json(value: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, sort_keys=True, indent=2) + "\n", encoding="utf-8")
