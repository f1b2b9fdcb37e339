"""Manifests that are proposed from a file's first rows: the mapping, the media's folder, and what is asked back."""

from __future__ import annotations

import csv
import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.config.strict_yaml import load_yaml
from dt2it_pipeline.ingest.first_rows import look_at_source
from dt2it_pipeline.ingest.manifest import Manifest, ManifestError
from dt2it_pipeline.ingest.proposal import manifest_text, propose
from dt2it_pipeline.ingest.rows import SourceError
from dt2it_pipeline_tests.support.ingest_world import image


def written(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def pair(number: int, **more: Any) -> dict[str, Any]:
    return {
        "uid": number,
        "prompt": "What is it?",
        "chosen_response": f"A cat {number}.",
        "rejected_response": "No.",
    } | more


def test_other_names_of_the_columns_are_mapped(tmp_path: Path) -> None:
    for number in range(3):
        image(tmp_path / f"images/{number}.png", (number, 0, 0))
    found = propose(written(tmp_path, [pair(n, img=f"{n}.png") for n in range(3)]))
    assert (found.kind, found.adapter, found.rows, found.usable) == ("preferences", "auto", 3, 3)
    assert dict(found.columns) == {
        "question": "prompt", "chosen": "chosen_response", "rejected": "rejected_response", "id": "uid", "image": "img"
    }  # fmt: skip
    assert found.media_root == tmp_path / "images"
    assert found.found == ("uid", "prompt", "chosen_response", "rejected_response", "img")
    assert any("kind: benchmark" in question for question in found.questions)


def test_what_is_proposed_reads_the_file(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    data = written(tmp_path, [pair(1, image="a.png"), pair(2, image="gone.png"), pair(3, image="a.png", prompt="")])
    found = propose(data)
    assert found.usable == 2 and "missing value" in found.fault
    text = manifest_text(found, "ours", str(data), str(found.media_root))
    looked = look_at_source(Manifest.model_validate(load_yaml(text)), tmp_path, 50)
    assert (looked.items, looked.usable) == (3, 1)
    assert looked.quarantined == {"missing image": 1, "missing value": 1}
    assert looked.example.startswith("2: missing image") and "chosen_response" in looked.columns
    assert "# 2 of the first 3 rows can be read this way; the others: missing value" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "How many?", "ground_truth": "Two."}, ("prompts", "auto")),
        ({"caption": "a cat", "image_chosen": "a.png", "image_rejected": "b.png"}, ("t2i", "auto")),
        (
            {
                "conversations": [{"from": "human", "value": "Hello?"}],
                "chosen": {"from": "gpt", "value": "Hello."},
                "rejected": {"from": "gpt", "value": "No."},
            },
            ("preferences", "auto"),
        ),
    ],
)
def test_kind_and_adapter_follow_from_the_columns(
    tmp_path: Path, row: dict[str, Any], expected: tuple[str, str]
) -> None:
    found = propose(written(tmp_path, [row]))
    assert (found.kind, found.adapter) == expected


def test_a_csv_is_looked_at_too(tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["Question", "Chosen", "Rejected"], ["Why?", "So.", "No."]])
    found = propose(tmp_path / "rows.csv")
    assert dict(found.columns) == {"question": "Question", "chosen": "Chosen", "rejected": "Rejected"}


def test_several_readings_are_named(tmp_path: Path) -> None:
    found = propose(written(tmp_path, [{"question": "Why?", "chosen": "So.", "rejected": "No.", "image": "a.png"}]))
    assert found.adapter == "auto" and "preferences by rlaif_v" in found.others
    assert "As many rows can be read as: " in manifest_text(found, "ours", "x.jsonl", None)


def test_images_that_are_not_found_are_asked_for(tmp_path: Path) -> None:
    found = propose(written(tmp_path, [pair(1, image="far/a.png")]))
    assert found.media_root is None
    assert any(f"'far/a.png', which is not below {tmp_path}:" in question for question in found.questions)
    assert "# TO BE ANSWERED: The first image is" in manifest_text(found, "ours", "x.jsonl", None)


def test_images_beside_the_rows_in_an_archive_are_found(tmp_path: Path) -> None:
    rows = "".join(json.dumps(pair(n, image=f"images/{n}.png")) + "\n" for n in range(2))
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as packed:
        packed.writestr("set/train.jsonl", rows)
        for number in range(2):
            packed.write(image(tmp_path / f"{number}.png"), f"set/images/{number}.png")
    found = propose(tmp_path / "rows.zip")
    assert found.media_root == tmp_path / "rows.zip" and not any("media_root" in each for each in found.questions)
    text = manifest_text(found, "ours", str(tmp_path / "rows.zip"), str(found.media_root))
    assert look_at_source(Manifest.model_validate(load_yaml(text)), tmp_path, 50).usable == 2


def test_absolute_paths_of_images_get_root_and_prefix(tmp_path: Path) -> None:
    image(tmp_path / "far/a.png")
    image(tmp_path / "far/b.png", "blue")
    data = written(tmp_path, [pair(n, image=str(tmp_path / f"far/{name}.png")) for n, name in enumerate("ab")])
    found = propose(data)
    assert (found.media_root, found.media_prefix) == (tmp_path / "far", f"{tmp_path}/far/")
    text = manifest_text(found, "ours", str(data), str(found.media_root))
    assert look_at_source(Manifest.model_validate(load_yaml(text)), tmp_path, 50).usable == 2


def test_columns_that_nothing_reads_are_an_error(tmp_path: Path) -> None:
    data = written(tmp_path, [{"left": "a", "right": "b", "who": 1}])
    with pytest.raises(SourceError, match="rows with the columns left, right, who are of no known kind") as raised:
        propose(data)
    assert str(raised.value).startswith(f"{data}: ") and "adapter" not in str(raised.value)
    for form in ("chosen, rejected, or ", "first, second, verdict, or ", "answers, ratings, or "):
        assert f"question, {form}" in str(raised.value)
    assert str(raised.value).endswith(
        ", for instance --column question=COLUMN --column chosen=COLUMN --column rejected=COLUMN"
    )
    with pytest.raises(SourceError, match=r"for instance --column rejected=COLUMN$"):
        propose(written(tmp_path, [{"prompt": "What?", "chosen": "a"}]))


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"question": "Why?", "good": "a", "bad": "b"}, "--column chosen=good --column rejected=bad"),
        ({"q": "Why?", "Bad answer": "b", "Good answer": "a", "note": 1},
         "--column chosen='Good answer' --column rejected='Bad answer' --column question=COLUMN"),
        ({"caption": "a cat", "pos": "a.png", "neg": "b.png"}, "--column preferred=pos --column other=neg"),
        ({"question": "Why?", "n_correct": 3, "n_wrong": 1}, "--column chosen=COLUMN --column rejected=COLUMN"),
        ({"question": "Why?", "up": "12", "down": "3.5"}, "--column chosen=COLUMN --column rejected=COLUMN"),
        ({"question": "Why?", "correct": 3, "wrong": 1, "pos": "a", "neg": "b"},
         "--column chosen=pos --column rejected=neg"),
        ({"question": "Why?", "correct": True, "wrong": False}, "--column chosen=COLUMN --column rejected=COLUMN"),
        ({"question": "Why?", "chosen": "a", "correct": "b", "wrong": "c"}, "--column rejected=COLUMN"),
        ({"caption": "a cat", "preferred": "a.png", "win": "b.png", "lose": "c.png"}, "--column other=COLUMN"),
        ({"question": "Why?", "one": "a", "two": "b"}, "--column chosen=COLUMN --column rejected=COLUMN"),
        ({"question": "Why?", "one": "a", "id": 3}, "--column reference=COLUMN"),
        ({"prompt": "Why?", "image_chosen": "a.png", "extra": 1}, "--column other=COLUMN"),
    ],
)  # fmt: skip
def test_the_example_of_a_mapping_fits_the_columns(tmp_path: Path, row: dict[str, Any], options: str) -> None:
    data = written(tmp_path, [row])
    with pytest.raises(SourceError, match="of no known kind") as raised:
        propose(data)
    assert str(raised.value).endswith(f", for instance {options}")
    named = dict(option.split("=") for option in shlex.split(options.replace("--column ", "")))
    if "COLUMN" not in named.values():
        assert propose(data, named).usable == 1


def test_the_example_looks_for_values_beyond_the_first_row(tmp_path: Path) -> None:
    rows = [{"question": "Why?", "good": None, "bad": ""}, {"question": "Who?", "good": "a", "bad": "b"}]
    with pytest.raises(SourceError, match=r"for instance --column chosen=good --column rejected=bad$"):
        propose(written(tmp_path, rows))


@pytest.mark.parametrize("row", [{}, {" ": "Why?"}])
def test_rows_without_a_named_column_are_an_error(tmp_path: Path, row: dict[str, Any]) -> None:
    data = written(tmp_path, [row, row])
    for columns in ({}, {"question": "asked"}):
        with pytest.raises(SourceError, match=f"^{data} has no named column in its first 2 rows$"):
            propose(data, columns)


MAPPED = (
    {"question": "asked", "chosen": "good", "rejected": "bad"},
    {"question": "asked", "first": "one", "second": "two", "verdict": "which"},
    {"question": "asked", "reference": "right"},
)


@pytest.mark.parametrize(("columns", "lacks"), [(each, name) for each in MAPPED for name in each.values()])
@pytest.mark.parametrize("place", [0, 1])
def test_a_row_that_lacks_a_mapped_column_costs_itself_alone(
    tmp_path: Path, columns: dict[str, str], lacks: str, place: int
) -> None:
    rows: list[dict[str, Any]] = [
        {name: f"{name} {n}" for name in columns.values()} | {"which": "one"} for n in range(3)
    ]
    del rows[place][lacks]
    data = written(tmp_path, rows)
    found = propose(data, columns)
    assert (found.adapter, found.usable) == ("auto", 2)
    assert found.fault.startswith(f"missing column (column '{lacks}' is not in line {place + 1}")
    manifest = Manifest.model_validate(load_yaml(manifest_text(found, "ours", str(data), None)))
    assert look_at_source(manifest, tmp_path, 50).quarantined == {"missing column": 1}


def test_columns_are_looked_for_beyond_the_first_row(tmp_path: Path) -> None:
    whole = {"question": "Why?", "chosen": "So.", "rejected": "No."}
    found = propose(written(tmp_path, [{"question": "Why?", "rejected": "No."}, whole]))
    assert (found.kind, found.adapter, found.usable) == ("preferences", "auto", 1)


PREFERENCES = {"prompt": "What is it?", "chosen": "A cat.", "rejected": "No."}


@pytest.mark.parametrize("place", [0, 10, 19])
@pytest.mark.parametrize(
    "odd",
    [
        ("error", "trace", "time", "host", "code"),
        ("prompt", "caption", "tokens", "lang"),
        ("prompt", "response_a", "response_b", "model_a", "model_b", "note"),
        ("question", "image", "reference", "extra"),
        ("caption", "image_chosen", "image_rejected", "note"),
    ],
)
def test_one_row_with_other_columns_does_not_decide_how_a_file_is_read(
    tmp_path: Path, odd: tuple[str, ...], place: int
) -> None:
    rows: list[dict[str, Any]] = [PREFERENCES | {"chosen": f"A cat {n}."} for n in range(19)]
    rows.insert(place, dict.fromkeys(odd, "word"))
    data = written(tmp_path, rows)
    found = propose(data)
    assert (found.kind, found.adapter, found.usable, found.rows) == ("preferences", "auto", 19, 20)
    assert {*found.same, *found.columns.values()} >= {"prompt", "chosen", "rejected"}
    manifest = Manifest.model_validate(load_yaml(manifest_text(found, "ours", str(data), None)))
    assert look_at_source(manifest, tmp_path, 50).usable == 19


def test_pairs_of_which_a_row_cannot_be_used_are_no_prompts(tmp_path: Path) -> None:
    prompt = {"question": "What?", "image": "a.png", "reference": "A cat.", "extra": 1}
    found = propose(written(tmp_path, [*[PREFERENCES] * 10, prompt]))
    assert (found.kind, found.usable, found.rows) == ("preferences", 10, 11)
    both = PREFERENCES | {"answer": "A cat."}
    assert propose(written(tmp_path, [*[both] * 3, prompt])).kind == "preferences"
    found = propose(written(tmp_path, [*[prompt] * 10, PREFERENCES]))
    assert (found.kind, found.usable) == ("prompts", 11)


def test_rows_that_name_a_column_in_different_ways_are_read_by_its_names(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    answers = {"chosen": "A cat.", "rejected": "No."}
    data = written(
        tmp_path,
        [
            {asked: f"{asked} {n}?", seen: "a.png"} | answers
            for n in (1, 2)
            for asked, seen in (("prompt", "img"), ("query", "photo"))
        ],
    )
    found = propose(data)
    assert (found.usable, dict(found.columns)) == (4, {})
    assert {*found.same} == {"prompt", "query", "img", "photo", "chosen", "rejected"}
    manifest = Manifest.model_validate(load_yaml(manifest_text(found, "ours", str(data), str(found.media_root))))
    assert look_at_source(manifest, tmp_path, 50).usable == 4


def test_what_is_mapped_may_be_missing_in_the_most_frequent_rows(tmp_path: Path) -> None:
    mapped = {"question": "asked", "chosen": "good", "rejected": "bad", "image": "seen"}
    image(tmp_path / "a.png")
    whole = {"asked": "What?", "good": "A cat.", "bad": "No.", "seen": "a.png"}
    odd = {name: "a.png" for name in ("asked", "good", "seen", "further")}
    found = propose(written(tmp_path, [odd, odd, whole, odd]), mapped)
    assert (found.kind, found.usable) == ("preferences", 1)


def test_a_message_names_no_more_columns_than_it_can_show(tmp_path: Path) -> None:
    data = written(tmp_path, [{"x" * 200: 1} | {f"column_{number}": number for number in range(500)}])
    with pytest.raises(SourceError, match=r"column_38 and 461 more are of no known kind") as raised:
        propose(data)
    with pytest.raises(SourceError, match=r"has no column 'gone' .*column_38 and 461 more$") as second:
        propose(data, {"chosen": "gone"})
    assert max(len(str(raised.value)), len(str(second.value))) < 1500
    judged = written(tmp_path, [{"question": "Why?", "chosen": "a"} | {f"column_{n}": n for n in range(500)}])
    with pytest.raises(
        SourceError, match=r"column 'rejected' is not in line 1, which has \['chosen', .* and 462 more\]"
    ):
        propose(judged, {"chosen": "chosen"})


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"rejected": "bad"}, r" has no column 'bad' \(--column rejected=bad\); its columns: good, question$"),
        ({"chosen": "good"}, ": column 'rejected' is not in line 1, .*; name it with --column rejected=COLUMN$"),
        ({"second": "good"}, ": column 'first' is not in line 1, .*; name it with --column first=COLUMN$"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_its_option(
    tmp_path: Path, columns: dict[str, str], words: str
) -> None:
    data = written(tmp_path, [{"good": "a", "question": "Why?"}])
    with pytest.raises(SourceError, match=f"^{data}{words}"):
        propose(data, columns)


def test_faults_that_differ_in_the_rows_place_alone_are_counted_together(tmp_path: Path) -> None:
    rows = [{"uid": n, "chosen": f"a {n}", "rejected": "b"} for n in range(12)]
    with pytest.raises(SourceError, match=r"'conversation' is not in line 1, which has [^;]+\): 12$"):
        propose(written(tmp_path, rows))


@pytest.mark.parametrize(
    ("row", "reading"),
    [
        (pair(1, chosen_response=""), "preferences by their columns: missing value"),
        (
            {"id": 1, "image": "a.png", "conversations": 3, "rejected_conversations": 4},
            "preferences by their columns: not text",
        ),
    ],
)
def test_data_of_which_no_row_can_be_used_is_an_error(tmp_path: Path, row: dict[str, Any], reading: str) -> None:
    with pytest.raises(SourceError, match=f"none of the first 2 rows can be used as {reading}.*: 2$"):
        propose(written(tmp_path, [row, row]))


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no file"):
        propose(tmp_path / "none.jsonl")
    (tmp_path / "rows.jsonl").write_text("{\n")
    with pytest.raises(SourceError, match="no row that can be read: malformed JSON in line 1"):
        propose(tmp_path / "rows.jsonl")
    found = propose(written(tmp_path, [pair(1)], "good.jsonl"))
    with pytest.raises(ManifestError, match="would be wrong"):
        manifest_text(found, "a name", "x.jsonl", None)


def test_an_unreadable_file_is_not_named_as_a_source(tmp_path: Path) -> None:
    """The user has named a file, and no source yet."""
    with pytest.raises(SourceError) as found:
        propose(tmp_path / "none.jsonl")
    assert str(found.value) == f"there is no file {tmp_path}/none.jsonl"


def test_meanings_of_verdicts_need_a_verdict_column(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no verdict column; its columns: uid, prompt, chosen_response, "):
        propose(written(tmp_path, [pair(1)]), verdict={"0": "first"})
    judged = [{"question": "Why?", "response_a": "So.", "response_b": f"No {n}.", "label": n % 2} for n in range(4)]
    data = written(tmp_path, judged, "judged.jsonl")
    found = propose(data, {"verdict": "label"}, {"0": "second", "1": "first"})
    assert (found.usable, dict(found.verdict)) == (4, {"0": "second", "1": "first"})
    with pytest.raises(ManifestError, match="which values mean `first` and which mean `second`"):
        propose(data, {"verdict": "label"}, {"0": "second"})


def test_no_more_rows_are_read_than_asked_for(tmp_path: Path) -> None:
    data = written(tmp_path, [pair(n) for n in range(30)])
    assert propose(data, rows=7).rows == 7
    text = manifest_text(propose(data), "ours", str(data), None)
    assert look_at_source(Manifest.model_validate(load_yaml(text)), tmp_path, 10).items == 10
