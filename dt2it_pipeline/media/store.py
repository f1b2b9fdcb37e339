"""The media store: at import every image is checked by decoding it, every video by its header and first frame, and
stored once per content hash.

An image is stored as it came, byte for byte, unless a reader outside this pipeline would see it otherwise than ours
do, or not at all: one that lies on its side by EXIF, has 16 bits, or is a TIFF, JPEG 2000 or AVIF, is stored upright in
8 bits as PNG; of several pages, the first. It is found by the hash of
what came either way, so that its id depends on no encoder. Transparent images are stored as they came; pixels.py puts
them on white when they are read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from PIL import Image, ImageOps

from dt2it_pipeline.media import video
from dt2it_pipeline.media.damage import FRAMES, GIVEN, TEMPORARY, UPRIGHT, has_other_content, is_stored, sealed_png
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.images import IMAGE_EXTENSIONS, decoded_image, open_file, opened_image
from dt2it_pipeline.media.pixels import eight_bits, orientation, perceptual_hash
from dt2it_pipeline.media.root import MediaRoot
from dt2it_pipeline.storage.atomic import move_into_place, sync
from dt2it_pipeline.storage.integrity import digests_of, sealed, sha256_of
from dt2it_pipeline.storage.leftovers import owned_prefix
from dt2it_pipeline.storage.permissions import follow_umask

MediumKind = Literal["image", "video"]
_LONGEST_PATH = 1024  # characters; a longer text can only be an image's content
_DATA_URI = re.compile(r"data:(?:image/[\w.+-]+|application/octet-stream)(?:;[\w.=+-]+)*;base64,", re.ASCII)


@dataclass(frozen=True, slots=True)
class Medium:
    """An image or video as a source gives it: a path below the media root, or the file's content."""

    kind: MediumKind
    value: str | bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """A medium in the store: its row in our tables, and the perceptual hash of its image or first frame."""

    row: dict[str, str]
    perceptual: int | None


def store_image(value: str | bytes, root: Path | MediaRoot, store: Path, synced: bool = True) -> Stored:
    """Check one image and put it into the media store; returns its row (kind, sha256, path) and perceptual hash.

    The format is read from the content, not from the file's name. Safe to call twice, and from several processes and
    threads.

    Args:
        value: a path below `root`, the file's bytes, or these in base64 (with or without `data:image/...;base64,`).
        root: what the path counts from and may not leave.
        store: the media store.
        synced: whether the file is on the disk when this returns. Whoever stores many images has all of them written
            at once instead; one that a failing machine cut off is found by its content hash, and stored again.

    Raises:
        MediaError: the path leaves the root, or the file is missing, truncated, too large or not an image.
    """
    content = inline_content(value)
    name = "image in the row" if content is not None else str(value)
    if content is None:
        content = (MediaRoot(root) if isinstance(root, Path) else root).read(name)
    extension, upright, perceptual = _examine(content, name)
    sha256 = hashlib.sha256(content).hexdigest()
    ending = UPRIGHT if upright is not None else GIVEN if extension == "png" else extension
    relative = Path(sha256[:2]) / f"{sha256}.{ending}"
    if upright is None:
        _put(content, store / relative, synced, sha256)
    else:
        _put(sealed_png(upright, sha256), store / relative, synced)
    return Stored({"kind": "image", "sha256": sha256, "path": relative.as_posix()}, perceptual)


def inline_content(value: str | bytes) -> bytes | None:
    """The bytes of an image that the row itself holds, raw or in base64; None for a path.

    Raises:
        MediaError: it says that it is base64, or is too long for a path, and is not base64.
    """
    if isinstance(value, bytes):
        return value
    start = _DATA_URI.match(value)
    if start is None and len(value) <= _LONGEST_PATH:
        return None
    try:
        return base64.b64decode("".join(value[start.end() if start else 0 :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError("unreadable image", f"neither a path nor base64 ({len(value)} characters): {error}") from error


def store_video(name: str | bytes, root: Path | MediaRoot, store: Path) -> Stored:
    """Check one video below `root` and put it into the media store; returns its row (kind, sha256, path), and the
    perceptual hash of its first frame.

    A video file is stored as it is. A folder of frames is stored as a folder of its frames, numbered in order, and the
    video.json that says their rate. Damage behind the first frame of a file shows when it is scored.

    Raises:
        MediaError: the path leaves the root, or the video is missing or none that can be read.
        VideoDecoderError: it is a video file, and OpenCV is not installed.
    """
    if isinstance(name, bytes):
        raise MediaError("unreadable video", f"{len(name)} bytes in the row; a video is a file or a folder of frames")
    source = (MediaRoot(root) if isinstance(root, Path) else root).locate(name)
    try:
        there = source.exists()
    except OSError as error:  # a path that is too long
        raise MediaError("missing video", f"{name[:200]}: {error.strerror}") from error
    if not there:
        raise MediaError("missing video", name)
    header = video.read_header(source)
    perceptual = perceptual_hash(Image.fromarray(next(iter(video.frames(source, (0,))))))
    if source.is_dir():
        return Stored(_import_frames(name, source, store, header.fps), perceptual)
    try:
        with source.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise MediaError("unreadable video", f"{name}: {error.strerror}") from error
    relative = Path(sha256[:2]) / f"{sha256}.{video.container(source)}"
    _put(source, store / relative)
    return Stored({"kind": "video", "sha256": sha256, "path": relative.as_posix()}, perceptual)


def _import_frames(name: str, folder: Path, store: Path, fps: float) -> dict[str, str]:
    digest = hashlib.sha256(f"frames at {fps!r} per second".encode())
    frames: list[tuple[Path, str]] = []  # file and extension of the stored frame
    for file in video.frame_files(folder):
        content = _frame(file)
        extension, upright, _ = _examine(content, f"{name}/{file.name}")
        digest.update(hashlib.sha256(content).digest())
        frames.append((file, extension if upright is None else f"{extension} upright"))
    sha256 = digest.hexdigest()
    target = store / sha256[:2] / sha256
    damaged = target.is_dir() and has_other_content(target)
    if damaged or not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=owned_prefix(TEMPORARY), dir=target.parent))
        try:
            for number, (file, how) in enumerate(frames):
                extension, _, mended = how.partition(" ")
                stored = temporary / f"{number:06d}.{extension}"
                if mended:
                    stored.write_bytes(_examine(_frame(file), file.name)[1] or b"")
                else:
                    shutil.copyfile(file, stored)
            about = sealed({"sha256": sha256, "fps": fps, "frames": digests_of(temporary)})
            (temporary / FRAMES).write_text(json.dumps(about), encoding="utf-8")
            follow_umask(temporary)
            for file in (*temporary.iterdir(), temporary):
                sync(file)
            if damaged:
                shutil.rmtree(target, ignore_errors=True)
            try:
                temporary.rename(target)
                sync(target.parent)
            except OSError:
                if not target.is_dir():  # else another process has just stored the same video
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return {"kind": "video", "sha256": sha256, "path": f"{sha256[:2]}/{sha256}"}


def _frame(file: Path) -> bytes:
    try:
        with open_file(file, file.name, "video") as stream:
            return stream.read()
    except OSError as error:
        raise MediaError("unreadable video", f"{file.name}: {error.strerror}") from error


def _examine(content: bytes, name: str) -> tuple[str, bytes | None, int | None]:
    """Decode an image whole.

    Returns the extension of the format that will be stored, the bytes to store where they are not `content`, and the
    perceptual hash.
    """
    with opened_image(content, name) as image:
        # A JPEG with further images behind it, as telephones write them, opens as MPO.
        extension = IMAGE_EXTENSIONS.get("JPEG" if image.format == "MPO" else str(image.format), "")
        if image.format == "JPEG" and orientation(image) == 1:  # nothing but its hash is needed
            return extension, None, perceptual_hash(image)
        image.load()
        deep = image.mode.startswith("I") or image.mode == "F"
        if extension and not deep and orientation(image) == 1:
            return extension, None, perceptual_hash(image)
        upright = ImageOps.exif_transpose(image)
        if deep:
            upright = eight_bits(upright)
        return "png", _png(upright), perceptual_hash(upright)


def _png(image: Image.Image) -> bytes:
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):  # PNG has no such pixels
        image = image.convert("RGB")
    image.info.pop("exif", None)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _put(content: bytes | Path, target: Path, synced: bool = True, sha256: str | None = None) -> None:
    """Put a file into the store; one that is there is left where it has this content, and replaced where it has not.

    `sha256` is that of the content, where it is known already.
    """
    if target.exists() and sha256_of(target) == (
        sha256 or (sha256_of(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest())
    ):
        return
    temporary = target.with_name(f"{owned_prefix(TEMPORARY)}{secrets.token_hex(8)}")
    try:
        with _created(temporary) as stream:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    shutil.copyfileobj(source, stream)
            else:
                stream.write(content)
        if synced:
            move_into_place(temporary, target)
        else:
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _created(file: Path) -> IO[bytes]:
    """A new file, as the umask has it; its folder is made where there is none."""
    try:
        return file.open("xb")
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        return file.open("xb")


def damaged_media(store: Path) -> Iterator[tuple[Path, str]]:
    """Files of a media store that are not as they were stored, and what is wrong with each.

    Videos that are stored as folders of frames: every frame must be an image that can be decoded.
    """
    for file in sorted(path for path in store.glob("*/*") if not path.name.startswith(TEMPORARY)):
        if not (file.is_file() or file.is_dir()):  # a link that leads nowhere
            continue
        try:
            if has_other_content(file):
                yield file, "its content is not what was stored"
                continue
        except OSError as error:
            yield file, str(error)
            continue
        frames = file.iterdir() if file.is_dir() else () if is_stored(file) else (file,)
        for image in sorted(frame for frame in frames if frame.suffix != ".json"):
            try:
                decoded_image(image)
            except (OSError, MediaError) as error:
                yield image, str(error)
