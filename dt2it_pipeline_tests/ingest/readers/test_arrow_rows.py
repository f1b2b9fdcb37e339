"""Arrow files, as `datasets` saves them: read as they are, and bounded whatever their headers and offsets say."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.ingest.reading import SourceError, read_rows
from dt2it_pipeline.ingest.rows import Quarantined, Row
from dt2it_pipeline_tests.support.reading_memory import peak_mib
from dt2it_pipeline_tests.support.source_files import COMPRESSED, ROWS, manifest, values

NAME = "data-00000-of-00001.arrow"
MANY = 2**31 - 1


def saved(folder: Path, *batches: pa.RecordBatch, file: bool = False, **options: Any) -> Path:
    """A folder as `save_to_disk` writes it, in as many batches."""
    folder.mkdir(exist_ok=True)
    writer = pa.ipc.new_file if file else pa.ipc.new_stream
    with (
        pa.OSFile(str(folder / NAME), "wb") as stream,
        writer(stream, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as made,
    ):
        for batch in batches:
            made.write_batch(batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": NAME}], "_split": "train"}))
    return folder


def batch_of(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def nothing(kind: pa.DataType, length: int, children: list[pa.Array] | None = None) -> pa.Array:
    """So many values that take no room."""
    zero = [None, pa.py_buffer(b"")] if pa.types.is_fixed_size_binary(kind) else [None]
    return pa.Array.from_buffers(kind, length, zero, children=children)


def listed(inner: pa.Array) -> pa.Array:
    """One list of all these values."""
    return pa.ListArray.from_arrays(pa.array([0, len(inner)], pa.int32()), inner)


@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"compression": "lz4"}, {"file": True}])
def test_rows_are_those_that_were_written(tmp_path: Path, options: dict[str, Any]) -> None:
    odd = {
        "n": 3,
        "list": [{"a": [1, 2]}, {"a": None}],
        "flag": True,
        "none": None,
        "image": {"bytes": b"x", "path": None},
    }
    rows = [
        *({**row, **odd} for row in ROWS),
        {**ROWS[0], "n": None, "list": None, "flag": None, "none": None, "image": None},
    ]
    batches = pa.Table.from_pylist(rows * 50).to_batches(max_chunksize=70)
    assert values(manifest(saved(tmp_path / "set", *batches, **options)), tmp_path) == rows * 50


def test_texts_of_any_form_are_read(tmp_path: Path) -> None:
    texts = ["short", "a text of more than twelve bytes", None] * 30
    kinds = [pa.string(), pa.large_string(), pa.string_view()]
    batch = batch_of(**{str(kind): pa.array(texts, kind) for kind in kinds}).slice(1, 70)
    found = values(manifest(saved(tmp_path / "set", batch)), tmp_path)
    assert found == [dict.fromkeys(map(str, kinds), text) for text in texts[1:71]]


def held(*texts: bytes) -> pa.Array:
    """Texts of these bytes, whatever they are."""
    return pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())


NO_UTF8 = b"\xff\xfe"


@pytest.mark.parametrize(
    "column",
    [
        held(b"yes", NO_UTF8, b"no"),
        pa.Array.from_buffers(pa.large_string(), 3, pa.array([b"yes", NO_UTF8, b"no"], pa.large_binary()).buffers()),
        pa.Array.from_buffers(pa.string_view(), 3, pa.array([b"yes", NO_UTF8, b"no"], pa.binary_view()).buffers()),
        pa.StructArray.from_arrays([held(b"yes", NO_UTF8, b"no")], ["text"]),
        pa.ListArray.from_arrays(pa.array([0, 1, 3, 4], pa.int32()), held(b"yes", b"well", NO_UTF8, b"no")),
        pa.LargeListArray.from_arrays(pa.array([0, 1, 3, 4], pa.int64()), held(b"yes", b"well", NO_UTF8, b"no")),
        pa.FixedSizeListArray.from_arrays(held(b"yes", b"of", b"well", NO_UTF8, b"no", b"not"), 2),
        pa.ExtensionArray.from_storage(pa.json_(), held(b'"yes"', b'"' + NO_UTF8, b'"no"')),
    ],
    ids=lambda value: str(value.type)[:30],
)
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}])
@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_a_text_that_is_not_utf8_costs_its_row_alone(
    tmp_path: Path, column: pa.Array, options: dict[str, Any], form: str
) -> None:
    batch = batch_of(a=column, other=pa.array(["x", "y", "z"]))
    if form == "arrow":
        source = manifest(saved(tmp_path / "set", batch, **options))
    else:
        pq.write_table(pa.Table.from_batches([batch]), tmp_path / "rows.parquet", **options)
        source = manifest(tmp_path / "rows.parquet")
    found = list(read_rows(source, tmp_path))
    assert [each.values["other"] if isinstance(each, Row) else each.reason for each in found] == [
        "x",
        "malformed value",
        "z",
    ]
    assert isinstance(found[1], Quarantined) and "'a'" in found[1].detail and "utf-8" in found[1].detail


@pytest.mark.parametrize(
    ("column", "fault"),
    [
        (nothing(pa.null(), MANY), "expands to more than 200 times its size"),
        (nothing(pa.binary(0), MANY), "expands to more than 200 times its size"),
        (nothing(pa.struct([]), MANY), "expands to more than 200 times its size"),
        (listed(nothing(pa.null(), MANY)), "expands to more than 200 times its size"),
        (listed(nothing(pa.struct([]), MANY)), "expands to more than 200 times its size"),
        (
            nothing(pa.list_(pa.null(), 700_000_000), 3, [nothing(pa.null(), 2_100_000_000)]),
            "expands to more than 200 times its size",
        ),
        (
            pa.Array.from_buffers(
                pa.string_view(),
                100_000,
                [None, pa.py_buffer(struct.pack("<i4sii", 10**6, b"xxxx", 0, 0) * 100_000), pa.py_buffer(b"x" * 10**6)],
            ),
            "expands to more than 200 times its size",
        ),
        (pa.DictionaryArray.from_arrays(pa.array(np.zeros(9, np.int8)), ["x"]), "has the type dictionary"),
        (pa.RunEndEncodedArray.from_arrays(pa.array([MANY], pa.int32()), ["x"]), "has the type run_end_encoded"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())), "has the type map"),
        (
            pa.Array.from_buffers(
                pa.string(), 2, [None, pa.array([0, 2**30, 5], pa.int32()).buffers()[1], pa.py_buffer(b"hello")]
            ),
            "is no whole Arrow file .*offset for slot 1 out of bounds",
        ),
    ],
    ids=lambda value: str(value.type)[:30] if isinstance(value, pa.Array) else "",
)
def test_what_takes_little_room_in_a_file_and_much_in_memory_is_refused(
    tmp_path: Path, column: pa.Array, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dt2it_pipeline.ingest.readers.bounds._FREE", 2**24)
    with pytest.raises(SourceError, match=rf"source 's': (column 'a' of )?{NAME} {fault}"):
        values(manifest(saved(tmp_path / "set", batch_of(a=column))), tmp_path)


def changed(file: Path, change: Callable[[bytearray], None]) -> None:
    content = bytearray(file.read_bytes())
    change(content)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("length", "fault"),
    [(2**40, "expands to more than 200 times its size"), (-5, "gives -5 for its length once decompressed")],
)
def test_the_lengths_of_compressed_buffers_are_bounded(tmp_path: Path, length: int, fault: str) -> None:
    texts = pa.array(["x" * 5000] * 3)
    folder = saved(tmp_path / "set", batch_of(prompt=texts), compression="zstd")

    def lie(content: bytearray) -> None:
        place = content.rindex(struct.pack("<q", 15_000) + b"\x28\xb5\x2f\xfd")
        content[place : place + 8] = struct.pack("<q", length)

    changed(folder / NAME, lie)
    with pytest.raises(SourceError, match=fault):
        values(manifest(folder), tmp_path)


def test_buffers_that_are_one_place_many_times_are_refused(tmp_path: Path) -> None:
    batch = batch_of(**{str(number): pa.array(np.arange(1024, dtype=np.int64)) for number in range(3)})
    folder = saved(tmp_path / "set", batch)
    assert len(values(manifest(folder), tmp_path)) == 1024

    def lie(content: bytearray) -> None:
        """The third column is all of the body, the others stay."""
        place = content.index(struct.pack("<qq", 2 * 8192, 8192))
        content[place : place + 16] = struct.pack("<qq", 0, 3 * 8192)

    changed(folder / NAME, lie)
    with pytest.raises(SourceError, match="its columns take 40,960 bytes of a record batch of 24,576"):
        values(manifest(folder), tmp_path)


def test_a_file_of_which_any_part_is_missing_or_changed_is_one_sentence_or_rows(tmp_path: Path) -> None:
    """Never another error, and never the end of this process."""
    folder = saved(tmp_path / "set", *pa.Table.from_pylist(ROWS).to_batches(max_chunksize=2), compression="zstd")
    whole, random = (folder / NAME).read_bytes(), np.random.default_rng(0)
    for number in range(300):
        content = bytearray(whole)
        if number % 3 == 0:
            del content[random.integers(len(content)) :]
        for _ in range(1 + number % 4 if number % 3 else 0):
            content[random.integers(len(content))] = random.integers(256)
        (folder / NAME).write_bytes(content)
        try:
            values(manifest(folder), tmp_path)
        except SourceError as error:
            assert "\n" not in str(error).strip()


def bomb(folder: Path, kind: str, times: int) -> Path:
    """A folder for `datasets` of one long row, so many times."""
    text, folder = "p" * 400_000, folder / kind
    folder.mkdir(parents=True)
    if kind == "arrow":
        return saved(folder, batch_of(prompt=pa.array([text] * times)), compression="zstd")
    prompts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, np.int8)), [text])
    pq.write_table(pa.table({"prompt": prompts}), folder / "train.parquet", compression="zstd")
    return folder


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_folder_that_expands_without_measure_costs_its_source_and_little_memory(tmp_path: Path, kind: str) -> None:
    folder = bomb(tmp_path / "bomb", kind, 2800)
    peak, words = peak_mib(folder, bomb(tmp_path / "harmless", kind, 1), "dataset")
    assert "more than 200 times its size" in words and "\n" not in words
    assert peak < 250


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst", "lz4"])
def test_a_compressed_file_of_a_folder_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr("dt2it_pipeline.ingest.readers.bounds._FREE", 2**20)
    monkeypatch.setattr("dt2it_pipeline.ingest.readers.bounds._RATIO", 20)
    content = "prompt,chosen,rejected\n" + f"{'p' * 10_000},a,b\n" * 400
    (tmp_path / "set").mkdir()
    (tmp_path / f"set/train.csv.{ending}").write_bytes(COMPRESSED[ending](content.encode()))
    with pytest.raises(SourceError, match=rf"train.csv.{ending} expands to more than 20 times its size"):
        values(manifest(tmp_path / "set", format="dataset"), tmp_path)


@pytest.mark.parametrize(
    ("column", "fault"),
    [
        (nothing(pa.null(), 200_000), "rows.parquet with [0-9,]+ rows in group [0-9]+"),
        (listed(nothing(pa.null(), 50_000_000)), "column 'a.list.element' of rows.parquet"),
    ],
    ids=["rows", "elements of a list"],
)
def test_values_that_take_no_room_in_parquet_are_refused(
    tmp_path: Path, column: pa.Array, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dt2it_pipeline.ingest.readers.bounds._FREE", 2**24)
    pq.write_table(pa.table({"a": column}), tmp_path / "rows.parquet")
    with pytest.raises(SourceError, match=f"{fault} expands to more than 200 times its size"):
        values(manifest(tmp_path / "rows.parquet"), tmp_path)
