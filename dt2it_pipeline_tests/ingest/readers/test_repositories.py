"""Repositories of the Hub: read where they lie by the same readers as files of this machine, and as bounded."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline_tests.support.hub_server import REVISION, hub_server
from dt2it_pipeline_tests.support.source_files import ROWS, as_csv, lines

LISTED = 3  # times that `datasets` lists a repository, to see which files hold rows
ENDLESS = 32 << 20  # bytes, several times what the buffers of a connection hold
SMALL = 4096  # bytes of the longest line, in the process that reads
READ = f"""
import json, sys
from huggingface_hub import HfFileSystem
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.readers import bounds, file_formats, hub
from dt2it_pipeline.ingest.reading import SourceError, read_rows
from dt2it_pipeline.ingest.rows import Row
bounds.LONGEST_LINE = file_formats.LONGEST_LINE = {SMALL}
bounds._FREE = 1 << 16
hub.MAX_BYTES = 32
hub._WAIT = 0.0
searched = 0
info = HfFileSystem.info
def counted(*args, **kwargs):
    global searched
    searched += 1
    return info(*args, **kwargs)
HfFileSystem.info = counted
for asked in json.loads(sys.argv[1]):
    found, fault, searched = [], None, 0
    try:
        made = Manifest(name="s", kind="preferences", revision="{REVISION}", licence="MIT", **asked)
        for row in read_rows(made, __import__("pathlib").Path()):
            found.append(dict(row.values) if isinstance(row, Row) else row.reason)
    except SourceError as error:
        fault = str(error)
    print(json.dumps([found, fault, searched], default=bytes.hex))
"""


def zipped(name: str, content: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return made.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def parquet() -> bytes:
    made = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), made)
    return made.getvalue()


def arrow() -> bytes:
    table = pa.Table.from_pylist(ROWS)
    made = io.BytesIO()
    with pa.ipc.new_stream(made, table.schema) as stream:
        stream.write_table(table)
    return made.getvalue()


LONG = lines([{**ROWS[0], "chosen": "x" * SMALL}])
ODD = b'{"question": "q9", "chosen": "x", "rejected": {"b": 1}}\n{"question": bad\n'
NOT_BESIDE = ("b.png", "../secret.png", "/secret.png", "in", "", "\udcff/a.png", "a/" * 600 + "a.png", "x" * 900)
ODD_ROW = {"question": "q9", "chosen": "x", "rejected": {"b": 1}}
REPOSITORIES: dict[str, dict[str, bytes]] = {
    "lines": {"train.jsonl": lines(ROWS)},
    "parts": {"data/train-00000.jsonl.gz": gzip.compress(lines(ROWS[:2])), "data/train-00001.jsonl": lines(ROWS[2:])},
    "parquet": {"data/train-00000.parquet": parquet()},
    "arrow": {"train.arrow": arrow()},
    "csv": {"train.csv": as_csv(ROWS)},
    "zip": {"train.zip": zipped("rows.jsonl", lines(ROWS))},
    "tar": {"train.tar.gz": tarred("rows.jsonl", lines(ROWS))},
    "odd": {"train.jsonl": lines(ROWS[:1]) + ODD + lines(ROWS[1:])},
    "long": {"train.jsonl": lines(ROWS[:1]) + LONG + lines(ROWS[1:])},
    "bomb": {"train.jsonl.gz": gzip.compress(lines(ROWS[:1]) + b" \n" * (1 << 20))},
    "damaged": {"train.parquet": parquet()[:-9]},
    "elsewhere": {
        "README.md": b"---\nconfigs:\n- config_name: default\n  data_files: https://host.example/rows.jsonl\n---\n"
    },
    "card": {"README.md": b"---\nlicense: mit\n---\n" + b"#" * (17 << 20), "train.jsonl": lines(ROWS)},
    "split": {"test.jsonl": lines(ROWS)},
    "media": {
        "train/metadata.jsonl": "\n".join(
            json.dumps({"file_name": name, "chosen": "yes"}) for name in ("in/a.png", "in/empty.png", *NOT_BESIDE)
        ).encode(),
        "train/in/a.png": b"\x89PNG",
        "train/in/empty.png": b"",
        "secret.png": b"s",
    },
    "several": {
        "train/metadata.jsonl": lines([{"file_names": ["a.png"] * 9 + ["b.png"], "chosen": "yes"}]),
        "train/a.png": b"\x89PNG",
        "train/b.png": b"longer than what is left of the row",
    },
    "many": {
        "train/metadata.jsonl": lines([{"file_name": f"in/{n}.png", "chosen": "yes"} for n in range(21)]),
        **{f"train/in/{n}.png": b"\x89PNG" for n in range(20)},
    },
    "absent": {
        "train/metadata.jsonl": lines([{"file_name": f"none/{n}.png", "chosen": "yes"} for n in range(9)]),
        "train/in/0.png": b"\x89PNG",
    },
    "whole": {
        "train/metadata.jsonl": lines([{"file_name": name, "chosen": "yes"} for name in ("a.png", "endless.png")]),
        "train/a.png": b"\x89PNG",
        "train/endless.png": bytes(ENDLESS),
    },
    "broken": {
        "train/metadata.jsonl": lines([{"file_name": "a.png", "chosen": "yes"}]),
        "train/a.png": b"\x89PNG and more",
    },
    "videos": {"train/metadata.jsonl": b'{"file_name": "a.mp4", "chosen": "yes"}\n', "train/a.mp4": b"no video"},
}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """What was read of every repository, the error that ended it, how often a list was searched, and what was fetched.

    One process reads them all.
    """
    folder = tmp_path_factory.mktemp("hub")
    for name, files in REPOSITORIES.items():
        for file, content in files.items():
            (folder / "some" / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "some" / name / file).write_bytes(content)
    names = [*REPOSITORIES, "none", "here"]
    (folder / "started/some/here").mkdir(parents=True)
    with hub_server(folder, whole="some/whole", broken="some/broken/train/a.png") as (address, fetched):
        variables = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home")}
        asked = [{"hub": f"some/{name}"} for name in names] + [{"hub": "some/parts", "limit": 1}]
        done = subprocess.run(
            [sys.executable, "-c", READ, json.dumps(asked)],
            env=os.environ | variables,
            cwd=folder / "started",
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip([*names, "limited"], found, strict=True)), fetched


@pytest.mark.parametrize("name", ["lines", "parts", "parquet", "arrow", "csv", "zip", "tar"])
def test_the_rows_are_those_of_the_files(read: tuple[dict[str, Any], list[str]], name: str) -> None:
    assert read[0][name][:2] == [ROWS, None]


def test_an_odd_row_and_a_long_line_cost_themselves_alone(read: tuple[dict[str, Any], list[str]]) -> None:
    assert read[0]["odd"][:2] == [[ROWS[0], ODD_ROW, "malformed JSON", *ROWS[1:]], None]
    assert read[0]["long"][:2] == [[ROWS[0], "line too long", *ROWS[1:]], None]


def test_images_beside_the_rows_are_fetched(read: tuple[dict[str, Any], list[str]]) -> None:
    rows, fault, _ = read[0]["media"]
    assert fault is None
    first, empty, *others = (row["image"] for row in rows)
    place = f"hf://datasets/some/media@{REVISION}/train"
    assert first == {"bytes": b"\x89PNG".hex(), "path": f"{place}/in/a.png"}
    assert empty == {"bytes": "", "path": f"{place}/in/empty.png"}
    assert others == [{"bytes": None, "path": f"{place}/{name}"} for name in NOT_BESIDE]


def test_an_image_is_fetched_once_for_a_row_and_all_of_a_row_are_bounded(
    read: tuple[dict[str, Any], list[str]],
) -> None:
    ((row,), fault, _) = read[0]["several"]
    assert fault is None and [image["bytes"] for image in row["images"]] == [b"\x89PNG".hex()] * 9 + [None]
    assert sum(line.startswith("some/several/train/a.png") for line in read[1]) == 1


def test_no_more_of_an_image_is_read_where_a_server_sends_it_whole(read: tuple[dict[str, Any], list[str]]) -> None:
    rows, fault, _ = read[0]["whole"]
    assert fault is None and [row["image"]["bytes"] for row in rows] == [b"\x89PNG".hex(), None]
    image = "some/whole/train/endless.png"
    assert [line for line in read[1] if line.startswith(image)] == [f"{image} {ENDLESS}", f"{image} not taken whole"]


def test_an_image_that_breaks_off_is_fetched_again(read: tuple[dict[str, Any], list[str]]) -> None:
    ((row,), fault, _) = read[0]["broken"]
    assert fault is None and row["image"]["bytes"] == b"\x89PNG and more".hex()
    assert read[1].count("some/broken/train/a.png 13") == 2


def test_no_folder_is_listed_or_searched_for_an_image(read: tuple[dict[str, Any], list[str]]) -> None:
    searched = set()
    for name, images in {"many": 20, "absent": 0}.items():
        rows, fault, often = read[0][name]
        assert fault is None and sum(row["image"]["bytes"] is not None for row in rows) == images
        assert sum(line.startswith(f"some/{name} list") for line in read[1]) == LISTED
        assert sum(line.startswith(f"some/{name}/train/in") for line in read[1]) == images
        searched.add(often)
    assert len(searched) == 1


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("videos", "name videos that are files of their own; download the repository"),
        ("bomb", "expands to more than 200 times its size"),
        ("damaged", "is no whole Parquet file"),
        ("elsewhere", "host.example"),
        ("card", "README.md of some/card has 17,825,813 bytes; it may have 16,777,216"),
        ("split", "some/split has no split 'train'; it has test"),
        ("none", "cannot load some/none"),
        ("here", "started/some/here in place of the Hub; start elsewhere, or name it as `path`"),
    ],
)
def test_what_is_without_bounds_or_leads_elsewhere_is_refused(
    read: tuple[dict[str, Any], list[str]], name: str, fault: str
) -> None:
    assert fault in read[0][name][1] and read[0][name][1].startswith("source 's': ")


def test_no_more_is_fetched_than_is_read(read: tuple[dict[str, Any], list[str]]) -> None:
    assert read[0]["limited"][:2] == [ROWS[:1], None]
    assert sum(line.startswith("some/parts/data/train-00001") for line in read[1]) == 1  # of the whole source
    assert not any(line.startswith("some/card/README") for line in read[1])
