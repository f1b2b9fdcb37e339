"""One class per format: rows into files below a folder, in batches, so that no more than one is in memory.

- `huggingface`: our own columns, Parquet with the images inside.
- `trl`: prompt, chosen and rejected as lists of messages, images in a column `images`, Parquet (TRL's conversational
  preference type with typed content).
- `llamafactory`: ShareGPT-style JSON with a `dataset_info.json`, images as files (LLaMA-Factory's preference format).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from dt2it_pipeline.media.markers import marker_kinds, split_at_markers
from dt2it_pipeline.media.pair_rows import LISTS, ROW_ID, Row, RowFault

_GROUP_BYTES = 64 * 2**20  # of one row group: what is in memory
_FILE_BYTES = 512 * 2**20  # of one Parquet file, roughly
_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_PART = pa.struct([pa.field("type", pa.string()), pa.field("text", pa.string())])
_MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.list_(_PART))]))
_TURN = pa.struct([pa.field("role", pa.string()), pa.field("text", pa.string())])
_VOTE = pa.struct([pa.field("voter", pa.string()), pa.field("margin", pa.float64())])
_LIST_FIELDS = (("list_id", pa.string()), ("chosen_rank", pa.float64()), ("rejected_rank", pa.float64()))
_VIDEO = "the format has no column for videos"


class Format(Protocol):
    """A format being written."""

    files: str  # pattern of its data files
    columns: ClassVar[Mapping[str, str]]  # name -> what it holds, for the card
    notes: str

    def add(self, row: Row) -> None:
        """Write one pair. Raises RowFault where the format cannot hold it."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class _ParquetFormat:
    """Rows into data/train-*.parquet, whose schema marks for `datasets` which column holds images."""

    files = "data/*.parquet"
    schema: pa.Schema
    columns: ClassVar[Mapping[str, str]]
    notes: str

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "data"
        self._folder.mkdir()
        features = {name: _feature(self.schema.field(name).type) for name in self.schema.names}
        info = json.dumps({"info": {"features": features}}, sort_keys=True)
        self._schema = self.schema.with_metadata({"huggingface": info})
        self._rows: list[dict[str, Any]] = []
        self._held = self._written = self._number = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: Row) -> None:
        made = self.row(row)
        self._rows.append(made)
        self._held += sum(len(image["bytes"]) for image in made["images"]) + 2000
        if self._held >= _GROUP_BYTES:
            self._flush()

    def row(self, row: Row) -> dict[str, Any]:
        """The columns of one pair."""
        raise AssertionError("every format has its own")

    def close(self) -> None:
        if self._rows or self._number == 0:  # a file also where there is no pair: readers then find the columns
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if self._writer is None or self._written >= _FILE_BYTES:
            if self._writer is not None:
                self._writer.close()
            path = self._folder / f"train-{self._number:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
            self._number, self._written = self._number + 1, 0
        if self._rows:  # `datasets` cannot read a row group without rows
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._written += self._held
        self._rows, self._held = [], 0


class HuggingFace(_ParquetFormat):
    """Our own columns, with images inside."""

    notes = "The turns hold one `<image>` or `<video>` marker per medium, in order."
    columns: ClassVar[Mapping[str, str]] = {
        "pair_id": "hash of the prompt and the unordered answers; a flip keeps it",
        "prompt_id": "hash of system prompt, turns and media",
        "system": "system prompt of the source, often empty",
        "turns": "the conversation up to the answers: role and text",
        "images": "images in the order of their markers",
        "videos": "paths of video files in this folder",
        "chosen": "the better answer",
        "rejected": "the worse answer",
        "strength": "how much better, in the unit of its writer; null where it is not known",
        "label": "how the pair came to its order",
        "round": "round that curated it",
        "source": "data source",
        "language": "language code of the prompt",
        "votes": "each voter: a reward model's margin, or +1, 0 or -1 of a judge or a person",
        "row_id": ROW_ID,
        **LISTS,
    }
    schema = pa.schema([
        ("pair_id", pa.string()), ("prompt_id", pa.string()), ("system", pa.string()), ("turns", pa.list_(_TURN)),
        ("images", pa.list_(_IMAGE)), ("videos", pa.list_(pa.string())), ("chosen", pa.string()),
        ("rejected", pa.string()), ("strength", pa.float64()), ("label", pa.string()), ("round", pa.int32()),
        ("source", pa.string()), ("language", pa.string()), ("votes", pa.list_(_VOTE)),
        ("row_id", pa.string()), *_LIST_FIELDS,
    ])  # fmt: skip

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._root = folder

    def row(self, row: Row) -> dict[str, Any]:
        """The columns of one pair; its videos are put below the export."""
        kept = ("pair_id", "prompt_id", "chosen", "rejected", "strength", "label", "round", "source", "votes", "row_id")
        return {name: row.pair[name] for name in (*kept, *LISTS)} | {
            **{name: row.prompt[name] for name in ("system", "turns", "language")},
            "images": [_image(file) for file in row.images],
            "videos": [_placed(file, self._root, "videos") for file in row.videos],
        }


class TRL(_ParquetFormat):
    """Messages with typed content, as TRL's trainers take them."""

    notes = (
        "Messages hold typed content; the images of a row stand in `images`, in the order of their placeholders. "
        "`RewardTrainer` subtracts `margin` from the difference of rewards; remove the column where that is not meant."
    )
    columns: ClassVar[Mapping[str, str]] = {
        "prompt": "messages up to the answers",
        "chosen": "the better answer, as a list of one message",
        "rejected": "the worse answer, likewise",
        "images": "images in the order of their placeholders",
        "margin": "preference strength; 0 where it is not known",
        "pair_id": "id of the pair in the pipeline",
        "source": "data source",
        "pair_label": "how the pair came to its order; a column `label` is of another kind of dataset to TRL",
        "row_id": ROW_ID,
        **LISTS,
    }
    schema = pa.schema([
        ("prompt", _MESSAGES), ("chosen", _MESSAGES), ("rejected", _MESSAGES), ("images", pa.list_(_IMAGE)),
        ("margin", pa.float64()), ("pair_id", pa.string()), ("source", pa.string()), ("pair_label", pa.string()),
        ("row_id", pa.string()), *_LIST_FIELDS,
    ])  # fmt: skip

    def row(self, row: Row) -> dict[str, Any]:
        """The columns of one pair. Raises RowFault where it has a video, or its prompt ends with an answer."""
        if row.prompt["turns"][-1]["role"] != "user":
            raise RowFault("prompt ends with an answer", "TRL would go on with it")
        if row.videos:
            raise RowFault("video not supported", _VIDEO)
        messages = [{"role": "system", "content": [_text(row.prompt["system"])]}] if row.prompt["system"] else []
        for turn in row.prompt["turns"]:
            pieces = split_at_markers(turn["text"]) if turn["role"] == "user" else [("text", turn["text"])]
            content = [
                _text(piece) if kind == "text" else {"type": "image", "text": None} for kind, piece in pieces if piece
            ]
            messages.append({"role": turn["role"], "content": content})
        sides = {side: [{"role": "assistant", "content": [_text(row.pair[side])]}] for side in ("chosen", "rejected")}
        return {
            "prompt": messages,
            **sides,
            "images": [_image(file) for file in row.images],
            "margin": row.pair["strength"] or 0.0,  # TRL makes a tensor of the column, which takes no null
            **{name: row.pair[name] for name in ("pair_id", "source", "row_id", *LISTS)},
            "pair_label": row.pair["label"],
        }


class LlamaFactory:
    """ShareGPT-style rows in pairs.json, described in dataset_info.json; images as files below images/."""

    files = "pairs.json"
    notes = "For LLaMA-Factory, give this folder as `dataset_dir` and `dt2it_pairs` as `dataset`."
    columns: ClassVar[Mapping[str, str]] = {
        "conversations": "turns up to the answers; `<image>` and `<video>` stand for media, in order",
        "chosen": "the better answer",
        "rejected": "the worse answer",
        "system": "system prompt, often empty",
        "images": "paths of image files in this folder",
        "videos": "paths of video files in this folder",
        "pair_id": "id of the pair in the pipeline",
        "source": "data source",
        "label": "how the pair came to its order",
        "row_id": ROW_ID,
        **LISTS,
    }
    _NAMES: ClassVar[Mapping[str, str]] = {"user": "human", "assistant": "gpt", "system": "system"}

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stream = (folder / self.files).open("w", encoding="utf-8")
        self._stream.write("[")
        self._count = 0

    def add(self, row: Row) -> None:
        """Write one pair. Raises RowFault where an answer holds a media marker, or the turns do not alternate."""
        roles = [turn["role"] for turn in row.prompt["turns"]]
        if len(roles) % 2 == 0 or any(role != ("user", "assistant")[n % 2] for n, role in enumerate(roles)):
            raise RowFault("turns do not alternate", f"{roles}; LLaMA-Factory would skip the pair")
        texts = [row.prompt["system"], row.pair["chosen"], row.pair["rejected"]]
        texts += [turn["text"] for turn in row.prompt["turns"] if turn["role"] != "user"]
        if any(marker_kinds(text) for text in texts):
            raise RowFault("media marker in an answer", "LLaMA-Factory counts markers in every message")
        made = {
            "conversations": [
                {"from": self._NAMES.get(turn["role"], turn["role"]), "value": turn["text"]}
                for turn in row.prompt["turns"]
            ],
            **{side: {"from": "gpt", "value": row.pair[side]} for side in ("chosen", "rejected")},
            "system": row.prompt["system"],
            "images": [_placed(file, self._folder, "images") for file in row.images],
            "videos": [_placed(file, self._folder, "videos") for file in row.videos],
            **{name: row.pair[name] for name in ("pair_id", "source", "label", "row_id", *LISTS)},
        }
        self._stream.write(",\n" if self._count else "\n")
        json.dump(made, self._stream, ensure_ascii=False)
        self._count += 1

    def close(self) -> None:
        """End the list of pairs and describe it."""
        self._stream.write("\n]\n")
        self._stream.close()
        columns = {"messages": "conversations"} | {
            name: name for name in ("chosen", "rejected", "system", "images", "videos")
        }
        info = {
            "dt2it_pairs": {
                "file_name": self.files,
                "formatting": "sharegpt",
                "ranking": True,
                "columns": columns,
                "tags": {
                    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
                    "system_tag": "system",
                },
            }
        }  # fmt: skip
        text = json.dumps(info, indent=2) + "\n"
        (self._folder / "dataset_info.json").write_text(text, encoding="utf-8")


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """How `datasets` writes a column's type; a struct of bytes and path is an image."""
    if kind == _IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}


def _image(file: Path) -> dict[str, Any]:
    return {"bytes": file.read_bytes(), "path": file.name}


def _placed(file: Path, folder: Path, name: str) -> str:
    """Copy a media file below the export, once. With a hard link, an edit of the copy would change the media store."""
    target = folder / name / file.name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    return f"{name}/{file.name}"


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
