"""Folders for `datasets` whose own files name other files or addresses: refused before the library follows them."""

from __future__ import annotations

import json
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
