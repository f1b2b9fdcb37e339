"""What save_pretrained writes for whoever loads the checkpoint: image size, system prompt, chat template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError
from dt2it_pipeline.reward.checkpoints.processor_files import (
    has_preamble,
    pixel_limit,
    reward_template,
    trained_pixels,
    trained_with,
    write_processor_files,
)
from dt2it_pipeline.reward.data.encoding import load_processor
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline_tests.support.tiny import TEMPLATE

IMAGE = {"type": "image"}
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def rendered(template: str, messages: list[dict[str, Any]], **given: Any) -> str:
    ensure_torchvision()
    from transformers.utils.chat_template_utils import _compile_jinja_template

    made = _compile_jinja_template(template).render(messages=messages, **given)
    return made.replace(PLACEHOLDER, "[image]").replace("<|im_start|>", "<").replace("<|im_end|>\n", ">")


def question(*parts: dict[str, str]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "red"}]


@pytest.mark.parametrize(
    ("parts", "turn"),
    [
        ((IMAGE, text("q")), "[image]\nq"),
        ((IMAGE, text("\nq")), "[image]\nq"),
        ((IMAGE, text("\n\nq")), "[image]\n\nq"),
        ((IMAGE, IMAGE, text("q")), "[image]\n[image]\nq"),
        ((IMAGE, text("\n"), IMAGE, text("\nq")), "[image]\n[image]\nq"),
        ((text("is "), IMAGE, text(" like "), IMAGE, text("?")), "is [image] like [image]?"),
        ((IMAGE, text("q"), IMAGE, text("r")), "[image]\nq[image]r"),
        ((text("q"),), "q"),
        ((IMAGE,), "[image]"),
    ],
)
def test_a_newline_follows_images_that_a_turn_begins_with(parts: tuple[dict[str, str], ...], turn: str) -> None:
    assert rendered(reward_template(TEMPLATE, ""), question(*parts)) == f"<user\n{turn}><assistant\nred>"
    as_written = reward_template(TEMPLATE, "", image_newlines=False)
    assert rendered(as_written, question(*parts)) == rendered(TEMPLATE, question(*parts))


PROMPT = 'Judge "well":\n{% 判断 %} \\n 😀 {{x}} #}'


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, PROMPT),
        ("", PROMPT),
        ("Be brief.", f"{PROMPT}\n\nBe brief."),
        ([text("Be "), text("brief.")], f"{PROMPT}\n\nBe brief."),
        (PROMPT, PROMPT),
        (f"{PROMPT}\n\nBe brief.", f"{PROMPT}\n\nBe brief."),
    ],
)
def test_the_system_prompt_of_the_training_comes_first_and_once(own: Any, expected: str) -> None:
    before = [] if own is None else [{"role": "system", "content": own}]
    found = rendered(reward_template(TEMPLATE, PROMPT), [*before, *question(text("q"))])
    assert found == f"<system\n{expected}><user\nq><assistant\nred>"


@pytest.mark.parametrize(("own", "expected"), [(None, PROMPT), ("Be brief.", "Be brief."), (PROMPT, PROMPT)])
def test_the_system_prompt_of_other_trainers_stands_in_for_a_missing_one(own: str | None, expected: str) -> None:
    before = [] if own is None else [{"role": "system", "content": own}]
    made = reward_template(TEMPLATE, PROMPT, system_default=True)
    assert rendered(made, [*before, *question(text("q"))]) == f"<system\n{expected}><user\nq><assistant\nred>"
    assert trained_with(made) == (PROMPT, True, True, False)


# As the published chat template of Qwen2.5-VL begins.
OWN_TURN = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
    'You are a "helpful" assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n'
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}\n"
)


def test_a_system_turn_that_the_template_writes_by_itself_is_left_out_where_the_training_had_none() -> None:
    made = reward_template(OWN_TURN, "", image_newlines=False, system_default=True, system_suppressed=True)
    asked = question(IMAGE, text("q"))
    assert rendered(OWN_TURN, asked).startswith('<system\nYou are a "helpful" assistant.><user')
    assert rendered(made, asked) == "<user\n[image]q><assistant\nred>"
    assert rendered(made, asked[:1], add_generation_prompt=True) == "<user\n[image]q><assistant\n"
    for own in ("Be brief.", 'You are a "helpful" assistant.', ""):
        with_own = [{"role": "system", "content": own}, *asked]
        assert rendered(made, with_own) == rendered(OWN_TURN, with_own) == f"<system\n{own}>{rendered(made, asked)}"
    assert trained_with(made) == ("", False, True, True)
    # A later training starts from the base model's template again.
    assert reward_template(made, "You judge.") == reward_template(OWN_TURN.removesuffix("\n"), "You judge.")
    assert reward_template(made, "", system_suppressed=True) == reward_template(OWN_TURN, "", system_suppressed=True)


@pytest.mark.parametrize("template", [TEMPLATE, "Always.\n" + TEMPLATE, "{{ raise_exception('no') }}", "no messages"])
def test_a_template_without_a_system_turn_of_its_own_stays_as_it_is(template: str) -> None:
    made = reward_template(template, "", system_suppressed=True)
    assert made == reward_template(template, "").replace("suppressed=false", "suppressed=true")


def test_a_preamble_that_does_not_say_whether_it_is_a_default_always_comes_first() -> None:
    made = reward_template(TEMPLATE, "You judge.").replace(", default=false", "")
    assert trained_with(made) == ("You judge.", True, False, False)


def test_a_template_serves_an_answer_and_a_later_training() -> None:
    made = reward_template(TEMPLATE, "You judge.")
    assert rendered(made, question(text("q")), add_generation_prompt=True).endswith("<assistant\nred>")
    assert rendered(made, question(text("q"))[:1], add_generation_prompt=True).endswith("<assistant\n")
    parts = [{"role": "user", "content": "q"}, {"role": "assistant", "content": [text("r"), text("ed")]}]
    assert rendered(made, parts) == rendered(made, question(text("q")))
    assert reward_template(made, "Another.") == reward_template(TEMPLATE, "Another.")


def test_the_files_of_older_processors_are_rewritten(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    folder.mkdir()
    older = {"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14}
    (source / "preprocessor_config.json").write_text(json.dumps(older))
    (source / "chat_template.json").write_text(json.dumps({"chat_template": "preferred"}))
    (source / "chat_template.jinja").write_text("second")
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": "third", "eos_token": "e"}))
    assert pixel_limit(source) == 12_845_056
    card = {"max_pixels": 268_324, "system_prompt": "You judge.", "image_newlines": True}
    write_processor_files(source, folder, card)
    found = {file.name: file.read_text() for file in folder.iterdir()}
    assert set(found) == {"preprocessor_config.json", "chat_template.jinja", "tokenizer_config.json"}
    size = {"shortest_edge": 3136, "longest_edge": 268_324}
    assert json.loads(found["preprocessor_config.json"]) == {"patch_size": 14, "size": size}
    assert found["chat_template.jinja"] == reward_template("preferred", "You judge.")
    assert json.loads(found["tokenizer_config.json"]) == {"eos_token": "e"}
    assert pixel_limit(folder) == 268_324
    assert trained_pixels(folder) is None and pixel_limit(tmp_path / "none") is None


def test_of_several_chat_templates_the_default_counts(base: Callable[[str], Path], tmp_path: Path) -> None:
    source, folder = shutil.copytree(base("qwen3_vl"), tmp_path / "source"), tmp_path / "made"
    folder.mkdir()
    expected = load_processor(source).chat_template
    for name in ("chat_template.jinja", "chat_template.json"):
        (source / name).unlink(missing_ok=True)
    file = source / "tokenizer_config.json"
    config = json.loads(file.read_text())
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": expected}]
    file.write_text(json.dumps(config | {"chat_template": several}))
    assert load_processor(source).chat_template == expected
    assert load_processor(source, "You judge.").chat_template == reward_template(expected, "You judge.")
    write_processor_files(source, folder, {"system_prompt": "You judge.", "image_newlines": True})
    assert (folder / "chat_template.jinja").read_text() == reward_template(expected, "You judge.")
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
    file.write_text(json.dumps(config | {"chat_template": [several[0], {"name": "rag", "template": "r"}]}))
    for read in (load_processor, has_preamble):
        with pytest.raises(CheckpointError, match="has the chat templates rag, tool_use, and none is named `default`"):
            read(source)


@pytest.mark.parametrize(("limit", "shortest"), [(1024, 256), (128, 128)])
def test_a_loaded_checkpoint_has_the_size_of_its_training(
    base: Callable[[str], Path], tmp_path: Path, limit: int, shortest: int
) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "config.json").write_bytes((base("qwen3_vl") / "config.json").read_bytes())
    write_processor_files(base("qwen3_vl"), folder, {"max_pixels": limit})
    processor = load_processor(folder)
    expected = {"shortest_edge": shortest, "longest_edge": limit}
    assert ImageRegistry(processor.image_processor, tmp_path, None).size == expected
    assert ImageRegistry(processor.image_processor, tmp_path, 10**6).size["longest_edge"] == 10**6
