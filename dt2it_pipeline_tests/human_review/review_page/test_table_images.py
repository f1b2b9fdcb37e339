"""The review page of a table that holds its images itself: which are shown, and how many."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from dt2it_pipeline.human_review import own_tables
from dt2it_pipeline.human_review.review_page import OwnTable, table_subject
from dt2it_pipeline.human_review.review_page.table_pairs import _MOST_EMBEDDED
from dt2it_pipeline_tests.support.review_world import Reader


def png(colour: str, size: int = 20) -> bytes:
    """The file of an image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (30, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_images_within_the_table_are_shown_and_a_pipe_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.png").write_bytes(png("red"))
    os.mkfifo(tmp_path / "media" / "pipe.avi")
    rows = pd.DataFrame({"prompt": ["q"] * 3, "chosen": list("abc"), "rejected": list("xyz")})
    rows["image"] = [{"bytes": png("blue"), "path": "a.png"}, {"bytes": None, "path": "a.png"}, None]
    rows["video"] = [None, None, "pipe.avi"]
    rows.to_parquet(tmp_path / "pairs.parquet")
    reader = Reader(table_subject(OwnTable(tmp_path / "pairs.parquet", media=tmp_path / "media")))
    assert [reader.get("pair", id=str(n))["media"] for n in range(3)] == [["image"], ["image"], ["video"]]
    colours = [colour_of(reader, pair, 0) for pair in (0, 1)]
    assert colours == [(0, 0, 255), (255, 0, 0)]
    refused = reader.client.get("/api/image", params={"pair": 2, "n": 0, "size": "small"})
    assert refused.status_code == 404 and "not a file" in refused.json()["error"]


def colour_of(reader: Reader, pair: int, number: int) -> Any:
    """The colour that the page shows of an image, which it encodes anew."""
    answer = reader.client.get("/api/image", params={"pair": pair, "n": number, "size": "large"})
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png", answer.text
    return Image.open(io.BytesIO(answer.content)).convert("RGB").getpixel((5, 5))


def test_embedded_images_need_no_media_folder_and_are_bounded(tmp_path: Path) -> None:
    def address(content: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"

    bomb = io.BytesIO()
    Image.new("1", (20_000, 6_000)).save(bomb, "PNG")
    images: list[Any] = [
        [address(png("red")), address(png("blue"))],
        [address(png("red")), "folder/other.png"],
        [address(b"<svg onload=alert(1)>"), address(bomb.getvalue())],
        [address(png("red", n + 1)) for n in range(_MOST_EMBEDDED + 1)],
        ["data:image/png;base64,!"],
        ["embedded image " + hashlib.sha256(png("green")).hexdigest(), "../secret.png"],
    ]
    prompts = ["<image><image> same?", "<image> and <image>", "q", "q", "<image>", "q"]
    table = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": prompt, "chosen": f"a{n}", "rejected": f"b{n}", "images": media}
        for n, (prompt, media) in enumerate(zip(prompts, images, strict=True))
    ]
    table.write_text("\n".join(map(json.dumps, rows)))
    reader = Reader(table_subject(OwnTable(table)))
    counts = [len(reader.get("pair", id=str(n))["media"]) for n in range(len(rows))]
    assert counts == [2, 1, 2, _MOST_EMBEDDED, 0, 0]
    assert [colour_of(reader, 0, n) for n in (0, 1)] == [(255, 0, 0), (0, 0, 255)]
    assert reader.get("pair", id="0")["turns"][0]["pieces"][0] == ["image", "<image>"]
    for number in (0, 1):  # neither is a script, nor is an image that fills the memory
        refused = reader.client.get("/api/image", params={"pair": 2, "n": number, "size": "large"})
        assert refused.status_code == 404 and b"svg" not in refused.content
    notes = " ".join(reader.get("state")["notes"])
    assert notes.startswith(
        "The column `images` names images; --media FOLDER shows them. 2 pairs have images or videos"
    )
    inside = Reader(table_subject(OwnTable(table, media=tmp_path)))
    assert inside.client.get("/api/image", params={"pair": 5, "n": 1, "size": "small"}).status_code == 404


def test_images_of_a_parquet_table_are_read_some_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colours = ["red", "blue", "green"] * 10
    rows = pd.DataFrame({"prompt": ["q"] * 30, "chosen": [f"a{n}" for n in range(30)], "rejected": ["x"] * 30})
    rows["image"] = [{"bytes": png(colour) + os.urandom(50_000), "path": None} for colour in colours]
    rows.to_parquet(tmp_path / "pairs.parquet")  # one row group of 1.5 MB
    monkeypatch.setattr(own_tables, "_PIECE_BYTES", 400_000)
    own = own_tables.read_own_pairs(tmp_path / "pairs.parquet", None, None)
    pieces = list(own.pieces(["image"]))
    assert 4 <= len(pieces) <= 8 and [row for piece in pieces for row in piece] == own.rows(range(30), ["image"])
    reader = Reader(table_subject(OwnTable(tmp_path / "pairs.parquet")))
    assert [colour_of(reader, pair, 0) for pair in (0, 13, 29)] == [(255, 0, 0), (0, 0, 255), (0, 128, 0)]
