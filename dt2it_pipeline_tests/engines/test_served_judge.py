"""vLLM's own OpenAI-compatible server as judge, and as check of rewriting, through `kind: endpoint` of a recipe."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import httpx
import jsonschema
import pytest

from dt2it_pipeline.config.sections.judging import JudgingSettings
from dt2it_pipeline.config.sections.pairing import RestyleSettings
from dt2it_pipeline.construct import judge, restyle
from dt2it_pipeline.judges.protocol import LISTWISE, PAIRWISE, POINTWISE
from dt2it_pipeline.judges.rubric import BAD_WEIGHTS, CUT_OFF, OK, reply_schema
from dt2it_pipeline.storage import atomic, records, schemas
from dt2it_pipeline_tests.support.construct_world import judging_job, prompt_row, response_rows
from dt2it_pipeline_tests.support.fault_server import FaultServer, serving
from dt2it_pipeline_tests.support.served import patient_model, served

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]
MODES = [LISTWISE, POINTWISE, PAIRWISE]


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> dict:
    """Settings of an endpoint that serves the shipped model, while it runs."""
    folder = tmp_path_factory.mktemp("served")
    model = patient_model(folder / "model")
    with served(model, folder / "server.log") as url:
        yield {"kind": "endpoint", "base_url": f"{url}/v1", "model": str(model), "retries": 1, "timeout_seconds": 300}


def _asked(own: dict) -> float:
    """Requests that the server has answered so far, by its own count."""
    lines = httpx.get(own["base_url"].removesuffix("/v1") + "/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total{"))


def test_every_response_ends_judged_or_quarantined_and_a_second_run_asks_nothing(tmp_path: Path, own) -> None:
    """The whole rubric in three modes, two orders, in Chinese, from a model that knows no JSON."""
    prompt = prompt_row(tmp_path, "blue", "图中的形状是什么颜色？", "蓝色") | {"language": "zh"}
    responses = response_rows(prompt, "图中的形状是蓝色的。", "红色。")
    # Enough for a pair's reply; where scores are asked for, some replies are cut off.
    remote = own | {"name": "own", "max_new_tokens": 1300, "attempts": 1, "max_runs": 1, "ordered_schema": True}
    settings = JudgingSettings.model_validate({"judges": [remote], "modes": MODES, "orders": 2})
    job = judging_job(tmp_path, [prompt], responses, settings)
    before = _asked(own)
    metadata = judge.run(job, lambda progress: None)
    asked = _asked(own) - before
    names = ("judgements", "quarantine")
    tables = {name: atomic.read_parquet(tmp_path / f"judged/{name}.parquet", name) for name in names}
    judgements, aside = (tables[name].to_pylist() for name in names)
    figures = metadata["judges"]["own"]
    print(Counter((row["mode"], row["status"]) for row in judgements), figures)

    # one other order of a list, two responses alone, one pair in both orders
    assert figures["calls"] == figures["asked"] == asked == 1 + 2 + 2
    assert figures["line"] == {"requests": asked}  # nothing was refused, nothing sent again
    assert figures["calls"] == figures["judged"] + figures["unusable"] and figures["no_reply"] == 0
    assert Counter(row["mode"] for row in judgements) == {LISTWISE: 2, POINTWISE: 2, PAIRWISE: 4}
    assert {row["status"] for row in judgements} <= {OK, BAD_WEIGHTS, CUT_OFF}
    assert {row["status"] for row in judgements if row["mode"] == PAIRWISE} == {OK}
    faulty = {row["response_id"] for row in judgements if row["status"] != OK and row["mode"] != PAIRWISE}
    assert {row["row_id"] for row in aside} == faulty
    assert metadata["rows_in"] == 2 == metadata["rows_out"] + len(aside)

    again = judge.run(job, lambda progress: None)
    assert _asked(own) - before == asked
    assert again["judges"]["own"]["cache_hit_rate"] == 1
    assert atomic.read_parquet(tmp_path / "judged/judgements.parquet", "judgements") == tables["judgements"]


def test_the_server_keeps_to_the_schema_that_is_sent(own) -> None:
    """To the last bracket: `response_format` is not passed over in silence."""
    schema = reply_schema(PAIRWISE, 2)
    body = {
        "model": own["model"],
        "messages": [{"role": "user", "content": "Which is better?"}],
        "temperature": 0,
        "seed": 1,
        "max_tokens": 1300,
        "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}},
    }
    answer = httpx.post(own["base_url"] + "/chat/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["message"]["content"]), schema)


def test_it_checks_that_rewriting_kept_the_content(tmp_path: Path, own) -> None:
    prompts = [prompt_row(tmp_path, color) for color in ("red", "blue")]
    sides = {"red": ("- **red**", "- **blue**"), "blue": ("- **blue**", "- **red**")}
    pairs = [
        records.make_pair(row["prompt_id"], *sides[row["reference"]], source="s", strength=2.0, label="constructed")
        for row in prompts
    ]
    responses = [row for prompt in prompts for row in response_rows(prompt, *sides[prompt["reference"]])]
    for name, rows in (("pairs", pairs), ("prompts", prompts), ("responses", responses)):
        atomic.write_parquet(schemas.table(rows, name), tmp_path / f"{name}.parquet")
    with serving(FaultServer({}, lambda words, _: _plain(words))) as rewriter:
        settings = RestyleSettings.model_validate(
            {
                "rewriter": {"kind": "endpoint", "name": "r", "base_url": rewriter.url, "model": "m", "attempts": 1},
                "check": own | {"name": "own", "max_new_tokens": 600, "attempts": 1},
            }
        )
        job = restyle.RestyleJob(
            **{name: tmp_path / f"{name}.parquet" for name in ("pairs", "prompts", "responses")},
            media_root=tmp_path,
            output=tmp_path / "restyled",
            cache=tmp_path / "replies.sqlite",
            near_identical=0.95,
            settings=settings,
        )
        metadata = restyle.run(job, lambda progress: None)
        before = _asked(own)
        again = restyle.run(job, lambda progress: None)
        assert _asked(own) == before
    aside = atomic.read_parquet(tmp_path / "restyled/quarantine.parquet", "quarantine").to_pylist()
    print(metadata, Counter(row["reason"] for row in aside))
    checked = metadata["same_content"]
    assert checked["calls"] == 4 == checked["judged"] + checked["unusable"] and checked["no_reply"] == 0
    assert (
        metadata["rows_in"]
        == 2
        == metadata["rows_out"] + metadata["rows_quarantined"]
        == metadata["rows_out"] + len(aside)
    )
    assert {row["reason"] for row in aside} <= {restyle.DRIFTED, restyle.FAILED}
    assert again["same_content"]["cache_hit_rate"] == 1.0


def _plain(words: str) -> str:
    text = words.split("=== ANSWER", 1)[1].split("\n", 1)[1].split("\n===", 1)[0].strip("-* ")
    return json.dumps({"text": f"It is {text}."})
