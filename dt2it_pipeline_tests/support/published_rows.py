"""One row of every published schema that an adapter reads."""

from __future__ import annotations

import json
from typing import Any

HUMAN, GPT = "human", "gpt"


def turn(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def rated(response: str, *ratings: str) -> dict[str, Any]:
    aspects = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    notes = {aspect: {"Rating": rating, "Rationale": "so"} for aspect, rating in zip(aspects, ratings, strict=True)}
    return {"annotations": notes, "model": "m", "response": response}


CRITIC = (
    "<image>\nGiven an image and a question, judge the answers. Your task is provided as follows:\n"
    "Question: [What is it?]\n"
    "The first response: [A cat,\nand a mat.]\nThe second response: [A dog.]\nASSISTANT:\n"
)


JUDGE = "Judge [Response 1] and [Response 2].\n#### [Response 1]:\nbad\n#### [Response 2]:\ngood"


ROWS: dict[str, dict[str, Any]] = {
    "auto": {"id": "1", "image": "a.png", "question": "What is it?", "chosen": "good", "rejected": "bad"},
    "rlaif_v": {
        "ds_name": "RLAIF-V",
        "image": "a.png",
        "question": "What is it?",
        "chosen": "good",
        "rejected": "bad",
        "origin_dataset": "COCO",
        "origin_split": "{}",
        "idx": "7",
        "image_path": "b.png",
    },
    "rlhf_v": {
        "ds_name": "RLHF-V",
        "image_path": "a.png",
        "image": None,
        "origin_dataset": "COCO",
        "idx": 3,
        "text": json.dumps({"question": "What is it?", "chosen": "good", "rejected": "bad"}),
    },
    "spa_vl": {"image": "a.png", "question": "What is it?", "chosen": "good", "rejected": "bad"},
    "povid": {
        "id": "1",
        "image": "a.png",
        "conversations": [turn(HUMAN, "What is it?"), turn(GPT, "good")],
        "rejected_conversations": [turn(HUMAN, "What is it?"), turn(GPT, "bad")],
    },
    "mmpr": {"image": "a.png", "question": "What is it?", "chosen": "good", "rejected": "bad", "answer_gt": "B"},
    "mm_rlhf": {
        "id": "1",
        "image": "a.png",
        "prompt": "What is it?",
        "chosen": "good",
        "rejected": "bad",
        "is_tie": False,
    },
    "r1_reward": {
        "question": "What is it?",
        "image": "a.png",
        "answer": ["<answer>2</answer>"],
        "message": json.dumps([message("user", JUDGE)]),
    },
    "llava_human_preference": {
        "id": "1",
        "image": "a.png",
        "conversations": [turn(HUMAN, "What is it?")],
        "preference": 2,
        "output_1": {"from": "llava", "value": "bad"},
        "output_2": {"from": "llava", "value": "good"},
        "hallucination": False,
    },
    "wildvision": {
        "question_id": "q",
        "model_a": "x",
        "model_b": "y",
        "image": "a.png",
        "winner": "model_b",
        "language": "English",
        "conversation_a": [message("user", "What is it?"), message("assistant", "bad")],
        "conversation_b": [message("user", "What is it?"), message("assistant", "good")],
    },
    "llava_critic": {
        "id": "1",
        "source": "s",
        "image": "a.png",
        "conversations": [
            turn(HUMAN, CRITIC.replace("A cat,\nand a mat.", "bad").replace("A dog.", "good")),
            turn(GPT, "The second response is better, because it is good."),
        ],
    },
}


IMAGES = [
    ("auto", {"caption": "c", "preferred": "a", "other": "b", "strength": 2}, 2.0),
    ("hpdv2", {"prompt": "c", "file_path": ["b", "a"], "human_preference": [0, 1]}, None),
    ("hpdv2", {"prompt": "c", "image_path": ["b", "a"], "rank": [2, 1], "raw_annotations": []}, 1.0),
    ("hpdv3", {"prompt": "c", "path1": "a", "path2": "b", "model1": "x", "model2": "y", "confidence": 0.9}, 0.9),
    ("hpdv3", {"prompt": "c", "path1": "a", "path2": "b"}, None),
    (
        "pick_a_pic",
        {"caption": "c", "jpg_0": "a", "jpg_1": "b", "label_0": 1.0, "label_1": 0.0, "has_label": True},
        None,
    ),
    (
        "pick_a_pic",
        {"caption": "c", "jpg_0": "b", "jpg_1": "a", "label_0": 0.0, "label_1": 1.0, "has_label": True},
        None,
    ),
    ("image_reward", {"id": "1", "prompt": "c", "generations": ["b", "a"], "ranking": [4, 1]}, 3.0),
]
