"""Features of the vision encoder that are kept on disk: the same whoever made them; damage costs one image."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.index import MediaIndex
from dt2it_pipeline.reward.data import kept_features
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline.reward.data.kept_features import FeatureStore, KeptFeatures
from dt2it_pipeline.reward.data.vision_features import encode_images
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.scoring.scorer import Scorer
from dt2it_pipeline.reward.training.distributed import Alone
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.home.checkup import unneeded
from dt2it_pipeline.storage.home.feature_files import DAYS, FOLDER
from dt2it_pipeline_tests.support.tiny import make_images, make_prompt

CPU = torch.device("cpu")


class World:
    """A model, its registry over five images, and the store of their features."""

    def __init__(self, setup: Callable[..., Any], tmp_path: Path, family: str = "qwen3_vl") -> None:
        self.model, _, own = setup(family)
        self.cache, self.media = tmp_path / "cache", tmp_path / "media"
        self.media.mkdir(exist_ok=True)
        self.rows = make_images(self.media, 5)
        self.registry = ImageRegistry(own.processor, self.media, 65536, own.videos)
        self.images = [self.registry.add(row) for row in self.rows]

    def store(self, gib: float = 1.0) -> FeatureStore:
        return FeatureStore(self.model, CPU, gib * 2**30, self.cache)

    def keep(self, *images: int) -> KeptFeatures:
        kept, faults = self.store().keep(self.registry, images or self.images, Alone())
        assert kept is not None and not faults
        return kept

    def files(self) -> list[Path]:
        return sorted(file for file in (self.cache / FOLDER).rglob("*") if file.is_file())


@pytest.fixture
def world(setup: Callable[..., Any], tmp_path: Path) -> World:
    return World(setup, tmp_path)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that the vision encoder encodes, as they come."""
    seen: list[int] = []
    encode = kept_features.encode_patches

    def noted(model: Any, registry: Any, read: Any, device: Any) -> Any:
        seen.extend(read.images)
        return encode(model, registry, read, device)

    monkeypatch.setattr(kept_features, "encode_patches", noted)
    return seen


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_features_are_those_of_each_image_alone(
    setup: Callable[..., Any], tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    world = World(setup, tmp_path, family)
    world.model.to(dtype)
    kept = world.keep()
    asked = [world.images[at] for at in (3, 0, 3)]
    found = kept.gather(world.registry, asked)
    alone = [encode_images(world.model, world.registry, [index], CPU)[0].rows for index in asked]
    assert found.dtype == dtype and torch.equal(found, torch.cat(alone))
    beside = encode_images(world.model, world.registry, world.images, CPU)[0].gather(world.registry, asked)
    assert torch.allclose(found.float(), beside.float(), atol=1e-5 if dtype == torch.float32 else 0.1)


def test_what_is_kept_is_not_encoded_again(world: World, encoded: list[int]) -> None:
    first = world.keep(*world.images[:3]).gather(world.registry, world.images[:3])
    assert encoded == world.images[:3]
    other = ImageRegistry(world.registry.processor, world.media, 65536, world.registry.videos)
    places = [other.add(row) for row in reversed(world.rows)]  # the same images by other numbers
    kept, _ = world.store().keep(other, places, Alone())
    assert encoded == [*world.images[:3], *places[:2]]
    assert kept is not None and torch.equal(kept.gather(other, places[:1:-1]), first)
    assert len(world.files()) == 5


def test_another_encoder_or_size_has_features_of_its_own(world: World, encoded: list[int]) -> None:
    world.keep()
    for change in ("size", "weights", "type"):
        if change == "size":
            world.registry = ImageRegistry(world.registry.processor, world.media, 3072, world.registry.videos)
            world.images = [world.registry.add(row) for row in world.rows]
        elif change == "weights":
            next(world.model.model.visual.parameters()).data.view(-1)[0] += 1
        else:
            world.model.to(torch.bfloat16)
        encoded.clear()
        world.keep()
        assert encoded == world.images, change


def test_features_of_layers_that_are_no_longer_compiled_are_kept_apart(world: World, encoded: list[int]) -> None:
    """As where a kernel does not fit the GPU, while the store lives on."""
    store = world.store()
    for compiled in (True, False, True):
        world.model.compiled = compiled
        store.keep(world.registry, world.images, Alone())
    assert encoded == world.images * 2


def test_weights_of_the_language_model_do_not_count(world: World, encoded: list[int]) -> None:
    """So that features serve the next round's model, which is trained from the same base."""
    world.keep()
    world.model.head.weight.data += 1
    next(world.model.model.language_model.parameters()).data += 1
    encoded.clear()
    world.keep()
    assert not encoded


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "longer", "another's", "gone"])
def test_damage_is_noticed_and_made_again(
    world: World, encoded: list[int], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    kept = world.keep()
    whole = kept.gather(world.registry, world.images)
    file, other = world.files()[:2]
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        changed = {
            "flipped": content[:40] + bytes([content[40] ^ 1]) + content[41:], "cut": content[:-9], "empty": b"",
            "longer": content + b"\0", "another's": other.read_bytes(),
        }  # fmt: skip
        file.write_bytes(changed[how])
    encoded.clear()
    caplog.clear()
    assert torch.equal(kept.gather(world.registry, world.images), whole)
    assert len(encoded) == 1 and file.read_bytes() == content
    named = [record.getMessage() for record in caplog.records]
    assert named == ([] if how == "gone" else [f"{file} is damaged; the image is encoded again"])


def test_changed_and_damaged_images(world: World, encoded: list[int]) -> None:
    world.keep()
    path = world.media / world.rows[1]["path"]
    before = world.keep().gather(world.registry, world.images[1:2])
    Image.new("RGB", Image.open(path).size, "white").save(path)
    encoded.clear()
    assert not torch.equal(world.keep().gather(world.registry, world.images[1:2]), before)
    assert encoded == [1]
    path.write_bytes(path.read_bytes()[:70])
    kept, faults = world.store().keep(world.registry, world.images, Alone())
    assert kept is not None and list(faults) == [1] and isinstance(faults[1], MediaError)
    assert kept.gather(world.registry, [0, 2, 3, 4]).shape[0] > 0


def test_limit_and_full_disk_are_one_sentence(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = world.store(1e-5)
    for _ in range(2):
        assert small.keep(world.registry, world.images, Alone()) == (None, {})
    (line,) = (record.getMessage() for record in caplog.records)
    assert "vision_disk_gib allows 0.00 and 0.00 are taken: raise it" in line and not world.files()
    caplog.clear()
    monkeypatch.setattr(kept_features, "_free", lambda _: 3)
    assert world.store().keep(world.registry, world.images, Alone()) == (None, {})
    assert "its disk has 0.00 GiB left: free some, or set vision_disk_gib: 0" in caplog.text


def test_what_is_kept_already_needs_no_room(world: World) -> None:
    whole = world.keep().gather(world.registry, world.images)
    kept, _ = world.store(1e-5).keep(world.registry, world.images, Alone())
    assert kept is not None and torch.equal(kept.gather(world.registry, world.images), whole)


def test_a_folder_that_cannot_be_written_costs_time_alone(
    world: World, encoded: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = world.keep().gather(world.registry, world.images)
    for file in world.files():
        file.unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    encoded.clear()
    assert torch.equal(world.keep().gather(world.registry, world.images), whole)
    assert len(encoded) == 10 and not world.files()
    assert caplog.text.count("features cannot be kept") == 1


class Ranks:
    """Two ranks in two threads."""

    size, leader = 2, 0
    meeting = threading.Barrier(2, timeout=60)
    given: ClassVar[dict[int, Any]] = {}

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def barrier(self) -> None:
        self.meeting.wait()

    def gather(self, value: Any) -> list[Any]:
        self.given[self.rank] = value
        self.barrier()
        found = [self.given[rank] for rank in range(self.size)]
        self.barrier()
        return found


def test_ranks_share_the_work(world: World, encoded: list[int]) -> None:
    """Each encodes its part, and has all features afterwards, by the names that they exchange."""
    damaged = world.media / world.rows[1]["path"]
    damaged.write_bytes(damaged.read_bytes()[:70])
    with ThreadPoolExecutor(2) as ranks:
        jobs = [ranks.submit(world.store().keep, world.registry, world.images, Ranks(rank)) for rank in (0, 1)]
        made = [job.result() for job in jobs]
    assert sorted(encoded) == [0, 2, 3, 4]
    whole = [0, 2, 3, 4]
    rows = torch.cat([encode_images(world.model, world.registry, [index], CPU)[0].rows for index in whole])
    for kept, faults in made:
        assert kept is not None and list(faults) == [1]
        assert torch.equal(kept.gather(world.registry, whole), rows)
    assert len(encoded) == 4


def test_scores_with_kept_features(
    base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    monkeypatch.setenv("DT2IT_HOME", str(tmp_path / "home"))
    (tmp_path / "media").mkdir()
    rows = make_images(tmp_path / "media", 6)
    damaged = tmp_path / "media" / rows[2]["path"]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    prompts = {f"p{n}": make_prompt(rows[n : n + 1], "what colour") for n in range(6)}
    responses = [(f"{key}.{n}", key, text) for key in prompts for n, text in enumerate(["red", "a blue circle"])]
    model = RewardModel.from_pretrained(base(), new_head_seed=0).eval()
    found = []
    for gib in (0.0, 1.0, 1.0):
        made = Scorer(
            model, tmp_path / "media", max_length=512, max_pixels=65536, tokens_per_batch=300, vision_disk_gib=gib
        )
        encoded.clear()
        found.append(made.score(prompts, responses))
        assert len(encoded) == (5 if len(found) == 2 else 0)
    assert found[1] == found[2] and found[0][1] == found[1][1] and set(found[0][1]) == {"p2.0", "p2.1"}
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)


def test_gc_lists_what_nothing_has_used_for_long(world: World, tmp_path: Path) -> None:
    world.keep()
    files = world.files()
    old = time.time() - (DAYS + 1) * 24 * 3600
    for file in files[:2]:
        os.utime(file, (old, old))
    temporary = files[0].with_name(f".{files[0].name}.00000000-1-1.x7")
    temporary.write_bytes(b"")
    os.utime(temporary, (old, old))
    store = Store(tmp_path)
    found = {each.path for each in unneeded(store, MediaIndex(store.media).file)}
    assert found == {*files[:2], temporary}
