"""Images and videos on their way to the frozen vision encoder: found below the media root, checked, decoded, patched,
encoded.

A video is sampled, scaled and cut by the model's own video processor; from there on it is an image with several steps
in time. In this package "image" means both where nothing else is said.

Input is hostile here: a file may be missing, truncated, huge or outside the root. Every fault is a ImageError with a
short fixed reason, so that the caller can set the row aside.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.media import video
from dt2it_pipeline.media.pixels import to_rgb, upright_size
from dt2it_pipeline.media.store import IMAGE_FORMATS, MediaError

if TYPE_CHECKING:
    import torch

    from dt2it_pipeline.reward.modeling.model import RewardModel

MOST_PIXELS = 200_000_000  # a larger image is refused before it is decoded
_CHUNK_PATCHES = 8192  # patches that the vision encoder sees at once when features are computed ahead


class ImageError(RowError):
    """An image cannot be used."""


@dataclass(frozen=True, slots=True)
class Clip:
    """What was sampled of a video."""

    indices: tuple[int, ...]  # frames, by number
    total: int  # frames that there are
    fps: float  # at which they follow each other

    @property
    def metadata(self) -> Any:
        """The same as the processors of transformers hold it; a new one for every use, as they write into it."""
        from transformers.video_utils import VideoMetadata

        return VideoMetadata(self.total, self.fps, frames_indices=list(self.indices))


@dataclass(frozen=True, slots=True)
class VisionInput:
    """An image or video whose header has been read."""

    path: Path
    grid: tuple[int, int, int]  # patches in time, height and width
    tokens: int  # after the projector merged patches
    clip: Clip | None = None  # for a video
    image: Any = field(default=None, compare=False)  # an image of PIL that lies in memory


class ImageRegistry:
    """All images and videos of a job, each once by content hash.

    Args:
        image_processor: of the model.
        media_root: folder that no path may leave.
        max_pixels: larger images and frames are scaled down to this many pixels.
        video_processor: of the model; without it, videos are refused.
    """

    def __init__(
        self, image_processor: Any, media_root: str | Path, max_pixels: int, video_processor: Any = None
    ) -> None:
        self.processor = image_processor
        self.videos = video_processor
        self.max_pixels = max_pixels
        self.root = Path(media_root).resolve()
        size = image_processor.size
        longest = min(int(size["longest_edge"]), max_pixels)
        self.size = {"shortest_edge": min(int(size["shortest_edge"]), longest), "longest_edge": longest}
        self.merge = int(image_processor.merge_size)
        self.images: list[VisionInput] = []
        self._by_key: dict[str, int | ImageError] = {}

    def add(self, medium: Mapping[str, Any]) -> int:
        """Index of a medium (a row of `media`), read from its header when it is new.

        Besides the table's columns, a row may hold `image`: an image of PIL, in the place of a file.

        Raises:
            ImageError: it cannot be used.
            VideoDecoderError: it is a video file, and OpenCV is not installed.
        """
        key = str(medium["sha256"] or medium["path"])
        known = self._by_key.get(key)
        if known is None:
            opened = self._open_video if medium["kind"] == "video" else self._open
            try:
                image = opened(medium)
            except ImageError as error:
                known = error
            else:
                known = len(self.images)
                self.images.append(image)
            self._by_key[key] = known
        if isinstance(known, ImageError):
            raise known
        return known

    def _path(self, medium: Mapping[str, Any], kind: str) -> Path:
        path = (self.root / medium["path"]).resolve()
        if not path.is_relative_to(self.root):
            raise ImageError(f"{kind} outside the media root", str(medium["path"]))
        if not (path.is_file() or (kind == "video" and path.is_dir())):
            raise ImageError(f"{kind} missing", str(medium["path"]))
        return path

    def _open(self, medium: Mapping[str, Any]) -> VisionInput:
        from PIL import Image
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        if medium["kind"] != "image":
            raise ImageError("medium not supported", f"{medium['kind']!r}; only images and videos are")
        image = medium.get("image")
        if image is not None:
            path, (width, height) = Path("image in memory"), upright_size(image)
        else:
            path = self._path(medium, "image")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                    with Image.open(path, formats=IMAGE_FORMATS) as opened:
                        width, height = upright_size(opened)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise ImageError("image unreadable", f"{medium['path']}: {error}") from error
        if width * height > MOST_PIXELS:
            raise ImageError("image too large", f"{path.name}: {width} x {height} pixels")
        factor = self.processor.patch_size * self.merge
        try:
            tall, wide = smart_resize(
                height, width, factor, min_pixels=self.size["shortest_edge"], max_pixels=self.size["longest_edge"]
            )
        except (ValueError, ZeroDivisionError) as error:
            raise ImageError("image too narrow", f"{path.name}: {width} x {height} pixels") from error
        grid = (1, tall // self.processor.patch_size, wide // self.processor.patch_size)
        return VisionInput(path, grid, grid[1] * grid[2] // self.merge**2, image=image)

    def _open_video(self, medium: Mapping[str, Any]) -> VisionInput:
        if self.videos is None:
            raise ImageError("medium not supported", "'video'; this scorer takes images only")
        path = self._path(medium, "video")
        try:
            header = video.read_header(path)
        except MediaError as error:
            raise ImageError("video unreadable", str(error)) from error
        processor = self.videos
        if header.frames < processor.temporal_patch_size:
            raise ImageError("video too short", f"{path.name}: {header.frames} frames")
        rate = {"num_frames": processor.num_frames} if processor.num_frames else {"fps": processor.fps or 2}
        clip = Clip((), header.frames, header.fps)
        try:
            indices = tuple(int(index) for index in processor.sample_frames(clip.metadata, **rate))
            tall, wide = self._frame_size(len(indices), header.height, header.width)
        except (ValueError, ZeroDivisionError) as error:
            raise ImageError("video cannot be sampled", f"{path.name}: {error}") from error
        steps = -(-len(indices) // processor.temporal_patch_size)
        grid = (steps, tall // processor.patch_size, wide // processor.patch_size)
        tokens = steps * grid[1] * grid[2] // self.merge**2
        return VisionInput(path, grid, tokens, clip=Clip(indices, header.frames, header.fps))

    def _frame_size(self, count: int, height: int, width: int) -> tuple[int, int]:
        """Height and width to which the processor scales `count` frames, asked of the processor itself on no pixels."""
        import torch
        from transformers.image_utils import SizeDict
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

        processor = self.videos
        most = self.max_pixels * (count if isinstance(processor, Qwen3VLVideoProcessor) else 1)  # its limit is in total
        longest = min(int(processor.size["longest_edge"]), most)
        size = SizeDict(shortest_edge=min(int(processor.size["shortest_edge"]), longest), longest_edge=longest)
        scaled = processor.resize(
            torch.empty(1, count, 3, height, width, device="meta"),
            size=size,
            resample=processor.resample,
            factor=processor.patch_size * processor.merge_size,
            temporal_factor=processor.temporal_patch_size,
            cap_pixels_per_frame=bool(processor.cap_pixels_per_frame),
        )
        return int(scaled.shape[-2]), int(scaled.shape[-1])

    def decode(self, index: int) -> torch.Tensor:
        """Pixels as uint8: [3, height, width] of an image, [frames, 3, height, width] of a video, already scaled.

        Raises ImageError where the file is damaged.
        """
        import torch
        from PIL import Image

        image = self.images[index]
        if image.clip is not None:
            return self._decode_video(image)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if image.image is not None:
                    pixels = np.array(to_rgb(image.image))
                else:
                    with Image.open(image.path, formats=IMAGE_FORMATS) as opened:
                        pixels = np.array(to_rgb(opened))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ImageError("image unreadable", f"{image.path.name}: {error}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _decode_video(self, image: VisionInput) -> torch.Tensor:
        import torch
        from transformers.image_utils import SizeDict
        from transformers.video_processing_utils import BaseVideoProcessor

        assert image.clip is not None
        patch = self.videos.patch_size
        size = SizeDict(height=image.grid[1] * patch, width=image.grid[2] * patch)
        scaled = []
        try:
            for frame in video.frames(image.path, image.clip.indices):  # one at a time: whole frames fill memory
                pixels = torch.from_numpy(frame).permute(2, 0, 1)
                scaled.append(BaseVideoProcessor.resize(self.videos, pixels, size, self.videos.resample))
        except MediaError as error:
            raise ImageError("video unreadable", str(error)) from error
        return torch.stack(scaled)

    def patches(self, decoded: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale, normalise and cut what was decoded: patches [patches, values] and grids [images, 3]."""
        import torch

        if all(pixels.ndim == 3 for pixels in decoded):
            out = self.processor(images=list(decoded), size=self.size, return_tensors="pt")
            return out["pixel_values"], out["image_grid_thw"]
        if len(decoded) > 1:
            parts = [self.patches([pixels]) for pixels in decoded]
            return torch.cat([pixels for pixels, _ in parts]), torch.cat([grids for _, grids in parts])
        out = self.videos(
            videos=list(decoded),
            do_resize=False,
            do_sample_frames=False,
            cap_pixels_per_frame=bool(self.videos.cap_pixels_per_frame),
            return_tensors="pt",
        )
        return out["pixel_values_videos"], out["video_grid_thw"]


class FeatureTable:
    """Vision encoder output of images, computed ahead: [tokens of all images, levels * hidden]."""

    def __init__(self, rows: torch.Tensor, starts: Mapping[int, int]) -> None:
        self.rows = rows
        self.starts = starts

    def gather(self, shelf: ImageRegistry, images: Sequence[int]) -> torch.Tensor:
        """Feature rows of images, one after the other."""
        import torch

        spans = [np.arange(self.starts[p], self.starts[p] + shelf.images[p].tokens) for p in images]
        return self.rows.index_select(0, torch.from_numpy(np.concatenate(spans)).to(self.rows.device))


def feature_bytes(model: RewardModel, shelf: ImageRegistry, images: Sequence[int]) -> int:
    """Memory that the features of these images need, in bytes."""
    width = model.levels * model.config.text_config.hidden_size
    size = next(model.model.visual.parameters()).element_size()
    return sum(shelf.images[p].tokens for p in images) * width * size


def chunks(shelf: ImageRegistry, images: Sequence[int]) -> list[list[int]]:
    """Split images into runs that the vision encoder encodes together; depends on nothing but the list."""
    out: list[list[int]] = []
    room = 0
    for index in images:
        patches = int(np.prod(shelf.images[index].grid))
        if not out or patches > room:
            out.append([])
            room = _CHUNK_PATCHES
        out[-1].append(index)
        room -= patches
    return out


def encode_chunk(
    model: RewardModel, shelf: ImageRegistry, chunk: Sequence[int], device: torch.device
) -> tuple[dict[int, torch.Tensor], dict[int, ImageError]]:
    """Features of each image of a chunk, [tokens, levels * hidden], and the images that could not be decoded."""
    decoded: dict[int, torch.Tensor] = {}
    faults: dict[int, ImageError] = {}
    for index in chunk:
        try:
            decoded[index] = shelf.decode(index)
        except ImageError as error:
            faults[index] = error
    if not decoded:
        return {}, faults
    pixels, grids = shelf.patches(list(decoded.values()))
    features = model.encode_images(pixels.to(device), grids.to(device))
    parts = features.split([shelf.images[index].tokens for index in decoded])
    return dict(zip(decoded, parts, strict=True)), faults
