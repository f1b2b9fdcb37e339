"""Rewriting both sides of a pair into one style: what is kept, and what is found to have changed."""

from __future__ import annotations

import json

import pytest

from dt2it_pipeline.config.sections.pairing import RestyleSettings
from dt2it_pipeline.construct import restyle
from dt2it_pipeline.construct.restyle import RestyleJob
from dt2it_pipeline.engines.vllm_engine import Sample
from dt2it_pipeline.storage import atomic, content_ids, records, schemas
from dt2it_pipeline_tests.support.construct_world import COLORS, ScriptedEngine, prompt_row, response_rows
from dt2it_pipeline_tests.support.fault_server import FaultServer, serving

REWRITTEN = {
    "## Answer\n**red**": "It is red.",
    "blue, I think": "It is blue, I think.",
    "there are 3 red shapes": "There are three red shapes.",
    "there are 2 red shapes": "There are 4 red shapes.",  # a number changed
    "maybe teal": "It is red.",  # the answer changed
    "a tall blue one": "It is blue.",  # something is missing: only a comparison shows it
    "BLUE": "It is blue.",
    "*blue*": "it is blue",
    "hopeless red": None,
}


def _answer(words: str, responses: list[str]) -> str:
    if '"same"' in words:
        return json.dumps({"difference": "", "same": "tall" not in responses[0]})
    text = REWRITTEN[responses[0]]
    return "I cannot." if text is None else json.dumps({"text": text})


def _chat(words: str, _: list[str]) -> str:
    """Texts of this template stand below === ANSWER and === TEXT n."""
    blocks = [block.split("\n", 1)[1].strip() for block in words.split("=== ") if block.startswith(("ANSWER", "TEXT"))]
    return _answer(words, blocks)


@pytest.fixture
def job(tmp_path):
    rows = [prompt_row(tmp_path, color) for color in COLORS]  # the others teach what competes with red
    prompt = rows[0]["prompt_id"]
    sides = [
        ("## Answer\n**red**", "blue, I think"),
        ("there are 3 red shapes", "blue, I think"),
        ("there are 2 red shapes", "blue, I think"),
        ("## Answer\n**red**", "maybe teal"),
        ("## Answer\n**red**", "a tall blue one"),
        ("BLUE", "*blue*"),
        ("hopeless red", "BLUE"),
    ]
    pairs = [records.make_pair(prompt, *both, source="s", strength=2.5, label="constructed") for both in sides]
    atomic.write_parquet(schemas.table(pairs, "pairs"), tmp_path / "pairs.parquet")
    atomic.write_parquet(schemas.table(rows, "prompts"), tmp_path / "prompts.parquet")
    responses = response_rows(rows[0], *dict.fromkeys(text for both in sides for text in both))
    atomic.write_parquet(schemas.table(responses, "responses"), tmp_path / "responses.parquet")

    def made(url: str) -> RestyleJob:
        rewriter = {"kind": "endpoint", "name": "rewriter", "base_url": url, "model": "m", "attempts": 2}
        settings = RestyleSettings.model_validate({"rewriter": rewriter, "style": "one plain sentence"})
        return RestyleJob(
            pairs=tmp_path / "pairs.parquet",
            prompts=tmp_path / "prompts.parquet",
            responses=tmp_path / "responses.parquet",
            media_root=tmp_path,
            output=tmp_path / "restyled",
            cache=tmp_path / "replies.sqlite",
            near_identical=0.95,
            settings=settings,
        )

    return made


def test_pairs_are_rewritten_and_those_whose_content_changed_are_quarantined(tmp_path, job):
    server = FaultServer({}, _chat)
    with serving(server):
        metadata = restyle.run(job(server.url), lambda progress: None)
        asked = len(server.bodies)
        again = restyle.run(job(server.url), lambda progress: None)
        assert len(server.bodies) == asked + 2  # a second run is answered from disk, but for the one unusable reply
    kept = atomic.read_parquet(tmp_path / "restyled" / "pairs.parquet", "pairs").to_pylist()
    assert [(row["chosen"], row["rejected"]) for row in kept] == [
        ("It is red.", "It is blue, I think."),
        ("There are three red shapes.", "It is blue, I think."),
    ]
    for row in kept:
        assert (row["strength"], row["label"]) == (2.5, "constructed")
        assert row["chosen_id"] == content_ids.response_id(row["prompt_id"], row["chosen"])
    written = atomic.read_parquet(tmp_path / "restyled" / "responses.parquet", "responses").to_pylist()
    assert {row["response_id"] for row in written} == {
        row[side] for row in kept for side in ("chosen_id", "rejected_id")
    }
    assert {row["generator"] for row in written} == {"test|restyled"}
    aside = atomic.read_parquet(tmp_path / "restyled" / "quarantine.parquet", "quarantine").to_pylist()
    assert [row["reason"] for row in aside] == [
        "rewriting changed a number",
        "rewriting changed the answer",
        "rewriting changed the content",
        "sides became near-identical",
        "could not be rewritten",
    ]
    assert (metadata["rows_in"], metadata["rows_out"], metadata["rows_quarantined"]) == (7, 2, 5)
    assert metadata["restyle"]["calls"] == len(REWRITTEN) == metadata["restyle"]["judged"] + 1
    assert (again["restyle"]["asked"], again["same_content"]["cache_hit_rate"]) == (2, 1.0)
    words = [body["messages"][0]["content"] for body in server.bodies]
    assert all(isinstance(text, str) for text in words)  # no image is sent: it would tempt the rewriter to answer
    assert any("one plain sentence" in text for text in words)


def test_words_alone_check_what_has_a_short_reference_and_nothing_else(tmp_path, job):
    server = FaultServer({}, _chat)
    with serving(server):
        asked = job(server.url)
        asked = asked.model_copy(
            update={"settings": RestyleSettings(**asked.settings.model_dump() | {"check": {"kind": "words"}})}
        )
        metadata = restyle.run(asked, lambda progress: None)
        prompts = atomic.read_parquet(tmp_path / "prompts.parquet", "prompts").to_pylist()
        rows = [row | {"reference": "a long and winding story about " * 9} for row in prompts]
        atomic.write_parquet(schemas.table(rows, "prompts"), tmp_path / "prompts.parquet")
        unchecked = restyle.run(asked, lambda progress: None)
    assert metadata["same_content"]["calls"] == 0
    assert (metadata["rows_out"], unchecked["rows_out"]) == (3, 0)  # a missing word goes unseen
    aside = atomic.read_parquet(tmp_path / "restyled/quarantine.parquet", "quarantine").to_pylist()
    assert restyle.UNCHECKED in {row["reason"] for row in aside}


def test_a_check_by_the_rewriters_own_model_loads_it_once(job):
    local = {"kind": "vllm", "attempts": 1}
    settings = {"rewriter": local | {"name": "r"}, "check": local | {"name": "c", "max_new_tokens": 50}}
    built = []

    def make_engine(chosen, most_images):
        built.append(chosen.name)
        return ScriptedEngine(
            lambda request: [Sample(_chat(request.prompt.messages[-1]["content"][0]["text"], []), 1, True)]
        )

    for check, expected in (({}, ["r"]), ({"max_model_len": 512, "temperature": 0.1}, ["r", "r", "c"])):
        settings["check"] |= check
        asked = job("http://127.0.0.1:9/v1").model_copy(update={"settings": RestyleSettings.model_validate(settings)})
        metadata = restyle.run(asked, lambda progress: None, make_engine)
        assert built == expected and metadata["rows_out"] == 2


def test_templates_exist_in_both_languages():
    from dt2it_pipeline.judges.templates import load_template

    hashes = {load_template(mode, language).hash for mode in ("restyle", "same_content") for language in ("en", "zh")}
    assert len(hashes) == 4
