"""The review page of a table of one's own: outcomes of `dt2it clean`, images, and files of answers that it takes."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from dt2it_pipeline.human_review.review_page import OwnTable, table_subject
from dt2it_pipeline.human_review.review_page import subject as subject_module
from dt2it_pipeline.human_review.review_page.row_file import ReviewError
from dt2it_pipeline.human_review.spreadsheet import AuditError
from dt2it_pipeline.judges.pairwise_votes import MOST_WORDS
from dt2it_pipeline_tests.support.commands import dt2it, failing
from dt2it_pipeline_tests.support.review_world import HOSTILE, Reader
from dt2it_pipeline_tests.support.tiny import make_video_file

COUNT = 100


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Pairs without ids, of which every fifth label is wrong by the scores; some of the images are not there."""
    for name in ("red", "blue"):
        (tmp_path / "media").mkdir(exist_ok=True)
        Image.new("RGB", (30, 20), name).save(tmp_path / "media" / f"{name}.png")
    Image.new("RGB", (9, 9), "green").save(tmp_path / "secret.png")
    images = ["red.png", "../secret.png", "missing.png", "blue.png"]
    rows = range(COUNT)
    pd.DataFrame(
        {
            "chosen": [f"It is {n}.{HOSTILE if n == 1 else ''}" for n in rows],
            "rejected": [f"It is not {n}." for n in rows],
            "prompt": [f"<image> question {n}" for n in rows],
            "image": [images[n % 4] for n in rows],
            "good": [0.0 if n % 5 == 0 else 3.0 for n in rows],
            "bad": [3.0 if n % 5 == 0 else 0.0 for n in rows],
        }
    ).to_csv(tmp_path / "pairs.csv", index=False)
    return tmp_path / "pairs.csv"


def cleaned(table: Path, *more: object) -> Path:
    """The table, cleaned."""
    output = table.parent / "cleaned"
    dt2it("clean", table, "--output", output, "--chosen-score", "good", "--rejected-score", "bad", *more)
    return output


def test_outcomes_of_a_cleaning_are_shown(table: Path) -> None:
    reader = Reader(table_subject(OwnTable(table, cleaned(table))))
    state = reader.get("state")
    dropped = reader.ids(outcome="dropped")
    outcomes = pd.read_parquet(table.parent / "cleaned" / "outcomes.parquet")
    told = outcomes.loc[outcomes["outcome"] == "dropped", "pair_id"].astype(str).tolist()
    assert sorted(dropped) == sorted(told) and len(told) >= 15
    assert state["outcomes"]["dropped"] == len(told) and state["outcomes"]["kept"] == COUNT - len(told)
    shown = reader.get("pair", id=dropped[0])
    margins = [(pair_id, reader.get("pair", id=pair_id)["margins"]) for pair_id in told]
    assert margins == [(each, [{"voter": "good", "margin": 3.0 if int(each) % 5 else -3.0}]) for each in told]
    assert shown["margin_scales"] == {"good": 3.0}
    assert shown["now"] is None and shown["why"]["reason"] and shown["probability"] < 0.6
    assert reader.ids(search="<script>") == ["1"]
    assert (
        "no quarantined rows" in reader.get("quarantine")["note"] and "no benchmark" in reader.get("benchmark")["note"]
    )


def test_markers_of_a_table_stand_for_the_media_that_its_row_names(table: Path, tmp_path: Path) -> None:
    """Where there are as many of each; else they are text, as in a question about the characters."""
    questions = {
        "<image> What is it?": ("red.png", [["image", "<image>"], ["text", " What is it?"]], "What is it?"),
        "Is it like <image>?": (
            "red.png",
            [["text", "Is it like "], ["image", "<image>"], ["text", "?"]],
            "Is it like ?",
        ),
        "What is an <image> tag?": ("", [["text", "What is an <image> tag?"]], "What is an <image> tag?"),
        "Is <image> or <image> in SVG?": (
            "red.png",
            [["text", "Is <image> or <image> in SVG?"]],
            "Is <image> or <image> in SVG?",
        ),
        "No marker": ("red.png", [["text", "No marker"]], "No marker"),
    }
    own = tmp_path / "own.csv"
    rows = [{"prompt": text, "image": image} for text, (image, _, _) in questions.items()]
    pd.DataFrame(rows).assign(chosen="yes", rejected="no").to_csv(own, index=False)
    for media in (tmp_path / "media", None):  # what a marker stands for does not depend on whether it is shown
        reader = Reader(table_subject(OwnTable(own, media=media)))
        cards = {row["id"]: row["prompt"] for row in reader.get("pairs", sort="table")["rows"]}
        for number, (image, pieces, card) in enumerate(questions.values()):
            shown = reader.get("pair", id=str(number))
            assert shown["turns"] == [{"role": "prompt", "pieces": pieces}]
            assert shown["media"] == (["image"] if image and media else []) and cards[str(number)].strip() == card


def test_a_cleaned_table_shows_everybodys_word_as_a_round_does(table: Path, tmp_path: Path) -> None:
    long = "y" * (MOST_WORDS + 1)
    votes = [
        {"pair_id": 0, "judge": "one", "order": "forward", "verdict": "rejected", "words": HOSTILE},
        {"pair_id": 0, "judge": "two", "order": "reversed", "verdict": None, "fault": "reply cut off"},
        {"pair_id": 3, "judge": "one", "order": "forward", "verdict": "tie", "words": long},
        {"pair_id": 4, "judge": "two", "order": "reversed", "verdict": "chosen", "words": None},
    ]
    pd.DataFrame(votes).to_json(tmp_path / "votes.jsonl", orient="records", lines=True)
    folder = cleaned(table, "--votes", tmp_path / "votes.jsonl")
    reader = Reader(table_subject(OwnTable(table, folder)))
    no, words = reader.get("pair", id="0")["verdicts"]
    if no["judge"] == "one":
        no, words = words, no
    assert (words["verdict"], words["words"], words["shown_first"]) == ("rejected", HOSTILE, None)  # no ids: not known
    assert (no["verdict"], no["fault"]) == (None, "reply cut off")
    assert reader.get("pair", id="3")["verdicts"][0]["words"].endswith("[cut here: the reply has 4,001 characters]")
    assert reader.get("state")["notes"] == ["The column `image` names images; --media FOLDER shows them."]
    outcomes = pd.read_parquet(folder / "outcomes.parquet")
    evidence = pd.read_parquet(folder / "cleaning_evidence.parquet")
    assert evidence["pair_id"].tolist() == outcomes["pair_id"].astype(str).tolist()
    assert evidence["outcome"].tolist() == outcomes["outcome"].tolist()
    kept = (outcomes["outcome"] == "kept").to_numpy()
    assert evidence["chosen_after"].notna().to_numpy().tolist() == kept.tolist()
    # A result of a version that wrote no evidence is shown without it, and the page says so.
    (folder / "cleaning_evidence.parquet").unlink()
    assert reader_of_old(table, folder)["margins"] == []
    (folder / "cleaning_evidence.parquet").write_bytes(b"PAR1")
    with pytest.raises(ReviewError, match=r"cleaning_evidence\.parquet cannot be read"):
        table_subject(OwnTable(table, folder))


def reader_of_old(table: Path, folder: Path) -> dict[str, Any]:
    """Pair 0 of a cleaning result without evidence."""
    reader = Reader(table_subject(OwnTable(table, folder)))
    assert "clean` again" in " ".join(reader.get("state")["notes"])
    return dict(reader.get("pair", id="0"))


def test_votes_on_a_pair_that_is_gone_keep_their_verdict(table: Path, tmp_path: Path) -> None:
    reader = Reader(table_subject(OwnTable(table)))
    bob = Reader(table_subject(OwnTable(table)), "Bob")
    gone = str(COUNT - 1)
    for each in (reader, bob):
        row = each.get("pair", id=gone)
        each.post("answer", id=gone, choice="first" if row["given"] == row["first"]["id"] else "second")
    bob.post("answer", id=gone, choice="tie")
    pd.read_csv(table).iloc[:-1].to_csv(table, index=False)
    again = Reader(table_subject(OwnTable(table)), "Bob")
    again.post("answer", id="3", choice="tie")
    assert "gone" in again.post("answer", 410, id=gone, choice="tie")["error"]
    again.post("undo")
    assert again.post("undo") == {"id": gone, "gone": True}
    lines = [
        json.loads(line) for line in (table.with_name("pairs.csv.review") / "votes.jsonl").read_text().splitlines()
    ]
    assert [(line["pair_id"], line["verdict"]) for line in lines] == [(gone, "chosen")] * 2


def test_one_person_on_two_servers_takes_each_answer_back_once(table: Path) -> None:
    readers = [Reader(table_subject(OwnTable(table)), who) for who in ("Ann", "Ann", "Bob")]

    def review(reader: Reader, first: int) -> None:
        for number in range(first, first + 8):
            reader.post("answer", id=str(number), choice=("first", "tie", "skip")[number % 3])
        for _ in range(5):
            reader.post("undo")

    threads = [threading.Thread(target=review, args=(reader, 8 * place)) for place, reader in enumerate(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = Reader(table_subject(OwnTable(table)))
    for _ in range(2 * 8 - 2 * 5):
        again.post("undo")
    assert "nothing to take back" in again.post("undo", 409)["error"]
    assert again.get("state")["mine"] == 0
    assert Reader(table_subject(OwnTable(table)), "Bob").get("pair", id="16")["mine"] is not None


def test_a_media_folder_that_is_not_there_is_named(table: Path, tmp_path: Path) -> None:
    said = failing("review", "serve", "--pairs", table, "--media", tmp_path / "nothere", "--port", 0)
    assert f"there is no {tmp_path / 'nothere'}" in said and "--media" in said
    (tmp_path / "broken.zip").write_text("no archive")
    said = failing("review", "serve", "--pairs", table, "--media", tmp_path / "broken.zip", "--port", 0)
    assert "cannot be read" in said and "broken.zip" in said


def test_first_frames_of_videos_are_shown_and_files_alone(table: Path, tmp_path: Path) -> None:
    """A video file, a folder of frames, and what is neither; images may be named as `datasets` writes them."""
    clip = tmp_path / "media" / "clip"
    clip.mkdir()
    for number, colour in enumerate(("green", "blue")):
        Image.new("RGB", (30, 20), colour).save(clip / f"{number}.png")
    make_video_file(tmp_path / "media" / "film.avi", 3, 2.0)
    (tmp_path / "media" / "text.mp4").write_text("no video")
    rows = pd.read_csv(table)
    rows["image"] = [{"bytes": None, "path": "red.png"}] * len(rows)
    videos = [["film.avi", "clip"], ["../clip"], ["text.mp4"], None, []]
    rows["videos"] = [videos[n % 5] for n in range(len(rows))]
    table = tmp_path / "pairs.parquet"
    rows.to_parquet(table)
    assert "the column `videos` names videos" in Reader(table_subject(OwnTable(table))).get("state")["notes"][0]
    reader = Reader(table_subject(OwnTable(table, media=tmp_path / "media")))
    assert reader.get("pair", id="0")["media"] == ["image", "video", "video"]
    assert reader.get("pair", id="3")["media"] == ["image"]

    def shown(pair: int, number: int) -> Any:
        return reader.client.get("/api/image", params={"pair": pair, "n": number, "size": "large"})

    frames = [Image.open(io.BytesIO(shown(0, number).content)).convert("RGB") for number in (1, 2)]
    assert frames[0].size == (48, 32) and frames[1].getpixel((5, 5)) == (0, 128, 0)
    assert shown(1, 1).status_code == 404 and "outside the media root" in shown(1, 1).json()["error"]
    assert shown(2, 1).status_code == 404 and "unknown video format" in shown(2, 1).json()["error"]
    with pytest.raises(ReviewError, match="no column 'film'"):
        table_subject(OwnTable(table, video="film"))


def test_an_answer_to_a_pair_that_has_changed_since_it_was_shown_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A side is edited, which may turn the order; without ids, rows move up when one is deleted."""
    monkeypatch.setattr(subject_module, "_LOOK_AGAIN", 0.0)
    table = tmp_path / "pairs.csv"
    sides = {"chosen": ["red", "one"], "rejected": ["blue", "two"]}
    rows = pd.DataFrame({"pair_id": ["a", "b"], "prompt": ["q", "r"], **sides})
    rows.to_csv(table, index=False)
    reader = Reader(table_subject(OwnTable(table)))
    seen = reader.get("pair", id="a")["seen"]
    assert reader.get("audit_pair", id="a")["seen"] == seen
    reader.post("answer", id="a", choice="first", seen=seen)
    rows.assign(chosen=["red....", "one"]).to_csv(table, index=False)
    assert reader.get("pair", id="a")["seen"] != seen
    assert "has changed" in reader.post("answer", 409, id="a", choice="first", seen=seen)["error"]
    unnamed = rows.drop(columns="pair_id")
    unnamed.to_csv(tmp_path / "unnamed.csv", index=False)
    reader = Reader(table_subject(OwnTable(tmp_path / "unnamed.csv")))
    reader.post("answer", id="0", choice="first", seen=reader.get("pair", id="0")["seen"])
    assert len(reader.get("pair", id="0")["people"]) == 1
    unnamed.iloc[1:].to_csv(tmp_path / "unnamed.csv", index=False)
    assert reader.get("pair", id="0")["people"] == []  # that was about the row that is gone


def test_images_come_from_the_media_folder_and_from_nowhere_else(table: Path) -> None:
    reader = Reader(table_subject(OwnTable(table, media=table.parent / "media")))

    def image(number: int, **more: Any) -> Any:
        return reader.client.get("/api/image", params={"pair": number, "n": 0, "size": "large", **more})

    assert image(0).headers["content-type"] == "image/png" and image(0).content.startswith(b"\x89PNG")
    assert image(1).status_code == 404 and "outside the media root" in image(1).json()["error"]
    assert image(2).status_code == 404 and "missing image" in image(2).json()["error"]
    for wrong in ({"n": 1}, {"n": "../1"}, {"n": "x"}, {"size": "../../x"}, {"pair": "../secret.png"}):
        assert image(0, **wrong).status_code in (400, 404)
    without = Reader(table_subject(OwnTable(table)))
    assert "--media" in without.get("state")["notes"][0]
    assert without.get("pair", id="0")["media"] == []


def test_answers_of_the_audit_are_what_clean_takes(table: Path) -> None:
    folder = table.parent / "answers"
    reader = Reader(table_subject(OwnTable(table), folder, count=20))
    drawn = [row["id"] for row in reader.get("audit")["rows"]]
    assert len(drawn) == 20
    for pair_id in drawn:  # a person who knows: the label is wrong where the scores say so
        row = reader.get("pair", id=pair_id)
        wrong = int(pair_id) % 5 == 0
        better = "first" if (row["given"] == row["first"]["id"]) != wrong else "second"
        reader.post("answer", id=pair_id, choice=better, audit=True)
    kept = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    assert {row["pair_id"] for row in kept} == set(drawn) and {row["weight"] for row in kept} == {5.0}
    outcomes = pd.read_parquet(cleaned(table, "--audit", folder / "audit.jsonl") / "outcomes.parquet")
    wrong = outcomes["pair_id"].astype(int) % 5 == 0
    checked = outcomes["pair_id"].astype(int).isin([int(pair_id) for pair_id in drawn])
    assert (outcomes.loc[wrong & checked, "outcome"] == "flipped").all() and (wrong & checked).any()
    # The others are flipped where that is surely better.
    assert outcomes.loc[wrong, "outcome"].isin(["flipped", "dropped"]).all()
    assert (outcomes.loc[~wrong & checked, "outcome"] == "kept").all()
    assert outcomes.loc[~wrong, "outcome"].isin(["kept", "dropped"]).all()


def test_other_answers_are_votes_that_clean_takes_and_no_audit(table: Path) -> None:
    reader = Reader(table_subject(OwnTable(table)))
    folder = table.with_name("pairs.csv.review")
    row = reader.get("pair", id="3")
    given = "first" if row["given"] == row["first"]["id"] else "second"
    reader.post("answer", id="3", choice=given)
    reader.post("answer", id="4", choice="tie")
    reader.post("answer", id="5", choice="bad_image")
    votes = [json.loads(line) for line in (folder / "votes.jsonl").read_text().splitlines()]
    assert [(vote["pair_id"], vote["verdict"]) for vote in votes] == [("3", "chosen"), ("4", "tie")]
    assert not (folder / "audit.jsonl").exists()
    assert json.loads((folder / "notes.jsonl").read_text())["note"] == "bad_image"
    dt2it("clean", table, "--output", table.parent / "c", "--votes", folder / "votes.jsonl")
    reader.post("undo"), reader.post("undo")
    assert len((folder / "votes.jsonl").read_text().splitlines()) == 1
    again = Reader(table_subject(OwnTable(table)))  # a server that was killed and started again
    assert again.get("pair", id="3")["mine"] == row["given"] and again.get("state")["mine"] == 1


def test_an_audit_answer_stays_one_when_the_pair_is_answered_again(table: Path) -> None:
    reader = Reader(table_subject(OwnTable(table), count=4))
    one = reader.get("audit")["rows"][0]["id"]
    reader.post("answer", id=one, choice="first", audit=True)
    reader.post("answer", id=one, choice="second")
    folder = table.with_name("pairs.csv.review")
    assert json.loads((folder / "audit.jsonl").read_text())["weight"] == COUNT / 4
    assert not (folder / "votes.jsonl").exists()
    reader.post("undo")
    reader.post("undo")
    assert (folder / "audit.jsonl").read_text() == ""


def test_lines_of_others_in_the_files_of_answers_stay_and_do_no_harm(
    table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = table.with_name("pairs.csv.review")
    folder.mkdir()
    foreign = {
        "votes.jsonl": [
            '{"pair_id": "3", "judge": "one", "verdict": "chosen"}',
            '{"pair_id": "3", "judge": 5}',
            "torn",
        ],
        "audit.jsonl": ['{"pair_id": "3"}', '{"pair_id": "3", "auditor": ["a"], "better_id": null, "audit": "b"}'],
        "notes.jsonl": ['{"pair_id": "3"}', '{"pair_id": "3", "person": [1], "note": {}}', "[]"],
    }
    for name, lines in foreign.items():
        (folder / name).write_text("\n".join(lines))
    reader = Reader(table_subject(OwnTable(table), count=4))
    assert reader.get("state")["answers"]["votes"] == 0 and reader.get("pair", id="3")["people"] == []
    reader.post("answer", id="3", choice="first")
    reader.post("answer", id="4", choice="skip")
    reader.post("answer", id=reader.get("audit")["rows"][0]["id"], choice="first", audit=True)
    for name, lines in foreign.items():
        found = (folder / name).read_text().splitlines()
        assert found[: len(lines)] == lines and len(found) == len(lines) + 1
    assert reader.get("state")["answers"]["votes"] == 2
    (line,) = [record.getMessage() for record in caplog.records if "is no JSON" in record.getMessage()]
    assert f"{folder / 'votes.jsonl'}: line 3" in line


def test_a_folder_of_answers_that_vanished_is_named(table: Path) -> None:
    reader = Reader(table_subject(OwnTable(table)))
    folder = table.with_name("pairs.csv.review")
    (folder / "votes.jsonl").mkdir(parents=True)
    refused = reader.get("state", 507)["error"]
    assert str(folder / "votes.jsonl") in refused and "disk" not in refused and "Make room" not in refused


@pytest.mark.parametrize("wrong", ["inf", "7", "-0.1"])
def test_a_probability_that_is_none_is_named(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "p.csv").write_text(f"pair_id,chosen,rejected,probability\na,x,y,0.5\nb,x,y,{wrong}\nc,x,y,\n")
    with pytest.raises(ReviewError, match=r"p.csv: probability of pair 'b' is .*between 0 and 1"):
        table_subject(OwnTable(tmp_path / "p.csv"))


def test_tables_that_cannot_be_shown_are_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="no column"):
        table_subject(OwnTable(table, chosen="better"))
    with pytest.raises(ReviewError, match="no column 'picture'"):
        table_subject(OwnTable(table, image="picture"))
    with pytest.raises(ReviewError, match="no readable output"):
        table_subject(OwnTable(table, tmp_path))
    twice = pd.DataFrame({"pair_id": ["a", "a"], "chosen": "x", "rejected": "y"})
    twice.to_csv(tmp_path / "twice.csv", index=False)
    with pytest.raises(ReviewError, match="there twice, the first 'a'"):
        table_subject(OwnTable(tmp_path / "twice.csv"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ReviewError, match="name another one"):
        table_subject(OwnTable(table), tmp_path / "file")
