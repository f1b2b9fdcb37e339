"""Artifacts through an object store: S3 as moto serves it, and a folder where its content is damaged on purpose."""

from __future__ import annotations

import doctest
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from dt2it_pipeline.storage import integrity, schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline.storage.home import object_store
from dt2it_pipeline.storage.home.object_store import ObjectStore, ObjectStoreError
from dt2it_pipeline_tests.support.export_world import world
from dt2it_pipeline_tests.support.s3_server import BUCKET, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as variables:
        yield variables


@pytest.fixture
def bucket(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URL of a folder of the bucket for one test."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{request.node.name}/home"


@pytest.fixture
def first(tmp_path: Path) -> Store:
    """A home with the artifact `stage` of two rounds: tables, media, and files as a checkpoint has them."""
    store = Store(tmp_path / "first")
    pairs, prompts = world(store.media)
    for number in "01":
        files = tmp_path / "checkpoint"
        (files / "tokenizer").mkdir(parents=True)
        (files / "tokenizer/vocabulary.txt").write_text(f"words of {number}")
        (files / "reward_model.json").write_text("{}")
        store.write("stage", Artifact({"pairs": pairs, "prompts": prompts}, {"rows": 3}, files), "k", number)
        files.rmdir()  # its content has been moved into the store
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def no_damage(words: str) -> None:
    raise AssertionError(words)


def test_a_second_home_gets_the_same_files(first: Store, bucket: str, tmp_path: Path) -> None:
    url, second = bucket, Store(tmp_path / "second")
    assert not ObjectStore(url).has("stage", "k", "0")
    copied = ObjectStore(url).store(first, "stage", "k", "0")
    assert ObjectStore(url).has("stage", "k", "0") and not ObjectStore(url).has("stage", "k", "1")
    # The second round's manifest, tables and media are the same contents, and lie there already.
    assert ObjectStore(url).store(first, "stage", "k", "1") < copied
    found = ObjectStore(url).fetch(second, "stage", "k", "1", no_damage)
    assert found is not None and found.digest == first.read("stage", "1").digest
    assert second.current("stage", "1") == "k" and second.current("stage", "0") is None
    assert contents(found.folder) == contents(first.read("stage", "1").folder)
    assert contents(second.media) == contents(first.media) != {}
    assert ObjectStore(url).fetch(second, "stage", "other", "1", no_damage) is None


def test_images_that_no_prompt_shows_come_along(first: Store, tmp_path: Path) -> None:
    shown = first.read("stage", "0").tables["prompts"]["media"].to_pylist()
    medium = next(medium for media in shown for medium in media)
    row = {"preference_id": "p", "caption": "red", "preferred": medium, "other": medium, "strength": None}
    table = schemas.table([row | {"language": "en", "source": "s", "row_id": "1"}], "t2i_preferences")
    first.write("raw_t2i", Artifact({"t2i_preferences": table}), "k")
    url, second = (tmp_path / "shared").as_uri(), Store(tmp_path / "second")
    ObjectStore(url).store(first, "raw_t2i", "k")
    assert ObjectStore(url).fetch(second, "raw_t2i", "k", None, no_damage) is not None
    assert (second.media / medium["path"]).is_file()


def test_both_may_store_at_once(first: Store, bucket: str, tmp_path: Path) -> None:
    faults: list[Exception] = []

    def store() -> None:
        try:
            ObjectStore(bucket).store(first, "stage", "k", "0")
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=store) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert ObjectStore(bucket).fetch(Store(tmp_path / "second"), "stage", "k", "0", no_damage) is not None


def test_an_upload_that_was_cut_off_is_no_version(first: Store, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ObjectStore(bucket)

    def cut_off(*given: object, **named: object) -> None:
        raise OSError("cut off")

    with monkeypatch.context() as patched:
        patched.setattr(shared._files, "pipe_file", cut_off)
        with pytest.raises(ObjectStoreError, match="cut off"):
            shared.store(first, "stage", "k", "0")
    assert not shared.has("stage", "k", "0")
    assert shared.store(first, "stage", "k", "0") == 0  # the blobs are there
    assert shared.has("stage", "k", "0")


@pytest.mark.parametrize("part", ["vocabulary", "entry", "medium", "missing"])
def test_what_is_damaged_there_is_never_used_and_made_good(first: Store, tmp_path: Path, part: str) -> None:
    folder, second, reported = tmp_path / "shared", Store(tmp_path / "second"), []
    shared = ObjectStore(folder.as_uri())
    shared.store(first, "stage", "k", "0")
    medium = next(first.media.rglob("*.png"))
    damaged = {
        "vocabulary": blob(folder, first.read("stage", "0").folder / "tokenizer/vocabulary.txt"),
        "missing": blob(folder, first.read("stage", "0").folder / "pairs.parquet"),
        "entry": folder / "artifacts/stage/0/k.json",
        "medium": blob(folder, medium),
    }[part]
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 1
    damaged.unlink() if part == "missing" else damaged.write_bytes(content)  # of the same size
    assert shared.fetch(second, "stage", "k", "0", reported.append) is None
    (words,) = reported
    assert words.startswith("stage in the object store file://") and "removed and made again" in words
    assert second.current("stage", "0") is None
    assert not list(second.media.rglob("tmp*"))
    if part == "medium":
        assert not (second.media / medium.relative_to(first.media)).exists()
    # Whoever makes it again stores it whole.
    assert not shared.has("stage", "k", "0")
    shared.store(first, "stage", "k", "0")
    assert shared.fetch(second, "stage", "k", "0", no_damage) is not None


def blob(folder: Path, file: Path) -> Path:
    digest = integrity.sha256_of(file)
    return folder / "blobs" / digest[:2] / digest


@pytest.mark.parametrize("path", ["../../evil", "/tmp/evil", "a/../../../evil", "x\\..\\evil", ""])
@pytest.mark.parametrize("kind", ["files", "media"])
def test_an_entry_leads_nowhere_else(first: Store, tmp_path: Path, kind: str, path: str) -> None:
    folder, reported = tmp_path / "shared", []
    shared = ObjectStore(folder.as_uri())
    shared.store(first, "stage", "k", "0")
    place = folder / "artifacts/stage/0/k.json"
    entry = json.loads(place.read_text())
    entry[kind][path] = next(iter(entry["files"].values()))
    place.write_text(json.dumps(integrity.sealed(entry)))  # whoever may write there can seal it, too
    assert shared.fetch(Store(tmp_path / "second"), "stage", "k", "0", reported.append) is None
    assert "leads outside" in reported[0]
    assert not list(tmp_path.rglob("*evil*"))


def test_the_entry_of_another_version_is_not_used(first: Store, tmp_path: Path) -> None:
    folder, reported = tmp_path / "shared", []
    shared = ObjectStore(folder.as_uri())
    shared.store(first, "stage", "k", "0")
    (folder / "artifacts/stage/0/k.json").rename(folder / "artifacts/stage/0/j.json")
    assert shared.fetch(Store(tmp_path / "second"), "stage", "j", "0", reported.append) is None
    assert "its entry is that of stage, k" in reported[0]


def test_a_store_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a",
                        "AWS_SECRET_ACCESS_KEY": "b", "AWS_MAX_ATTEMPTS": "1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(ObjectStoreError, match=r"object store s3://nowhere cannot be used .*unset DT2IT_OBJECT_STORE"):
        ObjectStore("s3://nowhere").has("stage", "k")


def test_the_example_is_right() -> None:
    result = doctest.testmod(object_store)
    assert (result.failed, result.attempted > 0) == (0, True)
