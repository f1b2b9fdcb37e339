"""Cleaning and decontamination by several processes: the same tables to the byte, and a dead process."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator

import pyarrow as pa
import pytest

from dt2it_pipeline.config.sections.cleaning import DecontaminationSettings
from dt2it_pipeline.engines.launch import fork_server
from dt2it_pipeline.errors import WorkerError
from dt2it_pipeline.ingest import clean, decontaminate
from dt2it_pipeline.ingest.clean import clean_pairs
from dt2it_pipeline.ingest.decontaminate import benchmark_content, nearest
from dt2it_pipeline.storage import content_ids, records, schemas

LONG = " ".join(f"word{number}" for number in range(12))


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (clean, decontaminate):
        monkeypatch.setattr(module, "_LONG", 10)
        monkeypatch.setattr(module, "_PIECE", 7)


def world() -> tuple[pa.Table, pa.Table, pa.Table]:
    """Pairs, prompts and benchmark items that share questions, images and answers in all ways."""
    rng = random.Random(3)
    questions = ["What is it?", "what  IS it", "3-4?", "3 4?", "<image>Which?", "Ｗhich?"]
    sides = ["a boat", "A  boat", "no boat", LONG, f"{LONG} too", "e\u0301", "\u00e9", "<image>", "\\<image>"]
    prompts, pairs = {}, []
    for number in range(150):
        turns = [{"role": "user", "text": rng.choice(questions)}]
        if rng.random() < 0.2:
            turns += [{"role": "assistant", "text": "Yes."}, {"role": "user", "text": rng.choice(questions)}]
        media = [rng.choice("abcdef")] if rng.random() < 0.6 else []
        key = content_ids.prompt_id("", turns, media)
        prompts[key] = {
            "prompt_id": key, "source": "s", "system": "", "turns": turns, "reference": None, "language": "en",
            "meta": "{}", "media": [{"kind": "image", "sha256": name, "path": name} for name in media],
        }  # fmt: skip
        sides_of = rng.choice(sides), rng.choice(sides)
        pairs.append(
            records.make_pair(key, *sides_of, source=f"s{number % 3}", row_id=rng.choice([None, f"r{number}"]))
        )
    held = {key for key in prompts if rng.random() < 0.1}
    kept = ("pair_id", "prompt_id", "chosen_id", "rejected_id", "chosen", "rejected")
    items = [
        {"item_id": str(place), "benchmark": "b", "group": "g", **{name: pair[name] for name in kept}}
        for place, pair in enumerate(pairs)
        if pair["prompt_id"] in held
    ]
    return tuple(map(schemas.table, (pairs, prompts.values(), items), ("pairs", "prompts", "benchmark_items")))


@pytest.mark.parametrize("near", [None, 0.8])
def test_the_number_of_processes_changes_nothing(near: float | None) -> None:
    pairs, prompts, items = world()
    one, three = (clean_pairs(pairs, prompts, near, "ingest", processes=processes) for processes in (1, 3))
    assert [table.equals(other) for table, other in zip(one, three, strict=True)] == [True, True]
    reasons = set(one[1]["reason"].to_pylist())
    assert reasons == {clean.IDENTICAL, clean.CONTRADICTORY, clean.REPEATED} | (
        {clean.NEARLY_REPEATED} if near else set()
    )
    content = benchmark_content(
        items,
        prompts.filter(pa.array([key in items["prompt_id"].to_pylist() for key in prompts["prompt_id"].to_pylist()])),
    )
    settings = DecontaminationSettings(response_characters=4)
    hashes = {name: 0x0F0F << place for place, name in enumerate("abcdef")}
    made = [decontaminate.decontaminate(pairs, prompts, content, settings, hashes, count) for count in (1, 3)]
    assert made[0] == made[1]
    found = {row["reason"] for row in made[0][2]}
    assert {decontaminate.SAME_IMAGE, decontaminate.ALIKE_IMAGE, decontaminate.SAME_QUESTION} <= found


@pytest.mark.parametrize("distance", [0, 6, 7, 8, 30])
def test_nearest_hashes_by_their_common_bytes_are_the_nearest_of_all(distance: int) -> None:
    rng = random.Random(distance)
    centres = [rng.getrandbits(64) for _ in range(5)]

    def some(count: int) -> list[int]:
        return [
            rng.choice(centres) ^ sum(1 << bit for bit in rng.sample(range(64), rng.randint(0, 9)))
            for _ in range(count)
        ]

    for ours, theirs in ((some(300), some(40)), ([5] * 9, [5, 4, 5]), (some(3), []), ([], some(3))):
        expected = {}
        for place, one in enumerate(ours):
            bits = [(one ^ other).bit_count() for other in theirs]
            if bits and min(bits) <= distance:
                expected[place] = bits.index(min(bits)), min(bits)
        assert nearest(ours, theirs, distance) == expected


def dies(piece: int) -> int:
    if piece == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return piece


def fails(piece: int) -> int:
    if piece == 3:
        raise ValueError("of the third piece")
    return piece


def test_a_dead_process_and_the_first_fault_in_order_are_reported() -> None:
    def pieces() -> Iterator[int]:
        yield from range(5)
        raise KeyError("behind the last piece")

    server = lambda: fork_server.context(fork_server.__name__)  # noqa: E731
    with fork_server.Pool(2, server, "one of two is lost") as pool:
        with pytest.raises(ValueError, match="of the third piece"):
            list(pool.map(fails, pieces()))
        with pytest.raises(KeyError):
            list(pool.map(abs, pieces()))
        assert list(pool.map(abs, range(-20, 0))) == list(range(20, 0, -1))
        with pytest.raises(WorkerError, match="one of two is lost"):
            list(pool.map(dies, range(5)))
