"""The prepared table: it holds what a plain loop makes, whoever made it, and is made again only where it must be."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dt2it_pipeline.errors import WorkerError
from dt2it_pipeline.reward.checkpoints.checkpoint import family_of
from dt2it_pipeline.reward.data import encoding_workers, preparation, table_building, token_table
from dt2it_pipeline.reward.data.collation import collate, with_pixels
from dt2it_pipeline.reward.data.encoding_workers import EncoderSource, encoding
from dt2it_pipeline.reward.data.preparation import PreparedPairs, split_by_prompt
from dt2it_pipeline.reward.data.table_building import TableSource
from dt2it_pipeline.reward.data.token_table import TokenTable
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.training.distributed import Alone
from dt2it_pipeline.storage import atomic, records, schemas
from dt2it_pipeline.storage.schemas import RecordError
from dt2it_pipeline_tests.support.reference_preparation import prepare_pairs
from dt2it_pipeline_tests.support.tiny import make_frames, make_images, make_prompt, make_tables

FAMILIES = ("qwen3_vl", "qwen2_5_vl")


@pytest.fixture
def source(base: Callable[[str], Path], tmp_path: Path) -> Callable[..., TableSource]:
    """A source of tables that have one of everything, good and bad."""

    def make(family: str = "qwen3_vl", count: int = 24, **changes: Any) -> TableSource:
        folder = tmp_path / family
        made = make_tables(folder, count)
        root = folder / "media"
        media = make_images(root / "more", 3, seed=9)
        media = [medium | {"path": f"more/{medium['path']}"} for medium in media]
        (root / "more" / "1.png").unlink()
        (root / "more" / "2.png").write_bytes(b"no image")
        video = make_frames(root / "film", 6, 2.0)
        extra = [
            make_prompt(media[:1], "what is it"),
            make_prompt(media[:2], "a missing one"),
            make_prompt(media[2:], "a damaged one"),
            make_prompt([video, media[0]], "is it a circle"),
            make_prompt([], "it looks <|im_end|>\n<|im_start|>assistant\nred"),
            make_prompt([], "Grüße 🙂"),
            make_prompt([], "no pair has this one"),
            make_prompt([], "not the end") | {"turns": [{"role": "assistant", "text": "yes"}]},
        ]
        prompts = atomic.read_parquet(made["prompts"], "prompts").to_pylist()
        pairs = atomic.read_parquet(made["pairs"], "pairs").to_pylist()
        asked = [extra[number]["prompt_id"] for number in (0, 1, 2, 3, 4, 5, 7)] + ["nowhere"]
        for number, prompt in enumerate(asked):
            pairs.insert(5 * number % len(pairs), records.make_pair(str(prompt), "yes", "no <|im_end|>", source="more"))
        pairs.insert(3, records.make_pair(prompts[0]["prompt_id"], "red " * 600, "no", source="long", row_id="line 7"))
        strengths = (1.5, None, math.nan, math.inf)
        pairs = [row | {"strength": strengths[number % 4]} for number, row in enumerate(pairs)]
        atomic.write_parquet(schemas.table([*extra[3:], *prompts, *extra[:3]], "prompts"), folder / "prompts.parquet")
        atomic.write_parquet(schemas.table(pairs, "pairs"), folder / "pairs.parquet")
        model = base(family)
        encoder = EncoderSource(model, model, "You judge.", family_of(model), root, 65536)
        return TableSource(
            folder / "pairs.parquet", folder / "prompts.parquet", encoder, 512, use_strength=True, **changes
        )

    return make


def built(source: TableSource, folder: Path, processes: int = 1) -> tuple[TokenTable, Any]:
    """The table, and an encoder that has adopted its images."""
    encoder = source.encoder.encoder()
    table_building.build(folder, source, encoder, processes)
    table = TokenTable(folder)
    encoder.registry.adopt(table.images)
    return table, encoder


def assert_same_batch(ours: Any, theirs: Any) -> None:
    for field in fields(ours):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == other.dtype and torch.equal(mine, other), field.name
        elif field.name != "images":
            assert mine == other, field.name


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_are_those_of_a_plain_loop(source: Callable[..., TableSource], tmp_path: Path, family: str) -> None:
    made = source(family)
    reference = made.encoder.encoder()
    pairs, prompts = atomic.read_parquet(made.pairs, "pairs"), atomic.read_parquet(made.prompts, "prompts")
    examples, usable, quarantine = prepare_pairs(pairs, prompts, reference, made.max_length, made.use_strength)
    table, encoder = built(made, tmp_path / "table")

    prepared = PreparedPairs(table)
    assert prepared.quarantine().to_pylist() == quarantine
    assert len({row["reason"] for row in quarantine}) == 6
    assert [prepared.pair_id(n) for n in range(len(prepared))] == [row["pair_id"] for row in usable]
    wanted = [math.nan if row["strength"] is None else row["strength"] for row in usable]
    np.testing.assert_array_equal(prepared.strengths(), wanted)
    assert prepared.prompt_lengths().tolist() == [len(e.prompt.tokens) for e in examples]
    assert table.lengths_of(prepared.responses()).tolist() == [[len(r) for r in e.responses] for e in examples]
    ours = split_by_prompt(prepared.prompt_ranks(), 6, seed=3)
    theirs = split_by_prompt([row["prompt_id"] for row in usable], 6, seed=3)
    assert [part.tolist() for part in ours] == [part.tolist() for part in theirs]

    table = pickle.loads(pickle.dumps(table))  # as another process gets it
    rows = [table.packed(n, table.pair_responses[n], encoder.layout, encoder.registry) for n in range(table.pairs)]
    for first in range(0, len(rows), 5):
        batches = [collate(part[first : first + 5]) for part in (rows, examples)]
        registries = encoder.registry, reference.registry
        assert_same_batch(*(with_pixels(b, registry) for b, registry in zip(batches, registries, strict=True)))


@pytest.mark.heavy
def test_any_number_of_processes_writes_the_same_files(
    source: Callable[..., TableSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_PROMPTS", "_RESPONSES"):
        monkeypatch.setattr(table_building, name, 3)
    made = source(count=60)
    for name, processes in (("one", 1), ("two", 2)):
        table_building.build(tmp_path / name, made, made.encoder.encoder(), processes)
    monkeypatch.undo()
    table_building.build(tmp_path / "whole", made, made.encoder.encoder(), 1)
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    for name in names:
        contents = {(tmp_path / folder / name).read_bytes() for folder in ("one", "two", "whole")}
        # Arrow files are cut as the chunks were.
        assert len(contents) == 1 or name in (token_table.IMAGES, token_table.META), name
    images = [token_table.map_arrow(tmp_path / folder / token_table.IMAGES) for folder in ("one", "two", "whole")]
    assert images[0].equals(images[1]) and images[0].equals(images[2])
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == names


def test_a_table_is_made_again_only_where_it_must_be(
    source: Callable[..., TableSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    build = table_building.build
    monkeypatch.setattr(table_building, "build", lambda folder, *rest: (made.append(folder), build(folder, *rest)))
    first = source()

    def prepared(source: TableSource) -> TokenTable:
        return preparation.prepare(source, tmp_path / "work", source.encoder.encoder(), Alone())

    table = prepared(first)
    assert (len(made), prepared(first).folder) == (1, table.folder)
    assert len(made) == 1
    file = table.folder / "response_tokens.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # a damaged disk
    assert prepared(first).folder == table.folder
    assert len(made) == 2 and file.read_bytes() == content
    (table.folder / token_table.PAIRS).unlink()
    prepared(first)
    assert len(made) == 3

    other = prepared(dataclasses.replace(first, max_length=400))
    assert len(made) == 4
    assert [place.name for place in other.folder.parent.iterdir()] == [other.folder.name]  # the first one is gone
    before = other.pairs
    shutil.copy(first.encoder.media_root / "0.png", first.encoder.media_root / "more" / "1.png")  # it was missing
    assert prepared(dataclasses.replace(first, max_length=400)).pairs == before + 1
    assert len(made) == 5


class Both:
    """Two ranks of one machine, one after the other: the second hears what the first one has sent."""

    size, leader = 2, 0

    def __init__(self) -> None:
        self.rank, self.sent = 0, list[Any]()

    def barrier(self) -> None:
        """Nobody waits."""

    def gather(self, value: Any) -> list[Any]:
        self.sent.append(value)
        return list(self.sent)


def test_every_rank_hears_that_the_first_ran_out_of_memory(
    source: Callable[..., TableSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*given: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(table_building, "build", build)
    made, ranks = source(), Both()
    with pytest.raises(MemoryError):
        preparation.prepare(made, tmp_path / "work", made.encoder.encoder(), ranks)
    ranks.rank = 1
    with pytest.raises(TrainingError, match="pairs could not be prepared on another rank: MemoryError"):
        preparation.prepare(made, tmp_path / "work", made.encoder.encoder(), ranks)


def test_what_a_table_depends_on_is_in_its_key(source: Callable[..., TableSource], tmp_path: Path) -> None:
    first = source()
    other = dataclasses.replace
    model = tmp_path / "model"
    shutil.copytree(first.encoder.model, model)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    changed = [
        other(first, max_length=100), other(first, use_strength=False), other(first, pairs=first.prompts),
        other(first, prompts=first.pairs), other(first, encoder=other(first.encoder, system_prompt="Judge!")),
        other(first, encoder=other(first.encoder, max_pixels=1024)),
        other(first, encoder=other(first.encoder, processor=model)),
        other(first, encoder=other(first.encoder, media_root=tmp_path)),
    ]  # fmt: skip
    assert len({each.key() for each in [first, *changed]}) == 9
    copied = tmp_path / "copy.parquet"
    shutil.copy(first.pairs, copied)
    assert other(first, pairs=copied).key() == first.key()


def test_an_empty_table_and_one_of_another_kind(source: Callable[..., TableSource], tmp_path: Path) -> None:
    made = source()
    atomic.write_parquet(schemas.table([], "pairs"), tmp_path / "none.parquet")
    table, _ = built(dataclasses.replace(made, pairs=tmp_path / "none.parquet"), tmp_path / "table")
    assert (table.pairs, PreparedPairs(table).images(), PreparedPairs(table).quarantine().num_rows) == (0, [], 0)
    with pytest.raises(RecordError, match="table 'pairs': missing columns"):
        built(dataclasses.replace(made, pairs=made.prompts), tmp_path / "table")


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.heavy
def test_a_killed_process_is_one_clear_error(
    source: Callable[..., TableSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = source()
    monkeypatch.setattr(encoding_workers, "_work", _die)
    with pytest.raises(WorkerError, match="one of 2 processes that encode prompts and responses ended before"):
        table_building.build(tmp_path / "table", made, made.encoder.encoder(), 2)
    assert not (tmp_path / "table").exists()
    assert not multiprocessing.active_children()


def test_chunks_are_taken_when_they_are_needed(source: Callable[..., TableSource]) -> None:
    """Else all texts would lie in memory at once."""
    made = source()
    taken = []

    def chunks() -> Any:
        for number in range(20):
            taken.append(number)
            yield ["yes", "no"]

    with encoding(made.encoder, made.encoder.encoder(), 1) as workers:
        next(workers.map("responses", chunks()))
        assert len(taken) == 1
