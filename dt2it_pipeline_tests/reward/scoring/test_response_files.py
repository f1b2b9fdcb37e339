"""Files of responses whose keys have other names: messages name the keys that the user knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.evaluate.best_of.files import qualities
from dt2it_pipeline.reward.scoring.response_files import ResponseFileError, read_response_file

RESPONSES = {"prompt": "what", "responses": ["a"]}


@pytest.mark.parametrize(("row", "columns", "words"), [
    ({"prompt": "what", "good": "red"}, {"responses": "good"},
     "`good` (read as `responses`) must be a list of texts, or `chosen` and `rejected` texts; found 'red'"),
    ({"prompt": "what", "good": "red"}, {"chosen": "good"},
     "`responses` must be a list of texts, or `good` (read as `chosen`) and `rejected` texts; found None"),
    ({"question": None, "prompt": "a template", "responses": ["a"]}, {"prompt": "question"},
     "the row has neither `question` (read as `prompt`) nor `turns`; its columns: question, prompt, responses"),
    ({"chat": "what", "responses": ["a"]}, {"turns": "chat"}, "`chat` (read as `turns`) must be a list of"),
    ({**RESPONSES, "chat": [{"role": "user", "text": "who"}]}, {"turns": "chat"},
     "the row has `prompt`, and `chat` (read as `turns`) that do not end with it"),
    ({**RESPONSES, "rules": 3}, {"system": "rules"}, "`rules` (read as `system`): 3"),
    ({**RESPONSES, "files": "a.png"}, {"images": "files"},
     "images are not a list (`files` (read as `images`): 'a.png')"),
    ({**RESPONSES, "files": [""]}, {"images": "files"}, "column 'files': ''"),
    ({**RESPONSES, "file": 3}, {"image": "file"}, "column 'file': 3"),
    ({**RESPONSES, "file": "a.png", "images": ["b.png"]}, {"image": "file"},
     "the row has `file` (read as `image`) and `images`; leave one out"),
])  # fmt: skip
def test_a_fault_names_the_key_of_the_row(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str], words: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(ResponseFileError) as found:
        read_response_file(tmp_path / "rows.jsonl", tmp_path, tmp_path / "media", columns=columns)
    assert words in str(found.value)


@pytest.mark.parametrize(
    ("given", "words"), [([1, 2], "is no list with one number"), (["x"], "holds 'x', which is no")]
)
def test_a_fault_of_a_quality_names_the_key_of_the_row(tmp_path: Path, given: list[Any], words: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({**RESPONSES, "right": given}))
    file = read_response_file(tmp_path / "rows.jsonl", tmp_path, tmp_path / "media", columns={"quality": "right"})
    assert qualities(file)[1][0].startswith(f"line 1: `right` (read as `quality`) {words}")
