"""Videos: tokens, grids, positions and patches are those of the processors of transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.media.errors import MediaError, VideoDecoderError
from dt2it_pipeline.reward.data.collation import PackedExample, collate, with_pixels
from dt2it_pipeline.reward.data.encoding import EncodedPrompt, PromptError
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline_tests.support.tiny import make_frames, make_images, make_prompt, make_video_file, moving
from dt2it_pipeline_tests.support.tolerance import score_tolerance

ensure_torchvision()
from transformers.video_utils import VideoMetadata, load_video  # noqa: E402

FAMILIES = ["qwen3_vl", "qwen2_5_vl"]


@pytest.fixture
def videos(setup: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Model, prompt_encoder and registry of a family, over a media root of the test's own."""

    def get(family: str, max_pixels: int = 65536) -> tuple[Any, Any, Any]:
        model, prompt_encoder, _ = setup(family)
        processor = prompt_encoder.processor
        prompt_encoder.registry = ImageRegistry(
            processor.image_processor, tmp_path, max_pixels, processor.video_processor
        )
        return model, prompt_encoder, prompt_encoder.registry

    return get


def reference(prompt_encoder: Any, row: dict[str, Any], images: list[Any], clips: list[tuple[np.ndarray, Any]]) -> Any:
    """What the processor of transformers makes of the same conversation; clips are sampled frames and metadata."""
    content: list[dict[str, str]] = [{"type": medium["kind"]} for medium in row["media"]]
    content.append({"type": "text", "text": row["turns"][0]["text"].rsplit(">", 1)[1]})
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "it is green"},
    ]
    text = prompt_encoder.processor.apply_chat_template(messages, tokenize=False)
    return prompt_encoder.processor(
        text=[text], images=images or None, videos=[frames for frames, _ in clips],
        video_metadata=[metadata for _, metadata in clips], do_sample_frames=False, return_tensors="pt",
    )  # fmt: skip


def rope(model: Any, made: Any) -> torch.Tensor:
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    given = {name: made[name] for name in names if name in made}
    return model.model.get_rope_index(made["input_ids"], made["mm_token_type_ids"], **given)[0][:, 0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("count", "fps"), [(4, 2.0), (7, 1.0), (12, 5.0), (9, None)])
def test_a_folder_of_frames_is_what_the_processor_makes_of_it(
    videos: Callable[..., Any], tmp_path: Path, family: str, count: int, fps: float | None
) -> None:
    model, prompt_encoder, registry = videos(family)
    medium = make_frames(tmp_path / "clip", count, fps)
    row = make_prompt([medium], "what colour")
    (prompt,) = prompt_encoder.prompts([row])
    assert isinstance(prompt, EncodedPrompt), prompt
    (response,) = prompt_encoder.responses(["it is green"])

    sampler = prompt_encoder.processor.video_processor
    whole = VideoMetadata(count, fps or 2.0, frames_indices=list(range(count)))
    indices = [int(i) for i in sampler.sample_frames(whole, fps=2)]
    assert list(registry.images[prompt.images[0]].clip.indices) == indices
    clip = np.stack(moving(count, (32, 48)))[indices]
    made = reference(prompt_encoder, row, [], [(clip, VideoMetadata(count, fps or 2.0, frames_indices=indices))])

    assert np.concatenate([prompt.tokens, response]).tolist() == made["input_ids"][0].tolist()
    pixels, grids = registry.patches([registry.decode(prompt.images[0])])
    assert torch.equal(grids, made["video_grid_thw"])
    assert grids[0].tolist() == list(registry.images[prompt.images[0]].grid)
    assert torch.equal(pixels, made["pixel_values_videos"])
    after = np.arange(prompt.next_position, prompt.next_position + len(response))
    ours = np.concatenate([prompt.positions, np.broadcast_to(after, (3, len(after)))], axis=1)
    assert torch.equal(torch.from_numpy(ours).long(), rope(model, made))


@pytest.mark.numerics
@pytest.mark.parametrize("family", FAMILIES)
def test_a_video_between_images_scores_as_transformers_does(
    videos: Callable[..., Any], tmp_path: Path, family: str
) -> None:
    from PIL import Image

    model, prompt_encoder, registry = videos(family)
    model.eval()
    first, second = make_images(tmp_path, 2)
    clips = [make_frames(tmp_path / "a", 6, 1.5), make_frames(tmp_path / "b", 5, 2.0, (48, 32))]
    row = make_prompt([first, clips[0], second, clips[1]], "is it red")
    (prompt,) = prompt_encoder.prompts([row])
    assert isinstance(prompt, EncodedPrompt), prompt
    (response,) = prompt_encoder.responses(["it is green"])
    score = model(with_pixels(collate([PackedExample(prompt, (response,))]), registry))

    shown = [Image.open(tmp_path / m["path"]) for m in (first, second)]
    given = []
    for index, (count, fps, shape) in zip(prompt.images[1::2], [(6, 1.5, (32, 48)), (5, 2.0, (48, 32))], strict=True):
        indices = list(registry.images[index].clip.indices)
        given.append((np.stack(moving(count, shape))[indices], VideoMetadata(count, fps, frames_indices=indices)))
    made = reference(prompt_encoder, row, shown, given)
    assert np.concatenate([prompt.tokens, response]).tolist() == made["input_ids"][0].tolist()
    hidden = model.model(**made).last_hidden_state
    within = score_tolerance(model, made["input_ids"].shape[1])
    assert score.item() == pytest.approx(model.head(hidden[0, -1]).item(), abs=within, rel=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_video_file_is_read_as_transformers_reads_it(videos: Callable[..., Any], tmp_path: Path, family: str) -> None:
    pytest.importorskip("cv2")
    _, prompt_encoder, registry = videos(family)
    medium = make_video_file(tmp_path / "clip.avi", 30, 10.0)
    sampler = prompt_encoder.processor.video_processor

    def sample(metadata: Any, **_: Any) -> Any:
        return np.asarray(sampler.sample_frames(metadata, fps=2))

    frames, metadata = load_video(str(tmp_path / "clip.avi"), backend="opencv", sample_indices_fn=sample)
    index = registry.add(medium)
    assert list(registry.images[index].clip.indices) == list(metadata.frames_indices)
    made = sampler(videos=[frames], do_sample_frames=False, return_tensors="pt")
    pixels, grids = registry.patches([registry.decode(index)])
    assert torch.equal(grids, made["video_grid_thw"])
    assert torch.equal(pixels, made["pixel_values_videos"])


@pytest.mark.parametrize("family", FAMILIES)
def test_max_pixels_holds_for_every_frame(videos: Callable[..., Any], tmp_path: Path, family: str) -> None:
    _, _, registry = videos(family, 1024)
    medium = make_frames(tmp_path / "clip", 6, 2.0, (64, 96))
    image = registry.images[registry.add(medium)]
    assert image.grid[1] * image.grid[2] * 64 <= 1024
    assert tuple(registry.patches([registry.decode(0)])[1][0].tolist()) == image.grid


def test_a_bad_video_has_a_reason(videos: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    _, prompt_encoder, registry = videos("qwen3_vl")
    make_frames(tmp_path / "single", 1, 2.0)
    make_frames(tmp_path / "odd", 4, 2.0)
    (tmp_path / "odd" / "video.json").write_text('{"fps": "fast"}')
    make_frames(tmp_path / "still", 4, 0.0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
    make_video_file(tmp_path / "cut.avi", 30, 10.0)
    (tmp_path / "cut.avi").write_bytes((tmp_path / "cut.avi").read_bytes()[:200])
    cases = {
        "absent.mp4": "missing video", "../x": "path outside the media root", "single": "video too short",
        "odd": "unreadable video", "still": "unreadable video", "empty": "unreadable video",
        "list.m3u8": "unreadable video", "cut.avi": "unreadable video",
    }  # fmt: skip
    for path, reason in cases.items():
        with pytest.raises(MediaError) as caught:
            registry.add({"kind": "video", "sha256": "", "path": path})
        assert caught.value.reason == reason, path
    damaged = make_frames(tmp_path / "damaged", 4, 2.0)
    (tmp_path / "damaged" / "frame2.png").write_bytes(b"nothing")
    index = registry.add(damaged)
    with pytest.raises(MediaError, match=r"frame2\.png"):
        registry.decode(index)
    swapped = make_prompt([make_frames(tmp_path / "fine", 4, 2.0)], "x")
    swapped["turns"] = [{"role": "user", "text": "<image>x"}]
    (error,) = prompt_encoder.prompts([swapped])
    assert isinstance(error, PromptError)
    assert error.reason == "image markers do not match media"


def test_without_opencv_the_extra_is_named(
    videos: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, registry = videos("qwen3_vl")
    (tmp_path / "clip.avi").write_bytes(b"RIFF....AVI LIST....")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(VideoDecoderError, match=r"dt2it-pipeline\[video\]"):
        registry.add({"kind": "video", "sha256": "x", "path": "clip.avi"})
