"""Audits that an artifact home keeps: draws of its rounds, and the answers to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dt2it_pipeline.human_review.answers import keep_answers
from dt2it_pipeline.human_review.audit import (
    AUDIT_FORMATS,
    AuditError,
    audit_file,
    audit_of_home,
    draw_audit,
    export_round_audit,
    read_votes,
    unanswered_of_home,
)
from dt2it_pipeline.human_review.tasks import shown_sides
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline.storage.atomic import read_parquet, write_parquet
from dt2it_pipeline_tests.support.audits import filled, population, rows_of_sheet, tool_answers
from dt2it_pipeline_tests.support.export_world import world


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A home with a finished round of four pairs, of which the first two were flipped."""
    store = Store(tmp_path / "home")
    pairs, prompts = world(store.media)
    swapped = {"chosen": "rejected", "rejected": "chosen", "chosen_id": "rejected_id", "rejected_id": "chosen_id"}
    raw = [
        row | ({name: row[other] for name, other in swapped.items()} if place < 2 else {})
        for place, row in enumerate(pairs.to_pylist())
    ]
    store.write("voted_pairs", Artifact({"pairs": pairs, "prompts": prompts}), "k", "0")
    store.write("raw_preferences", Artifact({"pairs": schemas.table(raw, "pairs"), "prompts": prompts}), "k")
    return store


def test_a_round_shows_its_images_and_the_home_keeps_the_draw(store: Store, tmp_path: Path) -> None:
    done = export_round_audit(store, "0", tmp_path / "out")
    assert done.sample.num_rows == 4 == read_parquet(audit_file(store.home), "audit_pairs").num_rows
    rows = {row["pair_id"]: row for row in rows_of_sheet(tmp_path / "out/audit.csv")}
    for pair in store.read("voted_pairs", "0")["pairs"].to_pylist():
        row = rows[pair["pair_id"]]
        assert [(row["first_id"], row["first"]), (row["second_id"], row["second"])] == shown_sides(pair)
        assert all((tmp_path / "out" / name).is_file() for name in row["media"].split("\n") if name)
    assert sorted(row["media"].count("media/") for row in rows.values()) == [0, 1, 1, 2]
    assert any(
        row["prompt"].startswith("system: Be kind.\n\nuser: <image>hi\n\nassistant: hello") for row in rows.values()
    )
    export_round_audit(store, "0", tmp_path / "out")  # the same draw is there once
    assert read_parquet(audit_file(store.home), "audit_pairs").num_rows == 4


@pytest.mark.parametrize("format_name", list(AUDIT_FORMATS))
def test_answers_to_a_draw_are_the_audit_of_a_home(store: Store, tmp_path: Path, format_name: str) -> None:
    assert len(audit_of_home(store.home)) == 0 and unanswered_of_home(store.home) == (0, 0)
    sample = export_round_audit(store, "0", tmp_path / "out", 3, format_name).sample.to_pandas()
    assert unanswered_of_home(store.home) == (3, 3)
    if format_name == "spreadsheet":
        file = filled(tmp_path / "out/audit.csv", ["first", "second", "tie"])
    else:
        file = tool_answers(tmp_path / "out", format_name, ["first", "second", "tie"])
    votes = read_votes(file).votes
    keep_answers(store.home, votes)
    audit = audit_of_home(store.home).set_index("pair_id").loc[sample["pair_id"]]
    assert audit["better_id"].fillna("-").tolist() == [sample["first_id"][0], sample["second_id"][1], "-"]
    assert audit["weight"].sum() == pytest.approx(4)
    assert unanswered_of_home(store.home) == (3, 0)
    # Answered again as a contested pair, it stays part of the audit, with the later answer.
    later = {"pair_id": sample["pair_id"][0], "person": votes[0]["person"], "preferred_id": sample["second_id"][0]}
    keep_answers(store.home, [later])
    again = audit_of_home(store.home).set_index("pair_id")["better_id"]
    assert again[sample["pair_id"][0]] == sample["second_id"][0]


def test_answers_that_were_given_to_contested_pairs_are_no_audit(store: Store, tmp_path: Path) -> None:
    sample = export_round_audit(store, "0", tmp_path / "out", 2).sample.to_pandas()
    row = {"pair_id": sample["pair_id"][0], "person": "p", "preferred_id": sample["first_id"][0]}
    keep_answers(store.home, [row])
    assert len(audit_of_home(store.home)) == 0
    keep_answers(store.home, [row | {"person": "q", "preferred_id": "no side", "audit": sample["audit"][0]}])
    assert len(audit_of_home(store.home)) == 0


def test_draws_of_a_home_are_combined_without_bias(tmp_path: Path) -> None:
    pairs = population()
    right = pairs.set_index("pair_id")["right"]
    estimates = []
    for seed in range(30):
        home = tmp_path / str(seed)
        home.mkdir()
        draws, votes = [], []
        for number, count in enumerate((12, 40, 9)):  # nobody has answered the last
            drawn = draw_audit(pairs, count, seed * 3 + number).assign(audit=f"d{number}", seed=seed, round=number)
            drawn["first_id"], drawn["second_id"] = "c" + drawn["pair_id"], "r" + drawn["pair_id"]
            draws += drawn[list(schemas.SCHEMAS["audit_pairs"].names)].to_dict("records")
            if number < 2:
                votes += [
                    {
                        "pair_id": key,
                        "person": "p",
                        "preferred_id": ("c" if right[key] else "r") + key,
                        "audit": f"d{number}",
                    }
                    for key in drawn["pair_id"]
                ]
        write_parquet(schemas.table(draws, "audit_pairs"), audit_file(home))
        keep_answers(home, votes)
        audit = audit_of_home(home)
        assert audit["weight"].sum() == pytest.approx(len(pairs))
        assert audit["pair_id"].is_unique
        estimates.append((audit["weight"] * audit["better_id"].str.startswith("c")).sum())
    assert abs(np.mean(estimates) - right.sum()) < 4 * np.std(estimates) / np.sqrt(len(estimates))


@pytest.mark.parametrize("content", [b"", b"garbage", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_damaged_table_of_drawn_pairs_is_reported_with_what_to_do(
    store: Store, tmp_path: Path, content: bytes
) -> None:
    audit_file(store.home).write_bytes(content)
    for call in (lambda: audit_of_home(store.home), lambda: export_round_audit(store, "0", tmp_path / "out")):
        with pytest.raises(AuditError, match=r"audit_pairs\.parquet cannot be read: (?s:.*) bring a copy of it back"):
            call()


def test_an_empty_round_is_refused(store: Store, tmp_path: Path) -> None:
    empty = Artifact({"pairs": schemas.table([], "pairs"), "prompts": schemas.table([], "prompts")})
    store.write("voted_pairs", empty, "k", "1")
    with pytest.raises(AuditError, match="round 1 has no pair"):
        export_round_audit(store, "1", tmp_path / "out")
