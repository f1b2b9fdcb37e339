"""One test call to a judge behind an endpoint: what was sent, what came back, and how it was understood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dt2it_pipeline.config.base import DEMO_BASE_MODEL, Settings
from dt2it_pipeline.config.sections.annotation import PairJudgeSettings
from dt2it_pipeline.config.sections.judging import (
    EndpointJudgeSettings,
    LikelihoodCheckSettings,
    LikelihoodJudgeSettings,
    VllmJudgeSettings,
)
from dt2it_pipeline.judges.protocol import LISTWISE, PAIRWISE, POINTWISE, JudgeError
from dt2it_pipeline.judges.trial import RIGHT, LocalJudge, try_judge, try_local_judge
from dt2it_pipeline_tests.support.fault_server import FaultServer, serving, verdict


def judge(url: str, **more) -> EndpointJudgeSettings:
    return EndpointJudgeSettings(name="remote", base_url=url, model="m", longest_wait_seconds=0.05, **more)


def answering(text: str) -> FaultServer:
    return FaultServer({}, lambda words, responses: text)


@pytest.mark.parametrize(
    ("better", "understood", "right"),
    [(1, "response 1 is better", True), (2, "response 2 is better", False), (0, "a tie", False)],
)
def test_a_judgement_is_understood(better: int, understood: str, right: bool) -> None:
    with serving(answering(json.dumps({"reference": "red", "analysis": "", "better": better}))) as server:
        trial = try_judge(judge(server.url, input_price=1.0))
        (body,) = server.bodies
    assert (trial.usable, trial.understood, trial.right) == (True, understood, right)
    assert "1 image of 224 x 224 pixels" in trial.request and "tokens in" in trial.request
    assert json.loads(trial.reply)["better"] == better and trial.cost is not None
    image, text = body["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/") and RIGHT in text["text"]


def test_a_reply_that_is_no_judgement_is_shown() -> None:
    with serving(answering("I would rather not say.")) as server:
        trial = try_judge(judge(server.url))
        assert len(server.bodies) == 1  # once, whatever `attempts` says
    assert not trial.usable and trial.right is None and trial.cost is None
    assert trial.reply == "I would rather not say."
    assert trial.understood.startswith('no judgement: unparsable. A usable reply is one JSON object with "better"')


@pytest.mark.parametrize(
    ("mode", "scores", "understood", "right"),
    [
        (LISTWISE, (9, 2), "response 1 is better (9 and 2 of 10)", True),
        (LISTWISE, (2, 9), "response 2 is better (2 and 9 of 10)", False),
        (LISTWISE, (9, 11), "no judgement: score out of range. A usable reply", None),
        (POINTWISE, (9,), "response 1 scores 9 of 10", True),
        (POINTWISE, (2,), "response 1 scores 2 of 10", False),
    ],
)
def test_a_judge_is_asked_in_the_mode_of_its_section(mode: str, scores, understood: str, right) -> None:
    reply = json.dumps({"responses": [verdict(number, score) for number, score in enumerate(scores, start=1)]})
    with serving(answering(reply)) as server:
        trial = try_judge(judge(server.url), mode)
    assert trial.understood.startswith(understood) and (trial.right, trial.usable) == (right, right is not None)
    assert "What colour is the square?" in trial.request and RIGHT in trial.prompt
    assert ("The square is blue." in trial.prompt) == (mode == LISTWISE)


def test_a_template_of_the_project_with_a_mistake_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs/prompts").mkdir(parents=True)
    (tmp_path / "configs/prompts/judge_pairwise.en.jinja").write_text("{{ no_such_name }}")
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    with serving(answering("")) as server, pytest.raises(JudgeError, match="template cannot be used: 'no_such_name'"):
        try_judge(judge(server.url))


def test_a_call_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JudgeError, match="connection"):
        try_judge(judge("http://127.0.0.1:9/v1"))
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(JudgeError, match=r"JUDGE_KEY.*is not set"):
        try_judge(judge("http://127.0.0.1:9/v1", api_key_env="JUDGE_KEY"))


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("settings", "mode", "request_"),
    [
        (LikelihoodJudgeSettings(name="j"), PAIRWISE, "pairwise, 'What colour"),
        (LikelihoodCheckSettings(name="j"), PAIRWISE, "two texts compared, 'What colour"),
        (PairJudgeSettings(name="j"), PAIRWISE, "a pair by likelihood, 'What colour"),
        (PairJudgeSettings(name="j", kind="answer"), PAIRWISE, "a pair by answer, 'What colour"),
        (
            VllmJudgeSettings(name="j", model=DEMO_BASE_MODEL, max_model_len=2048, max_new_tokens=600),
            PAIRWISE,
            "pairwise",
        ),
    ],
    ids=lambda value: f"{value.kind}" if isinstance(value, Settings) else "",
)
def test_a_judge_of_this_machine_loads_its_model_and_is_asked(settings: LocalJudge, mode: str, request_: str) -> None:
    trial = try_local_judge(settings, mode)
    print(trial)
    assert trial.request.startswith(request_) and trial.seconds > 0 and trial.cost is None
    assert trial.usable == (trial.right is not None)
    assert trial.usable or settings.kind == "vllm"  # the small model writes no judgement


@pytest.mark.heavy
def test_a_model_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(JudgeError, match=f"cannot load the judge's model {tmp_path}"):
        try_local_judge(PairJudgeSettings(name="j", model=str(tmp_path)))
