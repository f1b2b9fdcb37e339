"""`dt2it check`: what it reports of a project, and what to do about each fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from dt2it_pipeline.cli.checks.flight_check import flight_check
from dt2it_pipeline.engines import device
from dt2it_pipeline_tests.support.commands import invoke as dt2it
from dt2it_pipeline_tests.support.fault_server import KEY, FaultServer, serving, verdict
from dt2it_pipeline_tests.support.ingest_world import image
from dt2it_pipeline_tests.support.new_projects import PROMPTS, go_outside, project


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_outside(tmp_path, monkeypatch)


def test_a_project_that_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in PROMPTS:
        image(tmp_path / row["image"])
    held_out = [{"question": "Why?", "chosen": "So.", "rejected": "No.", "group": "g"}]
    project(tmp_path, monkeypatch, prompts=PROMPTS, benchmark=held_out)
    shown = dt2it("check")
    assert shown.exit_code == 0, shown.output
    assert max(len(line) for line in shown.stdout.splitlines() if str(tmp_path) not in line) <= 120
    assert shown.stderr == "looking at files, sources, models and memory, which may take some seconds\n"
    for expected in (
        "OK      recipe: mine: every setting is valid; rounds 0 to 1",
        "OK      source prompts: prompts; 3 of the first 3 items are usable",
        "OK      benchmark benchmark: accuracy by group; rows come from source benchmark",
        "OK      model demo: ",
        "OK      GPU memory: ",
        "OK      judge reference (judging.judges.0): reference: compares with the reference answer",
        "OK      judge a (annotation.judges.0): likelihood: loads demo on this machine",
        "ready to run: ",
    ):
        assert expected in shown.stdout
    assert not (tmp_path / "data").exists()


class Card:
    """A GPU, as PyTorch describes it."""

    def __init__(self, gib: float) -> None:
        self.total_memory = int(gib * 2**30)


@pytest.mark.parametrize(("cards", "processes", "level", "words"), [
    ([0.01], 1, "error", "set training.lora, deepspeed_config: zero3 or more processes"),
    ([24.0, 0.01], 1, "error", "set training.lora"),  # the smallest counts
    ([0.95], 1, "warning", "should leave a quarter free"),
    ([24.0], 2, "warning", "set training.processes to the number of GPUs"),
    ([24.0, 24.0], 2, "ok", ""),
])  # fmt: skip
def test_gpus_that_do_not_suffice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cards: list[float], processes: int, level: str, words: str
) -> None:
    project(tmp_path, monkeypatch, f"training: {{processes: {processes}, deepspeed_config: zero2}}\n", prompts=PROMPTS)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Card(cards[number]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    result = dt2it("check", "--json")
    (line,) = (each for each in json.loads(result.stdout)["lines"] if each["topic"] == "GPU memory")
    assert line["level"] == level and words in line["advice"], line
    assert f"here: {len(cards)} GPU(s) of {min(cards):.0f} GiB" in line["text"]
    assert line["details"]["gpus"] == [Card(each).total_memory for each in cards]
    if level == "error":
        assert result.exit_code == 1 and line["details"]["bytes_per_rank"] > min(line["details"]["gpus"])


def test_a_driver_that_is_older_than_pytorch_is_an_error_of_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, monkeypatch, prompts=PROMPTS)
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n")
    monkeypatch.setattr(device, "_DRIVER", version)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    result = dt2it("check", "--json")
    (line,) = (each for each in json.loads(result.stdout)["lines"] if each["topic"] == "GPU memory")
    assert result.exit_code == 1 and line["level"] == "error"
    assert "NVIDIA driver 535.104.05" in line["text"] and "install a newer driver" in line["text"]
    assert line["details"]["gpus"] == []


def test_faults_are_named_with_what_to_do_and_the_exit_code_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (
        "training: {base_model: models/none, deepspeed_config: zero9}\n"
        "judging: {judges: [{kind: endpoint, name: e, base_url: 'https://h/v1', model: m, api_key_env: NO_SUCH_KEY}]}\n"
    )
    ties = [
        {"question": "Why?", "chosen": "So.", "rejected": "So."},
        {"question": "Why?", "chosen": "A.", "rejected": "B."},
    ]
    project(
        tmp_path,
        monkeypatch,
        more,
        prompts=PROMPTS,
        preferences=[*ties, {"question": "Why?", "chosen": "", "rejected": "x"}],
    )
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    result = dt2it("check", "--json")
    assert result.exit_code == 1
    found = {line["topic"]: line for line in json.loads(result.stdout)["lines"]}
    assert found["files"]["level"] == "error" and "zero9.json" in found["files"]["text"]
    assert found["source prompts"]["level"] == "error" and "0 of the first 3" in found["source prompts"]["text"]
    assert found["source prompts"]["details"]["quarantined"] == {"missing image": 3}
    assert found["source preferences"]["level"] == "warning"
    assert found["source preferences"]["details"]["quarantined"] == {"identical sides": 1, "missing value": 1}
    assert found["benchmarks"]["level"] == "warning" and "no accuracy is measured" in found["benchmarks"]["text"]
    assert found["model models/none"]["level"] == "warning"
    judge = found["judge e (judging.judges.0)"]
    assert judge["level"] == "error" and judge["advice"] == "export NO_SUCH_KEY=..."


def test_a_model_that_is_not_here_is_an_error_where_a_run_may_not_fetch_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in PROMPTS:
        image(tmp_path / row["image"])
    project(tmp_path, monkeypatch, "training: {base_model: nobody/none}\n", prompts=PROMPTS)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(device, "_DRIVER", tmp_path / "no driver")
    online = dt2it("check")
    assert online.exit_code == 0 and "WARNING model nobody/none: not on this machine" in online.stdout
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = dt2it("check", "--json")
    found = {line["topic"]: line for line in json.loads(offline.stdout)["lines"]}
    assert offline.exit_code == 1 and found["model nobody/none"]["level"] == "error"
    assert found["model nobody/none"]["advice"].startswith("HF_HUB_OFFLINE=0 hf download nobody/none")
    assert "no GPU here, so training runs on the CPU" in found["GPU memory"]["text"]


def test_a_wrong_recipe_ends_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, monkeypatch, "rouds: 3\n", prompts=PROMPTS)
    shown = dt2it("check")
    assert shown.exit_code == 1
    assert "rouds: unknown key; did you mean rounds?" in shown.stdout and "1 error(s)" in shown.stdout
    (tmp_path / "other.yaml").write_text("name: [")
    assert "other.yaml is not valid YAML" in dt2it("check", "--recipe", "other.yaml").stdout


def test_without_a_source_for_round_0_the_check_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, monkeypatch, preferences=[{"question": "Why?", "chosen": "A.", "rejected": "B."}])
    found = {line.topic: line for line in flight_check()}
    assert found["sources"].level == "error" and "no source of kind `prompts` or `t2i`" in found["sources"].text


def test_judges_behind_endpoints_are_called_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for row in PROMPTS:
        image(tmp_path / row["image"])
    with serving(
        FaultServer({}, lambda words, responses: json.dumps({"responses": [verdict(1, 9), verdict(2, 3)]}))
    ) as server:
        judge = f"{{kind: endpoint, name: e, base_url: '{server.url}', model: m, api_key_env: JUDGE_KEY}}"
        absent = "[{name: a, model: models/none}, {name: b, model: models/none}]"
        project(tmp_path, monkeypatch, f"judging: {{judges: [{judge}]}}\n", annotators=absent, prompts=PROMPTS)
        shown = dt2it("check")
        assert "not called, since a call may cost money" in shown.stdout and server.bodies == []
        called = dt2it("check", "--call-judges")
        assert len(server.bodies) == 1 and server.keys == {f"Bearer {KEY}"}
    text = " ".join(called.stdout.split())
    assert called.exit_code == 0 and "1 image of 224 x 224" in text
    assert "asked: listwise, 'What colour is the square?'" in text and "understood: response 1 is better (9 and" in text
    assert 'reply: {"responses": [{"response": 1' in text and KEY not in called.output


def test_a_judge_whose_model_is_not_here_is_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judges = "[{kind: likelihood, name: a, model: models/none}, {kind: likelihood, name: b, model: models/none}]"
    project(tmp_path, monkeypatch, annotators=judges, prompts=PROMPTS)
    found = {line.topic: line for line in flight_check()}
    assert found["judge a (annotation.judges.0)"].advice == "`dt2it check --call-judges` loads it and asks it once"
    found = {line.topic: line for line in flight_check(call_judges=True)}
    assert found["judge a (annotation.judges.0)"].level == "warning"
    assert found["judge a (annotation.judges.0)"].advice == "hf download models/none"


@pytest.mark.heavy
def test_a_judge_of_this_machine_is_called_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judges = "[{kind: likelihood, name: a, baseline: blank}, {kind: likelihood, name: b}]"
    project(tmp_path, monkeypatch, annotators=judges, prompts=PROMPTS)
    lines = [line for line in flight_check(call_judges=True) if line.topic == "judge a (annotation.judges.0)"]
    assert [line.level for line in lines] == ["ok", "ok"]
    assert "a large model takes minutes to load" in lines[0].text
    assert lines[1].text.startswith("asked: a pair by likelihood, ") and "response 1 is better" in lines[1].text
