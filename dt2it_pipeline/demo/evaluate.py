"""Measures the base model on the test split of easy-VQA."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from dt2it_pipeline.demo import language
from dt2it_pipeline.demo.conversations import IMAGE, ConversationMaker
from dt2it_pipeline.demo.easyvqa import load_split

BASE_MODEL = Path(__file__).parent / "base_model"


def chat(text: str, count: int) -> list[dict[str, Any]]:
    """A user turn in the chat form of transformers and vLLM; `text` holds `count` `<image>` markers."""
    pieces = text.split(IMAGE)
    if len(pieces) != count + 1:
        raise ValueError(f"expected {count} image markers, found {len(pieces) - 1}")
    content: list[dict[str, Any]] = [{"type": "text", "text": pieces[0]}]
    for piece in pieces[1:]:
        content += [{"type": "image"}, {"type": "text", "text": piece}]
    return [{"role": "user", "content": [part for part in content if part.get("text") != ""]}]


def held_out_questions(limit: int | None, seed: int) -> list[dict[str, Any]]:
    """Rows of kind, text with image markers, images, question and expected answer; `limit` rows per kind, or all.

    The kinds are those of easy-VQA and `two_images`: one question for every image whose color and shape are
    known, with a caption that fits only one of two images.
    """
    rng = random.Random(seed)
    images = load_split("test")
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in (*language.KINDS, "two_images")}
    for image in images:
        for question, answer in image.questions:
            row = {"text": IMAGE + question, "images": [image.path], "question": question, "answer": answer}
            rows[language.parse_question(question).kind].append(row)
    images = [image for image in images if image.color and image.shape]
    maker = ConversationMaker([p.color for p in images], [p.shape for p in images], rng)
    for number in range(len(images)):
        other = maker.different_image(number)
        conversation, best = maker.two_images([number, other])
        row = {
            "text": conversation.turns[0][1],
            "images": [images[number].path, images[other].path],
            "question": "",
            "answer": f"Image {best}",
        }
        rows["two_images"].append(row)
    for found in rows.values():
        rng.shuffle(found)
    return [{"kind": kind, **row} for kind, found in rows.items() for row in found[:limit]]


def is_right(row: dict[str, Any], reply: str) -> bool:
    """Whether a reply to a row of `held_out_questions` is right."""
    if row["kind"] == "two_images":
        return reply.startswith(row["answer"])
    return language.read_answer(row["question"], reply) == row["answer"]


def evaluate_base_model(
    folder: Path = BASE_MODEL, limit: int | None = None, seed: int = 0, batch: int = 128
) -> dict[str, float]:
    """Greedy accuracy on easy-VQA's test split per kind of question: shape, color, yes_no and two_images.

    `limit` is the number of questions per kind; None takes all 9,673 and 880 two-image questions.
    """
    from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    import torch
    from PIL import Image
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = Qwen3VLProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    right: dict[str, list[bool]] = {}
    rows = held_out_questions(limit, seed)
    for at in range(0, len(rows), batch):
        chunk = rows[at : at + batch]
        chats = [chat(row["text"], len(row["images"])) for row in chunk]
        texts = [processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) for turns in chats]
        images = [[Image.open(path).convert("RGB") for path in row["images"]] for row in chunk]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        replies = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, reply in zip(chunk, replies, strict=True):
            right.setdefault(row["kind"], []).append(is_right(row, reply))
    return {kind: sum(found) / len(found) for kind, found in right.items()}
