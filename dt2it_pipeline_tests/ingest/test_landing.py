from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dt2it_pipeline.config.sections.landing import LandingSettings
from dt2it_pipeline.ingest.landing import landed_manifests, look
from dt2it_pipeline.ingest.sources import read_source
from dt2it_pipeline_tests.support.landing_world import MANIFEST, drop


def test_what_has_landed_is_read_from_beside_its_manifest(tmp_path: Path) -> None:
    assert landed_manifests(tmp_path).manifests == ()
    drop(tmp_path / "landing", "mine")
    found = landed_manifests(tmp_path, settle_seconds=0)
    assert [manifest.name for manifest in found.manifests] == ["mine"]
    artifact = read_source(found.manifests[0], tmp_path / "sources", tmp_path / "media")
    assert artifact["pairs"].num_rows == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        (MANIFEST.replace("licence: MIT\n", ""), "licence"),
        (MANIFEST.replace("{name}.jsonl", "../secret.jsonl"), "leaves the landing folder"),
        (MANIFEST.replace("{name}.jsonl", "/etc/passwd"), "leaves the landing folder"),
        (MANIFEST.replace("media_root: images", "media_root: .."), "leaves the landing folder"),
        (MANIFEST.replace("{name}.jsonl", "absent.jsonl"), "there is no absent.jsonl beside it"),
        (MANIFEST.replace("preferences", "truth"), "belongs to the demo"),
        (MANIFEST.replace("name: {name}", "name: used"), "has a source named 'used' already"),
        (MANIFEST + "citation: 2024-13-45\n", "month must be in"),
        (MANIFEST.replace("{name}.jsonl", "!!int foo"), "invalid literal"),
        ("[" * 1000, "nested too deep"),
        (MANIFEST.replace("{name}.jsonl", '"a\\0b"'), "null byte"),
        (MANIFEST.replace("{name}.jsonl", "x" * 5000), "File name too long"),
        (MANIFEST.replace("{name}.jsonl", '"\\ud800"'), "broken.yaml"),
        (MANIFEST.replace("{name}.jsonl", "loop"), "loop"),
        (MANIFEST.replace("images", "loop"), "loop"),
        (MANIFEST.replace("{name}.jsonl", "pipe"), "pipe is no regular file"),
    ],
)
def test_a_broken_manifest_is_reported_and_does_not_block_the_others(tmp_path: Path, text: str, message: str) -> None:
    landing = tmp_path / "landing"
    drop(landing, "good")
    drop(landing, "broken", manifest=text)
    (landing / "loop").symlink_to("loop")
    os.mkfifo(landing / "pipe")
    found = landed_manifests(tmp_path, taken=("used",), settle_seconds=0)
    assert [manifest.name for manifest in found.manifests] == ["good"]
    assert list(found.faults) == ["broken.yaml"]
    assert message in found.faults["broken.yaml"]
    assert len(found.faults["broken.yaml"].encode()) < 500


def test_manifests_that_are_no_regular_files_are_reported_and_not_opened(tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    drop(landing, "good")
    os.mkfifo(landing / "pipe.yaml")
    (landing / "folder.yaml").mkdir()
    (landing / "loop.yaml").symlink_to("loop.yaml")
    (landing / "gone.yaml").symlink_to("nowhere")
    found = landed_manifests(tmp_path, settle_seconds=0)
    assert [manifest.name for manifest in found.manifests] == ["good"]
    assert {name: fault.split(": ")[-1] for name, fault in found.faults.items()} == {
        "folder.yaml": "folder.yaml is no regular file",
        "gone.yaml": "No such file or directory",
        "loop.yaml": "Too many levels of symbolic links",
        "pipe.yaml": "pipe.yaml is no regular file",
    }


def test_a_link_or_a_pipe_in_a_landed_folder_is_reported(tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    drop(landing, "sly", manifest=MANIFEST.replace("{name}.jsonl", "data"))
    (landing / "data").mkdir()
    (landing / "sly.jsonl").rename(landing / "data" / "a.jsonl")
    (landing / "data" / "b.jsonl").symlink_to(landing / "data" / "a.jsonl")  # stays in the landing folder
    assert len(landed_manifests(tmp_path, settle_seconds=0).manifests) == 1
    (tmp_path / "secret.jsonl").write_text("{}")
    for place in (tmp_path / "secret.jsonl", tmp_path):
        (landing / "data" / "c.jsonl").symlink_to(place)
        assert "leads out of the landing folder" in landed_manifests(tmp_path, settle_seconds=0).faults["sly.yaml"]
        (landing / "data" / "c.jsonl").unlink()
    os.mkfifo(landing / "data" / "d.jsonl")
    assert "d.jsonl is no regular file" in landed_manifests(tmp_path, settle_seconds=0).faults["sly.yaml"]


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text("{}")
    drop(tmp_path / "landing", "sly")
    (tmp_path / "landing" / "sly.jsonl").unlink()
    (tmp_path / "landing" / "sly.jsonl").symlink_to(tmp_path / "secret.jsonl")
    assert "leaves the landing folder" in landed_manifests(tmp_path, settle_seconds=0).faults["sly.yaml"]


def test_two_manifests_of_one_name_are_a_fault_of_the_second(tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    drop(landing, "a")
    shutil.copy(landing / "a.yaml", landing / "b.yaml")
    found = landed_manifests(tmp_path, settle_seconds=0)
    assert len(found.manifests) == 1
    assert "a.yaml has the name 'a' already" in found.faults["b.yaml"]


def test_a_file_that_is_still_being_copied_is_left_for_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    landing = tmp_path / "landing"
    drop(landing, "slow")
    drop(landing, "whole")
    waited = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        with (landing / "slow.jsonl").open("a") as stream:
            stream.write("{}\n")

    monkeypatch.setattr("time.sleep", wait)
    found = landed_manifests(tmp_path, settle_seconds=0.3)
    assert waited == [0.3]
    assert [manifest.name for manifest in found.manifests] == ["whole"]
    assert not found.faults


def test_stamp_follows_times_and_content_does_not(tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    drop(landing, "mine")
    (before,) = look(landing)
    content = before.content  # read when it is asked for
    os.utime(landing / "mine.jsonl", (1, 1))
    (touched,) = look(landing)
    assert touched.stamp != before.stamp
    assert touched.content == content
    (landing / "images" / "b.png").write_bytes(b"more")
    assert look(landing)[0].content != content
    (landing / "images" / "b.png").unlink()
    drop(landing, "mine", rows=4)
    assert look(landing)[0].content != content
    (landing / ".mine.yaml").write_text("half of a")  # how an atomic copy starts
    assert len(look(landing)) == 1


@pytest.mark.parametrize("place", ["data/a.jsonl", "images/annotation.json"])
def test_content_follows_an_edit_that_keeps_the_size(tmp_path: Path, place: str) -> None:
    landing = tmp_path / "landing"
    drop(landing, "mine", manifest=MANIFEST.replace("{name}.jsonl", "data"))
    (landing / "data").mkdir()
    (landing / "data" / "a.jsonl").write_text("{}")
    (landing / place).write_text('{"id": 1}')
    (before,) = (landed.content for landed in look(landing))
    (landing / place).write_text('{"id": 2}')
    assert look(landing)[0].content != before


@pytest.mark.parametrize("asks", ["media_urls", "hub"])
def test_a_dropped_manifest_makes_no_requests_unless_the_recipe_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    folder = tmp_path / "landing"
    folder.mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here/link").symlink_to(tmp_path)  # of no concern: a manifest of the Hub has no files here
    monkeypatch.chdir(tmp_path / "here")
    (folder / "d.jsonl").write_text("{}\n")
    place = {"media_urls": "path: d.jsonl\nmedia_urls: true", "hub": f"hub: some/set\nrevision: {'a' * 40}"}[asks]
    (folder / "sly.yaml").write_text(f"name: sly\nkind: preferences\nlicence: MIT\n{place}\n")
    fault = landed_manifests(tmp_path, settle_seconds=0).faults["sly.yaml"]
    assert f"`{asks}` would make requests" in fault and "landing.network" in fault
    allowed = landed_manifests(tmp_path, LandingSettings(network=True), settle_seconds=0)
    assert [manifest.name for manifest in allowed.manifests] == ["sly"]
