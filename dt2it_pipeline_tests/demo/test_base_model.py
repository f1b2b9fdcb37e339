"""The base model that ships with the package, and the parts that make one."""

import random
import subprocess
import sys

import numpy as np
import pytest

from dt2it_pipeline.demo import language, rendering
from dt2it_pipeline.demo.conversations import ConversationMaker
from dt2it_pipeline.demo.evaluate import BASE_MODEL, chat, evaluate_base_model
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

LOOKS = [(color, shape) for color in language.COLORS for shape in language.SHAPES]


@pytest.fixture(scope="module")
def processor():
    ensure_torchvision()
    from transformers import Qwen3VLProcessor

    return Qwen3VLProcessor.from_pretrained(BASE_MODEL)


def make_maker() -> ConversationMaker:
    return ConversationMaker([color for color, _ in LOOKS], [shape for _, shape in LOOKS], random.Random(0))


def test_modules_import_without_torch():
    modules = "build_base_model, conversations, easyvqa, evaluate, language, model_files, rendering, world"
    code = (
        f"import sys; from dt2it_pipeline.demo import {modules}; assert not {{'torch', 'dagster'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_base_model_answers_the_test_split():
    accuracies = evaluate_base_model(limit=60, seed=1)
    assert accuracies["shape"] >= 0.95
    assert accuracies["color"] >= 0.97
    assert accuracies["yes_no"] >= 0.92
    assert accuracies["two_images"] >= 0.85


def test_base_model_is_small_and_has_a_card():
    weights = BASE_MODEL / "model.safetensors"
    assert weights.stat().st_size <= 5_000_000
    assert "easy-VQA" in (BASE_MODEL / "README.md").read_text(encoding="utf-8")


def test_training_text_is_what_the_processor_makes(processor):
    from PIL import Image

    from dt2it_pipeline.demo.training import encode

    maker = make_maker()
    for _ in range(40):
        conversation = maker.draw()
        messages = []
        for role, text in conversation.turns:
            messages.append({"role": role, "content": chat(text, text.count("<image>"))[0]["content"]})
        text = processor.apply_chat_template(messages, tokenize=False)
        images = [[Image.new("RGB", (64, 64))] * len(conversation.images)]
        ids = processor(text=[text], images=images)["input_ids"][0]
        assert processor.tokenizer.decode(ids[-1:]) == "\n"
        assert list(ids[:-1]) == encode(processor.tokenizer, [conversation])[0][0]


def test_only_the_last_answer_is_learned(processor):
    from dt2it_pipeline.demo.training import IGNORED, encode

    maker = make_maker()
    for _ in range(40):
        conversation = maker.draw()
        _, labels = encode(processor.tokenizer, [conversation])[0]
        learned = processor.tokenizer.decode([label for label in labels if label != IGNORED])
        assert learned == conversation.turns[-1][1] + "<|im_end|>"


def test_patches_are_those_of_the_image_processor(processor):
    from PIL import Image

    from dt2it_pipeline.demo.training import patches

    images, _, _ = rendering.draw_many(4, random.Random(0))
    opened = [Image.fromarray(image) for image in images]
    expected = processor.image_processor(opened, return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(patches(images).numpy(), expected.numpy(), atol=1e-6)


def test_two_image_questions_have_one_right_answer():
    maker = make_maker()
    firsts = 0
    for _ in range(200):
        image = maker.rng.randrange(len(LOOKS))
        conversation, best = maker.two_images([image, maker.different_image(image)])
        (_, question), (_, verdict) = conversation.turns
        fitting = [all(word in question for word in LOOKS[number]) for number in conversation.images]
        assert fitting == [best == 1, best == 2]
        assert verdict.startswith(f"Image {best}")
        firsts += best == 1
    assert 70 <= firsts <= 130
