"""A random tiny Qwen3-VL or Qwen2.5-VL with its processor, and small tables with images, for the tests here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.storage import atomic, content_ids, records, schemas

TEMPLATE = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.content is string %}{{- m.content }}{%- else %}{%- for c in m.content %}"
    "{%- if c.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif c.type == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- else %}{{- c.text }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
WORDS = (
    "what", "colour", "is", "the", "shape", "in", "image", "a", "red", "green", "blue", "circle", "triangle",
    "square", "yes", "no", "it", "looks", "to", "me"
)  # fmt: skip


def make_tiny(
    folder: Path, family: str = "qwen3_vl", hidden: int = 32, layers: int = 3, seed: int = 0, patch: int = 8
) -> Path:
    """Write a random base model (ForConditionalGeneration) with processor files.

    With hidden = 128, heads are 32 wide, the least that vLLM's attention takes on a CPU. The families' own patches are
    16 (Qwen3-VL) and 14 pixels wide.
    """
    ensure_torchvision()
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=1
    )
    backend.train_from_iterator([" ".join(WORDS), "system user assistant", TrainingSettings().system_prompt], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|im_end|>",
        extra_special_tokens=list(SPECIAL[1:2] + SPECIAL[3:]),
    )  # fmt: skip
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    size = {"shortest_edge": 256, "longest_edge": 65536}
    images = Qwen2VLImageProcessor(
        size=size, patch_size=patch, temporal_patch_size=2, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    common = {
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": hidden, "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    }  # fmt: skip
    head = hidden // 4
    if family == "qwen3_vl":
        head = text["head_dim"] = max(16, head)
    sections = [head // 4, head // 8, head // 8]
    torch.manual_seed(seed)
    if family == "qwen3_vl":
        from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration
        from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

        videos = Qwen3VLVideoProcessor(size=size, patch_size=patch, temporal_patch_size=2, merge_size=2)
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, "mrope_interleaved": True}
        vision = {
            "hidden_size": 32, "intermediate_size": 64, "depth": 3, "num_heads": 2, "patch_size": patch,
            "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": hidden,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        }  # fmt: skip
        config = Qwen3VLConfig(text_config=text | {"rope_parameters": rope}, vision_config=vision, **common)
        model, processor = Qwen3VLForConditionalGeneration(config), Qwen3VLProcessor
    else:
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
        from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

        videos = Qwen2VLVideoProcessor(size=size, patch_size=patch, temporal_patch_size=2, merge_size=2)
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
        vision = {
            "hidden_size": 32, "intermediate_size": 64, "depth": 3, "num_heads": 2, "patch_size": patch,
            "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": hidden, "window_size": 4 * patch,
            "fullatt_block_indexes": [1],
        }  # fmt: skip
        config = Qwen2_5_VLConfig(text_config=text | {"rope_parameters": rope}, vision_config=vision, **common)
        model, processor = Qwen2_5_VLForConditionalGeneration(config), Qwen2_5_VLProcessor
    with torch.no_grad():  # the library starts biases and norms flat, which would hide mistakes in them
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    processor(images, tokenizer, videos, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


def make_images(root: Path, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Write coloured images of a few sizes below `root`; returns rows of `media`."""
    generator = np.random.default_rng(seed)
    media = []
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        shape = [(32, 32), (32, 48), (64, 32)][number % 3]
        block = generator.integers(0, 255, size=(shape[0] // 8, shape[1] // 8, 3), dtype=np.uint8)
        Image.fromarray(block.repeat(8, 0).repeat(8, 1)).save(root / f"{number}.png")
        digest = hashlib.sha256((root / f"{number}.png").read_bytes()).hexdigest()
        media.append({"kind": "image", "sha256": digest, "path": f"{number}.png"})
    return media


def make_frames(folder: Path, count: int, fps: float | None, shape: tuple[int, int] = (32, 48)) -> dict[str, str]:
    """Write a video as a folder of frames, in which a bright square wanders; returns its row of `media`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(moving(count, shape)):
        Image.fromarray(frame).save(folder / f"frame{number}.png")
    if fps is not None:
        (folder / "video.json").write_text(json.dumps({"fps": fps}))
    return {"kind": "video", "sha256": f"{folder.name} {count} {fps} {shape}", "path": folder.name}


def make_video_file(path: Path, count: int, fps: float, shape: tuple[int, int] = (32, 48)) -> dict[str, str]:
    """Write the same as an AVI file; returns its row of `media`."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (shape[1], shape[0]))
    assert writer.isOpened()
    for frame in moving(count, shape):
        writer.write(frame[:, :, ::-1])
    writer.release()
    return {"kind": "video", "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "path": path.name}


def moving(count: int, shape: tuple[int, int]) -> list[np.ndarray]:
    frames = []
    for number in range(count):
        frame = np.full((*shape, 3), 20 + 3 * number, dtype=np.uint8)
        left = (4 * number) % (shape[1] - 8)
        frame[8:16, left : left + 8] = (250, 40 + 10 * number % 200, 30)
        frames.append(frame)
    return frames


def make_prompt(media: list[dict[str, str]], text: str, system: str = "") -> dict[str, object]:
    """A row of a prompts table with its images and videos first."""
    turns = [{"role": "user", "text": "".join(f"<{m['kind']}>" for m in media) + text}]
    return {
        "prompt_id": content_ids.prompt_id(system, turns, [m["sha256"] for m in media]),
        "source": "test", "system": system,
        "turns": turns, "media": media, "reference": None, "language": "en", "meta": "{}",
    }  # fmt: skip


def make_tables(folder: Path, pairs: int, seed: int = 0) -> dict[str, str]:
    """Write prompts, pairs, responses and images; returns the paths as a job names them."""
    generator = np.random.default_rng(seed)
    media = make_images(folder / "media", max(4, pairs // 3), seed)
    prompt_rows, pair_rows, response_rows = {}, [], {}
    for number in range(pairs):
        shown = [media[int(i)] for i in generator.choice(len(media), size=number % 3, replace=False)]
        row = make_prompt(shown, " ".join(generator.choice(WORDS, size=4 + number % 5)))
        prompt_rows[row["prompt_id"]] = row
        first, second = (" ".join(generator.choice(WORDS, size=int(generator.integers(1, 8)))) for _ in range(2))
        pair = records.make_pair(row["prompt_id"], first + " yes", second + " no", source="test")
        pair_rows.append(pair)
        for side in ("chosen", "rejected"):
            response_rows[pair[f"{side}_id"]] = {
                "response_id": pair[f"{side}_id"], "prompt_id": row["prompt_id"], "text": pair[side],
                "generator": "test",
            }  # fmt: skip
    atomic.write_parquet(schemas.table(prompt_rows.values(), "prompts"), folder / "prompts.parquet")
    atomic.write_parquet(schemas.table(pair_rows, "pairs"), folder / "pairs.parquet")
    atomic.write_parquet(schemas.table(response_rows.values(), "responses"), folder / "responses.parquet")
    return {
        "prompts": str(folder / "prompts.parquet"), "pairs": str(folder / "pairs.parquet"),
        "responses": str(folder / "responses.parquet"), "media_root": str(folder / "media"),
    }  # fmt: skip
