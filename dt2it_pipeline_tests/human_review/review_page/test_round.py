"""The review page of a round: what people see, what they ask for, and where their answers go."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dt2it_pipeline.human_review import answers as answers_module
from dt2it_pipeline.human_review.answers import kept_votes, votes_file
from dt2it_pipeline.human_review.audit import audit_of_home, export_round_audit
from dt2it_pipeline.human_review.review_page import kept_answers as kept_module
from dt2it_pipeline.human_review.review_page import round_subject
from dt2it_pipeline.human_review.review_page import subject as subject_module
from dt2it_pipeline.human_review.review_page.catalogue import Margins
from dt2it_pipeline.human_review.review_page.kept_answers import give, give_note
from dt2it_pipeline.human_review.spreadsheet import named_person
from dt2it_pipeline.human_review.tasks import shown_sides
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.atomic import StoreError
from dt2it_pipeline_tests.support.review_world import HOSTILE, WORDS, Reader, make_benchmark, make_round

ANN, BOB = named_person("Ann"), named_person("bob")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A finished round, which tests get copies of."""
    folder = tmp_path_factory.mktemp("round")
    return folder, make_round(folder)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def pairs(home: Path, made: tuple[Path, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    shutil.copytree(made[0], home)
    return made[1]


@pytest.fixture
def reader(home: Path, pairs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setattr(subject_module, "_LOOK_AGAIN", 0.0)
    return Reader.of_round(home, count=5)


def test_a_pair_shows_its_label_before_and_after_and_everybodys_word(reader: Reader, pairs: list[Any]) -> None:
    turned, kept = reader.get("pair", id=pairs[2]["pair_id"]), reader.get("pair", id=pairs[4]["pair_id"])
    assert (turned["outcome"], turned["given"], turned["now"]) == (
        "flipped", pairs[2]["chosen_id"], pairs[2]["rejected_id"]
    )  # fmt: skip
    # Margins and verdicts are on the sides as given, whatever the vote has turned.
    assert [(vote["voter"], vote["margin"]) for vote in turned["margins"]] == [("seed/1", 0.0), ("seed/2", 1.0)]
    saw = max(pairs[2]["chosen_id"], pairs[2]["rejected_id"])
    assert turned["verdicts"] == [
        {"judge": "one", "order": "reversed", "shown_first": saw, "verdict": "rejected", "words": WORDS, "fault": ""}
    ]
    assert kept["verdicts"][0]["verdict"] == "chosen" and kept["contested"] and kept["row_id"] == "line 4"
    assert kept["probability"] == pytest.approx(0.1192, abs=1e-4)  # of a log-odds of -2
    dropped = reader.get("pair", id=pairs[3]["pair_id"])
    assert [(vote["order"], vote["shown_first"] is None, vote["fault"]) for vote in dropped["verdicts"]] == [
        ("reversed", False, ""), ("alone", True, "no reply")
    ]  # fmt: skip
    assert (dropped["outcome"], dropped["now"]) == ("dropped", None)
    assert dropped["why"] == {
        "stage": "annotated_pairs", "reason": "not sure enough", "detail": "55% likely right"
    }  # fmt: skip
    for side in ("first", "second"):
        text = "".join(part for _, part in dropped[side]["parts"])
        assert text == {row["chosen_id"]: row["chosen"] for row in pairs}.get(dropped[side]["id"], pairs[3]["rejected"])


def test_filters_sorts_and_searches_run_on_the_server(reader: Reader, pairs: list[Any]) -> None:
    ids = [row["pair_id"] for row in pairs]
    assert reader.ids(sort="table") == ids
    assert reader.ids(sort="wrong")[:2] == [ids[7], ids[6]]
    assert reader.ids(outcome="flipped") == [ids[2]] and reader.ids(outcome="flipped,dropped", sort="table") == ids[2:4]
    assert reader.ids(outcome="contested", sort="table") == ids[3:5]
    assert reader.ids(source="b", sort="table") == [ids[3], ids[5], ids[7]]
    assert reader.ids(disagree="1", sort="table") == ids[3:]
    assert reader.ids(length="shorter", sort="table") == [ids[3], ids[5], ids[7]]
    assert reader.ids(low="0.5", sort="table") == [ids[0], ids[1], ids[2]] and reader.ids(high="0.01") == [ids[7]]
    assert reader.ids(search="QUESTION 6") == [ids[6]] and reader.ids(search="number 5,") == [ids[5]]
    assert reader.ids(search=ids[4]) == [ids[4]] and reader.ids(search="nothing has this") == []
    assert reader.ids(search="<script>") == [ids[1]] and reader.ids(search=".*") == []
    assert reader.ids(script="Latin", limit=2, offset=3, sort="table") == ids[3:5]
    for wrong in ({"sort": "x"}, {"low": "2"}, {"low": "nan"}, {"outcome": "x"}, {"limit": 999}, {"offset": -1}):
        assert reader.get("pairs", 400, **wrong)["error"]


def test_answers_are_kept_at_once_and_two_peoples_answers_both_count(reader: Reader, pairs: list[Any]) -> None:
    home, row = Path(reader_home(reader)), pairs[0]
    (first, _), (second, _) = shown_sides(row)
    reader.post("answer", id=row["pair_id"], choice="first")
    Reader(subject_of(reader), "Bob ").post("answer", id=row["pair_id"], choice="second")
    assert {(vote["person"], vote["preferred_id"], vote["audit"]) for vote in kept_votes(home)} == {
        (ANN, first, None), (BOB, second, None)
    }  # fmt: skip
    shown = reader.get("pair", id=row["pair_id"])
    assert shown["mine"] == first and {each["person"] for each in shown["people"]} == {ANN, BOB}
    assert reader.get("state")["answers"] == {"votes": 2, "people": 2, "pairs": 1}
    reader.post("answer", id=row["pair_id"], choice="tie")
    assert reader.get("pair", id=row["pair_id"])["mine"] == "tie"
    assert reader.post("undo")["id"] == row["pair_id"] and reader.get("pair", id=row["pair_id"])["mine"] == first
    reader.post("undo")
    assert [vote["person"] for vote in kept_votes(home)] == [BOB]
    assert "nothing to take back" in reader.post("undo", 409)["error"]


def test_undo_goes_on_after_the_server_was_started_again(reader: Reader, home: Path, pairs: list[Any]) -> None:
    one, two, gone = (pairs[place]["pair_id"] for place in (0, 1, 7))
    bob = Reader(subject_of(reader), "Bob")
    reader.post("answer", id=one, choice="first")
    bob.post("answer", id=one, choice="second")
    reader.post("answer", id=one, choice="tie")
    reader.post("answer", id=two, choice="skip")
    reader.post("answer", id=gone, choice="second")
    make_round(home, 5, "k2")
    again = Reader.of_round(home)
    assert again.post("undo") == {"id": gone, "gone": True}  # of a pair that is gone, nothing is left
    assert again.post("undo") == {"id": two, "gone": False} and again.get("pair", id=two)["mine"] is None
    third = Reader.of_round(home)
    third.post("undo")
    assert third.get("pair", id=one)["mine"] == shown_sides(pairs[0])[0][0]
    assert {vote["person"] for vote in kept_votes(home)} == {ANN, BOB}  # the other reviewer's answer stays
    third.post("undo")
    assert "nothing to take back" in third.post("undo", 409)["error"]
    assert [(vote["person"], vote["pair_id"]) for vote in kept_votes(home)] == [(BOB, one)]
    assert Reader.of_round(home, "Bob").post("undo")["id"] == one and kept_votes(home) == []


def test_undo_leaves_what_was_changed_elsewhere_and_what_was_never_kept(
    reader: Reader, home: Path, pairs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pairs[0]["pair_id"], pairs[1]["pair_id"]
    reader.post("answer", id=two, choice="first")
    reader.post("answer", id=one, choice="first")
    imported = {"pair_id": one, "person": ANN, "preferred_id": None, "audit": None}
    answers_module.keep_answers(home, [imported])
    assert "changed elsewhere" in reader.post("undo", 409)["error"]
    assert [vote["preferred_id"] for vote in kept_votes(home) if vote["pair_id"] == one] == [None]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # the journal knows of the answer, and it was not kept
        patched.setattr(kept_module, "keep_answers", killed)
        with pytest.raises(KeyboardInterrupt):
            give(subject_of(reader).answers, {**imported, "preferred_id": "x"}, None)
    with (home / "review_journal.jsonl").open("ab") as stream:
        stream.write(b'{"pair_id": "torn')
    assert Reader.of_round(home).post("undo")["id"] == two
    assert [vote["pair_id"] for vote in kept_votes(home)] == [one]


def test_all_media_of_a_pair_are_shown(reader: Reader, home: Path, pairs: list[Any]) -> None:
    row = pairs[5]["pair_id"]
    assert reader.get("pair", id=row)["media"] == ["image", "image", "video"]
    assert next(each for each in reader.get("pairs")["rows"] if each["id"] == row)["media"][-1] == "video"

    def shown(number: int) -> Any:
        return reader.client.get("/api/image", params={"pair": row, "n": number, "size": "small"})

    assert len({shown(number).content for number in range(3)}) == 3
    assert all(shown(number).content.startswith(b"\x89PNG") for number in range(3))
    shutil.rmtree(home / "media" / "clip")
    refused = Reader.of_round(home).client.get("/api/image", params={"pair": row, "n": 2, "size": "small"})
    assert refused.status_code == 404 and "missing video" in refused.json()["error"]


def test_skipped_pairs_and_bad_images_are_noted_and_taken_back(reader: Reader, pairs: list[Any]) -> None:
    home, (one, two) = reader_home(reader), (pairs[0]["pair_id"], pairs[1]["pair_id"])
    reader.post("answer", id=one, choice="skip")
    reader.post("answer", id=two, choice="bad_image")
    notes = home / "review_notes.jsonl"
    with notes.open("ab") as stream:
        stream.write(b'{"pair_id": "torn')  # a server that was killed while it wrote
    assert [reader.get("pair", id=each)["mine"] for each in (one, two)] == ["skip", "bad_image"]
    reader.post("undo")
    assert reader.get("pair", id=two)["mine"] is None and not votes_file(home).exists()
    again = Reader.of_round(home)
    assert [again.get("pair", id=each)["mine"] for each in (one, two)] == ["skip", None]
    assert Reader.of_round(home, "Bob").get("pair", id=one)["mine"] is None


@pytest.mark.parametrize("note", ["skip", "bad_image"])
def test_a_note_on_an_answered_pair_takes_the_answer_back(reader: Reader, pairs: list[Any], note: str) -> None:
    home, one = reader_home(reader), pairs[0]["pair_id"]
    Reader(subject_of(reader), "Bob").post("answer", id=one, choice="second")
    assert not reader.post("answer", id=one, choice="bad_image")["taken_back"]
    assert not reader.post("answer", id=one, choice="first")["taken_back"]
    assert reader.post("answer", id=one, choice=note)["taken_back"]
    assert [vote["person"] for vote in kept_votes(home)] == [BOB]  # nobody else's answer
    assert reader.get("pair", id=one)["mine"] == note and reader.get("state")["mine"] == 0
    assert not reader.post("answer", id=one, choice=note)["taken_back"]
    reader.post("undo")
    again = Reader.of_round(
        home
    )  # one undo gives the answer back, after a new start, too; further ones what was before
    assert again.post("undo") == {"id": one, "gone": False}
    assert again.get("pair", id=one)["mine"] == shown_sides(pairs[0])[0][0]
    assert {vote["person"] for vote in kept_votes(home)} == {ANN, BOB}
    again.post("undo")
    assert again.get("pair", id=one)["mine"] == "bad_image"
    again.post("undo")
    assert again.get("pair", id=one)["mine"] is None and "nothing to take back" in again.post("undo", 409)["error"]


def test_an_answer_of_the_audit_is_taken_back_by_skip_and_given_back_as_one(reader: Reader) -> None:
    one = reader.get("audit")["rows"][0]["id"]
    reader.post("answer", id=one, choice="first", audit=True)
    assert reader.post("answer", id=one, choice="skip", audit=True)["taken_back"]
    assert reader.get("audit")["answered"] == 0 and not len(audit_of_home(reader_home(reader)))
    assert reader.get("audit_pair", id=one)["blind"] and reader.get("audit_pair", id=one)["mine"] == "skip"
    reader.post("undo")
    assert reader.get("audit")["answered"] == 1 and audit_of_home(reader_home(reader))["pair_id"].tolist() == [one]


@pytest.mark.parametrize("fails", ["note", "vote"])
def test_a_server_that_ends_while_a_note_takes_an_answer_back_loses_no_answer(
    reader: Reader, home: Path, pairs: list[Any], monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    one, two = pairs[0]["pair_id"], pairs[1]["pair_id"]
    reader.post("answer", id=two, choice="tie")
    reader.post("answer", id=one, choice="first")
    answers = subject_of(reader).answers

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*((answers.notes, "add") if fails == "note" else (answers, "restore")), killed)
        with pytest.raises(KeyboardInterrupt):
            give_note(answers, one, ANN, "skip")
    again = Reader.of_round(home)
    assert again.get("pair", id=one)["mine"] == shown_sides(pairs[0])[0][0]
    assert again.post("undo")["id"] == one and again.post("undo")["id"] == two
    assert kept_votes(home) == [] and again.get("pair", id=one)["mine"] is None


def test_a_voters_margin_is_scaled_by_that_voters_margins_over_all_pairs(reader: Reader, pairs: list[Any]) -> None:
    found = {row["pair_id"]: reader.get("pair", id=row["pair_id"]) for row in pairs}
    # Of seed/1, 2 to -5: sizes 2, 1, 0, 1, 2, 3, 4, 5; of seed/2 always 1.
    scales = found[pairs[0]["pair_id"]]["margin_scales"]
    assert scales == {"seed/1": pytest.approx(4.65), "seed/2": 1.0}
    assert all(each["margin_scales"] == scales for each in found.values())


def test_margins_come_in_parts_and_those_that_are_nearly_all_none_have_a_scale() -> None:
    def rows(*margins: dict[str, float]) -> pa.Array:
        kind = pa.list_(pa.struct([("voter", pa.string()), ("margin", pa.float32())]))
        return pa.array([[{"voter": v, "margin": m} for v, m in row.items()] for row in margins], kind)

    seen = Margins()
    assert seen.add(rows({"a": 1.0, "b": -1.0}, {}, {"a": 2.0, "b": 0.0})).tolist() == [True, False, False]
    assert seen.add(rows(*[{"b": 0.0, "c": 0.0}] * 98, {"a": -3.0})).tolist() == [False] * 99
    assert seen.scales() == {"a": pytest.approx(2.9), "b": 1.0}
    assert Margins().scales() == {} and Margins().add(rows()).tolist() == []


def test_an_answer_needs_a_name_a_known_pair_and_a_known_choice(reader: Reader, pairs: list[Any]) -> None:
    one = pairs[0]["pair_id"]
    assert "needs your name" in reader.post("answer", 400, id=one, choice="first", person="  ")["error"]
    assert "one of" in reader.post("answer", 400, id=one, choice="best")["error"]
    assert "one of" in reader.post("answer", 400, id=[one], choice="first")["error"]
    assert "gone" in reader.post("answer", 410, id="0" * 32, choice="first")["error"]
    assert reader.get("pair", 404, id="../../etc/passwd")["error"]
    assert not votes_file(reader_home(reader)).exists()


def test_the_audit_is_the_draw_of_review_sample_and_is_blind(reader: Reader, pairs: list[Any], tmp_path: Path) -> None:
    home = reader_home(reader)
    audit = reader.get("audit")
    drawn = export_round_audit(Store(home), "0", tmp_path / "out", 5, seed=0).sample
    assert audit["audit"] == drawn["audit"][0].as_py()
    assert [row["id"] for row in audit["rows"]] == drawn["pair_id"].to_pylist()
    one = audit["rows"][0]["id"]
    blind = reader.get("audit_pair", id=one)
    assert set(blind) == {"id", "seen", "turns", "media", "first", "second", "blind", "mine"} and blind["blind"]
    reader.post("answer", id=one, choice="first")  # while browsing: it is no answer of the audit
    assert reader.get("audit_pair", id=one)["blind"] and reader.get("audit")["answered"] == 0
    assert not len(audit_of_home(home))
    reader.post("answer", id=one, choice="second", audit=True)
    told = reader.get("audit_pair", id=one)
    assert not told["blind"] and told["given"] and told["people"][0]["audit"]
    assert Reader(subject_of(reader), "Bob").get("audit_pair", id=one)["blind"]
    table = audit_of_home(home)
    assert table["pair_id"].tolist() == [one] and table["weight"].sum() == pytest.approx(8)
    others = {row["pair_id"] for row in pairs} - {row["id"] for row in audit["rows"]}
    assert "not drawn" in reader.post("answer", 409, id=others.pop(), choice="first", audit=True)["error"]
    reader.post("answer", id=audit["rows"][1]["id"], choice="skip", audit=True)
    assert [row["mine"] for row in Reader.of_round(home, count=5).get("audit")["rows"]][1] == "skip"


def test_an_audit_goes_on_after_the_round_was_made_anew(reader: Reader, home: Path) -> None:
    before = [row["id"] for row in reader.get("audit")["rows"]]
    pairs = make_round(home, 5, "k2")
    assert Reader.of_round(home, count=4).get("audit")["drawn"] == 4  # another size is another draw
    again = Reader.of_round(home, count=5).get("audit")
    assert [row["id"] for row in again["rows"]] == before
    there = {row["pair_id"] for row in pairs}
    assert [row["gone"] for row in again["rows"]] == [one not in there for one in before]
    assert not all(row["gone"] for row in again["rows"]) and any(row["gone"] for row in again["rows"])


def test_a_page_that_was_left_open_learns_that_the_round_was_made_anew(
    reader: Reader, home: Path, pairs: list[Any]
) -> None:
    version = reader.get("pairs")["version"]
    make_round(home, 5, "k2")
    assert reader.get("pairs")["version"] != version and reader.get("state")["pairs"] == 5
    assert "gone" in reader.post("answer", 410, id=pairs[7]["pair_id"], choice="first")["error"]
    assert "Go back to the list" in reader.get("pair", 404, id=pairs[7]["pair_id"])["error"]
    reader.post("answer", id=pairs[1]["pair_id"], choice="first")
    assert len(kept_votes(home)) == 1


def test_a_damaged_round_leaves_the_state_before_and_says_so(reader: Reader, home: Path) -> None:
    make_round(home, 5, "k2")
    (home / "artifacts/curated_pairs/0/k2/pairs.parquet").write_bytes(b"PAR1")
    state = reader.get("state")
    assert state["pairs"] == 8 and "the one before" in state["problem"] and "cannot be read" in state["problem"]
    make_round(home, 5, "k3")
    subject_of(reader)._look_at = 0.0
    assert reader.get("state")["problem"] == "" and reader.get("state")["pairs"] == 5


def test_a_round_that_is_running_is_shown_as_far_as_it_has_come(home: Path) -> None:
    with pytest.raises(StoreError, match="raw_preferences has not been materialised"):
        round_subject(home, 0)
    pairs = make_round(home, finished=False)
    reader = Reader.of_round(home)
    state = reader.get("state")
    assert state["outcomes"]["undecided"] == 8 and "8 pairs have no outcome yet" in state["notes"][0]
    assert reader.get("pair", id=pairs[2]["pair_id"])["why"]["reason"] == "no step has decided about it yet"
    assert reader.get("benchmark", 503)["error"]


def test_a_full_disk_keeps_what_was_there_and_says_so(
    reader: Reader, home: Path, pairs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.post("answer", id=pairs[0]["pair_id"], choice="first")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(answers_module, "write_parquet", full)
        refused = reader.post("answer", 507, id=pairs[1]["pair_id"], choice="first")["error"]
        assert "The disk is full" in refused and "NOT kept" in refused
        assert "NOT kept" in reader.post("undo", 507)["error"]
    assert [vote["pair_id"] for vote in kept_votes(home)] == [pairs[0]["pair_id"]]
    assert reader.post("undo")["id"] == pairs[0]["pair_id"] and kept_votes(home) == []


def test_quarantine_and_benchmark_have_galleries(reader: Reader, home: Path) -> None:
    make_benchmark(home)
    found = reader.get("quarantine")
    assert [(row["stage"], row["reason"], row["rows"]) for row in found["reasons"]] == [
        ("annotated_pairs", "not sure enough", 1), ("raw", "missing image", 1)
    ]  # fmt: skip
    assert reader.get("quarantine", reason="missing image")["rows"][0]["detail"] == HOSTILE
    assert reader.get("quarantine", reason="not sure enough")["rows"][0]["known"]
    errors = reader.get("benchmark")
    assert (errors["total"], errors["measured"], errors["rows"][0]["item_id"]) == (1, 2, "item 0")
    image = reader.client.get("/api/image", params={"benchmark": 0, "n": 0, "size": "small"})
    assert image.content.startswith(b"\x89PNG")


def test_a_damaged_table_of_a_gallery_is_named(reader: Reader, home: Path) -> None:
    make_benchmark(home)
    files = [*home.glob("artifacts/raw_preferences/*/quarantine.parquet"), *home.glob("artifacts/raw_benchmarks/*/p*")]
    for file in files:
        file.write_bytes(b"junk")
    for name, file in zip(("quarantine", "benchmark"), files, strict=True):
        refused = reader.get(name, 503)["error"]
        assert f"{file} cannot be read" in refused and "dt2it doctor" in refused


def subject_of(reader: Reader) -> Any:
    """The subject of a reader's application."""
    for route in reader.client.app.routes:  # type: ignore[attr-defined]
        if route.path == "/api/image":
            return route.endpoint.__self__._subject
    raise AssertionError


def reader_home(reader: Reader) -> Path:
    return Path(subject_of(reader).answers._home)
