"""Folders for `datasets` whose own files name other files or addresses: refused before the library follows them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import datasets
import pytest

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.reading import SourceError, read_rows

ROW = {"prompt": "p", "chosen": "fine", "rejected": "x"}
CONFIGS = "configs:\n- config_name: default\n  {key}: {place}\n"
CARD = f"---\n{CONFIGS}---\n# A set\n"


def read(folder: Path) -> list[object]:
    manifest = Manifest(name="own", kind="preferences", path=str(folder), format="dataset", licence="MIT")
    return [row.values for row in read_rows(manifest, folder)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.jsonl").write_text(json.dumps(ROW | {"chosen": "secret"}) + "\n")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    return tmp_path / "set"


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "place",
    [
        "../secret.jsonl",
        "[{split: train, path: ../secret.jsonl}]",
        "[{split: train, path: [rows.jsonl, /etc/passwd]}]",
        "http://127.0.0.1:9/rows.jsonl",
        "zip://rows.jsonl::http://127.0.0.1:9/a.zip",
        "hf://datasets/some/set/rows.jsonl",
        "~/rows.jsonl",
        r"'..\secret.jsonl'",
    ],
)
def test_a_card_leads_nowhere(folder: Path, name: str, place: str) -> None:
    (folder / name).write_text((CARD if name == "README.md" else CONFIGS).format(key="data_files", place=place))
    with pytest.raises(SourceError, match=r"source 'own': .*names .*(the data there|by its path in the folder)"):
        read(folder)


def test_a_folder_of_a_card_leads_nowhere(folder: Path) -> None:
    (folder / "README.md").write_text(CARD.format(key="data_dir", place="../"))
    with pytest.raises(SourceError, match="leads out of the folder"):
        read(folder)


def test_a_card_that_names_its_own_files_is_followed(folder: Path) -> None:
    (folder / "README.md").write_text(CARD.format(key="data_files", place="[{split: train, path: rows.*}]"))
    assert read(folder) == [ROW]


def test_a_card_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(SourceError, match=r"README\.md cannot be read"):
        read(folder)


def test_a_saved_dataset_leads_nowhere(tmp_path: Path) -> None:
    for name in ("own", "other"):
        datasets.Dataset.from_list([ROW | {"chosen": name}]).save_to_disk(str(tmp_path / name))
    assert read(tmp_path / "own") == [ROW | {"chosen": "own"}]
    state = tmp_path / "own" / "state.json"
    (other,) = (tmp_path / "other").glob("*.arrow")
    state.write_text(
        json.dumps(json.loads(state.read_text()) | {"_data_files": [{"filename": f"../other/{other.name}"}]})
    )
    with pytest.raises(SourceError, match=r"state\.json names '\.\./other/.*', which leads out of the folder"):
        read(tmp_path / "own")


def test_the_splits_of_a_saved_dataset_lead_nowhere(tmp_path: Path) -> None:
    datasets.DatasetDict(train=datasets.Dataset.from_list([ROW])).save_to_disk(str(tmp_path / "own"))
    assert read(tmp_path / "own") == [ROW]
    (tmp_path / "own" / "dataset_dict.json").write_text('{"splits": ["../elsewhere"]}')
    with pytest.raises(SourceError, match=r"dataset_dict\.json names '\.\./elsewhere'"):
        read(tmp_path / "own")


def test_links_in_a_folder_lead_nowhere_but_to_the_hubs_cache(tmp_path: Path, folder: Path) -> None:
    (folder / "rows.jsonl").unlink()
    (folder / "rows.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(SourceError, match=r"rows\.jsonl is a link that leads out of"):
        read(folder)
    cache = tmp_path / "datasets--some--set"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "0a").write_text(json.dumps(ROW) + "\n")
    snapshot = cache / "snapshots" / "1b"
    snapshot.mkdir()
    (snapshot / "rows.jsonl").symlink_to("../../blobs/0a")
    assert read(snapshot) == [ROW]


def test_a_split_that_is_a_link_leads_nowhere(tmp_path: Path) -> None:
    for name in ("own", "other"):
        datasets.DatasetDict(train=datasets.Dataset.from_list([ROW | {"chosen": name}])).save_to_disk(
            str(tmp_path / name)
        )
    (tmp_path / "own" / "train").rename(tmp_path / "aside")
    (tmp_path / "own" / "train").symlink_to(tmp_path / "other" / "train")
    with pytest.raises(SourceError, match=r"state\.json is a link that leads out of"):
        read(tmp_path / "own")


def test_an_archive_has_no_field(folder: Path) -> None:
    (folder / "rows.jsonl").unlink()
    with zipfile.ZipFile(folder / "rows.zip", "w") as archive:
        archive.writestr("rows.json", json.dumps({"data": [ROW]}))
    config = "configs:\n- config_name: default\n  data_files: rows.zip\n  field: data\n"
    (folder / "README.md").write_text(f"---\n{config}---\n")
    with pytest.raises(SourceError, match=r"the card names the field 'data' of rows\.zip"):
        read(folder)


def test_rows_of_files_of_one_name_have_names_of_their_own(folder: Path) -> None:
    (folder / "rows.jsonl").unlink()
    for split in ("a", "b"):
        (folder / split).mkdir()
        (folder / split / "rows.jsonl").write_text("{\n")
    manifest = Manifest(name="own", kind="preferences", path=str(folder), licence="MIT")
    assert len({str(row) for row in read_rows(manifest, folder)}) == 2
