"""Every format is read back with `datasets`, row by row, images included."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.export import FORMATS, ExportError, export_pairs, formats
from dt2it_pipeline.ingest.provenance import Provenance
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline_tests.support.export_world import image, prompt_row, world


def loaded(folder: Path, cache: Path) -> Any:
    return datasets.load_dataset(str(folder), cache_dir=str(cache), split="train")


def same_image(image: Any, file: Path) -> bool:
    with Image.open(file) as opened:
        return bool(image.convert("RGB").tobytes() == opened.convert("RGB").tobytes())


@pytest.fixture
def media(tmp_path: Path) -> Path:
    return tmp_path / "media"


def test_huggingface_round_trip(media: Path, tmp_path: Path) -> None:
    pairs, prompts = world(media)
    done = export_pairs(pairs, prompts, media, tmp_path / "out", "huggingface")
    rows = loaded(tmp_path / "out", tmp_path / "cache")
    assert done.pairs == len(rows) == 4
    by_prompt = {p["prompt_id"]: p for p in prompts.to_pylist()}
    for row, pair in zip(rows, pairs.to_pylist(), strict=True):
        prompt = by_prompt[pair["prompt_id"]]
        for name in ("pair_id", "prompt_id", "chosen", "rejected", "strength", "label", "round", "source", "votes"):
            assert row[name] == pair[name], name
        for name in ("system", "turns", "language"):
            assert row[name] == prompt[name], name
        files = [media / m["path"] for m in prompt["media"]]
        assert [same_image(image, file) for image, file in zip(row["images"], files, strict=True)] == [True] * len(
            files
        )
    raw = rows.cast_column("images", datasets.List(datasets.Image(decode=False)))[1]["images"]
    assert [hashlib.sha256(image["bytes"]).hexdigest() for image in raw] == [
        m["sha256"] for m in by_prompt[pairs["prompt_id"][1].as_py()]["media"]
    ]


def test_trl_round_trip(media: Path, tmp_path: Path) -> None:
    pairs, prompts = world(media)
    export_pairs(pairs, prompts, media, tmp_path / "out", "trl")
    rows = loaded(tmp_path / "out", tmp_path / "cache")
    by_prompt = {p["prompt_id"]: p for p in prompts.to_pylist()}
    for row, pair in zip(rows, pairs.to_pylist(), strict=True):
        prompt = by_prompt[pair["prompt_id"]]
        text = []
        for message in row["prompt"]:
            words = "".join("<image>" if part["type"] == "image" else part["text"] for part in message["content"])
            text.append({"role": message["role"], "text": words})
        system = [{"role": "system", "text": prompt["system"]}] if prompt["system"] else []
        assert text == [*system, *prompt["turns"]]
        for side in ("chosen", "rejected"):
            assert row[side] == [{"role": "assistant", "content": [{"type": "text", "text": pair[side]}]}]
        assert row["margin"] == (pair["strength"] or 0)
        placeholders = sum(part["type"] == "image" for message in row["prompt"] for part in message["content"])
        files = [media / m["path"] for m in prompt["media"]]
        assert placeholders == len(row["images"]) == len(files)
        assert all(same_image(image, file) for image, file in zip(row["images"], files, strict=True))


def test_rows_are_of_the_format_that_trl_documents(media: Path, tmp_path: Path) -> None:
    """By TRL's page on dataset formats a preference of conversations with images; its own check where it is."""
    pairs, prompts = world(media)
    export_pairs(pairs, prompts, media, tmp_path / "out", "trl")
    rows = loaded(tmp_path / "out", tmp_path / "cache")
    known = {"prompt", "chosen", "rejected", "completion", "messages", "text", "label"}
    assert known & set(rows.column_names) == {"prompt", "chosen", "rejected"}
    assert rows.features["images"] == datasets.List(datasets.Image())
    for row in rows:
        for name in ("prompt", "chosen", "rejected"):
            for message in row[name]:
                assert set(message) == {"role", "content"}
                assert all(part["type"] == "image" or part["text"] for part in message["content"])
        assert [message["role"] for message in (*row["chosen"], *row["rejected"])] == ["assistant"] * 2
        assert row["prompt"][-1]["role"] == "user"  # so that the template asks for an answer
        assert isinstance(row["margin"], float)  # the collator makes a tensor of it
    ensure_torchvision()
    from trl.data_utils import is_conversational

    assert all(is_conversational(row) for row in rows)


def converted(row: dict[str, Any], info: dict[str, Any], folder: Path) -> tuple[list[str], list[str], str, list[Path]]:
    """Roles, both answers, system and media as LLaMA-Factory's converter of ShareGPT rows takes them, or it fails."""
    columns, tags = info["columns"], info["tags"]
    turns = row[columns["messages"]]
    assert turns[0][tags["role_tag"]] != tags["system_tag"]
    roles = [turn[tags["role_tag"]] for turn in turns]
    assert len(roles) % 2 == 1  # of a ranking; an even number is skipped as abnormal
    assert all(role == (tags["user_tag"], tags["assistant_tag"])[n % 2] for n, role in enumerate(roles))
    sides = [row[columns[side]] for side in ("chosen", "rejected")]
    assert all(isinstance(side, dict) and side[tags["role_tag"]] == tags["assistant_tag"] for side in sides)
    media = [folder / name for kind in ("images", "videos") for name in row[columns[kind]]]
    assert all(file.is_file() for file in media)  # `media_dir` is the folder of the data where it is not given
    words = "".join(turn[tags["content_tag"]] for turn in turns)
    assert [words.count("<image>"), words.count("<video>")] == [len(row[columns[n]]) for n in ("images", "videos")]
    return roles, [side[tags["content_tag"]] for side in sides], row[columns["system"]], media


def test_rows_are_taken_by_the_rules_of_llamafactorys_converter(media: Path, tmp_path: Path) -> None:
    pairs, prompts = world(media)
    odd = [
        prompt_row([("user", "q"), ("user", "q")], []),
        prompt_row([("user", "q"), ("assistant", "a")], []),
        prompt_row([("assistant", "a"), ("user", "q")], []),
    ]
    more = [records.make_pair(p["prompt_id"], "x", "y", source="a") for p in odd]
    both = pa.concat_tables([pairs, schemas.table(more, "pairs")])
    asked = pa.concat_tables([prompts, schemas.table(odd, "prompts")])
    done = export_pairs(both, asked, media, tmp_path / "out", "llamafactory")
    assert done.quarantine["reason"].to_pylist() == ["turns do not alternate"] * 3
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())["dt2it_pairs"]
    rows = json.loads((tmp_path / "out" / info["file_name"]).read_text(encoding="utf-8"))
    made = [converted(row, info, tmp_path / "out") for row in rows]
    assert [sides for _, sides, _, _ in made] == [[p["chosen"], p["rejected"]] for p in pairs.to_pylist()]
    assert [system for _, _, system, _ in made] == ["", "", "", "Be kind."]
    trl = export_pairs(both, asked, media, tmp_path / "trl", "trl")
    assert trl.quarantine["reason"].to_pylist() == ["prompt ends with an answer"]


def test_llamafactory_round_trip(media: Path, tmp_path: Path) -> None:
    pairs, prompts = world(media)
    out = tmp_path / "out"
    export_pairs(pairs, prompts, media, out, "llamafactory")
    info = json.loads((out / "dataset_info.json").read_text())["dt2it_pairs"]
    assert (info["formatting"], info["ranking"], info["file_name"]) == ("sharegpt", True, "pairs.json")
    rows = loaded(out, tmp_path / "cache")
    assert {*info["columns"].values()} <= set(rows.column_names)
    by_prompt = {p["prompt_id"]: p for p in prompts.to_pylist()}
    names = {"user": "human", "assistant": "gpt"}
    for row, pair in zip(rows, pairs.to_pylist(), strict=True):
        prompt = by_prompt[pair["prompt_id"]]
        assert row["conversations"] == [{"from": names[t["role"]], "value": t["text"]} for t in prompt["turns"]]
        assert (row["chosen"], row["rejected"]) == (
            {"from": "gpt", "value": pair["chosen"]}, {"from": "gpt", "value": pair["rejected"]}
        )  # fmt: skip
        assert row["system"] == prompt["system"]
        assert sum(t["value"].count("<image>") for t in row["conversations"]) == len(row["images"])
        for name, medium in zip(row["images"], prompt["media"], strict=True):
            assert (out / name).read_bytes() == (media / medium["path"]).read_bytes()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_same_pairs_give_the_same_bytes_and_a_failure_leaves_nothing(
    media: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, prompts = world(media)

    def contents(folder: Path) -> dict[str, bytes]:
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    for out in ("one", "two", "two"):  # the second time over an earlier export
        export_pairs(pairs, prompts, media, tmp_path / out, name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")

    def fail(*arguments: Any, **named: Any) -> str:
        raise OSError("disk full")

    monkeypatch.setattr("dt2it_pipeline.export.write.dataset_card", fail)
    with pytest.raises(OSError, match="disk full"):
        export_pairs(pairs, prompts, media, tmp_path / "three", name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["media", "one", "two"]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_a_format_cannot_hold_is_quarantined_with_the_reason(media: Path, tmp_path: Path, name: str) -> None:
    pairs, prompts = world(media)
    (media / "v.mp4").write_bytes(b"film")
    (media / "frames").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (media / "sly.png").symlink_to(tmp_path / "secret.png")
    (media / "loop").symlink_to("loop")
    video = {"kind": "video", "sha256": "v", "path": "v.mp4"}
    odd = [
        prompt_row([("user", "<video>q")], [video]),
        prompt_row([("user", "<video>q")], [video | {"sha256": "f", "path": "frames"}]),
        prompt_row([("user", "<image>q")], [{"kind": "image", "sha256": "g", "path": "gone.png"}]),
        prompt_row([("user", "q")], [image(media, "red")]),
        prompt_row([("user", "<image>q")], [{"kind": "image", "sha256": "h", "path": "../secret.png"}]),
        prompt_row([("user", "<image>q")], [{"kind": "image", "sha256": "i", "path": "sly.png"}]),
        prompt_row([("user", "<image>q")], [{"kind": "image", "sha256": "j", "path": "x" * 5000}]),
        prompt_row([("user", "<image>q")], [{"kind": "image", "sha256": "k", "path": "a\0b"}]),
        prompt_row([("user", "<image>q")], [{"kind": "image", "sha256": "l", "path": "loop"}]),
    ]
    more = [records.make_pair(p["prompt_id"], "x", "y", source="a") for p in odd]
    more.append(records.make_pair("nowhere", "x", "y", source="a"))
    more.append(records.make_pair(prompts["prompt_id"][0].as_py(), "an <image>", "y", source="a"))
    done = export_pairs(
        pa.concat_tables([pairs, schemas.table(more, "pairs")]),
        pa.concat_tables([prompts, schemas.table(odd, "prompts")]), media, tmp_path / "out", name,
    )  # fmt: skip
    reasons = {row["row_id"]: row["reason"] for row in done.quarantine.to_pylist()}
    expected = [
        None,
        "video is a folder of frames",
        "missing image",
        "markers do not match media",
        *["path outside the media root"] * 2,
        *["missing image"] * 3,
        "prompt not found",
        None,
    ]
    if name in ("trl", "label_studio", "argilla"):
        expected[0] = "video not supported"
    if name == "llamafactory":
        expected[-1] = "media marker in an answer"
    assert [reasons.get(pair["pair_id"]) for pair in more] == expected
    rows = loaded(tmp_path / "out", tmp_path / "cache")
    assert len(rows) == done.pairs == 15 - len(reasons)
    if name in ("huggingface", "llamafactory"):
        (path,) = next(row["videos"] for row in rows if row["videos"])
        assert (tmp_path / "out" / path).read_bytes() == b"film"


def test_the_card_has_licences_counts_and_lineage(media: Path, tmp_path: Path) -> None:
    pairs, prompts = world(media)
    export_pairs(
        pairs, prompts, media, tmp_path / "out", "huggingface",
        sources={"a": Provenance(licence="CC-BY-4.0", citation="A | B, 2024", revision="a/b, newest")},
        lineage={"asset": "curated_pairs", "content hash": "abc"},
    )  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| a | CC-BY-4.0 | A \\| B, 2024 | a/b, newest |" in card
    assert "| b | not known |  |  |" in card
    assert "| a | flipped | 0 | 1 |" in card
    assert "| all |  |  | 4 |" in card
    assert "| content hash | abc |" in card
    assert "- en\n- zh\n" in card


def test_no_pair_gives_an_empty_dataset_and_many_give_several_files(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, prompts = world(media)
    export_pairs(pairs.slice(0, 0), prompts, media, tmp_path / "none", "huggingface")
    empty = pq.read_table(tmp_path / "none" / "data")  # `datasets` refuses a split without rows
    assert (empty.num_rows, empty.column_names) == (0, list(formats.HuggingFace.columns))
    monkeypatch.setattr(formats, "_GROUP_BYTES", 1)
    monkeypatch.setattr(formats, "_FILE_BYTES", 1)
    export_pairs(pairs, prompts, media, tmp_path / "many", "trl")
    assert len(list((tmp_path / "many" / "data").iterdir())) == 4
    assert loaded(tmp_path / "many", tmp_path / "cache")["pair_id"] == pairs["pair_id"].to_pylist()


def test_a_folder_that_is_no_export_is_not_replaced(media: Path, tmp_path: Path) -> None:
    pairs, prompts = world(media)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("dear")
    with pytest.raises(ExportError, match="not empty and no export"):
        export_pairs(pairs, prompts, media, tmp_path / "thesis", "trl")
    with pytest.raises(ExportError, match="no format 'csv'; known: huggingface, llamafactory, trl"):
        export_pairs(pairs, prompts, media, tmp_path / "x", "csv")


@pytest.mark.parametrize(
    "entry", ["README.md", "README.md/", ".dt2it_export.json/", "model.safetensors", "chapter1.tex"]
)
def test_whatever_somebody_keeps_in_a_folder_stays_there(media: Path, tmp_path: Path, entry: str) -> None:
    pairs, prompts = world(media)
    kept = tmp_path / "kept"
    kept.mkdir()
    if entry.endswith("/"):
        (kept / entry).mkdir()
    else:
        (kept / entry).write_text("mine")
    with pytest.raises(ExportError, match="not empty and no export"):
        export_pairs(pairs, prompts, media, kept, "trl")
    assert [path.name for path in kept.iterdir()] == [entry.rstrip("/")]


def test_only_an_empty_folder_or_an_untouched_export_is_replaced(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, prompts = world(media)
    out = tmp_path / "out"
    out.mkdir()
    export_pairs(pairs, prompts, media, out, "trl")
    export_pairs(pairs, prompts, media, out, "llamafactory")
    assert sorted(p.name for p in out.iterdir()) == [
        ".dt2it_export.json", "README.md", "dataset_info.json", "images", "pairs.json"
    ]  # fmt: skip
    (out / ".git").mkdir()  # the export has become a repository
    with pytest.raises(ExportError, match=r"more than was written there, .* \(\.git\)"):
        export_pairs(pairs, prompts, media, out, "trl")
    (out / ".git").rmdir()
    (out / ".dt2it_export.json").write_text("[]")
    with pytest.raises(ExportError, match="cannot look into"):
        export_pairs(pairs, prompts, media, out, "trl")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="is a file; name a folder"):
        export_pairs(pairs, prompts, media, tmp_path / "file", "trl")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ExportError, match="cannot look into"):
        export_pairs(pairs, prompts, media, tmp_path / "loop", "trl")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ExportError, match="cannot be replaced while it is in use"):
        export_pairs(pairs, prompts, media, Path(), "trl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "loop", "media", "out"]
