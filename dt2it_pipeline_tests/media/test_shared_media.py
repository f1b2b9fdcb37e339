"""Where media came from goes through an object store, so that another machine can put them back from their sources."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dt2it_pipeline.media.bulk_import import MediaImporter
from dt2it_pipeline.media.damage import has_other_content, source_hash
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.index import MediaIndex, Origin
from dt2it_pipeline.media.opening import open_image, require_stored, shared_media
from dt2it_pipeline.media.root import MediaRoot
from dt2it_pipeline.media.store import Medium
from dt2it_pipeline.storage import integrity, schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline.storage.home.object_store import ObjectStore
from dt2it_pipeline_tests.support.ingest_world import numbered_image
from dt2it_pipeline_tests.support.s3_server import BUCKET, s3_server

KEY = ("raw_t2i", "k")
IMAGES = ("0.png", "1.png")
VIDEO = "clip"


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as variables:
        yield variables


@pytest.fixture
def bucket(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ObjectStore:
    """A folder of the bucket for one test."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return ObjectStore(f"s3://{BUCKET}/{request.node.name.partition('[')[0]}")


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The home of a machine that has imported two images and a video of frames, and has an artifact that names them."""
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path / "project"))
    root = tmp_path / "project/data/root"
    for number, name in enumerate((*IMAGES, f"{VIDEO}/1.png", f"{VIDEO}/2.png")):
        numbered_image(root / name, number)
    (root / VIDEO / "video.json").write_text('{"fps": 2}')
    store = Store(tmp_path / "first")
    importer = MediaImporter(MediaRoot(root), store.media)
    media = importer.rows([*(Medium("image", name) for name in IMAGES), Medium("video", VIDEO)])
    importer.close()
    assert all(isinstance(medium, dict) for medium in media)
    rows = [
        {"preference_id": f"p{n}", "caption": "red", "preferred": medium, "other": medium, "strength": None,
         "language": "en", "source": "s", "row_id": "1"} for n, medium in enumerate(media)
    ]  # fmt: skip
    store.write(KEY[0], Artifact({"t2i_preferences": schemas.table(rows, "t2i_preferences")}), KEY[1])
    return store


def copied(store: Store, shared: ObjectStore) -> None:
    shared.store(store, *KEY, None, shared_media(store.media))


def fetched(store: Store, shared: ObjectStore, lines: list[str]) -> Artifact | None:
    return shared.fetch(store, *KEY, None, lines.append, shared_media(store.media))


def other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go on in a project that lies elsewhere, with the same sources; the first one is gone. Their folder there."""
    (tmp_path / "project").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere/data/root"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob("??/**/*.*"))}


def test_a_fetched_medium_is_put_back_from_its_source_on_this_machine(
    first: Store, bucket: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copied(first, bucket)
    root, second = other_machine(tmp_path, monkeypatch), Store(tmp_path / "second")
    assert fetched(second, bucket, lines := []) is not None and not lines
    whole = contents(second.media)
    assert whole == contents(first.media) and len(whole) == 5
    damaged, missing = sorted(second.media.glob("??/*.png"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    missing.unlink()
    (video,) = (folder for folder in second.media.glob("??/*") if folder.is_dir())
    (video / "000001.png").unlink()
    for file in (damaged, missing):
        open_image(file)
    require_stored(video)
    assert contents(second.media) == whole
    put_back = [record.getMessage() for record in caplog.records if "it was fetched again" in record.getMessage()]
    assert len(put_back) == 3 and all(line.endswith(f" of {root}") for line in put_back)


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_a_medium_that_the_object_store_has_lost_comes_from_its_source_and_is_copied_there_again(
    first: Store, bucket: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    copied(first, bucket)
    image = min(first.media.glob("??/*.png"))
    frame = next(first.media.glob("??/*/000001.png"))
    for file in (image, frame):
        blob = bucket._blob(integrity.sha256_of(file))
        bucket._files.rm_file(blob) if harm == "missing" else bucket._files.pipe_file(blob, b"something else")
    root, second = other_machine(tmp_path, monkeypatch), Store(tmp_path / f"second-{harm}")
    assert fetched(second, bucket, lines := []) is not None
    assert contents(second.media) == contents(first.media)
    assert [line.partition(" in the object store ")[0] for line in lines] == sorted(
        f"media/{file.relative_to(first.media)}" for file in (image, frame)
    )
    assert all(line.endswith("fetched from its source and copied there again") for line in lines)
    # It is whole again, also for a machine that does not reach the sources.
    shutil.rmtree(root)
    third = Store(tmp_path / f"third-{harm}")
    assert fetched(third, bucket, lines := []) is not None and not lines
    assert contents(third.media) == contents(first.media)


def test_where_the_source_is_another_one_now_the_version_is_removed(
    first: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = ObjectStore((tmp_path / "shared").as_uri())
    copied(first, shared)
    image = min(first.media.glob("??/*.png"))
    (tmp_path / "shared/blobs" / image.parent.name / source_hash(image)).unlink()
    root, second = other_machine(tmp_path, monkeypatch), Store(tmp_path / "second")
    for name in IMAGES:
        numbered_image(root / name, 7)
    assert fetched(second, shared, lines := []) is None
    assert len(lines) == 1 and "a blob is missing" in lines[0] and "is removed and made again now" in lines[0]
    assert not shared.has(*KEY) and second.current(KEY[0]) is None
    assert not (second.media / image.parent.name / image.name).exists()
    assert not any(has_other_content(file) for file in second.media.glob("??/*.*"))


def test_a_store_that_takes_nothing_back_does_not_end_the_run(
    first: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, second = ObjectStore((tmp_path / "shared").as_uri()), Store(tmp_path / "second")
    copied(first, shared)
    image = min(first.media.glob("??/*.png"))
    (tmp_path / "shared/blobs" / image.parent.name / source_hash(image)).unlink()

    def refuse(*_: object) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(shared._files, "put", refuse)
    assert fetched(second, shared, lines := []) is not None
    assert len(lines) == 1 and lines[0].endswith(
        "fetched from its source and is whole here, but cannot be copied there again (PermissionError: read only)"
    )
    assert contents(second.media) == contents(first.media)


def test_an_entry_with_a_frame_that_its_video_has_not_is_damaged(first: Store, tmp_path: Path) -> None:
    shared, second = ObjectStore((tmp_path / "shared").as_uri()), Store(tmp_path / "second")
    copied(first, shared)
    (video,) = (folder for folder in first.media.glob("??/*") if folder.is_dir())
    place = tmp_path / "shared/artifacts/raw_t2i/k.json"
    entry = json.loads(place.read_text())
    entry["media"][f"{video.parent.name}/{video.name}/000099.png"] = "0" * 64
    place.write_text(json.dumps(integrity.sealed(entry)))
    assert fetched(second, shared, lines := []) is None
    assert len(lines) == 1 and "is removed and made again now" in lines[0]


@pytest.mark.parametrize(("name", "told"), [
    ("https://host.example/a/b.png", True), ("https://me:secret@host.example/b.png", False),
    ("https://me@host.example/b.png", False), ("HTTPS://host.example/b.png?X-Amz-Signature=secret", False),
    ("https://[host.example/b.png", False), ("folder/a?b@c.png", True),
])  # fmt: skip
def test_an_address_that_may_hold_a_key_stays_on_this_machine(tmp_path: Path, name: str, told: bool) -> None:
    index = MediaIndex(tmp_path)
    origin = Origin("image", None, "", True, name)
    index.add_origins({"ab" * 32: origin})
    assert index.origins(["ab" * 32]) == {"ab" * 32: origin}
    assert shared_media(tmp_path).origins(["ab" * 32]) == ({"ab" * 32: origin.for_others()} if told else {})


def test_an_entry_of_before_origins_were_kept_is_read(first: Store, tmp_path: Path) -> None:
    shared, second = ObjectStore((tmp_path / "shared").as_uri()), Store(tmp_path / "second")
    copied(first, shared)
    place = tmp_path / "shared/artifacts/raw_t2i/k.json"
    entry = json.loads(place.read_text())
    del entry["origins"]
    place.write_text(json.dumps(integrity.sealed(entry)))
    assert fetched(second, shared, lines := []) is not None and not lines
    image = min(second.media.glob("??/*.png"))
    image.write_bytes(image.read_bytes()[:-9])
    with pytest.raises(MediaError, match="its content is not what was stored"):
        open_image(image)


@pytest.mark.parametrize("change", [
    {"root": "../../elsewhere"}, {"root": "a\0b"}, {"root": 5}, {"kind": "program"}, {"web": "yes"}, {"name": 7},
    {"more": 1}, None, "root", [],
])  # fmt: skip
def test_an_entry_with_an_origin_that_is_none_is_not_used(first: Store, tmp_path: Path, change: object) -> None:
    shared, second = ObjectStore((tmp_path / "shared").as_uri()), Store(tmp_path / "second")
    copied(first, shared)
    place = tmp_path / "shared/artifacts/raw_t2i/k.json"
    entry = json.loads(place.read_text())
    medium = next(iter(entry["origins"]))
    entry["origins"][medium] = entry["origins"][medium] | change if isinstance(change, dict) else change
    place.write_text(json.dumps(integrity.sealed(entry)))  # whoever may write there can seal it, too
    assert fetched(second, shared, lines := []) is None
    assert "an origin of media that is none" in lines[0] and not list(second.media.glob("??"))


@pytest.mark.parametrize("origins", [[], {"ab" * 32: {}}, {"../evil": {}}])
def test_origins_are_those_of_the_entry_s_media(first: Store, tmp_path: Path, origins: object) -> None:
    shared, second = ObjectStore((tmp_path / "shared").as_uri()), Store(tmp_path / "second")
    copied(first, shared)
    place = tmp_path / "shared/artifacts/raw_t2i/k.json"
    place.write_text(json.dumps(integrity.sealed(json.loads(place.read_text()) | {"origins": origins})))
    assert fetched(second, shared, lines := []) is None and "origins of other media" in lines[0]


def test_what_this_machine_knows_stays(first: Store, tmp_path: Path) -> None:
    shared, second = ObjectStore((tmp_path / "shared").as_uri()), Store(tmp_path / "second")
    copied(first, shared)
    image = source_hash(min(first.media.glob("??/*.png")))
    own = Origin("image", str(tmp_path / "own"), "", False, "own.png")
    index = MediaIndex(second.media)
    second.media.mkdir(parents=True, exist_ok=True)
    index.add_origins({image: own})
    assert fetched(second, shared, []) is not None
    known = index.origins(source_hash(file) for file in first.media.glob("??/*"))
    assert len(known) == 3 and known[image] == own
    assert {origin.root for origin in known.values()} == {own.root, str(tmp_path / "project/data/root")}


def test_a_root_outside_the_project_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path / "project"))
    for root in ("/mnt/shared/images.zip", None):
        origin = Origin("image", root, "prefix", root is None, "a.png")
        assert origin.for_others()["root"] == root
        assert Origin.from_others(json.loads(json.dumps(origin.for_others()))) == origin
