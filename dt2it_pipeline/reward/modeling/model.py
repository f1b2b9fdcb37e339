"""The network of the reward model: a vision-language backbone without language-model head, and one linear head.

The score of a response is read at the last token of the assistant turn. The backbone's own vision encoder encodes
images; vision encoder and projector are frozen in training, so their output may be computed once and handed in
(data/vision_features.py). What knows of texts and files is not here: `RewardModel` in reward/reward_model.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

ensure_torchvision()

import torch  # noqa: E402  (the shim must come before the first import of transformers)
from torch import nn  # noqa: E402

from dt2it_pipeline.engines.device import weight_type  # noqa: E402
from dt2it_pipeline.reward.checkpoints.adapters import find_parts  # noqa: E402
from dt2it_pipeline.reward.checkpoints.checkpoint import (  # noqa: E402
    HeldWeights,
    WeightSource,
    family_of,
    read_json,
    save_weights,
    write_json,
)
from dt2it_pipeline.reward.checkpoints.heads import no_head  # noqa: E402
from dt2it_pipeline.reward.checkpoints.processor_files import (  # noqa: E402
    CARD,
    OF_THE_TEMPLATE,
    write_processor_files,
)
from dt2it_pipeline.reward.checkpoints.swift_record import swift_record  # noqa: E402
from dt2it_pipeline.reward.families import FAMILIES, Family  # noqa: E402
from dt2it_pipeline.reward.modeling.attention import (  # noqa: E402
    BLOCKS,
    FLEX,
    SMALL_BLOCKS,
    TAKE_MASKS,
    choose_attention,
    in_blocks,
    last_layer,
    layer_mask,
    layer_with_common_prefix,
)
from dt2it_pipeline.reward.modeling.backbone import load_backbone, load_weight_by_weight  # noqa: E402
from dt2it_pipeline.reward.modeling.batch import Batch  # noqa: E402
from dt2it_pipeline.reward.modeling.compilation import compile_layers, release_layers  # noqa: E402
from dt2it_pipeline.reward.modeling.device import Kernels, kernels_for  # noqa: E402
from dt2it_pipeline.reward.modeling.vision_attention import segment_inputs  # noqa: E402
from dt2it_pipeline.storage.permissions import follow_umask  # noqa: E402

_OF_THE_PROCESSOR = (*OF_THE_TEMPLATE, "min_pixels", "max_pixels")  # entries of the card
_LEAST_SAVED = 0.05  # of a batch's cells, where computing a common prefix once is worth a second call of every layer


class ScoreHead(nn.Linear):
    """Linear map from hidden size to one score, without bias, computed in float32 whatever the type of its weight."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Scores of hidden states [..., hidden] as [...], float32."""
        return nn.functional.linear(input.float(), self.weight.float()).squeeze(-1)


class RewardNetwork(nn.Module):
    """Backbone and head. Weight names are `model.*`, as in Hugging Face checkpoints, and `head.weight`, which is
    `score.weight` there.

    Args:
        backbone: model of transformers without a language-model head; see `Family.backbone_class`.
        card: reward_model.json of a checkpoint. `save_pretrained` writes its `system_prompt` and `max_pixels` into the
            processor's files, from where scorers take them.
        source: folder with config.json; None where the network has been made without one.
        processor_source: folder with the processor's files; by default `source`.
    """

    def __init__(
        self,
        backbone: Any,
        card: Mapping[str, Any] | None = None,
        source: Path | None = None,
        processor_source: Path | None = None,
    ) -> None:
        super().__init__()
        self.model = backbone
        self.head = ScoreHead(backbone.config.text_config.hidden_size)
        self.card = dict(card or {})
        self.source = source
        self.processor_source = processor_source or source
        self.compiled = False
        self.follows_card = False  # inputs are read as the card says, which the processor's files do not
        self._sharing: bool | None = None
        self._asked: tuple[str | None, Literal["auto"] | bool] = None, False  # settings `attention` and `compile`

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self.model.config

    @property
    def family(self) -> Family:
        """The backbone's model family."""
        return FAMILIES[str(self.config.model_type)]

    @property
    def levels(self) -> int:
        """Feature rows per image token: one for the input embedding, one for each DeepStack injection."""
        return 1 + len(getattr(self.config.vision_config, "deepstack_visual_indexes", None) or ())

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        base_model: str | Path | None = None,
        new_head_seed: int | None = None,
        dtype: torch.dtype | None = None,
        attention: str | None = None,
        device: str | torch.device = "cpu",
        compile: Literal["auto"] | bool = False,
        fallbacks: int = 0,
        trains: bool = False,
        each: Callable[[str, nn.Parameter], None] | None = None,
    ) -> Self:
        """Load a reward model of ours or of another trainer: whole weights, or an adapter with its base model.

        The head is what the weight files hold (see heads.py), whatever config.json calls the architecture. Its bias,
        if it has one, is not added: scores are the trainer's own less that constant, which goes into the card as
        `dropped_bias`.

        Args:
            path: folder or Hub id.
            base_model: folder or Hub id of the base model of an adapter, where it is not the one that
                adapter_config.json names.
            new_head_seed: draws a fresh head where the files hold none, for training. It is normal with standard
                deviation 0.1 / sqrt(hidden size), so that first scores are small but the gradient reaches the backbone
                from the first step. None: a model without a head is refused.
            dtype: type of the weights; the head computes in float32 in any case. None: bfloat16 on a GPU that computes
                in it, float32 elsewhere.
            attention: `sdpa`, `sdpa_blocks`, `flex` or another implementation of transformers; see
                `attention.layer_mask`. None or `auto`: the one that suits the device.
            device: where the weights are put as they are read.
            compile: put layers through torch.compile; the first batches then take about a minute, later ones less.
                auto: where the device is a GPU that can compile.
            fallbacks: how often kernels did not fit the GPU; see `kernels_for`.
            trains: whether gradients go through the attention.
            each: called with the name of each weight of the backbone and the weight, as soon as it is in its place.
                Weights come one after the other then, and `each` may divide them among ranks: the whole backbone is
                never there.

        Raises:
            DeviceError: the device cannot do what is asked.
            CheckpointError: there is no head; the family, the layout, the head or the adapter is not supported; the
                base model of an adapter is not found; weights are missing or damaged.
            ValueError: the attention implementation is unknown or not installed.
        """
        parts = find_parts(path, base_model)
        family, head = family_of(parts.backbone), parts.head()
        if head is None and new_head_seed is None:
            raise no_head(parts.folder)
        device = torch.device(device)
        dtype = weight_type("auto", device) if dtype is None else dtype
        kernels = kernels_for(attention, compile, device, trains=trains, fallbacks=fallbacks)
        if each is None and parts.base_model is None:
            backbone = load_backbone(parts.backbone, family, dtype, kernels.attention, device)
        else:
            backbone = load_weight_by_weight(parts, family, dtype, kernels.attention, device, each)
        card = read_json(parts.folder / CARD) if (parts.folder / CARD).exists() else {}
        if not card and parts.processor != parts.folder and (parts.processor / CARD).exists():
            # An adapter on a reward model of ours is read by its processor's files, which this card describes.
            theirs = read_json(parts.processor / CARD)
            card = {name: theirs[name] for name in _OF_THE_PROCESSOR if name in theirs}
        record = swift_record(parts.folder, parts.backbone)
        model = cls(backbone, card | record, parts.backbone, parts.processor)
        model.follows_card = bool(record)
        if head is not None:
            model.head.weight.data = head.weight
            if head.bias:
                model.card["dropped_bias"] = head.bias
        else:
            generator = torch.Generator().manual_seed(int(new_head_seed or 0))
            hidden = model.head.in_features
            model.head.weight.data = torch.randn(1, hidden, generator=generator) * (0.1 / hidden**0.5)
        model.head.to(device)
        model._asked = attention, compile
        if kernels.compiled:
            compile_layers(model.called_whole())
            model.compiled = True
        model._use(kernels)
        return model

    @property
    def kernels(self) -> Kernels:
        """What the network computes with."""
        layer = self.model.language_model.layers[0]
        return Kernels(self.attention, self.compiled, getattr(layer.self_attn, SMALL_BLOCKS, False))

    def fall_back(self) -> Kernels | None:
        """Compute with what asks less of the GPU from now on, after a kernel did not fit it.

        Returns:
            What that is; None where the settings that the network was loaded with leave nothing.
        """
        less = self.kernels.lesser(*self._asked)
        if less is not None:
            self._use(less)
        return less

    def _use(self, kernels: Kernels) -> None:
        """Compute with `kernels`; layers may be taken out of torch.compile, not put into it."""
        choose_attention(self.model.language_model, kernels.attention, small_blocks=kernels.small_blocks)
        if self.compiled and not kernels.compiled:
            release_layers(self.called_whole())
            self.compiled = False

    def called_whole(self) -> list[nn.Module]:
        """Decoder layers and blocks of the vision encoder that a forward pass calls as modules, not part by part."""
        layers = list(self.model.language_model.layers)
        if self._scores_alone():
            layers.pop()
        return [*layers, *self.model.visual.blocks]

    def _scores_alone(self) -> bool:
        """Whether the last decoder layer is computed only where a score is read."""
        return self.family.normalises_heads and len(self.model.language_model.layers) > self.levels - 1

    def freeze_vision(self) -> None:
        """Keep vision encoder and projector as they are: they take no gradient and stay in evaluation mode."""
        self.model.visual.requires_grad_(False)
        self.model.visual.eval()

    @property
    def takes_one_row(self) -> bool:
        """Whether a batch is best laid out as one row that holds all examples (`collate(..., one_row=True)`)."""
        return self.attention == FLEX and self.sharing_fault() is None

    @property
    def runs_compiled(self) -> bool:
        """Whether a forward pass runs what torch.compile made: the layers, or `flex` attention alone on a GPU."""
        return self.compiled or (self.attention == FLEX and self.head.weight.is_cuda)

    @property
    def attention(self) -> str:
        """Attention implementation of the language model, by its name in transformers."""
        return str(self.model.language_model.config._attn_implementation)

    def sharing_fault(self) -> str | None:
        """Why this backbone cannot take several responses behind one prompt, or None where it can."""
        if self.attention not in TAKE_MASKS:
            return f"attention {self.attention!r} takes no mask that hides responses from each other"
        if self._windows() != {None}:
            return "sliding-window attention counts distance in columns, and responses behind others are further away"
        return None

    def shares_prefix(self) -> bool:
        """Whether the shared-prefix layout can be used; where it cannot, the reason is logged, once per model."""
        if self._sharing is None:
            fault = self.sharing_fault()
            self._sharing = fault is None
            if fault:
                logging.getLogger(__name__).warning("every response gets a sequence of its own: %s", fault)
        return self._sharing

    def _windows(self) -> set[int | None]:
        return {_window(layer) for layer in self.model.language_model.layers}

    def encode_images(self, pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Run vision encoder and projector over patches of images and videos.

        Args:
            pixels: flattened patches of all of them, [patches, channels * temporal patch * patch * patch].
            grids: patches per image in time, height and width, [images, 3]; in main memory, where they are read
                without waiting for the device.

        Returns:
            [tokens of all images, levels * hidden]: input embedding, then one block per DeepStack level.
        """
        vision_encoder = self.model.visual
        dtype = next(vision_encoder.parameters()).dtype
        ready = segment_inputs(vision_encoder, grids, pixels.device)
        with torch.no_grad():
            out = vision_encoder(pixels.to(dtype), grid_thw=grids, return_dict=True, **ready)
        return torch.cat([out.pooler_output, *(getattr(out, "deepstack_features", None) or ())], dim=-1)

    def forward(self, batch: Batch, features: torch.Tensor | None = None) -> torch.Tensor:
        """Scores of every response in the batch, in its order, [responses], float32.

        Args:
            batch: token ids, positions, segments, and where scores are read and image tokens stand.
            features: rows of `encode_images` for `batch.image_token_positions`, [image tokens, levels * hidden]; where
                they are not given, the vision encoder encodes `batch.pixels`.

        Raises:
            ValueError: there are image tokens without features or pixels, or several responses in a row that this
                backbone cannot keep apart.
        """
        language = self.model.language_model
        hidden = language.embed_tokens(batch.input_ids)
        deepstack: list[torch.Tensor] = []
        if batch.image_token_positions.numel():
            if features is None:
                if batch.pixels is None or batch.grids is None:
                    raise ValueError("the batch has image tokens, but neither features nor pixels were given")
                features = self.encode_images(batch.pixels, batch.grids)
                if batch.feature_rows is not None:
                    features = features[batch.feature_rows]
            first, *deepstack = features.to(hidden.dtype).split(hidden.shape[-1], dim=-1)
            hidden = _put_rows(hidden, batch.image_token_positions, first, add=False)
        rotary = language.rotary_emb(hidden, batch.position_ids)
        if not batch.is_causal and (fault := self.sharing_fault()):
            raise ValueError(f"{fault}: give one response per row (`collation.unpack`) and pad on the right")
        rows, length = batch.input_ids.shape
        common = batch.common_prefix if self._computes_prefix_once(batch) else 0
        masks = {window: self._masks(batch, hidden.dtype, window, common) for window in self._windows()}
        layers = list(language.layers)
        last = layers.pop() if self._scores_alone() else None
        prefix, hidden = hidden[:1, :common], hidden[:, common:]
        image_tokens = batch.image_token_positions - (batch.image_token_positions // length + 1) * common
        for index, layer in enumerate(layers):
            seen = masks[_window(layer)]
            if common:
                prefix, hidden = layer_with_common_prefix(layer, prefix, hidden, rotary, seen)
            else:
                out = layer(hidden, attention_mask=seen[0], position_embeddings=rotary, position_ids=None)
                hidden = out[0] if isinstance(out, tuple) else out
            if index < len(deepstack):
                hidden = _put_rows(hidden, image_tokens, deepstack[index], add=True)
        if common:
            hidden = torch.cat([prefix.expand(rows, -1, -1), hidden], dim=1)
        if last is not None:
            hidden = last_layer(last, hidden, rotary, batch)
        else:
            hidden = hidden.reshape(-1, hidden.shape[-1])[batch.score_positions]
        return self.head(language.norm(hidden))

    def _masks(self, batch: Batch, dtype: torch.dtype, window: int | None, common: int) -> list[Any]:
        """The masks of the layers: of whole rows, or of a common prefix and of the rest."""
        mask = layer_mask(batch, self.attention, dtype, window)
        masks = [mask[:1, :, :common, :common], mask[:, :, common:]] if common else [mask]
        return [in_blocks(each) for each in masks] if self.attention == BLOCKS and mask is not None else masks

    def _computes_prefix_once(self, batch: Batch) -> bool:
        """Whether the text with which all rows begin, such as the system prompt, is to be computed once.

        It is where that saves work and every layer may be called twice. Under ZeRO-3 it may not, since ranks gather a
        layer's weights at each call and must agree on their number; nor may it where activations are recomputed, or
        where layers are compiled, for one kind of call.
        """
        rows, length = batch.input_ids.shape
        if batch.is_causal or self.compiled or self.attention == FLEX:
            return False
        if (rows - 1) * batch.common_prefix < rows * length * _LEAST_SAVED:
            return False
        layer = self.model.language_model.layers[0]
        return not (self.training and layer.gradient_checkpointing) and not hasattr(next(layer.parameters()), "ds_id")

    def save_pretrained(self, folder: str | Path, weights: WeightSource | None = None) -> None:
        """Write the checkpoint files (Hugging Face layout that vLLM pooling serves) into an existing folder.

        Args:
            folder: where to write; make it with `storage.atomic.atomic_directory`, so that nobody sees it half written.
            weights: to write, where others hold them whole; this module's own otherwise.
        """
        folder = Path(folder)
        save_weights(HeldWeights(self.state_dict()) if weights is None else weights, self.family, folder)
        config = self.config.to_dict()
        for key in ("_name_or_path", "transformers_version", "_attn_implementation_autoset", "id2label", "label2id"):
            config.pop(key, None)
        config |= {
            "architectures": [self.family.reward_architecture],
            "num_labels": 1,
            "problem_type": "regression",
        }
        write_json(config, folder / "config.json")
        write_json(self.card, folder / CARD)
        if self.processor_source is not None:
            write_processor_files(self.processor_source, folder, self.card)
        for file in folder.iterdir():
            follow_umask(file)  # safetensors writes for the owner alone


def _window(layer: Any) -> int | None:
    """Tokens that a sliding-window layer sees back; None for full attention."""
    return getattr(layer.self_attn, "sliding_window", None)


def _put_rows(hidden: torch.Tensor, places: torch.Tensor, rows: torch.Tensor, *, add: bool) -> torch.Tensor:
    """`hidden` [rows, L, hidden] with `rows` [n, hidden] written (or added) at flat positions `places` [n]."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    flat = flat.index_add(0, places, rows) if add else flat.index_copy(0, places, rows)
    return flat.view_as(hidden)
