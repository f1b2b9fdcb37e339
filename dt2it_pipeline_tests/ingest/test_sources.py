import gc
import json
import os
import sys
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from dt2it_pipeline.ingest.manifest import Manifest, ManifestError, load_manifest
from dt2it_pipeline.ingest.sources import SourceError, concatenate, fingerprint, read_source
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.store import store_image


def image(path: Path, colour="red", kind="PNG", size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, format=kind)
    return path


def source(tmp_path: Path, rows, kind="preferences", **more) -> Manifest:
    (tmp_path / "rows.jsonl").write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    fields = {"path": str(tmp_path / "rows.jsonl"), "media_root": str(tmp_path / "root"), "licence": "MIT"} | more
    return Manifest(name="s", kind=kind, **fields)


def row(**more):
    return {"id": "r", "image": "a.png", "question": "what?", "chosen": "x", "rejected": "y"} | more


@pytest.fixture
def root(tmp_path):
    image(tmp_path / "root/a.png")
    image(tmp_path / "root/b.png", "blue")
    return tmp_path / "root"


def read(tmp_path, manifest):
    return read_source(manifest, tmp_path, tmp_path / "media")


def test_rows_become_pairs_and_prompts_found_by_content(tmp_path, root):
    artifact = read(tmp_path, source(tmp_path, [row(), row(id="2", chosen="z")]))
    assert artifact["pairs"].num_rows == 2
    assert artifact["prompts"].num_rows == 1
    prompt = artifact["prompts"].to_pylist()[0]
    assert prompt["turns"] == [{"role": "user", "text": "<image>\nwhat?"}]
    assert (tmp_path / "media" / prompt["media"][0]["path"]).read_bytes() == (root / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{not json", "malformed JSON"),
        ("[1]", "malformed JSON"),
        (row(image="gone.png"), "missing image"),
        (row(image="../secret.png"), "path outside the media root"),
        (row(image="/etc/passwd"), "path outside the media root"),
        (row(image="/a.png"), "path outside the media root"),
        (row(image=".."), "path outside the media root"),
        (row(image="linked/a.png"), "path outside the media root"),
        (row(image="link.png"), "path outside the media root"),
        (row(image="cut.png"), "unreadable image"),
        (row(image="text.png"), "unreadable image"),
        (row(image="a" * 300 + ".png"), "missing image"),
        (row(image="pipe.png"), "missing image"),
        (row(image=7), "image paths are not text"),
        (row(chosen="y"), "identical sides"),
        (row(chosen=" "), "missing value"),
        (row(chosen=None), "missing value"),
        (row(rejected="\ud800"), "not UTF-8"),
        (row(system={"a": 1}), "not text"),
        (row(image="\0.png"), "missing image"),
        (row(id="\ud800", image="gone.png"), "missing image"),
        (row(image="script.png"), "unreadable image"),
        ("[" * 100_000, "malformed JSON"),
        (row(question="<image> and <image>?"), "image markers and images differ"),
        (row(), "duplicate row"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_reason_and_counts_reconcile(tmp_path, root, bad, reason):
    whole = image(root / "whole.png", size=(64, 64)).read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "text.png").write_text("hello")
    (root / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    image(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(root / "pipe.png")
    (root / "linked").symlink_to(image(tmp_path / "elsewhere/a.png").parent)
    artifact = read(tmp_path, source(tmp_path, [row(), bad]))
    assert artifact["quarantine"]["reason"].to_pylist() == [reason]
    assert dict(artifact.metadata) | {"repeated_ids": 0} == {
        "rows_in": 2, "rows_out": 1, "rows_quarantined": 1, "repeated_ids": 0
    }  # fmt: skip


def test_a_path_outside_the_media_root_is_reported_whole(tmp_path, root):
    artifact = read(tmp_path, source(tmp_path, [row(image="../secret.png"), row(image="/etc/passwd")]))
    assert artifact["quarantine"]["detail"].to_pylist() == ["../secret.png", "/etc/passwd"]


def test_a_repeated_row_names_the_row_that_it_repeats(tmp_path, root):
    rows = [row(id="a"), row(id="b", chosen="y", rejected="x"), row(id="c"), row(id="d", image="gone.png")]
    rows += [row(id="e", chosen="y", rejected="x")]
    artifact = read(tmp_path, source(tmp_path, rows))
    found = {one["row_id"]: one["detail"] for one in artifact["quarantine"].to_pylist()}
    assert (found["c"], found["e"]) == ("of row a", "of row b") and "gone.png" in found["d"]
    assert set(found) == {"c", "d", "e"}


def test_of_a_repeated_true_pair_the_row_is_named_too(tmp_path, root):
    artifact = read(tmp_path, source(tmp_path, [row(id="a"), row(id="b")], kind="truth"))
    assert artifact["quarantine"]["detail"].to_pylist() == ["of row a"]


def test_repeated_rows_leave_nothing_in_memory_but_their_rows_of_the_quarantine(tmp_path):
    one = {"question": "what?", "chosen": "x", "rejected": "y"}
    manifest = source(tmp_path, [one, {**one, "chosen": "y", "rejected": "x"}] * 1500, media_root=None)
    held = {}

    def report(state):
        gc.collect()
        held[state["done"]] = tracemalloc.get_traced_memory()[0]

    tracemalloc.start()  # tables, which Arrow holds, do not count
    try:
        read_source(manifest, tmp_path, tmp_path / "media", report)
    finally:
        tracemalloc.stop()
    counts = sorted(held)
    first, last = counts[len(counts) // 3], counts[-1]
    assert (held[last] - held[first]) / (last - first) < 50  # bytes a row


def test_a_pair_that_several_sources_have_is_kept_once(tmp_path, root):
    first = read(tmp_path, source(tmp_path, [row()]))
    second = read(tmp_path, source(tmp_path, [row(), row(chosen="z")]))
    joined = concatenate([first, second], ("pairs", "prompts", "quarantine"))
    assert [pair["chosen"] for pair in joined["pairs"].to_pylist()] == ["x", "z"]
    assert joined["quarantine"]["reason"].to_pylist() == ["duplicate pair"]
    assert joined["quarantine"]["detail"].to_pylist() == ["of a row of s, r"]
    assert dict(joined.metadata) == {"rows_in": 3, "rows_out": 2, "rows_quarantined": 1, "repeated_ids": 1}


def test_what_lies_beside_the_data_does_not_end_a_source(tmp_path, root):
    (root / "nowhere.png").symlink_to(tmp_path / "gone")
    assert fingerprint(source(tmp_path, [row()]), tmp_path)


def test_an_image_column_that_is_mapped_and_missing_is_reported(tmp_path, root):
    artifact = read(tmp_path, source(tmp_path, [row()], columns={"image": "photo"}))
    assert artifact["pairs"].num_rows == 0
    assert artifact["quarantine"]["detail"].to_pylist() == [
        "column 'photo' is not in line 1 (id 'r'), which has ['chosen', 'id', 'image', 'question', 'rejected']"
    ]


def test_a_wrong_column_is_named_with_what_was_found(tmp_path, root):
    manifest = source(tmp_path, [row(), row(id="2"), row(id="3")], columns={"chosen": "better"})
    with pytest.raises(
        SourceError,
        match=r"source 's': column 'better' is not in line 1 \(id 'r'\), which has \['chosen'.*under `columns`",
    ):
        read(tmp_path, manifest)


def test_columns_can_be_mapped(tmp_path, root):
    renamed = {"id": "1", "pic": "a.png", "q": "what?", "good": "x", "bad": "y"}
    columns = {"image": "pic", "question": "q", "chosen": "good", "rejected": "bad"}
    assert read(tmp_path, source(tmp_path, [renamed], columns=columns))["pairs"]["chosen"].to_pylist() == ["x"]


def test_t2i_rows_and_benchmarks(tmp_path, root):
    rows = [
        {"id": "1", "caption": "a red square", "preferred": "a.png", "other": "b.png"},
        {"id": "2", "caption": "same", "preferred": "a.png", "other": "a.png"},
    ]
    artifact = read(tmp_path, source(tmp_path, rows, kind="t2i"))
    assert artifact["t2i_preferences"].num_rows == 1
    assert artifact["quarantine"]["reason"].to_pylist() == ["identical images"]
    items = read(tmp_path, source(tmp_path, rows[:1], kind="t2i_benchmark", group="t2i"))
    assert items["benchmark_items"]["group"].to_pylist() == ["t2i"]
    assert len(items["prompts"].to_pylist()[0]["media"]) == 2


def test_the_true_format_counts_not_the_name(tmp_path, root):
    image(root / "really_jpeg.png", kind="JPEG")
    assert store_image("really_jpeg.png", root, tmp_path / "media").row["path"].endswith(".jpg")


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path, root, monkeypatch):
    monkeypatch.setattr("dt2it_pipeline.media.images.MAX_PIXELS", 63)
    with pytest.raises(MediaError, match=r"image too large: a\.png: 8 x 8 pixels"):
        store_image("a.png", root, tmp_path / "media")


def test_the_fingerprint_changes_with_data_media_and_manifest(tmp_path, root):
    manifest = source(tmp_path, [row()])
    first = fingerprint(manifest, tmp_path)
    assert first == fingerprint(manifest, tmp_path)
    changed = [fingerprint(manifest.model_copy(update={"language": "zh"}), tmp_path)]
    image(root / "c.png")
    changed.append(fingerprint(manifest, tmp_path))
    (tmp_path / "rows.jsonl").write_text(json.dumps(row(chosen="q")) + "\n")
    changed.append(fingerprint(manifest, tmp_path))
    assert len({first, *changed}) == 4


def test_a_missing_source_is_one_clear_error(tmp_path, root):
    manifest = source(tmp_path, [row()])
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(SourceError, match=r"source .s.: cannot read .*No such file"):
        fingerprint(manifest, tmp_path)


def test_a_manifest_names_its_wrong_key(tmp_path):
    (tmp_path / "m.yaml").write_text("name: m\nkind: preferences\npath: x\nmedia_root: y\nlicense: MIT\n")
    with pytest.raises(
        ManifestError, match=r"m.yaml: .*licence: Field required.*license: unknown key; did you mean licence"
    ):
        load_manifest(tmp_path / "m.yaml")


def test_videos_become_media_in_the_order_of_their_markers(tmp_path, root):
    for number, colour in enumerate(("red", "green", "blue")):
        image(root / f"clip/{number}.png", colour)
    rows = [
        row(question="<video>then<image>?", video="clip"),
        row(id="2", videos=["clip", "clip"], image=None),
        row(id="3", question="<video> alone?", image=None),
        row(id="4", video="gone"),
    ]
    artifact = read(tmp_path, source(tmp_path, rows))
    prompts = artifact["prompts"].to_pylist()
    assert [[medium["kind"] for medium in prompt["media"]] for prompt in prompts] == [["video", "image"], ["video"] * 2]
    assert prompts[1]["turns"][0]["text"] == "<video>\n<video>\nwhat?"
    stored = tmp_path / "media" / prompts[0]["media"][0]["path"]
    assert sorted(file.name for file in stored.iterdir()) == ["000000.png", "000001.png", "000002.png", "video.json"]
    reasons = [aside["reason"] for aside in artifact["quarantine"].to_pylist()]
    assert reasons == ["image markers and images differ", "missing video"]


def test_a_source_of_video_files_needs_the_decoder(tmp_path, root, monkeypatch):
    (root / "clip.avi").write_bytes(b"RIFF....AVI LIST....")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SourceError, match=r"source 's'.*dt2it-pipeline\[video\]"):
        read(tmp_path, source(tmp_path, [row(video="clip.avi")]))
