"""People's votes: exported for two tools, read back, kept, and decisive."""

from __future__ import annotations

import base64
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dt2it_pipeline.config.sections.curation import CurationSettings
from dt2it_pipeline.curate.policies.choice import make_policy
from dt2it_pipeline.curate.policies.policy import Anchor
from dt2it_pipeline.curate.published_algorithm import decide_by_people
from dt2it_pipeline.curate.tables import to_frame, to_table
from dt2it_pipeline.export import export_pairs
from dt2it_pipeline.human_review.answers import (
    CANCELLED,
    DISCARDED,
    DRAFTS,
    NO_CHOICE,
    SEVERAL_CHOICES,
    AnswersError,
    keep_answers,
    people_votes,
    read_answers,
    unknown_pairs,
)
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline_tests.support.commands import dt2it, failing
from dt2it_pipeline_tests.support.construct_world import prompt_row


@pytest.fixture
def pairs(tmp_path: Path) -> pd.DataFrame:
    """Four contested pairs, exported in both formats below tmp_path."""
    prompts = [prompt_row(tmp_path, color, f"<b>what</b> & {color}?") for color in ("red", "blue", "green", "teal")]
    rows = [records.make_pair(p["prompt_id"], f"good {i}", f"bad {i}", source="s") for i, p in enumerate(prompts)]
    table = schemas.table([row | {"strength": 0.5} for row in rows], "pairs")
    for name in ("label_studio", "argilla"):
        done = export_pairs(table, schemas.table(prompts, "prompts"), tmp_path, tmp_path / name, name)
        assert (done.pairs, done.quarantine.num_rows) == (4, 0)
    return to_frame(table)


def answered(folder: Path, entries: list[dict[str, Any]]) -> Path:
    (folder / "answers.json").write_text(json.dumps(entries))
    return folder / "answers.json"


def side_of(entry: dict[str, Any], text: str) -> str:
    """What a person clicks who prefers the answer that begins so."""
    fields = entry.get("data") or entry["fields"]
    return "first" if fields["first"].startswith(text) else "second"


def label_studio(entry: dict[str, Any], *given: tuple[Any, str, str]) -> dict[str, Any]:
    """A task as Label Studio exports it; `given` is person, choice and time."""
    annotations = [
        {
            "completed_by": person,
            "was_cancelled": choice == "cancelled",
            "updated_at": when,
            "result": [{"from_name": "better", "to_name": "prompt", "type": "choices", "value": {"choices": [choice]}}],
        }
        for person, choice, when in given
    ]
    return entry | {"id": 7, "annotations": annotations}


def test_tasks_show_images_and_both_answers_and_no_label(pairs, tmp_path):
    for name, file, inside in (("label_studio", "tasks.json", "data"), ("argilla", "records.json", "fields")):
        entries = json.loads((tmp_path / name / file).read_text())
        firsts = set()
        for entry, pair in zip(entries, pairs.to_dict("records"), strict=True):
            fields = entry[inside]
            assert {fields["first"], fields["second"]} == {pair["chosen"], pair["rejected"]}
            image = fields["prompt"].split("base64,")[1].split('"')[0]
            assert base64.b64decode(image).startswith(b"\x89PNG")
            assert "&lt;b&gt;what&lt;/b&gt; &amp;" in fields["prompt"]
            assert "chosen" not in json.dumps(entry)
            firsts.add(fields["first"] == pair["chosen"])
        assert firsts == {True, False}  # the place says nothing
    assert 'toName="prompt"' in (tmp_path / "label_studio/labeling.xml").read_text()
    settings = json.loads((tmp_path / "argilla/.argilla/settings.json").read_text())
    assert [option["value"] for option in settings["questions"][0]["settings"]["options"]] == ["first", "second", "tie"]


def test_label_studio_answers_come_back_as_votes(pairs, tmp_path):
    tasks = json.loads((tmp_path / "label_studio/tasks.json").read_text())
    good, bad = ([side_of(task, text) for task in tasks] for text in ("good", "bad"))
    file = answered(
        tmp_path,
        [
            label_studio(
                tasks[0],
                (1, bad[0], "2026-01-02T02:00:00Z"),
                (1, good[0], "2026-01-02T10:00:00+09:00"),  # an hour before
                (2, bad[0], "2026-01-01"),
            ),
            label_studio(tasks[1], ({"id": 3, "email": "a@b.c"}, "tie", ""), (1, "cancelled", "")),
            label_studio(tasks[2], (1, good[2], ""), (2, "no idea", "")),
            label_studio(tasks[3]),
            {"annotations": [], "data": {}},
        ],
    )
    found = read_answers(file)
    ids = pairs["pair_id"].tolist()
    assert [(row["pair_id"], row["preferred_id"]) for row in found.votes] == [
        (ids[0], pairs["rejected_id"][0]),
        (ids[0], pairs["rejected_id"][0]),  # the later of two answers
        (ids[1], None),
        (ids[2], pairs["chosen_id"][2]),
    ]
    assert found.votes[1]["person"] == found.votes[3]["person"] != found.votes[0]["person"]
    assert "a@b.c" not in str(found.votes)
    assert [place for place, _ in found.unusable] == ["entry 2", "entry 4"]
    assert found.unfinished == {CANCELLED: 1}
    assert "'no idea'" in found.unusable[0][1]


def test_an_answer_without_a_choice_or_with_two_is_no_vote_and_is_named(pairs, tmp_path):
    tasks = json.loads((tmp_path / "label_studio/tasks.json").read_text())
    entries = [label_studio(task, (1, "first", "2026-01-01"), (2, "first", "2026-01-02")) for task in tasks]
    entries[0]["annotations"][0]["result"] = []
    entries[1]["annotations"][0]["result"][0]["value"] = {"choices": []}
    entries[2]["annotations"][0]["result"][0]["value"]["choices"] = ["first", "tie"]
    entries[3]["annotations"][0]["result"] *= 2  # the same choice twice is one
    other = {**entries[3]["annotations"][1]["result"][0], "value": {"choices": ["second"]}}
    entries[3]["annotations"][1]["result"] = [*entries[3]["annotations"][1]["result"], other]
    file, ids = answered(tmp_path, entries), pairs["pair_id"].tolist()
    found = read_answers(file)
    assert len(found.votes) == 3 + 1
    assert found.unusable == [
        (f"entry 0, pair {ids[0]}", NO_CHOICE),
        (f"entry 1, pair {ids[1]}", NO_CHOICE),
        (f"entry 2, pair {ids[2]}", f"{SEVERAL_CHOICES}: first and tie"),
        (f"entry 3, pair {ids[3]}", f"{SEVERAL_CHOICES}: first and second"),
    ]
    printed = dt2it("review", "import", file, "--home", tmp_path)
    assert f"no vote: 2 answers: no choice was made (entry 0, pair {ids[0]}; entry 1, pair {ids[1]})" in printed
    assert f"no vote: entry 2, pair {ids[2]}: more than one choice was made: first and tie" in printed


def test_a_person_under_several_ids_of_one_export_is_one_voter(pairs, tmp_path):
    tasks = json.loads((tmp_path / "label_studio/tasks.json").read_text())
    people = [3, {"id": 3, "email": "Ann@b.c"}, {"id": 8, "email": "ann@b.c "}, 5]
    entries = [label_studio(task, (who, "first", "2026-01-01")) for task, who in zip(tasks, people, strict=True)]
    assert len({row["person"] for row in read_answers(answered(tmp_path, entries)).votes}) == 2
    entries[3]["annotations"][0]["created_username"] = " ann@b.c, 5"
    assert len({row["person"] for row in read_answers(answered(tmp_path, entries)).votes}) == 1
    entries[3]["annotations"][0]["created_username"] = " ann@b.c, 6"  # of somebody else than `completed_by`
    assert len({row["person"] for row in read_answers(answered(tmp_path, entries)).votes}) == 2
    both = label_studio(tasks[0], (3, "first", "2026-01-01"), (people[1], "second", "2026-01-02"))
    (vote,) = read_answers(answered(tmp_path, [both])).votes
    assert vote["preferred_id"] == tasks[0]["data"]["second_id"]


def test_submitted_answers_of_argilla_count_and_others_are_counted(pairs, tmp_path):
    entries = json.loads((tmp_path / "argilla/records.json").read_text())
    given = [
        [("first", "submitted"), ("second", "draft"), ("second", "discarded"), (None, "discarded")],
        [("first", "draft")],
        [("first", "submitted"), (None, "submitted"), (["first", "tie"], "submitted"), ("first", "new")],
        [("first", None), ("second", None)],
    ]
    for entry, answers, status in zip(entries, given, ("pending", "pending", "completed", "completed"), strict=True):
        rows = [{"value": value, "user_id": f"p{n}", "status": said} for n, (value, said) in enumerate(answers)]
        entry |= {"responses": {"better": rows}, "status": status}
    for row in entries[3]["responses"]["better"]:
        del row["status"]  # as earlier versions write it
    found = read_answers(answered(tmp_path, entries))
    assert [row["pair_id"] for row in found.votes] == [pairs["pair_id"][place] for place in (0, 2, 3, 3)]
    assert found.unfinished == {DRAFTS: 2, DISCARDED: 2}
    assert [reason.partition(":")[0] for _, reason in found.unusable] == [
        NO_CHOICE, SEVERAL_CHOICES, "an answer is malformed"
    ]  # fmt: skip
    assert "its status is 'new'" in found.unusable[2][1]


def test_a_malformed_answer_costs_itself_alone_and_a_nameless_one_is_somebody(pairs, tmp_path):
    task = json.loads((tmp_path / "label_studio/tasks.json").read_text())[0]
    entry = label_studio(task, *[(None, "first", "2026-01-01")] * 4)
    for number, annotation in enumerate(entry["annotations"]):
        annotation["id"] = number
    entry["annotations"][1]["result"] = None
    entry["annotations"][2]["updated_at"] = "yesterday"
    found = read_answers(answered(tmp_path, [entry]))
    assert len({row["person"] for row in found.votes}) == len(found.votes) == 2
    assert [place for place, _ in found.unusable] == ["entry 0"] * 2


def test_an_id_that_is_no_text_costs_its_entry_and_a_byte_order_mark_nothing(pairs, tmp_path):
    tasks = json.loads((tmp_path / "label_studio/tasks.json").read_text())[:2]
    tasks[0]["data"]["pair_id"] = "\ud800"
    entries = [label_studio(task, (1, "first", "2026-01-01")) for task in tasks]
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(entries).encode())
    printed = dt2it("review", "import", tmp_path / "marked.json", "--home", tmp_path)
    assert (
        "1 vote of 1 person on 1 pair;" in printed and "no vote: entry 0: not as the tool exports it: an id" in printed
    )
    assert r"'\ud800'" in printed


def test_two_imports_at_once_lose_no_vote(tmp_path):
    command = "import sys; from pathlib import Path; from dt2it_pipeline.human_review.answers import keep_answers\n"
    command += "for n in range(15): keep_answers(Path(sys.argv[1]), [dict(pair_id=f'{sys.argv[2]}{n}', person='p', "
    command += "preferred_id=None)])"
    started = [subprocess.Popen([sys.executable, "-c", command, str(tmp_path), name]) for name in "ab"]
    assert [process.wait(120) for process in started] == [0, 0]
    assert keep_answers(tmp_path, []) == 30


@pytest.mark.parametrize("content", [b"", b"garbage", b"PAR1" + bytes(100) + b"PAR1"])
def test_damaged_votes_are_reported_with_what_to_do(pairs, tmp_path, content):
    (tmp_path / "people_votes.parquet").write_bytes(content)
    with pytest.raises(AnswersError, match=r"people_votes\.parquet cannot be read: (?s:.*) bring a copy of it back"):
        people_votes(tmp_path, pairs)
    file = answered(tmp_path, json.loads((tmp_path / "argilla/records.json").read_text()))
    printed = failing("review", "import", file, "--home", tmp_path)
    assert printed.startswith("the file of people's votes")
    assert "there is no artifact home" in failing("review", "import", file, "--home", tmp_path / "nowhere")


def test_people_decide_the_pairs_that_they_voted_on_whichever_side_is_chosen_by_then(pairs, tmp_path):
    entries = json.loads((tmp_path / "argilla/records.json").read_text())
    home = tmp_path / "home"
    home.mkdir()
    given = {0: ["good", "good", "bad"], 1: ["good", "bad"], 2: ["bad"]}
    for place, texts in given.items():
        answers = [{"value": side_of(entries[place], text), "user_id": f"p{n}"} for n, text in enumerate(texts)]
        entries[place] |= {"responses": {"better": answers}, "status": "completed"}
    entries[3]["responses"] = {"better": [{"value": "first", "user_id": "p0"}]}  # a draft: the record is pending
    printed = dt2it("review", "import", answered(tmp_path, entries), "--home", home)
    assert "6 votes of 3 people on 3 pairs" in printed and "no vote: records that are not completed: 1" in printed
    ids = pairs["pair_id"].tolist()
    assert f"pairs voted on that are in no round of {home}: 3, for example {ids[0]}" in printed
    for name, part in (("contested_pairs", pairs.iloc[1:3]), ("verified_pairs", pairs.iloc[3:])):
        stored = Artifact({"pairs": to_table(part, "pairs"), "prompts": schemas.table([], "prompts")})
        Store(home).write(name, stored, "k", "0")
    assert unknown_pairs(home, read_answers(tmp_path / "answers.json").votes) == ids[:1]
    # Once more changes nothing.
    again = json.loads(dt2it("review", "import", answered(tmp_path, entries), "--home", home, "--json"))
    assert (again["votes"], again["people"], again["kept_votes"], again["unknown_pairs"]) == (6, 3, 6, ids[:1])
    assert keep_answers(home, []) == 6

    swapped = pairs.rename(
        columns={"chosen": "rejected", "rejected": "chosen", "chosen_id": "rejected_id", "rejected_id": "chosen_id"}
    )
    for contested, strengths in ((pairs, [1.0, 1.0]), (swapped, [1.0, 1.0])):
        votes = people_votes(home, contested)
        assert len(set(votes["judge"].to_pylist())) == 3
        settled, rest = decide_by_people(contested, to_frame(votes))
        assert settled.annotated["chosen"].tolist() == ["good 0", "bad 2"]
        assert settled.annotated["strength"].tolist() == strengths
        assert settled.dropped["reason"].tolist() == ["votes are tied"]
        assert rest["pair_id"].tolist() == [pairs["pair_id"][3]]
        for name, strength in (("paper", 1.0), ("joint", math.log(0.98 / 0.02))):
            policy, no_margins = make_policy(CurationSettings(policy=name)), pd.Series([[]] * len(contested))
            there = contested.assign(votes=no_margins)
            made = policy.decide(there.iloc[:0], there, to_frame(votes), nobody, 1, None, Anchor())
            decided = made.annotated[made.annotated["label"] == "annotated"]
            assert decided["chosen"].tolist() == ["good 0", "bad 2"]
            assert decided["strength"].tolist() == pytest.approx([strength] * 2)
            assert "votes are tied" in made.dropped["reason"].tolist()


def nobody(asked: pd.DataFrame) -> pd.DataFrame:
    """Judges who say nothing."""
    return to_frame(schemas.table([], "votes"))


def test_no_votes_leave_every_pair_to_the_judges(pairs, tmp_path):
    settled, rest = decide_by_people(pairs, to_frame(people_votes(tmp_path, pairs)))
    assert (len(settled.annotated), len(settled.dropped)) == (0, 0)
    pd.testing.assert_frame_equal(rest, pairs)


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '[{"better": "first"}]', '[{"annotations": 1, "data": {}}]'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "answers.json").write_text(text)
    with pytest.raises(AnswersError, match=r"answers\.json"):
        read_answers(tmp_path / "answers.json")
    assert "answers.json" in failing("review", "import", tmp_path / "answers.json", "--home", tmp_path)
