from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.ingest.provenance import Provenance
from dt2it_pipeline.reward.checkpoints.model_card import licence_of_model, write_card
from dt2it_pipeline.storage import atomic, records, schemas
from dt2it_pipeline_tests.support.card_requests import request_of


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    card = {"name": "round 1", "system_prompt": "You're a judge.", "max_pixels": 1024, "seed": 3}
    (folder / "reward_model.json").write_text(json.dumps(card))
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3VLForSequenceClassification"]}))
    rows = [{"step": s, "loss": 1 / s, "accuracy": 0.5, "pairs_per_second": 9.0} for s in range(1, 41)]
    (folder / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = {"step": 40, "loss": 0.75, "accuracy": 0.625, "pairs": 8}
    (folder / "validation_log.jsonl").write_text(json.dumps(evaluation) + "\n")
    return folder


def test_the_card_tells_data_settings_and_result(checkpoint: Path, tmp_path: Path) -> None:
    base = tmp_path / "some_base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# x\n")
    pairs = [records.make_pair("p", f"a{i}", f"b{i}", source="demo_preferences", label="flipped") for i in range(3)]
    pairs += [records.make_pair("p", "c", "d", source="some|where")]
    atomic.write_parquet(schemas.table(pairs, "pairs"), tmp_path / "pairs.parquet")
    summary = {"pairs": 4, "pairs_quarantined": 1, "loss": 0.123456, "training_seconds": 12.5}
    settings = TrainingSettings(learning_rate=3e-5)
    write_card(checkpoint, base_model=base, pairs=tmp_path / "pairs.parquet", settings=settings, summary=summary,
               sources={"demo_preferences": Provenance(licence="MIT")})  # fmt: skip
    text = (checkpoint / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "some_base"
    assert str(tmp_path) not in text
    assert "| demo_preferences | flipped | 3 | MIT |  |" in text
    assert "| some\\|where | original | 1 | not known |  |" in text
    assert "| learning_rate | 3e-05 |" in text
    assert "| loss | 0.1235 |" in text
    assert "12.5" not in text
    assert "| 40 | 0.025 | 0.5 |" in text
    assert text.count(" | 0.5 |") == 12  # of forty lines
    assert "On held-out pairs" in text
    assert "| 40 | 0.75 | 0.625 |" in text
    assert "--runner pooling" in text
    assert "> You're a judge.\n" in text


def test_what_is_not_known_is_said(checkpoint: Path, tmp_path: Path) -> None:
    write_card(checkpoint, base_model="someone/some-model")
    text = (checkpoint / "README.md").read_text()
    assert "| licence of the base model | not known |" in text
    assert "license" not in text.split("---")[1]
    assert "Training data" not in text
    (tmp_path / "README.md").write_text("---\n- a: [\n")
    assert licence_of_model(tmp_path) == "not known"


def test_sources_come_from_what_the_training_was_told_and_from_no_manifest_of_that_name(
    checkpoint: Path, tmp_path: Path
) -> None:
    pairs = [records.make_pair("p", f"a{i}", f"b{i}", source=source) for i, source in enumerate(("povid", "rlhf_v"))]
    atomic.write_parquet(schemas.table(pairs, "pairs"), tmp_path / "pairs.parquet")
    own = Provenance(licence="ours alone", citation="Us | 2026,\nin print", revision="us/povid, newest")
    write_card(checkpoint, base_model="x", pairs=tmp_path / "pairs.parquet", sources={"povid": own, "other": own})
    text = (checkpoint / "README.md").read_text()
    assert "| povid | original | 1 | ours alone | us/povid, newest |" in text
    assert "| rlhf_v | original | 1 | not known |  |" in text  # shipped, but nobody said that these pairs are of it
    assert "- povid: Us | 2026, in print\n" in text and "- other:" not in text


def test_the_request_is_what_a_shell_would_send(checkpoint: Path) -> None:
    """As far as no server is needed; serve/test_vllm_server.py sends it to one."""
    write_card(checkpoint, base_model="someone/some-model")
    body = request_of((checkpoint / "README.md").read_text())
    assert [message["role"] for message in body["messages"]] == [
        "user",
        "assistant",
    ]  # the template puts the rest first
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) as image:
        assert image.convert("RGB").getpixel((9, 9)) == (255, 0, 0)
