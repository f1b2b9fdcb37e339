"""Folders of Hugging Face `datasets` as sources: read without network, decoded, and odd rows at their cost alone."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.ingest.reading import SourceError
from dt2it_pipeline.ingest.sources import fingerprint, read_source
from dt2it_pipeline_tests.support.ingest_world import image
from dt2it_pipeline_tests.support.source_files import COMPRESSED, ROWS, as_csv, lines, manifest, values


@pytest.mark.parametrize("saved", [True, False])
def test_a_local_dataset_is_read_without_network_and_without_decoding(tmp_path: Path, saved: bool) -> None:
    import datasets

    whole = image(tmp_path / "a.png").read_bytes()
    features = datasets.Features({name: datasets.Value("string") for name in ROWS[0]} | {"image": datasets.Image()})
    rows = [
        row | {"image": {"bytes": content, "path": None}}
        for row, content in zip(ROWS, [whole, b"damaged"], strict=False)
    ]
    made = datasets.Dataset.from_list(rows, features=features)
    (tmp_path / "copy").mkdir()
    if saved:
        datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "copy"))
    else:
        made.to_parquet(str(tmp_path / "copy/train-00000.parquet"))
    source = manifest(tmp_path / "copy", format="dataset", hub="someone/something", adapter="rlaif_v")
    artifact = read_source(source, tmp_path, tmp_path / "media")
    assert artifact["pairs"].num_rows == 1
    assert artifact["quarantine"]["reason"].to_pylist() == ["unreadable image"]
    assert fingerprint(source, tmp_path)
    with pytest.raises(SourceError, match=r"source 's': .*copy has no split 'gone'; it has train"):
        values(source.model_copy(update={"split": "gone"}), tmp_path)


ODD = [b'{"question": "q9", "chosen": "x", "rejected": {"b": 1}}\n', b'{"question": bad\n']


@pytest.mark.parametrize("place", ["same file", "next file"])
def test_an_odd_row_or_line_of_a_dataset_changes_no_other_row(tmp_path: Path, place: str) -> None:
    """`datasets` makes JSON texts of a column's values as soon as one has another type."""
    (tmp_path / "copy").mkdir()
    first, last = lines(ROWS[:2]), b"".join(ODD) + lines(ROWS[2:])
    files = [first + last] if place == "same file" else [first, last]
    for number, content in enumerate(files):
        (tmp_path / f"copy/train-{number}.jsonl").write_bytes(content)
    artifact = read_source(manifest(tmp_path / "copy", format="dataset"), tmp_path, tmp_path / "media")
    assert artifact["pairs"].select(["chosen", "rejected"]).to_pylist() == [
        {"chosen": row["chosen"], "rejected": row["rejected"]} for row in ROWS
    ]
    assert sorted(artifact["quarantine"]["reason"].to_pylist()) == ["malformed JSON", "not text"]


def test_a_dataset_in_json_of_any_kind_is_read_whole(tmp_path: Path) -> None:
    for number, content in enumerate((json.dumps(ROWS).encode(), lines(ROWS))):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/train.json").write_bytes(content)
        assert values(manifest(tmp_path / f"{number}", format="dataset"), tmp_path) == ROWS


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst", "lz4"])
def test_an_odd_row_of_a_compressed_file_changes_no_other_row(tmp_path: Path, ending: str) -> None:
    (tmp_path / "copy").mkdir()
    content = lines(ROWS[:2]) + ODD[1] + lines(ROWS[2:])
    (tmp_path / f"copy/train.jsonl.{ending}").write_bytes(COMPRESSED[ending](content))
    assert values(manifest(tmp_path / "copy", format="dataset"), tmp_path) == ROWS


@pytest.mark.parametrize("saved", [True, False])
def test_json_columns_of_a_dataset_are_decoded(tmp_path: Path, saved: bool) -> None:
    import datasets

    rows = [ROWS[0], ROWS[1] | {"rejected": {"b": 1}}]
    features = datasets.Features({name: datasets.Value("string") for name in ROWS[0]} | {"rejected": datasets.Json()})
    made = datasets.Dataset.from_list(rows, features=features)
    if saved:
        made.save_to_disk(str(tmp_path / "copy"))
    else:
        (tmp_path / "copy").mkdir()
        made.to_parquet(str(tmp_path / "copy/train.parquet"))
    assert values(manifest(tmp_path / "copy", format="dataset"), tmp_path) == rows


def card(folder: Path, **config: Any) -> None:
    settings = {"config_name": "default", "data_files": "*.*", **config}
    (folder / "README.md").write_text(f"---\nconfigs:\n- {json.dumps(settings)}\n---\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def test_what_a_card_says_of_its_files_is_followed(folder: Path) -> None:
    (folder / "rows.json").write_text(json.dumps({"about": [{"a": 1}], "data": ROWS}))
    card(folder, field="data", data_files="rows.json")
    assert values(manifest(folder, format="dataset"), folder) == ROWS
    (folder / "rows.json").unlink()
    for mark in "\t;":
        (folder / "rows.csv").write_bytes(as_csv(ROWS, mark))
        card(folder, sep=mark, data_files="rows.csv")
        assert values(manifest(folder, format="dataset"), folder) == ROWS
    (folder / "rows.csv").unlink()
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    card(folder, columns=["chosen"], data_files="rows.parquet")
    assert values(manifest(folder, format="dataset"), folder) == [{"chosen": row["chosen"]} for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "config", "fault"),
    [
        ("rows.csv", as_csv(ROWS), {"skiprows": 1}, "sets skiprows for the loader 'csv'"),
        ("rows.csv", as_csv(ROWS), {"sep": "|"}, "sets sep for the loader 'csv'"),
        ("rows.json", b'{"data": 3}', {"field": "data"}, "has no list of rows under 'data'"),
        ("rows.json", b'{"data": ', {"field": "data"}, "is not valid JSON"),
        ("rows.xml", b"<rows/>", {}, "only the loader 'xml' of `datasets` reads"),
        ("rows.png", b"no image", {}, "holds media alone"),
    ],
)
def test_what_is_not_read_here_is_one_sentence(
    folder: Path, name: str, content: bytes, config: dict[str, Any], fault: str
) -> None:
    (folder / name).write_bytes(content)
    card(folder, data_files=name, **config)
    with pytest.raises(SourceError, match=f"source 's': .*{fault}"):
        values(manifest(folder, format="dataset"), folder)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_of_images_and_what_is_known_of_them(folder: Path, name: str) -> None:
    (folder / "train").mkdir()
    rows = [row | {"file_name": f"{number}.png"} for number, row in enumerate(ROWS[:2])]
    for row in rows:
        image(folder / "train" / row["file_name"])
    rows.append(ROWS[2] | {"file_name": "../../outside.png"})
    image(folder.parent / "outside.png")
    (folder / "train" / name).write_bytes(as_csv(rows) if name.endswith("csv") else lines(rows))
    source = manifest(folder, format="dataset", media_root=str(folder))
    artifact = read_source(source, folder, folder.parent / "media")
    assert artifact["pairs"].num_rows == 2
    assert all(len(media) == 1 for media in artifact["prompts"]["media"].to_pylist())
    assert artifact["quarantine"]["reason"].to_pylist() == ["path outside the media root"]


def test_lines_of_texts_and_shards_are_read(folder: Path) -> None:
    (folder / "rows.txt").write_text("one\ntwo\n\n")
    assert values(manifest(folder, format="dataset"), folder) == [{"text": "one"}, {"text": "two"}, {"text": ""}]
    (folder / "rows.txt").unlink()
    with tarfile.open(folder / "rows.tar", "w") as archive:
        for number, row in enumerate(ROWS):
            for ending, content in (("json", json.dumps(row).encode()), ("png", b"x")):
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    found = values(manifest(folder, format="dataset"), folder)
    assert [{name: row[name] for name in ROWS[0]} for row in found] == ROWS


# Each stands for ten of the one before it: a million values in six lines.
ALIASES = "".join(f"- &a{step + 1} [{', '.join([f'*a{step}'] * 10)}]\n" for step in range(6))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("README.md", f"---\nconfigs:\n- &a0 [x]\n{ALIASES}---\n", "aliases stand for"),
        ("README.md", "x" * (17 << 20), "has more than 16,777,216 bytes"),
        ("dataset_infos.json", "{", "cannot be read"),
        ("state.json", '{"_data_files": [3]}', "lists a data file without its name"),
        ("state.json", '{"_data_files": {"a": 1}}', "is not as `datasets` saves a set"),
        ("dataset_dict.json", '{"splits": 3}', "is not as `datasets` saves a set"),
        ("state.json", '{"_data_files": [{"filename": "gone.arrow"}]}', "gone.arrow"),
    ],
)
def test_a_card_or_state_that_says_nothing_usable_is_one_sentence(
    folder: Path, name: str, content: str, fault: str
) -> None:
    (folder / "rows.jsonl").write_bytes(lines(ROWS))
    (folder / name).write_text(content)
    with pytest.raises(SourceError, match=f"source 's': .*{fault}"):
        values(manifest(folder, format="dataset"), folder)


def test_a_column_that_a_file_names_twice_is_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["chosen", "chosen"])
    pq.write_table(twice, tmp_path / "rows.parquet")
    with pytest.raises(SourceError, match=r"rows\.parquet names columns more than once: chosen"):
        values(manifest(tmp_path / "rows.parquet"), tmp_path)
