"""The prepared table of a training: tokens, images and pairs in flat files that all ranks of a machine map.

What belongs here: the files, and how an example is made of them. What does not: how they are written
(table_building.py), and which of the pairs a training uses (preparation.py).

A prompt and a response are stored once, however many pairs have them. A prompt has one placeholder per image; repeating
it and counting M-RoPE positions takes microseconds, so that is done at every access. Nothing of the table lies in the
memory of a process but what it looks at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.reward.data.collation import PackedExample
from dt2it_pipeline.reward.data.encoding import EncodedPrompt, PromptLayout
from dt2it_pipeline.reward.data.images import Clip, ImageRegistry, VisionInput

META = "table.json"
IMAGES = "images.arrow"
PAIRS = "pairs.arrow"
QUARANTINE = "quarantine.parquet"

# Type of every flat file; `starts` of n things have n + 1 entries.
ARRAYS: dict[str, str] = {
    "prompt_tokens": "int32",
    "prompt_starts": "int64",
    "prompt_lengths": "int32",  # tokens with placeholders repeated
    "prompt_ranks": "int32",  # place of the prompt's id in the order of all ids
    "prompt_images": "int32",
    "prompt_image_starts": "int64",
    "response_tokens": "int32",
    "response_starts": "int64",
    "pair_prompts": "int32",
    "pair_responses": "int32",  # [pairs, 2]: chosen, rejected
    "pair_strengths": "float64",  # NaN where it is unknown
    "pair_lists": "int32",  # number of the list of answers that both sides stand in, -1 for none
    "pair_ranks": "float64",  # [pairs, 2]: places of chosen and rejected there by the source, NaN where unknown
}

IMAGE_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "grid": pa.list_(pa.int32(), 3),  # patches in time, height and width
        "tokens": pa.int32(),
        "frames": pa.list_(pa.int32()),  # sampled of a video, by number; null for an image
        "total_frames": pa.int32(),
        "fps": pa.float64(),
        "reason": pa.string(),  # why it cannot be used, null where it can
        "detail": pa.string(),
        "medium": pa.string(),  # the row of `media` as JSON, where it cannot be used
    }
)
PAIR_SCHEMA = pa.schema({"pair_id": pa.string(), "source": pa.string(), "row_id": pa.string()})


def array_file(folder: Path, name: str) -> Path:
    """File of one flat array."""
    return folder / f"{name}.bin"


def file_digest(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def map_arrow(file: Path) -> pa.Table:
    """An Arrow file, mapped."""
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()


def image_row(image: VisionInput | MediaError, medium: Any) -> dict[str, Any]:
    """A row of IMAGES: a medium by its header, or why it cannot be used."""
    if isinstance(image, MediaError):
        fault = {"reason": image.reason, "detail": image.detail, "medium": json.dumps(medium)}
        return {"grid": [0, 0, 0], "tokens": 0} | fault
    row: dict[str, Any] = {"path": str(image.path), "grid": list(image.grid), "tokens": image.tokens}
    if image.clip is not None:
        row |= {"frames": list(image.clip.indices), "total_frames": image.clip.total, "fps": image.clip.fps}
    return row


class StoredImages(Sequence[VisionInput]):
    """Images of a table by index, each made when it is asked for."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.table = map_arrow(file)
        column = self.table.column
        self.tokens: np.ndarray = column("tokens").to_numpy()  # int32 [images]
        self._usable: np.ndarray = column("reason").is_null().to_numpy()
        self._grids = column("grid").combine_chunks().flatten().to_numpy().reshape(-1, 3)
        self._paths, self._frames = column("path"), column("frames")
        self._has_videos = self._frames.null_count < len(self._frames)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredImages, (self.file,)  # another process maps the file itself

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> VisionInput: ...

    @overload
    def __getitem__(self, index: slice) -> list[VisionInput]: ...

    def __getitem__(self, index: int | slice) -> VisionInput | list[VisionInput]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        index = int(index)
        time, height, width = self._grids[index].tolist()
        clip = None
        if self._has_videos and (frames := self._frames[index].as_py()) is not None:
            total, fps = (self.table.column(name)[index].as_py() for name in ("total_frames", "fps"))
            clip = Clip(tuple(frames), total, fps)
        return VisionInput(Path(self._paths[index].as_py()), (time, height, width), int(self.tokens[index]), clip=clip)

    def fault(self, index: int) -> MediaError | None:
        """Why an image cannot be used, None where it can."""
        if self._usable[index]:
            return None
        return MediaError(*(self.table.column(name)[index].as_py() for name in ("reason", "detail")))

    def unusable(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Media that cannot be used: index, and the row of `media`."""
        for index in np.flatnonzero(~self._usable).tolist():
            yield index, json.loads(self.table.column("medium")[index].as_py())


class TokenTable:
    """A prepared table, mapped. Pairs are those that can be used, in the order of the pairs table.

    Attributes:
        folder: where it lies.
        content: digest of the pairs, their order, labels and strengths.
        pairs: how many there are.
        prompt_lengths: tokens of every pair's prompt, int32 [pairs].
        pair_responses: numbers of chosen and rejected among the table's responses, int32 [pairs, 2].
        prompt_ranks: a number per pair, equal for pairs of one prompt, in the order of prompt ids; int32 [pairs].
        strengths: float64 [pairs], NaN where unknown.
        lists: number of each pair's list of answers, -1 for none, int32 [pairs].
        ranks: places of chosen and rejected in that list by the source, NaN where unknown, float64 [pairs, 2].
        images: all media of the prompts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        self.content: str = meta["content"]
        self._arrays = {name: _map(array_file(folder, name), kind) for name, kind in ARRAYS.items()}
        a = self._arrays
        self.pair_responses: np.ndarray = a["pair_responses"].reshape(-1, 2)
        self.pair_prompts = a["pair_prompts"]
        self.pairs = len(self.pair_prompts)
        self.prompt_lengths: np.ndarray = a["prompt_lengths"][self.pair_prompts]
        self.prompt_ranks: np.ndarray = a["prompt_ranks"][self.pair_prompts]
        self.strengths = a["pair_strengths"]
        self.lists = a["pair_lists"]
        self.ranks: np.ndarray = a["pair_ranks"].reshape(-1, 2)
        self.images = StoredImages(folder / IMAGES)
        self._named = map_arrow(folder / PAIRS)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenTable, (self.folder,)  # another process maps the files itself

    def named(self, pair: int) -> dict[str, Any]:
        """`pair_id`, `source` and `row_id` of a pair."""
        row: dict[str, Any] = self._named.slice(pair, 1).to_pylist()[0]
        return row

    def images_of(self, pair: int) -> list[int]:
        """Images that a pair's prompt shows."""
        starts = self._arrays["prompt_image_starts"]
        prompt = self.pair_prompts[pair]
        found: list[int] = self._arrays["prompt_images"][starts[prompt] : starts[prompt + 1]].tolist()
        return found

    def images_shown(self, pairs: np.ndarray) -> np.ndarray:
        """Images that prompts of `pairs` show, each once, rising."""
        shown = self._prompts_with(pairs)[self._prompt_of_slot()]
        return np.unique(self._arrays["prompt_images"][shown])

    def pairs_showing(self, images: Sequence[int], pairs: np.ndarray) -> np.ndarray:
        """Those of `pairs` whose prompt shows one of `images`."""
        slots = np.isin(self._arrays["prompt_images"], np.asarray(images, dtype=np.int32))
        return pairs[np.isin(self.pair_prompts[pairs], self._prompt_of_slot()[slots])]

    def lengths_of(self, responses: np.ndarray) -> np.ndarray:
        """Tokens of responses, by number, int64."""
        starts = self._arrays["response_starts"]
        return starts[responses + 1] - starts[responses]

    def packed(self, pair: int, responses: np.ndarray, layout: PromptLayout, registry: ImageRegistry) -> PackedExample:
        """A row of a batch: a pair's prompt with responses to it.

        Args:
            pair: its row.
            responses: by number, in their order.
            layout: of the model.
            registry: that has adopted this table's images.
        """
        a = self._arrays
        prompt = self.pair_prompts[pair]
        starts = a["prompt_starts"]
        ids = a["prompt_tokens"][starts[prompt] : starts[prompt + 1]]
        encoded: EncodedPrompt = layout.lay_out(ids, tuple(self.images_of(pair)), registry)
        starts = a["response_starts"]
        return PackedExample(encoded, tuple(a["response_tokens"][starts[r] : starts[r + 1]] for r in responses))

    def _prompts_with(self, pairs: np.ndarray) -> np.ndarray:
        found = np.zeros(len(self._arrays["prompt_lengths"]), dtype=bool)
        found[self.pair_prompts[pairs]] = True
        return found

    def _prompt_of_slot(self) -> np.ndarray:
        counts = np.diff(self._arrays["prompt_image_starts"])
        return np.repeat(np.arange(len(counts)), counts)


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a table whose files are as they were written."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        return all(file_digest(folder / name) == digest for name, digest in meta["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def _map(file: Path, kind: str) -> np.ndarray:
    if not file.stat().st_size:  # what is empty cannot be mapped
        return np.zeros(0, dtype=kind)
    return np.asarray(np.memmap(file, dtype=kind, mode="r"))
