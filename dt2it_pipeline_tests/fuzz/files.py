"""Files that people write or fetch, and files of ours that a disk damages."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.config.recipe import load_recipe
from dt2it_pipeline.ingest.manifest import Manifest, load_manifest
from dt2it_pipeline.ingest.sources import read_source
from dt2it_pipeline.judges.protocol import Reply
from dt2it_pipeline.judges.reply_cache import ReplyCache
from dt2it_pipeline.media.damage import has_other_content
from dt2it_pipeline.media.opening import open_image
from dt2it_pipeline.media.store import store_image, store_video
from dt2it_pipeline.reward.checkpoints.checkpoint import read_weights, stored_types, weight_names
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline_tests.fuzz.surface import Make, Surface
from dt2it_pipeline_tests.support.ingest_world import PIXELS, encoded, sideways, transparent
from dt2it_pipeline_tests.support.source_files import as_csv
from dt2it_pipeline_tests.support.tiny import make_video_file

_SECRET = encoded(Image.new("RGB", (9, 9), "purple"))
_ROWS = [
    {
        "id": str(n),
        "question": f"What is {n}?",
        "image": f"{n % 2}.png",
        "chosen": f"It is {n}, “ü”.",
        "rejected": "c" * n,
    }
    for n in range(1, 9)
]


def manifests(folder: Path) -> Surface:
    """A manifest, as it is dropped into landing/."""
    file = folder / "manifest.yaml"

    def read(content: bytes) -> bool:
        file.write_bytes(content)
        load_manifest(file)
        return True

    return Surface(_texts("datasets"), read)


def recipes(folder: Path) -> Surface:
    """A recipe."""
    file = folder / "recipe.yaml"

    def read(content: bytes) -> bool:
        file.write_bytes(content)
        load_recipe(file)
        return True

    return Surface(_texts("recipes"), read)


def _texts(kind: str) -> list[bytes]:
    return [file.read_bytes() for file in sorted((project_root() / "configs" / kind).glob("*.yaml"))]


def sources(suffix: str) -> Make:
    """A data file of a source with images below a folder, which no path may leave."""

    def surface(folder: Path) -> Surface:
        root = folder / "root"
        root.mkdir()
        for name in ("0.png", "1.png"):
            (root / name).write_bytes(encoded(Image.new("RGB", (8, 8), "red" if name == "0.png" else "blue")))
        (folder / "secret.png").write_bytes(_SECRET)
        rows = [_ROWS, [{**row, "image": "../secret.png"} for row in _ROWS]]
        data = folder / "data" / f"rows{suffix}"
        data.parent.mkdir()
        path, form = (data.parent, "dataset") if suffix == ".arrow" else (data, None)
        manifest = Manifest.model_validate(
            {"name": "s", "kind": "preferences", "path": str(path), "format": form, "media_root": str(root)}
            | {"licence": "MIT"}
        )

        def read(content: bytes) -> bool:
            data.write_bytes(content)
            media = folder / "media"
            found = read_source(manifest, folder, media)
            counts = found.metadata
            assert counts["rows_in"] == counts["rows_out"] + counts["rows_quarantined"], counts
            assert counts["rows_quarantined"] == found["quarantine"].num_rows, counts
            assert not any(file.read_bytes() == _SECRET for file in media.rglob("*.png")), "an image outside the root"
            return counts["rows_out"] > 0

        return Surface([_FORMATS[suffix](some) for some in rows], read)

    return surface


def _lines(rows: Sequence[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _parquet(rows: Sequence[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def _arrow(rows: Sequence[dict[str, str]]) -> bytes:
    table, buffer = pa.Table.from_pylist(list(rows)), io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    return buffer.getvalue()


def _zip(rows: Sequence[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", _lines(rows))
        archive.writestr("rows.csv", as_csv(list(rows)))
    return buffer.getvalue()


def _tar(rows: Sequence[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for row in rows:  # a shard of a WebDataset
            for kind, content in (("json", json.dumps(row).encode()), ("png", encoded(Image.new("RGB", (8, 8))))):
                member = tarfile.TarInfo(f"{row['id']}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


_FORMATS: dict[str, Callable[[Sequence[dict[str, str]]], bytes]] = {
    ".jsonl": _lines,
    ".json": lambda rows: json.dumps(list(rows)).encode(),
    ".csv": lambda rows: as_csv(list(rows)),
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".jsonl.gz": lambda rows: gzip.compress(_lines(rows)),
    ".jsonl.zst": lambda rows: pa.compress(_lines(rows), "zstd", asbytes=True),
    ".jsonl.bz2": lambda rows: bz2.compress(_lines(rows)),
    ".jsonl.xz": lambda rows: lzma.compress(_lines(rows)),
    ".zip": _zip,
    ".tar": _tar,
}


def images(folder: Path) -> Surface:
    """An image as a row holds it."""
    media = folder / "media"
    picture = Image.fromarray(PIXELS)

    def read(content: bytes) -> bool:
        file = media / store_image(content, folder, media).row["path"]
        assert not has_other_content(file)
        open_image(file)
        return True

    kinds = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
    return Surface([*(encoded(picture, kind) for kind in kinds), sideways(), encoded(transparent("P"), "PNG")], read)


def image_names(folder: Path) -> Surface:
    """An image's path, as a row names it."""
    root, media = folder / "root", folder / "media"
    (root / "inner").mkdir(parents=True)
    for file in (root / "a.png", root / "inner" / "b.png"):
        file.write_bytes(encoded(Image.new("RGB", (8, 8), "red")))
    (folder / "secret.png").write_bytes(_SECRET)
    (root / "link.png").symlink_to(folder / "secret.png")
    (root / "up").symlink_to(folder)
    names = ("a.png", "inner/b.png", "inner/../a.png", "../secret.png", "link.png", "up/secret.png", "./a.png")

    def read(content: bytes) -> bool:
        stored = store_image(content.decode("utf-8", "surrogateescape"), root, media)
        assert (media / stored.row["path"]).read_bytes() != _SECRET, "an image outside the root"
        return True

    return Surface([*(name.encode() for name in names), f"{folder}/secret.png".encode()], read)


def videos(folder: Path) -> Surface:
    """A video file."""
    make_video_file(folder / "sound.avi", 4, 8.0)

    def read(content: bytes) -> bool:
        (folder / "given.avi").write_bytes(content)
        store_video("given.avi", folder, folder / "media")
        return True

    return Surface([(folder / "sound.avi").read_bytes()], read)


def artifacts(file: str) -> Make:
    """A file of an artifact in the store: whatever is wrong with it, it is not used."""

    def surface(folder: Path) -> Surface:
        store = Store(folder)
        pairs = schemas.table([records.make_pair("p", f"a{i}", "b", source="s") for i in range(20)], "pairs")
        written = store.write("stage", Artifact({"pairs": pairs}, {"rows_out": 20}), "key")
        place = written.folder / file
        sound = place.read_bytes()

        def read(content: bytes) -> bool:
            place.unlink()  # what was read is known by inode, size and time, which a quick rewriting may leave alike
            place.write_bytes(content)
            found = store.read("stage")
            same = content == sound or (file == "manifest.json" and json.loads(content) == json.loads(sound))
            assert same and found["pairs"].equals(pairs), "a damaged file was used"
            return True

        return Surface([sound], read)

    return surface


def weights(folder: Path) -> Surface:
    """A file of weights."""
    import torch
    from safetensors.torch import save

    file = folder / "model.safetensors"

    def read(content: bytes) -> bool:
        file.write_bytes(content)
        types = stored_types(folder)
        return bool(types) and bool(read_weights(file, weight_names(file)))

    return Surface(
        [save({"model.layers.0.a": torch.ones(4, 4), "model.layers.1.b": torch.zeros(8, dtype=torch.bfloat16)})], read
    )


def reply_files(folder: Path) -> Surface:
    """The file of judges' replies."""
    made = folder / "made"
    cache = ReplyCache(made)
    replies = {f"key {n}": Reply(f"reply {n}", True, n, n) for n in range(40)}
    for key, reply in replies.items():
        cache.put(key, reply)
    cache.close()
    whole = made.read_bytes()

    def read(content: bytes) -> bool:
        place = folder / "home"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "replies").write_bytes(content)
        given = ReplyCache(place / "replies")
        try:
            found = given.get(list(replies))
            assert found.items() <= replies.items(), "a damaged reply was used"
            given.put("new", replies["key 1"])
            # Lost, where the damage lies in an index: then it is asked for again.
            assert given.get(["new"]) in ({}, {"new": replies["key 1"]})
        finally:
            given.close()
        return bool(found)

    return Surface([whole], read)


SURFACES: dict[str, Make] = {
    "manifest": manifests,
    "recipe": recipes,
    **{f"source{suffix}": sources(suffix) for suffix in _FORMATS},
    "image": images,
    "image path": image_names,
    "video": videos,
    "artifact's table": artifacts("pairs.parquet"),
    "artifact's manifest": artifacts("manifest.json"),
    "weights": weights,
    "replies' file": reply_files,
}
