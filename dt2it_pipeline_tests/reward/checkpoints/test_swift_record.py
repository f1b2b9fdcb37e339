"""What ms-swift's args.json says of inputs is what scores are made with, loaded as it is and converted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError
from dt2it_pipeline.reward.checkpoints.heads import serving_fault
from dt2it_pipeline.reward.checkpoints.processor_files import trained_with
from dt2it_pipeline.reward.checkpoints.swift_record import swift_record
from dt2it_pipeline.reward.foreign import import_checkpoint
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.train import run
from dt2it_pipeline_tests.support.commands import dt2it
from dt2it_pipeline_tests.support.trainer_layouts import make_head, ms_swift, sequence_classification, with_arguments
from dt2it_pipeline_tests.support.training_jobs import changed

TOKEN = 16**2  # pixels of an image token, in the tiny models
QWEN = "You are a helpful assistant."


def large_least(folder: Path, least: int) -> None:
    """Set the pixels to which an image processor enlarges smaller images, as that of Qwen3-VL has many."""
    file = folder / "processor_config.json"
    found = json.loads(file.read_text())
    found["image_processor"]["size"]["shortest_edge"] = least
    file.write_text(json.dumps(found))


@pytest.fixture
def image() -> Image.Image:
    generator = np.random.default_rng(1)
    return Image.fromarray(generator.integers(0, 255, (48, 48, 3), dtype=np.uint8))


def scores(model: RewardModel, image: Image.Image, system: str = "") -> np.ndarray:
    prompt: dict[str, Any] = {"turns": [{"role": "user", "text": "<image>what is it"}], "images": [image]}
    return model.score([prompt | {"system": system}], [["red", "a blue square"]])[0]


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("given", [None, "You judge."])
def test_scores_are_made_as_the_training_read_inputs(
    base: Callable[[str], Path], tmp_path: Path, image: Image.Image, family: str, given: str | None
) -> None:
    source = with_arguments(ms_swift(base(family), tmp_path / "source", make_head()), system=given)
    large_least(source, 20_000)
    plain = sequence_classification(base(family), tmp_path / "plain", make_head())  # the same, without args.json
    large_least(plain, 4 * TOKEN)
    import_checkpoint(source, tmp_path / "made")
    models = [RewardModel.from_pretrained(folder) for folder in (source, tmp_path / "made")]
    (tmp_path / "saved").mkdir()
    models[0].save_pretrained(tmp_path / "saved")
    models.append(RewardModel.from_pretrained(tmp_path / "saved"))
    expected = RewardModel.from_pretrained(plain)
    system = given if given is not None else {"qwen2_5_vl": QWEN}.get(family, "")
    for model in models:
        assert scores(model, image) == pytest.approx(scores(expected, image, system), abs=1e-5)
        assert scores(model, image, "Be kind.") == pytest.approx(scores(expected, image, "Be kind."), abs=1e-5)
    large_least(plain, 20_000)
    enlarged = scores(RewardModel.from_pretrained(plain), image, system)
    assert abs(enlarged - scores(models[0], image)).max() > 1e-3
    fault = {"qwen3_vl": "args.json says how ms-swift read inputs", "qwen2_5_vl": "vLLM looks for language_model.score"}
    assert fault[family] in str(serving_fault(source))
    assert serving_fault(tmp_path / "made") is None


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_what_is_given_counts_more_than_the_record(base: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    source = ms_swift(base(family), tmp_path / "source", make_head())
    import_checkpoint(source, tmp_path / "made", system_prompt="Another.", max_pixels=2048)
    card = RewardModel.from_pretrained(tmp_path / "made").card
    assert (card["system_prompt"], card["system_default"], card["max_pixels"]) == ("Another.", True, 2048)
    found = json.loads((tmp_path / "made" / "processor_config.json").read_text())["image_processor"]["size"]
    assert found == {"shortest_edge": 4 * TOKEN, "longest_edge": 2048}


@pytest.mark.parametrize(
    ("arguments", "least", "most"),
    [
        ({}, 4 * TOKEN, 16384 * TOKEN),
        ({"max_pixels": 60_000}, 4 * TOKEN, 60_000),
        ({"max_pixels": 500}, 500, 500),
        ({"model_kwargs": {"IMAGE_MAX_TOKEN_NUM": 64, "image_min_token_num": "16"}}, 16 * TOKEN, 64 * TOKEN),
        ({"model_kwargs": {"MAX_PIXELS": 10_000, "MIN_PIXELS": 2_000}}, 7 * TOKEN, 39 * TOKEN),
        ({"model_kwargs": None, "max_pixels": 0}, 4 * TOKEN, 16384 * TOKEN),
        ({"model_kwargs": "", "max_pixels": 50_176.0}, 4 * TOKEN, 50_176),
        ({"model_kwargs": '{"image_max_token_num": 64.0}', "max_pixels": "50176"}, 4 * TOKEN, 64 * TOKEN),
    ],
)
def test_the_limits_of_images(
    base: Callable[..., Path], tmp_path: Path, arguments: dict[str, Any], least: int, most: int
) -> None:
    record = swift_record(with_arguments(tmp_path, **arguments), base())
    assert (record["min_pixels"], record["max_pixels"]) == (least, most)


def test_convert_says_what_it_took_and_what_it_cannot_follow(
    base: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for family, system in (("qwen3_vl", "no system turn"), ("qwen2_5_vl", f"system turn '{QWEN}' where there is none")):
        source = ms_swift(base(family), tmp_path / family, make_head())
        printed = dt2it("convert", source, tmp_path / f"made_{family}")
        assert f"less what was given here: {system}, images of 1,024 to 4,194,304 pixels\n" in printed
    assert "max_pixels" not in caplog.text
    swift_record(with_arguments(source, max_pixels=60_000), source)
    assert "max_pixels = 60000, scales larger images twice" in caplog.text


def test_without_the_side_of_a_token_the_image_processors_limits_stay(tmp_path: Path) -> None:
    for vision in ({}, {"patch_size": 14}, {"patch_size": "x", "spatial_merge_size": 2}, None):
        (tmp_path / "config.json").write_text(json.dumps({"vision_config": vision, "model_type": "qwen3_vl"}))
        record = swift_record(with_arguments(tmp_path, template="qwen3_vl"), tmp_path)
        assert record == {
            "system_prompt": "", "system_default": True, "system_suppressed": True, "image_newlines": False
        }  # fmt: skip


def test_an_adapters_record_lies_beside_it(base: Callable[..., Path], tmp_path: Path) -> None:
    assert swift_record(tmp_path, base()) == {}
    record = swift_record(with_arguments(tmp_path, template="qwen3_vl", system="You\njudge."), base())
    assert record["system_prompt"] == "You\njudge."


@pytest.mark.parametrize("content", ["[]", '"text"', '{"template": "x"}', "{}"])
def test_the_args_of_another_program_say_nothing(base: Callable[..., Path], tmp_path: Path, content: str) -> None:
    (tmp_path / "args.json").write_text(content)
    assert swift_record(tmp_path, base()) == {}


def test_a_later_training_has_its_system_prompt_before_a_conversations_own(
    base: Callable[..., Path], job: TrainJob, tmp_path: Path
) -> None:
    source = with_arguments(ms_swift(base(), tmp_path / "source", make_head()), system="Be kind.")
    import_checkpoint(source, tmp_path / "made")
    for number, start in enumerate((source, tmp_path / "made")):
        this = changed(job, f"out{number}", tmp_path, max_steps=1)
        run(this.model_copy(update={"base_model": str(start)}), [].append)
        template = (this.output / "chat_template.jinja").read_text(encoding="utf-8")
        assert trained_with(template) == ("You judge.", True, False, False)
        assert RewardModel.from_pretrained(this.output).card["system_default"] is False


def test_what_cannot_be_followed_is_refused(base: Callable[..., Path], tmp_path: Path) -> None:
    source = ms_swift(base(), tmp_path / "source", make_head())
    for off in (False, "false", "False", 0):
        with_arguments(source, use_chat_template=off)
        with pytest.raises(CheckpointError, match="trained without a chat template"):
            RewardModel.from_pretrained(source)
    for damaged in (b'{"template": ', b"\xff\xfe"):
        (source / "args.json").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"cannot read .*args\.json"):
            import_checkpoint(source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"system": ["You judge."]}, r"system = \['You judge.'\], expected a text, or null"),
        ({"use_chat_template": "perhaps"}, "use_chat_template = 'perhaps', expected true or false"),
        ({"use_chat_template": [True]}, r"use_chat_template = \[True\], expected true or false"),
        ({"max_pixels": [50_176]}, r"max_pixels = \[50176\], expected a whole number"),
        ({"max_pixels": True}, "max_pixels = True, expected a whole number"),
        ({"max_pixels": 50_176.5}, "max_pixels = 50176.5, expected a whole number"),
        ({"max_pixels": float("inf")}, "max_pixels = inf, expected a whole number"),
        ({"model_kwargs": {"MAX_PIXELS": "many"}}, "model_kwargs.MAX_PIXELS = 'many', expected a whole number"),
        ({"model_kwargs": {"min_pixels": -1}}, "model_kwargs.MIN_PIXELS = -1, expected a whole number"),
        ({"model_kwargs": "MAX_PIXELS=50176"}, "model_kwargs = 'MAX_PIXELS=50176', expected an object"),
        ({"model_kwargs": "[1]"}, r"model_kwargs = '\[1\]', expected an object"),
    ],
)
def test_a_value_that_cannot_be_read_is_refused_by_name(
    base: Callable[..., Path], tmp_path: Path, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=f"args.json: {named}.*correct it there"):
        swift_record(with_arguments(tmp_path, **arguments), base())


def insert_system_turn(folder: Path) -> None:
    """Make a chat template write a system turn by itself where there is none, as the published one of Qwen2.5-VL."""
    own = "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\n" + QWEN + "<|im_end|>\n' }}{%- endif %}"
    for file in (folder / "chat_template.jinja", folder / "tokenizer_config.json"):
        if file.name.endswith(".jinja") and file.exists():
            file.write_text(own + file.read_text())


@pytest.mark.parametrize(
    ("arguments", "system"),
    [
        ({"system": ""}, ""),
        ({"template": "chatml"}, ""),
        ({"template": "qwen2_vl"}, QWEN),
        ({"template": "mimo_vl"}, "You are MiMo, an AI assistant developed by Xiaomi."),
        ({"template": "mimo_vl", "system": ""}, ""),
        ({"template": "unheard_of"}, None),
        ({"template": "unheard_of", "system": "You judge."}, "You judge."),
    ],
)
def test_the_system_turn_is_the_trainings_where_the_chat_template_writes_one_by_itself(
    base: Callable[[str], Path],
    tmp_path: Path,
    image: Image.Image,
    caplog: pytest.LogCaptureFixture,
    arguments: dict[str, Any],
    system: str | None,
) -> None:
    # The same model whose template writes no turn by itself has what the training saw.
    expected = RewardModel.from_pretrained(sequence_classification(base("qwen2_5_vl"), tmp_path / "plain", make_head()))
    source = with_arguments(ms_swift(base("qwen2_5_vl"), tmp_path / "source", make_head()), **arguments)
    large_least(source, 4 * TOKEN)
    insert_system_turn(source)
    import_checkpoint(source, tmp_path / "made")
    import_checkpoint(tmp_path / "made", tmp_path / "again")
    assert ("whose system turn is not known here" in caplog.text and "--system-prompt" in caplog.text) == (
        system is None
    )
    for folder in (source, tmp_path / "made", tmp_path / "again"):
        model = RewardModel.from_pretrained(folder)
        known = QWEN if system is None else system  # unknown: what the template writes stays
        assert scores(model, image) == pytest.approx(scores(expected, image, known), abs=1e-5), folder
        assert scores(model, image, "Be kind.") == pytest.approx(scores(expected, image, "Be kind."), abs=1e-5)
    assert abs(scores(expected, image) - scores(expected, image, QWEN)).max() > 1e-3


def test_an_empty_system_prompt_that_is_given_means_none(
    base: Callable[[str], Path], tmp_path: Path, image: Image.Image
) -> None:
    plain = sequence_classification(base("qwen2_5_vl"), tmp_path / "plain", make_head())
    expected = RewardModel.from_pretrained(plain)
    source = sequence_classification(base("qwen2_5_vl"), tmp_path / "source", make_head())
    insert_system_turn(source)
    printed = dt2it("convert", source, tmp_path / "unknown")
    assert "system turn: not known" in printed and "by --system-prompt, or '' for none" in printed
    import_checkpoint(source, tmp_path / "none", system_prompt="")
    import_checkpoint(tmp_path / "none", tmp_path / "given", system_prompt=QWEN)
    for name, system in (("unknown", QWEN), ("none", ""), ("given", QWEN)):
        model = RewardModel.from_pretrained(tmp_path / name)
        assert scores(model, image) == pytest.approx(scores(expected, image, system), abs=1e-5), name
    card = (tmp_path / "none" / "README.md").read_text(encoding="utf-8")
    assert "A conversation without a system turn has none." in card
