"""Judging through an endpoint that misbehaves: nothing is lost, and only what may help is tried again."""

from __future__ import annotations

import json
import re
import time

import pytest

from dt2it_pipeline.config.sections.judging import JudgingSettings
from dt2it_pipeline.construct import judge
from dt2it_pipeline.construct.judge import JudgeJob
from dt2it_pipeline.engines.http import HttpClient, HttpFault
from dt2it_pipeline.engines.vllm_engine import Sample
from dt2it_pipeline.judges.protocol import JudgeError, JudgeStopped, NoUsableReply
from dt2it_pipeline.storage import atomic
from dt2it_pipeline_tests.support.construct_world import ScriptedEngine
from dt2it_pipeline_tests.support.fault_server import KEY, FaultServer, honest, serving, verdict
from dt2it_pipeline_tests.support.judge_faults import ATTEMPTS, FAULTS, fault_texts, judging_job


def _run(job: JudgeJob) -> tuple[dict, list[dict], list[dict]]:
    metadata = judge.run(job, lambda progress: None)
    tables = (atomic.read_parquet(job.output / f"{n}.parquet", n) for n in ("judgements", "quarantine"))
    return metadata, *(table.to_pylist() for table in tables)


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("DT2IT_TEST_KEY", KEY)


def test_every_item_ends_judged_or_quarantined_and_only_the_right_ones_are_tried_again(tmp_path, caplog, capsys):
    texts = fault_texts()
    server = FaultServer({item: (fault, times) for item, (fault, times, _, _) in FAULTS.items()})
    with serving(server):
        job = judging_job(tmp_path, server.url, [[text] for text in texts.values()], modes=["pointwise"])
        metadata, judgements, aside = _run(job)
        first = dict(server.seen)
        again, same_judgements, _ = _run(job)
    by_id = {row["response_id"]: row for row in judgements}
    items = {
        text.split()[0]: row["response_id"]
        for row in atomic.read_parquet(job.responses).to_pylist()
        for text in [row["text"]]
    }
    assert {item: by_id[key]["status"] for item, key in items.items()} == {i: f[3] for i, f in FAULTS.items()}
    assert first == {item: expected for item, (_, _, expected, _) in FAULTS.items()}

    # counts: by rows, by calls, and on the line
    figures = metadata["judges"]["remote"]
    good = sum(f[3] == "ok" for f in FAULTS.values())
    assert (metadata["rows_in"], metadata["rows_out"]) == (len(FAULTS), good)
    assert metadata["rows_quarantined"] == len(aside) == len(FAULTS) - good
    assert figures["calls"] == figures["judged"] + figures["unusable"] + figures["no_reply"] == len(FAULTS)
    assert figures["line"]["requests"] == sum(first.values())
    assert figures["cost"] == pytest.approx(figures["asked"] * (100 * 2.0 + 20 * 10.0) / 1e6)

    # what cannot be used keeps the raw text; an injected verdict is not taken for the judge's own
    details = {row["row_id"]: row["detail"] for row in aside}
    assert all('"score":' in details[items[f"item-{name}"]] for name in ("cut", "number", "score", "weights", "obeyed"))
    assert by_id[items["item-quoted"]]["score"] == pytest.approx(1)

    # the key went to the endpoint, and nowhere else, though the endpoint repeats it
    assert server.keys == {f"Bearer {KEY}"}
    outputs = [caplog.text, *capsys.readouterr(), json.dumps(metadata), *details.values()]
    assert not any(KEY in text for text in outputs)
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())

    # again: a usable reply is found on disk, everything else is asked for again
    assert same_judgements == judgements
    twice = {item: seen + (seen if FAULTS[item][3] != "ok" else 0) for item, seen in first.items()}
    # this run's endpoint has not taken the schema yet, so the refusal may be one of it: three weaker forms are tried
    assert server.seen == twice | {"item-refused": twice["item-refused"] + 3}
    assert again["judges"]["remote"]["asked"] == figures["unusable"] * ATTEMPTS


def test_an_unusable_reply_is_kept_and_asked_for_again_in_later_runs_until_they_are_spent(tmp_path):
    server = FaultServer({"item-late": ("prose", 5), "item-never": ("prose", 99)})
    with serving(server):
        texts = [["item-fine worth-7"], ["item-late worth-7"], ["item-never worth-7"]]
        job = judging_job(tmp_path, server.url, texts, modes=["pointwise"], attempts=2, max_runs=3)
        found = [_run(job) for _ in range(5)]
        seeds = [body["seed"] for body in server.bodies if "item-never" in json.dumps(body["messages"])]
        warm = [body["temperature"] > 0 for body in server.bodies if "item-never" in json.dumps(body["messages"])]
    assert [metadata["judges"]["remote"]["judged"] for metadata, _, _ in found] == [1, 1, 2, 2, 2]
    assert [metadata["judges"]["remote"]["asked"] for metadata, _, _ in found] == [5, 4, 4, 0, 0]
    assert server.seen == {"item-fine": 1, "item-late": 6, "item-never": 6}
    assert len(set(seeds)) == 6 and warm == [False, True] * 3  # every run begins as the first one did
    assert "I would rather not say." in found[-1][2][0]["detail"]
    assert found[-1][0]["judges"]["remote"]["unusable_example"] == "unparsable: I would rather not say."
    # nor is anything asked twice for one request within a run
    with serving(FaultServer({"item-never": ("prose", 99)})) as server:
        _run(judging_job(tmp_path, server.url, [["item-never"], ["item-fine"]], attempts=2, cache="other"))
        assert server.seen["item-never"] == 2 * 2


@pytest.mark.parametrize(
    ("mode", "requests", "contract"),
    [("pointwise", 4, "whole .score. from 0 to 10"), ("listwise", 2, "weights sum to 1")],
)
def test_a_judge_without_a_usable_reply_ends_the_run_with_an_example_and_what_a_reply_must_be(
    tmp_path, mode, requests, contract
):
    server = FaultServer({}, lambda words, responses: "As an AI model, I cannot rate. " * 50)
    with serving(server):
        job = judging_job(tmp_path, server.url, [["item-a", "item-b"], ["item-c", "item-d"]], modes=[mode], attempts=1)
        with pytest.raises(
            NoUsableReply, match=f"the judge remote gave no usable reply to any of its {requests} requests"
        ) as raised:
            judge.run(job, lambda progress: None)
    text = str(raised.value)
    assert "unparsable: 'As an AI model, I cannot rate. As" in text and re.search(contract, text)
    assert len(text) < 1200 and "dt2it check --call-judges" in text
    errors = FaultServer({f"item-{n}": ("400", 99) for n in "abcd"})
    with serving(errors):
        job = judging_job(tmp_path, errors.url, [["item-a", "item-b"], ["item-c", "item-d"]], cache="other")
        with pytest.raises(NoUsableReply, match=r"6 requests \(6 met an error.*content refused"):
            judge.run(job, lambda progress: None)


def test_a_second_run_costs_nothing(tmp_path):
    texts = [[f"item-{n}{m} worth-{m}" for m in range(4)] for n in range(3)]
    with serving(FaultServer({})) as server:
        job = judging_job(tmp_path, server.url, texts, orders=3, modes=["listwise", "pointwise", "pairwise"])
        metadata, judgements, _ = _run(job)
        asked = len(server.bodies)
        again, repeated, _ = _run(job)
        assert len(server.bodies) == asked == 3 * (3 + 4 + 6 * 2)
    assert repeated == judgements
    assert (metadata["judges"]["remote"]["cache_hit_rate"], again["judges"]["remote"]["cache_hit_rate"]) == (0, 1)
    assert again["cost"] == 0 < metadata["cost"] == again["judges"]["remote"]["cost_saved"]


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    texts = [[f"item-{n} worth-{n}"] for n in range(8)]
    server = FaultServer({})

    def dies(words, responses):
        if len(server.bodies) > 4:
            raise ConnectionError  # the connection ends without an answer
        return json.dumps({"responses": [verdict(1)]})

    with serving(server):
        job = judging_job(tmp_path, server.url, texts, modes=["pointwise"], concurrency=1, retries=0, give_up_after=1)
        server.answer = dies
        with pytest.raises(JudgeStopped, match="given up: 1 requests in a row"):
            _run(job)
        server.answer = lambda words, responses: json.dumps({"responses": [verdict(1)]})
        metadata, _, aside = _run(job)
    assert aside == []
    assert (metadata["judges"]["remote"]["looked_up"], metadata["judges"]["remote"]["asked"]) == (4, 4)


@pytest.mark.parametrize(("fault", "message"), [("401", "HTTP 401.*DT2IT_TEST_KEY"), ("500", "given up: 4 requests")])
def test_an_endpoint_that_answers_nobody_stops_the_run_with_one_error(tmp_path, fault, message):
    texts = [[f"item-{n}"] for n in range(30)]
    server = FaultServer({f"item-{n}": (fault, 99) for n in range(30)})
    with serving(server):
        job = judging_job(
            tmp_path,
            server.url,
            texts,
            modes=["pointwise"],
            concurrency=2,
            retries=1,
            give_up_after=4,
            longest_wait_seconds=0.02,
        )
        with pytest.raises(JudgeStopped, match=message) as raised:
            _run(job)
    assert KEY not in str(raised.value)
    assert len(server.bodies) < 20


def test_a_retry_after_holds_all_requests_back_and_no_more_are_in_flight_than_allowed(tmp_path, monkeypatch):
    started, refused = [], []
    once = HttpClient._once

    async def timed_once(self, *request):
        started.append(time.monotonic())
        try:
            return await once(self, *request)
        except HttpFault:
            refused.append((self, time.monotonic()))  # nothing else runs until the client holds all requests back
            raise

    monkeypatch.setattr(HttpClient, "_once", timed_once)
    texts = [[f"item-{n}"] for n in range(12)]
    server = FaultServer({"item-0": ("429", 1)})
    with serving(server):
        _run(judging_job(tmp_path, server.url, texts, modes=["pointwise"], concurrency=2))
    assert server.most_at_once <= 2
    ((client, before),) = refused
    until = client._held_until
    assert until - before >= 0.3  # as the server asked
    assert len(started) == 13
    assert all(moment <= before or moment >= until for moment in started)
    assert max(started) >= until


def test_images_words_schema_and_sampling_reach_the_endpoint(tmp_path):
    with serving(FaultServer({})) as server:
        _run(judging_job(tmp_path, server.url, [["item-a worth-3", "item-b worth-8"]], max_new_tokens=77))
    shapes = {
        body["response_format"]["json_schema"]["schema"]["properties"]["responses"]["minItems"]
        for body in server.bodies
    }
    assert shapes == {1, 2}
    for body in server.bodies:
        image, words = body["messages"][0]["content"]
        assert image["image_url"]["url"].startswith("data:image/png;base64,")
        assert "=== RESPONSE 1" in words["text"]
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("some-model", 77, 0.0)


def test_an_endpoint_that_takes_it_is_sent_a_schema_in_which_every_response_has_its_place(tmp_path):
    with serving(FaultServer({})) as server:
        texts = [["item-a worth-3", "item-b worth-8"]]
        metadata, _, _ = _run(judging_job(tmp_path, server.url, texts, modes=["listwise"], ordered_schema=True))
        plain, _, _ = _run(judging_job(tmp_path, server.url, texts, modes=["listwise"]))
    ordered, unordered = (
        body["response_format"]["json_schema"]["schema"]["properties"]["responses"] for body in server.bodies
    )
    assert [entry["properties"]["response"]["enum"] for entry in ordered["prefixItems"]] == [[1], [2]]
    assert "prefixItems" not in unordered
    assert metadata["rows_out"] == plain["rows_out"] == 2
    assert plain["judges"]["remote"]["looked_up"] == 0  # a reply to the one is not a reply to the other


def test_a_judge_that_goes_by_place_is_found_out(tmp_path):
    texts = [[f"item-{n} {m} worth-{m}" for m in range(3)] for n in range(4)]

    def by_place(words, responses):
        return json.dumps({"responses": [verdict(n + 1, 9 - n) for n in range(len(responses))]})

    found = {}
    for name, answer in (("fair", None), ("by place", by_place)):
        folder = tmp_path / name
        folder.mkdir()
        server = FaultServer({}) if answer is None else FaultServer({}, answer)
        with serving(server):
            found[name] = _run(judging_job(folder, server.url, texts, orders=4))[0]["judges"]["remote"]
    assert found["fair"]["position_consistency"] == 1
    assert found["by place"]["position_consistency"] < 0.7
    assert found["fair"]["stated_difference"] > 0  # the server always claims 7.5


def test_a_reply_that_repeats_the_key_is_kept_without_it(tmp_path, monkeypatch):
    def telling(words, responses):
        found = json.loads(FaultServer({}).answer(words, responses))
        return json.dumps(found | {"reference": f"your key is {KEY}, in pieces {KEY[:4]}"})

    with serving(FaultServer({}, telling)) as server:
        metadata, judgements, _ = _run(judging_job(tmp_path, server.url, [["item-a worth-3", "item-b worth-8"]]))
    assert server.keys == {f"Bearer {KEY}"} and metadata["rows_out"] == len({row["response_id"] for row in judgements})
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert KEY.encode() not in kept and b"your key is (key)" in kept


def test_a_missing_key_and_a_key_in_the_clear_are_refused(tmp_path, monkeypatch):
    job = judging_job(tmp_path, "http://127.0.0.1:9/v1", [["item-a"]])
    monkeypatch.delenv("DT2IT_TEST_KEY")
    with pytest.raises(JudgeError, match="DT2IT_TEST_KEY"):
        judge.run(job, lambda progress: None)
    with pytest.raises(ValueError, match="unencrypted"):
        judging_job(tmp_path, "http://judge.example/v1", [["item-a"]])
    with pytest.raises(ValueError, match="without user and password"):
        judging_job(tmp_path, "https://me:secret@judge.example/v1", [["item-a"]])


def test_a_model_that_vllm_runs_judges_through_the_recipe_and_its_replies_are_kept(tmp_path):
    job = judging_job(tmp_path, "http://127.0.0.1:9/v1", [["item-a worth-3", "item-b worth-8"]])
    settings = JudgingSettings.model_validate({"judges": [{"kind": "vllm", "name": "local", "attempts": 2}]})
    job = job.model_copy(update={"settings": settings})
    engine = ScriptedEngine(lambda request: [Sample(_local(request), 20, True, 100)])
    built = []

    def make_engine(settings, most_images):
        built.append((settings.kind, settings.tensor_parallel, most_images))
        return engine

    metadata = judge.run(job, lambda progress: None, make_engine)
    again = judge.run(job, lambda progress: None, make_engine)
    assert built == [("vllm", 1, 1)] and len(engine.requests) == 3  # with nothing to ask, no model is loaded
    assert (metadata["rows_out"], metadata["rows_quarantined"]) == (2, 0)
    figures = metadata["judges"]["local"]
    assert (figures["prompt_tokens"], figures["completion_tokens"], figures["cost"]) == (300, 60, 0)
    assert again["judges"]["local"]["cache_hit_rate"] == 1
    # Quantised weights write other replies.
    local = {"kind": "vllm", "name": "local", "attempts": 2, "quantization": "fp8"}
    settings = JudgingSettings.model_validate({"judges": [local]})
    other = judge.run(job.model_copy(update={"settings": settings}), lambda progress: None, make_engine)
    assert other["judges"]["local"]["cache_hit_rate"] == 0
    scores = {row["score"] for row in atomic.read_parquet(tmp_path / "judged/judgements.parquet").to_pylist()}
    assert sorted(round(score, 6) for score in scores) == [3, 8]


def _local(request) -> str:
    words = request.prompt.messages[-1]["content"][-1]["text"]
    return honest(words, [block.split("\n")[1] for block in words.split("=== RESPONSE")[1:]])
