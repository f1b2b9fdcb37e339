"""One row of every form of preferences that public trainers, annotation tools and data sets use.

Each gives the pair "good" over "bad" for the question "q?"; the rows are written to the documented schemas.
"""

from __future__ import annotations

import json
from typing import Any


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def spoken(who: str, text: str) -> dict[str, str]:
    return {"from": who, "value": text}


def typed(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def valued(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "value": text}], "loss_weight": 1.0}


ASKED, GOOD, BAD = said("user", "q?"), said("assistant", "good"), said("assistant", "bad")
FORMS: dict[str, dict[str, Any]] = {
    "TRL, standard": {"prompt": "q?", "chosen": "good", "rejected": "bad"},
    "TRL, conversational": {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
    "TRL, typed content": {
        "prompt": [typed("user", "q?")],
        "chosen": [typed("assistant", "good")],
        "rejected": [typed("assistant", "bad")],
        "images": [],
    },
    "TRL, implicit prompt": {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "TRL, JSON in cells": {
        "prompt": json.dumps([ASKED]),
        "chosen": json.dumps([GOOD]),
        "rejected": json.dumps([BAD]),
    },
    "ms-swift, rejected_response": {"messages": [ASKED, GOOD], "rejected_response": "bad"},
    "ms-swift, rejected_messages": {"messages": [ASKED, GOOD], "rejected_messages": [ASKED, BAD]},
    "ms-swift 2": {"query": "q?", "response": "good", "rejected_response": "bad"},
    "LLaMA-Factory, sharegpt": {
        "conversations": [spoken("human", "q?")],
        "chosen": spoken("gpt", "good"),
        "rejected": spoken("gpt", "bad"),
    },
    "LLaMA-Factory, alpaca": {"instruction": "q?", "input": "", "chosen": "good", "rejected": "bad"},
    "LLaMA-Factory v1": {
        "chosen_messages": [valued("user", "q?"), valued("assistant", "good")],
        "rejected_messages": [valued("user", "q?"), valued("assistant", "bad")],
    },
    "OpenRLHF": {"prompt": [ASKED], "chosen": "good", "rejected": "bad"},
    "hh-rlhf": {"chosen": "\n\nHuman: q?\n\nAssistant: good", "rejected": "\n\nHuman: q?\n\nAssistant: bad"},
    "UltraFeedback, binarized": {
        "prompt": "q?",
        "prompt_id": "p",
        "chosen": [ASKED, GOOD],
        "rejected": [ASKED, BAD],
        "messages": [ASKED, GOOD],
        "score_chosen": 8.0,
        "score_rejected": 7.0,
    },
    "Argilla, cleaned": {
        "prompt": "q?",
        "chosen": [ASKED, GOOD],
        "rejected": [ASKED, BAD],
        "chosen-rating": 5.0,
        "chosen-model": "m",
        "rejected-rating": 4.0,
        "rejected-model": "n",
    },
    "distilabel": {
        "instruction": "q?",
        "generations": ["bad", "good"],
        "generation_models": ["n", "m"],
        "ratings": [4, 5],
    },
    "UltraFeedback": {
        "instruction": "q?",
        "completions": [
            {"model": "n", "response": "bad", "overall_score": 6.0},
            {"model": "m", "response": "good", "overall_score": 7.0},
        ],
    },
    "UltraFeedback, by aspect": {
        "instruction": "q?",
        "completions": [
            {"response": "bad", "annotations": {"helpfulness": {"Rating": "3"}, "honesty": {"Rating": "4"}}},
            {"response": "good", "annotations": {"helpfulness": {"Rating": "5"}, "honesty": {"Rating": "4"}}},
        ],
    },
    "Nectar": {
        "prompt": "q?",
        "answers": [{"answer": "good", "model": "m", "rank": 1.0}, {"answer": "bad", "model": "n", "rank": 2.0}],
    },
    "InternLM-XComposer": {"chosen": [ASKED, said("bot", "good")], "rejected": [ASKED, said("bot", "bad")]},
    "POVID": {
        "conversations": [spoken("human", "q?"), spoken("gpt", "good")],
        "rejected_conversations": [spoken("human", "q?"), spoken("gpt", "bad")],
    },
    "Multimodal RewardBench": {"Text": "q?", "Output1": "bad", "Output2": "good", "Better": "Output2"},
    "VL-RewardBench": {"query": "q?", "response": ["bad", "good"], "human_ranking": [1, 0]},
    "arena": {
        "question_id": "1",
        "model_a": "n",
        "model_b": "m",
        "winner": "model_b",
        "conversation_a": [ASKED, BAD],
        "conversation_b": [ASKED, GOOD],
    },
    "arena, by the model's name": {
        "prompt": "q?",
        "model_a": "n",
        "model_b": "m",
        "winner": "m",
        "response_a": "bad",
        "response_b": "good",
    },
    "arena, one column per outcome": {
        "prompt": "q?",
        "response_a": "bad",
        "response_b": "good",
        "winner_model_a": 0,
        "winner_model_b": 1,
        "winner_tie": 0,
    },
    "list of two and a verdict": {"question": "q?", "responses": ["bad", "good"], "preference": "B"},
    "several rejected": {"prompt": "q?", "chosen": "good", "rejected": ["bad"]},
}
VERDICTS = ("B", "[[B]]", "model_b", "rightvote", "response_b", "second", "B is better", "B>A", "A<<B")
TIES = ("tie", "Tie (bothbad)", "both bad", "bothbad_vote", "equal", "A=B", "neither", "same")
