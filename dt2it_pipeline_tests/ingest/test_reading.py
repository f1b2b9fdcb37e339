"""The same rows from every format; malformed ones with their number; nothing from the network."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.ingest.readers import file_formats
from dt2it_pipeline.ingest.reading import SourceError, read_rows
from dt2it_pipeline.ingest.rows import Quarantined, Row
from dt2it_pipeline.ingest.sources import fingerprint, read_source
from dt2it_pipeline_tests.support.source_files import ROWS, as_csv, lines, manifest, values


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def packed(name: str, members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    if name.endswith("zip"):
        with zipfile.ZipFile(buffer, "w") as archive:
            for key, content in members.items():
                archive.writestr(key, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz" if name.endswith("gz") else "w") as tar:
            for key, content in members.items():
                entry = tarfile.TarInfo(key)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


FILES = {
    "rows.jsonl": lines(ROWS),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(ROWS),
    "rows.json": json.dumps(ROWS, indent=1).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "rows.csv": as_csv(ROWS),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(ROWS),
    "excel.csv": b"\xef\xbb\xbf" + as_csv(ROWS, ";"),
    "tabs.csv": as_csv(ROWS, "\t"),
    "rows.parquet": as_parquet(ROWS),
    "rows.zip": packed(
        "zip", {"b.jsonl": lines(ROWS[3:]), "a.json": json.dumps(ROWS[:3]).encode(), "readme.txt": b"-"}
    ),
    "rows.tar": packed("tar", {"x/rows.parquet": as_parquet(ROWS)}),
    "rows.tar.gz": packed("gz", {"rows.csv": as_csv(ROWS)}),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("chunk", [7, 1 << 20])  # elements of a JSON array are cut anywhere
def test_every_format_gives_the_same_rows(
    tmp_path: Path, name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_formats, "CHUNK", chunk)
    (tmp_path / name).write_bytes(FILES[name])
    assert values(manifest(tmp_path / name), tmp_path) == ROWS
    assert len(values(manifest(tmp_path / name, limit=2), tmp_path)) == 2


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["rows.jsonl", "./rows.jsonl", "a/../rows.jsonl"])
def test_members_of_a_zip_that_would_be_one_file_are_refused(tmp_path: Path, second: str) -> None:
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        for name, rows in (("rows.jsonl", ROWS[:2]), (second, ROWS[2:])):
            archive.writestr(name, lines(rows))
    with pytest.raises(SourceError, match=r"holds rows\.jsonl more than once; pack it anew"):
        values(manifest(tmp_path / "rows.zip"), tmp_path)


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/2.jsonl").write_bytes(lines(ROWS[2:]))
    (tmp_path / "data/1.jsonl").write_bytes(lines(ROWS[:2]))
    assert values(manifest(tmp_path / "data"), tmp_path) == ROWS
    first = fingerprint(manifest(tmp_path / "data"), tmp_path)
    (tmp_path / "data/3.json").write_text("[]")
    with pytest.raises(SourceError, match=r"several formats: json \(3\.json\), jsonl \(1\.jsonl\)\. Name one of"):
        values(manifest(tmp_path / "data"), tmp_path)
    assert values(manifest(tmp_path / "data", format="jsonl"), tmp_path) == ROWS
    (tmp_path / "data/2.jsonl").write_bytes(lines(ROWS[3:]))
    assert fingerprint(manifest(tmp_path / "data", format="jsonl"), tmp_path) != first


def test_malformed_lines_are_quarantined_with_their_number(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(ROWS[:1]) + b"\n{\n" + lines(ROWS[1:2]) + b"[]\n\xff\n")
    found = [row for row in read_rows(manifest(tmp_path / "rows.jsonl"), tmp_path) if isinstance(row, Quarantined)]
    assert [(row.row_id, row.reason) for row in found] == [(f"line {n}", "malformed JSON") for n in (3, 5, 6)]
    (tmp_path / "rows.csv").write_text('question,chosen\na,b\nonly\nc,"d\ne"\nf,g,h\n')
    found = list(read_rows(manifest(tmp_path / "rows.csv"), tmp_path))
    assert [(type(row), row.row_id) for row in found] == [
        (Row, "row 1"),
        (Quarantined, "row 2"),
        (Row, "row 3"),
        (Quarantined, "row 4"),
    ]
    assert isinstance(found[3], Quarantined) and found[3].detail == "line 6: not the 2 values of the heading"
    (tmp_path / "rows.json").write_text("[1, {}, [2]]")
    assert [type(row) for row in read_rows(manifest(tmp_path / "rows.json"), tmp_path)] == [
        Quarantined,
        Row,
        Quarantined,
    ]


@pytest.mark.parametrize("layout", ["%s\n%s\n", "[%s, %s]", '{"rows": [%s, %s]}'])
def test_a_row_with_a_key_twice_is_in_the_quarantine(tmp_path: Path, layout: str) -> None:
    """Which of the two was meant is anyone's guess."""
    (tmp_path / "rows.json").write_text(layout % ('{"chosen": "a"}', '{"chosen": "b", "chosen": "c"}'))
    *before, second = read_rows(manifest(tmp_path / "rows.json"), tmp_path)
    assert isinstance(second, Quarantined) and all(isinstance(row, Row) for row in before)
    assert len(before) == (0 if "rows" in layout else 1)  # one object that holds all rows is read at once
    assert second.reason == "malformed JSON" and "key 'chosen' stands twice" in second.detail


@pytest.mark.parametrize(
    ("odd", "fault"),
    [
        (pa.array([b"a", b"\xff\xfe", b"c"], pa.binary()).view(pa.string()), "column 'odd': 'utf-8' codec"),
        (pa.array([1, 2**60, 2], pa.timestamp("us")), "column 'odd': "),
    ],
)
def test_a_value_of_a_parquet_file_that_python_cannot_hold_costs_its_row(
    tmp_path: Path, odd: pa.Array, fault: str
) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS[:3]).append_column("odd", odd), tmp_path / "rows.parquet")
    artifact = read_source(manifest(tmp_path / "rows.parquet"), tmp_path, tmp_path / "media")
    assert artifact["pairs"]["rejected"].to_pylist() == ["c", "ccc"]
    aside = artifact["quarantine"].to_pylist()
    assert [(row["row_id"], row["reason"]) for row in aside] == [("row 2", "malformed value")]
    assert aside[0]["detail"].startswith(fault)


@pytest.mark.parametrize("name", ["rows.tar.gz", "rows.zip"])
@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_archive_is_one_clear_error(tmp_path: Path, name: str, damage: str) -> None:
    text = random.Random(0).randbytes(100_000).hex().encode()  # lines of which none is JSON
    with zipfile.ZipFile(tmp_path / "rows.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", text)
    (tmp_path / "rows.tar.gz").write_bytes(packed("gz", {"rows.jsonl": text}))
    content = (tmp_path / name).read_bytes()
    middle = len(content) // 2
    damaged = content[:middle] if damage == "cut" else content[:middle] + b"\xff" * 200 + content[middle + 200 :]
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(SourceError, match=f"source 's': cannot read .*{name}: "):
        values(manifest(tmp_path / name), tmp_path)


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ('{"p": {"annotation": "a\\u0000b", "root": "x"}}', "part 'p' of meta.json: missing file: .*embedded null"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_damaged_parts_are_one_clear_error(tmp_path: Path, parts: str, fault: str) -> None:
    (tmp_path / "meta.json").write_text(parts)
    with pytest.raises(SourceError, match=f"source 's': .*{fault}"):
        values(manifest(tmp_path / "meta.json", format="parts", media_root=str(tmp_path)), tmp_path)


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_a_malformed_element_costs_no_other(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_formats, "CHUNK", chunk)
    deep = "[" * 100_000 + "]" * 100_000
    text = r'[{"a": 1}, {"b": [5, {"]": "\"," bad}]}, {"a": 2},' + deep + ', {"a": 3}}, {"a": 4} ]'
    (tmp_path / "rows.json").write_text(text)
    found = list(read_rows(manifest(tmp_path / "rows.json"), tmp_path))
    assert [dict(row.values)["a"] if isinstance(row, Row) else row.reason for row in found] == [
        1, "malformed JSON", 2, "malformed JSON", 3, "malformed JSON", 4,
    ]  # fmt: skip
    assert isinstance(found[1], Quarantined) and found[1].row_id == "row 2"
    assert found[1].detail == "Expecting ',' delimiter, in the 28 characters up to the next element"


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_an_object_with_one_list_of_objects_is_that_list(tmp_path: Path, indent: int | None, ending: str) -> None:
    file = tmp_path / f"rows.json{ending}"
    content = {"version": 2, "tags": ["x"], "info": {"by": "us"}, "pairs": [*ROWS, 5]}
    text = json.dumps(content, indent=indent).encode()
    file.write_bytes(gzip.compress(text) if ending else text)
    *read, last = list(read_rows(manifest(file), tmp_path))
    assert [dict(row.values) for row in read if isinstance(row, Row)] == ROWS
    assert last == Quarantined(f"row {len(ROWS) + 1}", "malformed JSON", "expected an object, found int")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}], "rejected_response": "bad"},
        {"one": [{"role": "user", "content": "q"}], "two": [{"role": "user", "content": "q"}]},
        {"prompt": "q", "boxes": [{"x": 1}]},
        {"a": {"spans": [{"x": 1}]}},
    ],
)
def test_an_object_in_one_line_that_is_a_row_stays_one(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(row))
    assert values(manifest(tmp_path / "rows.json"), tmp_path) == [row]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("rows.json", b'{"train": [{"a": 1}], "test": [{"a": 2}]}', r"with 2 lists of objects \(train, test\)"),
        ("rows.json", b'{"n": 1,\n "x": [{"a": 1}], "y": {"z": [{}]}}', r"with 2 lists of objects \(x, y.z\)"),
        ("rows.json", b'{"version": 1,\n "pairs": [{"a": 1}, {"a"', "nor one object with a list of rows: Expecting"),
        ("rows.json", b'[{"a": 1}] \n[{"a": 2}, {"a": 3}]', "goes on behind the end of its array of 1 elements: "),
        ("rows.json", b'[{"a": 1}, {"a": "}, {"a": 3}]', "rows.json is malformed behind element 1"),
        ("rows.json", b'{"a":\n 1}', "rows.json is neither a JSON array nor one JSON object per line"),
        ("rows.jsonl", '{"a": 1}\n'.encode("utf-16"), "rows.jsonl is text in UTF-16; save it as UTF-8"),
        ("rows.csv.gz", b"nothing", "cannot read .*rows.csv.gz: Not a gzipped file"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], "cannot read .*rows.jsonl.gz"),
        ("rows.jsonl.zst", b"nothing", "cannot read .*rows.jsonl.zst"),
        ("rows.json", b'[{"a": 1}, {"a"', "rows.json is malformed behind element 1"),
        ("rows.csv", b"id,chosen,rejected,chosen\n1,a,b,c\n", r"heading of rows.csv names .* than once: \['chosen'\]"),
        ("rows.parquet", b"PAR1 nothing", "no whole Parquet file"),
        ("rows.zip", b"PK nothing", "cannot read .*rows.zip"),
        ("rows.tar", b"nothing", "cannot read .*rows.tar"),
        ("rows.zip", packed("zip", {"readme.txt": b"-"}), "holds no data file"),
        ("rows.dat", b"", r"the format of rows.dat is not known: let its name end in one of \.jsonl, "),
    ],
)
def test_a_file_that_is_not_of_its_format_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes, fault: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"source 's': .*{fault}"):
        values(manifest(tmp_path / name), tmp_path)
    assert fingerprint(manifest(tmp_path / name), tmp_path)


def test_a_source_whose_every_row_lacks_a_column_is_given_up_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "q"}\n' * 1000)
    read = []
    loads = json.loads
    monkeypatch.setattr(file_formats.json, "loads", lambda text, **named: read.append(1) or loads(text, **named))
    with pytest.raises(
        SourceError,
        match=r"column 'chosen' or 'rejected' is not in line 1, which has \['prompt'\]; adapter 'auto' reads",
    ):
        read_source(manifest(tmp_path / "rows.jsonl"), tmp_path, tmp_path / "media")
    assert len(read) < 200


def test_a_file_that_stands_twice_in_a_tar_is_refused_and_links_are_quarantined(tmp_path: Path) -> None:
    def packed_rows(*members: tuple[str, bytes, str]) -> list[Any]:
        with tarfile.open(tmp_path / "rows.tar", "w") as archive:
            for name, kind, target in members:
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = kind, target
                content = b"" if target else b'{"a": 1}\n'
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return list(read_rows(manifest(tmp_path / "rows.tar"), tmp_path))

    links = (("b.jsonl", tarfile.LNKTYPE, "a.jsonl"), ("c.jsonl", tarfile.SYMTYPE, "/etc/passwd"))
    found = packed_rows(("a.jsonl", tarfile.REGTYPE, ""), *links)
    assert [(one.row_id, one.detail) for one in found if isinstance(one, Quarantined)] == [
        ("b.jsonl", "it leads to a.jsonl"), ("c.jsonl", "it leads to /etc/passwd")
    ]  # fmt: skip
    assert [dict(one.values) for one in found if isinstance(one, Row)] == [{"a": 1}]
    with pytest.raises(SourceError, match=r"rows\.tar holds a\.jsonl more than once; pack it anew"):
        packed_rows(*[("a.jsonl", tarfile.REGTYPE, "")] * 2)


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


@pytest.mark.parametrize("squeeze", [gzip.compress, zstd], ids=["gz", "zst"])
@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("rows.jsonl", lines),
        ("rows.json", lambda rows: json.dumps(rows).encode()),
        ("rows.json", lines),
        ("rows.csv", as_csv),
        ("rows.tsv", lambda rows: as_csv(rows, "\t")),
        ("rows.parquet", as_parquet),
    ],
)
def test_every_format_is_read_compressed_too_alone_and_in_archives(
    tmp_path: Path, name: str, written: Any, squeeze: Any
) -> None:
    rows = [row | {"rejected": row["rejected"] * 30_000} for row in ROWS]  # more than one look ahead
    content, called = squeeze(written(rows)), f"{name}.{'gz' if squeeze is gzip.compress else 'zst'}"
    (tmp_path / called).write_bytes(content)
    assert values(manifest(tmp_path / called), tmp_path) == rows
    for archive in ("set.zip", "set.tar"):
        (tmp_path / archive).write_bytes(packed(archive, {called: content}))
        assert values(manifest(tmp_path / archive), tmp_path) == rows


def test_json_lines_that_are_called_json_are_read_with_their_faults(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b"\xef\xbb\xbf" + lines(ROWS[:2]) + b'{"question": bad\n' + lines(ROWS[2:]))
    made = manifest(tmp_path / "rows.json")
    assert values(made, tmp_path) == ROWS
    faults = [row for row in read_rows(made, tmp_path) if isinstance(row, Quarantined)]
    assert [(fault.row_id, fault.reason) for fault in faults] == [("line 3", "malformed JSON")]


def test_what_a_mac_adds_is_no_data(tmp_path: Path) -> None:
    """Resource forks beside files and in archives: `._NAME`, and the folder `__MACOSX`."""
    fork = b"\0\x05\x16\7\0\2\0\0Mac OS X        " + bytes(60)
    members = {
        "part/train.parquet": as_parquet(ROWS),
        "part/._train.parquet": fork,
        "__MACOSX/part/._train.parquet": fork,
        "__MACOSX/part/train.parquet": fork,
    }
    for name, content in members.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    assert values(manifest(tmp_path / "set"), tmp_path) == ROWS
    for archive in ("set.zip", "set.tar"):
        (tmp_path / archive).write_bytes(packed(archive, members))
        assert values(manifest(tmp_path / archive), tmp_path) == ROWS
    (tmp_path / "__MACOSX").mkdir()  # above the source it means nothing
    (tmp_path / "__MACOSX/rows.jsonl").write_bytes(lines(ROWS))
    assert values(manifest(tmp_path / "__MACOSX"), tmp_path) == ROWS
