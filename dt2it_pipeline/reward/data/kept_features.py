"""Output of the frozen vision encoder, kept on disk for later epochs, rounds, trainings, scorings and benchmarks.

What belongs here: the files of kept features. What does not: features of one job, in memory (vision_features.py).

    <artifact home>/cache/vision_features/<encoder>/<first two digits>/<image>

<encoder> is the digest of what makes features of pixels: weights of the vision encoder in their type, configuration,
processors, versions of libraries, and the kind of device. <image> is the digest of an image's content, its number of
patches and, of a video, the sampled frames. A file holds the rows and a checksum of them.

Each image is encoded alone, so that what is kept does not depend on which others were encoded beside it, and results do
not depend on what was kept before. Files appear whole and are never changed: ranks, workers and jobs need no lock. They
are not flushed to the disk one by one. The checksum finds what a power cut or the disk damaged, and the image is
encoded again. Files are read and not mapped, since a mapped file that is cut short ends the process; pages in memory
are shared between processes in either case.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dt2it_pipeline.config.paths import artifact_home
from dt2it_pipeline.engines.device import copied, read_ahead, threads_for
from dt2it_pipeline.media.damage import is_stored, source_hash
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline.reward.data.patches import Patches, read_patches
from dt2it_pipeline.reward.data.vision_features import FeatureTable, Ranks, encode_patches
from dt2it_pipeline.reward.modeling.model import RewardNetwork
from dt2it_pipeline.storage import atomic, content_ids
from dt2it_pipeline.storage.home.feature_files import FOLDER, folder_bytes
from dt2it_pipeline.storage.integrity import sha256_of

_FORMAT = 1  # raise it when the files or how images are encoded change
_SEAL = 4  # bytes of the checksum that ends a file
_LIBRARIES = ("torch", "transformers", "pillow")
_GIB = 2**30
_logger = logging.getLogger(__name__)


class FeatureStore:
    """Kept features of one vision encoder.

    Args:
        model: whose vision encoder is used; it is frozen.
        device: where it lies.
        most_bytes: limit of the files of all encoders together.
        cache: the folder `cache` of an artifact home; by default that of the home of this process.
    """

    def __init__(
        self, model: RewardNetwork, device: torch.device, most_bytes: float, cache: Path | None = None
    ) -> None:
        self.model, self.device, self.most_bytes = model, device, most_bytes
        self.root = (artifact_home() / "cache" if cache is None else cache) / FOLDER
        vision_encoder = model.model.visual
        self.dtype = next(vision_encoder.parameters()).dtype
        self.width = model.levels * model.config.text_config.hidden_size
        self._weights = _digest(vision_encoder)
        self._full = self._refused = False

    def keep(
        self, registry: ImageRegistry, images: Sequence[int], ranks: Ranks
    ) -> tuple[KeptFeatures | None, dict[int, MediaError]]:
        """Have the features of images on the disk, encoding those that are not there, shared among the ranks.

        All ranks call it together, with the same images.

        Args:
            registry: has the images.
            images: indices in the registry.
            ranks: the process group.

        Returns:
            The features, and the images that could not be decoded. None and no images where the disk or the limit does
            not suffice: then nothing is decoded, and one line in the log says so.
        """
        kept = KeptFeatures(self, registry)
        own = images[ranks.rank :: ranks.size]
        kept.name(own)
        missing = [index for index in own if not kept.is_there(index)]
        needed = sum(kept.bytes_of(index) for index in missing)
        used = (folder_bytes(self.root), _free(self.root)) if needed and not ranks.rank else (0, 0)
        found = ranks.gather((needed, len(missing), used))
        total, count = sum(each[0] for each in found), sum(each[1] for each in found)
        taken, free = (max(each[2][place] for each in found) for place in (0, 1))
        if total and (fault := self._fault(total, taken, free)):
            if not ranks.rank and not self._full:
                _logger.warning(
                    "features of %d images take %.2f GiB more in %s, but %s; they are not kept", count, total / _GIB,
                    self.root, fault,
                )  # fmt: skip
            self._full = True
            return None, {}
        if images and not ranks.rank:
            kept.folder.mkdir(parents=True, exist_ok=True)
            os.utime(kept.folder)
            _logger.info("features of %d images: %d kept before, %d encoded", len(images), len(images) - count, count)
        read = functools.partial(_read_one, registry, device=self.device)
        faults: dict[int, MediaError] = {}
        for index, patches in read_ahead(missing, read, threads_for(self.device)):
            try:
                kept.encode(index, patches)
            except MediaError as error:
                faults[index] = error
        names = ranks.gather((kept.names, faults))  # nobody goes on before all files are there
        for others, broken in names:
            kept.names |= others
            faults |= broken
        return kept, faults

    def refuse(self, error: Exception) -> None:
        """Log once that features cannot be written; they are then encoded whenever they are needed."""
        if not self._refused:
            _logger.warning("features cannot be kept in %s (%s); images are encoded when needed", self.root, error)
        self._refused = True

    def folder(self, registry: ImageRegistry) -> Path:
        """Of the features that the encoder makes of images as this registry scales them."""
        model = self.model  # which a kernel that does not fit the GPU may have taken out of torch.compile
        encoder = [_FORMAT, *map(version, _LIBRARIES), self.device.type, model.compiled, self._weights]
        encoder.append(model.config.vision_config.to_json_string())
        processors = [_as_json(each) for each in (registry.processor, registry.videos) if each is not None]
        return self.root / content_ids.content_hash(encoder, processors, registry.size, registry.max_pixels)[:32]

    def _fault(self, needed: int, taken: int, free: int) -> str | None:
        """Why so many bytes more cannot be kept, and what to do; None where they can."""
        if needed > free:
            return f"its disk has {free / _GIB:.2f} GiB left: free some, or set vision_disk_gib: 0"
        if taken + needed > self.most_bytes:
            return (
                f"vision_disk_gib allows {self.most_bytes / _GIB:.2f} and {taken / _GIB:.2f} are taken: raise it, or "
                "remove what `dt2it gc` lists, or the folder"
            )
        return None


class KeptFeatures:
    """Kept features of a registry's images.

    Attributes:
        names: of the files below `folder`, by image; None where the content is not known by a file.
    """

    def __init__(self, store: FeatureStore, registry: ImageRegistry) -> None:
        self.store, self.registry = store, registry
        self.folder = store.folder(registry)
        self.names: dict[int, str | None] = {}

    def gather(self, registry: ImageRegistry, images: Sequence[int]) -> torch.Tensor:
        """Feature rows of images in main memory, one image after the other: [their tokens, levels * hidden].

        Raises:
            MediaError: features are damaged, and the image cannot be decoded any more.
        """
        return self.table(images, torch.device("cpu")).gather(registry, images)

    def table(self, images: Iterable[int], device: torch.device) -> FeatureTable:
        """Features of images, each once, in memory on `device`.

        Raises:
            MediaError: as of `gather`.
        """
        starts: dict[int, int] = {}
        parts: list[torch.Tensor] = []
        total = 0
        for index in dict.fromkeys(images):
            rows = self._read(index)
            if rows is None:
                rows = self.encode(index, _read_one(self.registry, index, device=self.store.device))
            starts[index] = total
            total += len(rows)
            parts.append(rows)
        rows = torch.cat(parts) if parts else torch.zeros(0, self.store.width, dtype=self.store.dtype)
        return FeatureTable(copied(rows, device), starts)

    def name(self, images: Iterable[int]) -> None:
        """Find out by which names features of images are kept."""
        for index in images:
            image = self.registry.images[index]
            content = None if image.image is not None else _content(image.path)
            frames = None if image.clip is None else list(image.clip.indices)
            self.names[index] = None if content is None else content_ids.content_hash(content, image.grid, frames)

    def is_there(self, index: int) -> bool:
        """Whether a file of the right size lies there; its checksum is compared when it is read."""
        file = self._file(index)
        try:
            return file is not None and file.stat().st_size == self.bytes_of(index, file=True)
        except OSError:
            return False

    def bytes_of(self, index: int, *, file: bool = False) -> int:
        """Bytes of an image's features; 0 where they are not kept, unless its file is asked for."""
        rows = self.registry.images[index].tokens * self.store.width * self.store.dtype.itemsize
        return rows + _SEAL if file or self.names.get(index) is not None else 0

    def encode(self, index: int, patches: Patches) -> torch.Tensor:
        """Features of one image that has been read, [tokens, levels * hidden] in main memory; they are kept.

        Raises:
            MediaError: the image could not be decoded.
        """
        store = self.store
        features, broken = encode_patches(store.model, self.registry, patches, store.device)
        if index in broken:
            raise broken[index]
        rows = features[index].to("cpu", store.dtype).contiguous()
        file = self._file(index)
        if file is not None:
            try:
                with atomic.temporary_beside(file) as temporary:
                    with temporary.open("wb") as stream:
                        content = _bytes(rows)
                        stream.write(content)
                        stream.write(_seal(content, file))
                    temporary.replace(file)
            except (OSError, atomic.StoreError) as error:
                store.refuse(error)
        return rows

    def _read(self, index: int) -> torch.Tensor | None:
        """Features as they were kept; None where they are not, or are damaged."""
        file = self._file(index)
        if file is None:
            return None
        rows = torch.empty(self.registry.images[index].tokens, self.store.width, dtype=self.store.dtype)
        content = _bytes(rows)
        try:
            with file.open("rb") as stream:
                whole = stream.readinto(content) == len(content) and stream.read(_SEAL + 1) == _seal(content, file)
        except FileNotFoundError:
            return None
        except OSError as error:
            _logger.warning("%s cannot be read (%s); the image is encoded again", file, error)
            return None
        if not whole:
            _logger.warning("%s is damaged; the image is encoded again", file)
        return rows if whole else None

    def _file(self, index: int) -> Path | None:
        name = self.names.get(index)
        return None if name is None else self.folder / name[:2] / name


def _read_one(registry: ImageRegistry, index: int, *, device: torch.device) -> Patches:
    return read_patches(registry, [index], device)


def _content(path: Path) -> str | None:
    """Hash of what an image or video holds: by its name in a media store, else of the file; None where it has none."""
    if is_stored(path):
        return source_hash(path)
    try:
        return sha256_of(path)
    except OSError:  # a folder of frames, or a file that is gone
        return None


def _bytes(rows: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return rows.flatten().view(torch.uint8).numpy().data


def _seal(content: memoryview, file: Path) -> bytes:
    """Checksum of a file's rows and name, so that one file does not pass for another."""
    return zlib.crc32(content, zlib.crc32(file.name.encode())).to_bytes(_SEAL)


def _digest(module: torch.nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, and of their names and types."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes(value.detach().to("cpu").contiguous()))
    return digest.hexdigest()


def _as_json(processor: Any) -> str:
    return str(processor.to_json_string())


def _free(folder: Path) -> int:
    """Bytes that are left on the disk of a folder, which may not be there yet."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free
