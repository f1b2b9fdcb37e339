"""Frames of a video: a folder of images, or a video file read through OpenCV.

A folder holds its frames as images, in the order of their names (numbers in names count as numbers). The file
`video.json` beside them says how many frames there are per second, as `{"fps": 2}`; without it, DEFAULT_FPS.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dt2it_pipeline.media.errors import MediaError, VideoDecoderError
from dt2it_pipeline.media.images import MAX_PIXELS, decoded_image, image_size

DEFAULT_FPS = 2.0  # at which the Qwen-VL processors sample videos (their `fps`)
FRAME_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_CONTAINERS = ((4, b"ftyp", "mp4"), (0, b"\x1a\x45\xdf\xa3", "mkv"), (8, b"AVI ", "avi"))


@dataclass(frozen=True, slots=True)
class VideoHeader:
    """What is known of a video before its frames are decoded."""

    frames: int
    fps: float
    height: int
    width: int


def read_header(path: Path) -> VideoHeader:
    """Number, rate and size of a video's frames.

    Raises:
        MediaError: the video is missing, holds no frame, has no frame rate, or is none that can be read.
        VideoDecoderError: it is a video file, and OpenCV is not installed.
    """
    if path.is_dir():
        files = frame_files(path)
        width, height = image_size(files[0], f"frame {files[0].name}", "video")
        return _checked(VideoHeader(len(files), folder_fps(path), height, width), path)
    container(path)
    cv2, capture = _capture(path)
    try:
        width, height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        fps, count = float(capture.get(cv2.CAP_PROP_FPS)), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if count > 0:
            capture.set(cv2.CAP_PROP_POS_FRAMES, count - 1)
        if count <= 0 or not capture.grab():  # some containers only estimate their number of frames
            capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            count = 0
            while capture.grab():
                count += 1
    finally:
        capture.release()
    return _checked(VideoHeader(count, fps, height, width), path)


def frames(path: Path, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """Decode frames by number (rising), one at a time, as uint8 [height, width, 3] in RGB.

    Raises:
        MediaError: a wanted frame cannot be decoded, or differs in size from the first.
        VideoDecoderError: it is a video file, and OpenCV is not installed.
    """
    made = _folder_frames(path, wanted) if path.is_dir() else _file_frames(path, wanted)
    shape: tuple[int, ...] | None = None
    for number, frame in zip(wanted, made, strict=True):
        if shape is not None and frame.shape != shape:
            raise MediaError("unreadable video", f"{path.name}: frame {number} has another size than those before")
        shape = frame.shape
        yield frame


def first_frame(path: Path) -> Image.Image:
    """The first frame of a video file or a folder of frames.

    Raises:
        MediaError: it cannot be read, or its frames are too large; nothing of such a one is decoded.
        VideoDecoderError: it is a video file, and OpenCV is not installed.
    """
    read_header(path)
    return Image.fromarray(next(frames(path, [0])))


def frame_files(folder: Path) -> list[Path]:
    """Frames of a folder in order. Raises MediaError where there is none."""
    found = [file for file in folder.iterdir() if file.suffix.lower() in FRAME_EXTENSIONS and file.name[0] != "."]
    if any(file.resolve().parent != folder.resolve() for file in found):
        raise MediaError("path outside the media root", f"folder {folder.name} holds links to files outside it")
    if not found:
        raise MediaError("unreadable video", f"folder {folder.name} holds no frame ({', '.join(FRAME_EXTENSIONS)})")
    return sorted(found, key=lambda file: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", file.name)])


def folder_fps(folder: Path) -> float:
    """Frames per second of a folder of frames. Raises MediaError where its video.json is not usable."""
    file = folder / "video.json"
    if not file.exists():
        return DEFAULT_FPS
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["fps"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise MediaError("unreadable video", f'{folder.name}/video.json is not {{"fps": number}}: {error}') from error


def container(path: Path) -> str:
    """File name extension of a video file, by its content.

    Only containers that hold their own data are let through: a playlist would make the decoder open what it names.

    Raises:
        MediaError: the file is missing or of another kind.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for whoever writes into it
            raise MediaError("missing video", f"{path.name}: not a file")
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise MediaError("missing video", f"{path.name}: {error.strerror}") from error
    for offset, magic, extension in _CONTAINERS:
        if start[offset : offset + len(magic)] == magic:
            return extension
    raise MediaError("unknown video format", f"{path.name}: not MP4, MOV, MKV, WebM or AVI")


def _checked(header: VideoHeader, path: Path) -> VideoHeader:
    if header.frames < 1 or not (math.isfinite(header.fps) and header.fps > 0):
        raise MediaError("unreadable video", f"{path.name}: {header.frames} frames, {header.fps} per second")
    if not 0 < header.width * header.height <= MAX_PIXELS:
        raise MediaError("video too large", f"{path.name}: frames of {header.width} x {header.height} pixels")
    return header


def _folder_frames(folder: Path, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    files = frame_files(folder)
    for number in wanted:
        yield np.array(decoded_image(files[number], f"frame {files[number].name}", "video"))


def _file_frames(path: Path, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    cv2, capture = _capture(path)
    try:
        at = -1  # the frame that was grabbed last; reading on is exact where seeking may not be
        frame = None
        for number in wanted:
            while at < number:
                if not capture.grab():
                    raise MediaError("unreadable video", f"{path.name} ends before frame {number}")
                at, frame = at + 1, None
            if frame is None:
                found, frame = capture.retrieve()
                if not found:
                    raise MediaError("unreadable video", f"{path.name}: frame {number} cannot be decoded")
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


def _capture(path: Path) -> tuple[Any, Any]:
    try:
        import cv2
    except ImportError as error:
        raise VideoDecoderError(
            f"cannot read {path.name}: video files need OpenCV; install dt2it-pipeline[video], or give the video as a "
            "folder of frames"
        ) from error
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        capture.release()
        raise MediaError("unreadable video", path.name)
    return cv2, capture
