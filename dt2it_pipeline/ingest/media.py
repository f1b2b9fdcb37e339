"""Media import: every picture is checked by decoding it, every video by its header and first frame, and stored once per
content hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

from PIL import Image

_EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
PICTURE_FORMATS = tuple(_EXTENSIONS)  # no other decoder is tried: some of Pillow's start programs
_MAX_PIXELS = 100_000_000  # a decompression bomb fills memory long before it shows anything


class MediaError(ValueError):
    """A medium cannot be used; `reason` is a short fixed phrase, the message says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def import_image(name: str, root: Path, store: Path) -> dict[str, str]:
    """Check one picture below `root` and put it into the media store; returns its row (kind, sha256, path).

    The format is told by content, not by the file's name. Safe to call twice, and from several processes.

    Raises:
        MediaError: the path leaves the root, or the file is missing, truncated, too large or not a picture.
    """
    file = _confined(name, root)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise MediaError("missing image", f"{name}: {error.strerror}") from error
    extension = _check(file, name)
    sha256 = hashlib.sha256(content).hexdigest()
    relative = Path(sha256[:2]) / f"{sha256}.{extension}"
    _put(content, store / relative)
    return {"kind": "image", "sha256": sha256, "path": relative.as_posix()}


def import_video(name: str, root: Path, store: Path) -> dict[str, str]:
    """Check one video below `root` and put it into the media store; returns its row (kind, sha256, path).

    A video file is stored as it is. A folder of frames is stored as a folder of its frames, numbered in order, and the
    video.json that says their rate. Damage behind the first frame of a file shows when it is scored.

    Raises:
        MediaError: the path leaves the root, or the video is missing or none that can be read.
        VideoDecoderError: it is a video file, and OpenCV is not installed.
    """
    from dt2it_pipeline.ingest import video

    source = _confined(name, root)
    if not source.exists():
        raise MediaError("missing video", name)
    header = video.read_header(source)
    if source.is_dir():
        return _import_frames(name, root, store, header.fps)
    next(iter(video.frames(source, (0,))))
    with source.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    relative = Path(sha256[:2]) / f"{sha256}.{video.container(source)}"
    if not (store / relative).exists():
        _put(source.read_bytes(), store / relative)
    return {"kind": "video", "sha256": sha256, "path": relative.as_posix()}


def _import_frames(name: str, root: Path, store: Path, fps: float) -> dict[str, str]:
    from dt2it_pipeline.ingest.video import frame_files

    files = [_confined(f"{name}/{file.name}", root) for file in frame_files(_confined(name, root))]
    names = [f"{number:06d}.{_check(file, f'{name}/{file.name}')}" for number, file in enumerate(files)]
    digest = hashlib.sha256(f"frames at {fps!r} per second".encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    sha256 = digest.hexdigest()
    target = store / sha256[:2] / sha256
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent))
        try:
            for file, stored in zip(files, names, strict=True):
                shutil.copyfile(file, temporary / stored)
            (temporary / "video.json").write_text(json.dumps({"fps": fps}), encoding="utf-8")
            temporary.chmod(0o755)
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():  # else another process has just stored the same video
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return {"kind": "video", "sha256": sha256, "path": f"{sha256[:2]}/{sha256}"}


def _confined(name: str, root: Path) -> Path:
    """The file that `name` means, refused where it leaves `root` by `..`, by an absolute path or through a link."""
    root = root.resolve()
    file = (root / name).resolve()
    if not file.is_relative_to(root):
        raise MediaError("path outside the media root", name)
    return file


def _check(file: Path, name: str) -> str:
    """Decode a picture whole; returns the extension of its true format."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            with Image.open(file, formats=PICTURE_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise MediaError("image too large", f"{name}: {image.width} x {image.height} pixels")
                extension = _EXTENSIONS.get(image.format or "")
                image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError("unreadable image", f"{name}: {error}") from error
    if extension is None:
        raise MediaError("unknown image format", f"{name}: {image.format}")
    return extension


def _put(content: bytes, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)
