"""Images and videos on their way to the frozen vision encoder: found below the media root, checked, decoded, patched.

A video is sampled, scaled and cut by the model's own video processor; from there on it is an image with several steps
in time. In this package "image" means both where nothing else is said.

Every fault of an image is a MediaError with a short fixed reason, so that the caller can quarantine the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dt2it_pipeline.media import video
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.opening import image_size, open_image, require_stored
from dt2it_pipeline.media.paths import confined
from dt2it_pipeline.reward.checkpoints.processor_files import sized
from dt2it_pipeline.reward.families import limits_pixels_in_total

if TYPE_CHECKING:
    import torch


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


def media_key(medium: Mapping[str, Any]) -> str:
    """What a row of `media` is known by: the hash of its content, or its path where there is none."""
    return str(medium["sha256"] or medium["path"])


class ImageRegistry:
    """All images and videos of a job, each once by content hash.

    Args:
        image_processor: of the model.
        media_root: folder that no path may leave.
        max_pixels: larger images and frames are scaled down to this many pixels. None: to what the image processor's
            own `size` says, which is that of the training where the model is one of our checkpoints.
        video_processor: of the model; without it, videos are refused.
    """

    def __init__(
        self, image_processor: Any, media_root: str | Path, max_pixels: int | None, video_processor: Any = None
    ) -> None:
        self.processor = image_processor
        self.videos = video_processor
        size = image_processor.size
        self.max_pixels = int(size["longest_edge"]) if max_pixels is None else max_pixels
        self.root = Path(media_root).resolve()
        self.size = sized({"shortest_edge": size["shortest_edge"]}, self.max_pixels)
        self.merge = int(image_processor.merge_size)
        self._added: list[VisionInput] = []
        self.images: Sequence[VisionInput] = self._added
        self._by_key: dict[str, int | MediaError] = {}

    def adopt(self, images: Sequence[VisionInput], known: Mapping[str, int | MediaError] | None = None) -> None:
        """Take images whose headers have been read before, in the place of all that the registry has.

        Args:
            images: by index.
            known: `media_key` -> index, or why the medium cannot be used; nothing else can be added then.
        """
        self.images = images
        self._by_key = dict(known or {})

    def add(self, medium: Mapping[str, Any]) -> int:
        """Index of a medium (a row of `media`), read from its header when it is new.

        Besides the table's columns, a row may hold `image`: an image of PIL, in the place of a file.

        Raises:
            MediaError: it cannot be used.
            VideoDecoderError: it is a video file, and OpenCV is not installed.
        """
        key = media_key(medium)
        known = self._by_key.get(key)
        if known is None:
            try:
                image = self.read(medium)
            except MediaError as error:
                known = error
            else:
                assert self.images is self._added, "a registry that has adopted images takes no others"
                known = len(self._added)
                self._added.append(image)
            self._by_key[key] = known
        if isinstance(known, MediaError):
            raise known
        return known

    def read(self, medium: Mapping[str, Any]) -> VisionInput:
        """A medium by its header, without keeping it; errors as of `add`."""
        return self._open_video(medium) if medium["kind"] == "video" else self._open(medium)

    def _path(self, medium: Mapping[str, Any], kind: str) -> Path:
        path = confined(medium["path"], self.root, kind)
        if kind == "video" or not path.exists():  # the content of an image is compared where it is decoded
            require_stored(path, str(medium["path"]), kind)
        try:
            found = path.is_file() or (kind == "video" and path.is_dir())
        except OSError:  # a name that is too long
            found = False
        if not found:
            raise MediaError(f"missing {kind}", str(medium["path"]))
        return path

    def _open(self, medium: Mapping[str, Any]) -> VisionInput:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        if medium["kind"] != "image":
            raise MediaError("medium not supported", f"{medium['kind']!r}; only images and videos are")
        image = medium.get("image")
        path = Path("image in memory") if image is not None else self._path(medium, "image")
        width, height = image_size(path if image is None else image, str(medium["path"] or path))
        factor = self.processor.patch_size * self.merge
        try:
            tall, wide = smart_resize(
                height, width, factor, min_pixels=self.size["shortest_edge"], max_pixels=self.size["longest_edge"]
            )
        except (ValueError, ZeroDivisionError) as error:
            raise MediaError("image too narrow", f"{path.name}: {width} x {height} pixels") from error
        grid = (1, tall // self.processor.patch_size, wide // self.processor.patch_size)
        return VisionInput(path, grid, grid[1] * grid[2] // self.merge**2, image=image)

    def _open_video(self, medium: Mapping[str, Any]) -> VisionInput:
        if self.videos is None:
            raise MediaError("medium not supported", "'video'; this scorer takes images only")
        path = self._path(medium, "video")
        try:
            header = video.read_header(path)
        except MediaError as error:
            raise MediaError("unreadable video", str(error)) from error
        processor = self.videos
        if header.frames < processor.temporal_patch_size:
            raise MediaError("video too short", f"{path.name}: {header.frames} frames")
        rate = {"num_frames": processor.num_frames} if processor.num_frames else {"fps": processor.fps or 2}
        clip = Clip((), header.frames, header.fps)
        try:
            indices = tuple(int(index) for index in processor.sample_frames(clip.metadata, **rate))
            tall, wide = self._frame_size(len(indices), header.height, header.width)
        except (ValueError, ZeroDivisionError) as error:
            raise MediaError("video cannot be sampled", f"{path.name}: {error}") from error
        steps = -(-len(indices) // processor.temporal_patch_size)
        grid = (steps, tall // processor.patch_size, wide // processor.patch_size)
        tokens = steps * grid[1] * grid[2] // self.merge**2
        return VisionInput(path, grid, tokens, clip=Clip(indices, header.frames, header.fps))

    def _frame_size(self, count: int, height: int, width: int) -> tuple[int, int]:
        """Height and width to which the processor scales `count` frames, asked of the processor itself on no pixels."""
        import torch
        from transformers.image_utils import SizeDict

        processor = self.videos
        most = self.max_pixels * (count if limits_pixels_in_total(processor) else 1)
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

        Raises MediaError where the file is damaged.
        """
        import torch

        image = self.images[index]
        if image.clip is not None:
            return self._decode_video(image)
        pixels = np.array(open_image(image.path if image.image is None else image.image, image.path.name))
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def blank(self, index: int) -> torch.Tensor:
        """Black pixels in the place of what `decode` gives, of the size that the header promised."""
        import torch

        image = self.images[index]
        patch = (self.processor if image.clip is None else self.videos).patch_size
        size = (3, image.grid[1] * patch, image.grid[2] * patch)
        return torch.zeros(size if image.clip is None else (len(image.clip.indices), *size), dtype=torch.uint8)

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
            raise MediaError("unreadable video", str(error)) from error
        return torch.stack(scaled)

    def patches(self, decoded: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale, normalise and cut what was decoded.

        Returns:
            Patches, float32 [patches, values of a patch], and grids, int64 [images, 3]: patches in time, height, width.
        """
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
