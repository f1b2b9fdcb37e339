"""Text-to-image preferences as two-image questions with two short textual answers (arXiv 2604.19544, reformulation of
text-to-image preferences).

A reward model for text answers learns from human judgements of pictures this way: the prompt shows both pictures and
asks which is the better one for the caption; chosen and rejected are the two verdict sentences.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from dt2it_pipeline import records
from dt2it_pipeline.recipe import T2ISettings
from dt2it_pipeline.store import Bundle

_QUESTION = (
    'Here are two images generated for the caption "{caption}".\nImage 1: <image>\nImage 2: <image>\n'
    "Which image is better, judged first by how well it matches the caption and then by its quality?"
)
_VERDICTS = ("Image 1 is better than image 2.", "Image 2 is better than image 1.")


def verdict_pair(preference: Mapping[str, Any], preferred_first: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prompt row and pair row of one row of `t2i_preferences`, the preferred picture first or second.

    A caption that holds an `<image>` marker of its own loses it: markers stand for pictures.
    """
    sides = [preference["preferred"], preference["other"]]
    media = sides if preferred_first else sides[::-1]
    caption = preference["caption"].replace("<image>", " ").replace("<video>", " ")
    turns = [{"role": "user", "text": _QUESTION.format(caption=caption)}]
    prompt = {
        "prompt_id": records.prompt_id("", turns, [medium["sha256"] for medium in media]),
        "source": preference["source"],
        "system": "",
        "turns": turns,
        "media": media,
        "reference": None,
        "language": preference["language"],
        "meta": "{}",
    }
    chosen, rejected = _VERDICTS if preferred_first else _VERDICTS[::-1]
    pair = records.make_pair(
        prompt["prompt_id"],
        chosen,
        rejected,
        strength=preference["strength"],
        label="reformulated",
        source=preference["source"],
    )
    return prompt, pair


def reformulate(preferences: pa.Table, settings: T2ISettings, seed: int) -> Bundle:
    """Turn T2I preferences into two-image pairs; the preferred picture stands first in exactly half of them.

    An odd count differs by one. Which rows are used (`max_pairs`), and which of them get the preferred picture first,
    is drawn with `seed`; the rows keep the order of their ids.

    Returns a bundle of `pairs`, `prompts` and `set_aside`; facts: rows_in, rows_out, rows_set_aside, preferred_first.
    """
    found = sorted(preferences.to_pylist(), key=lambda row: row["row_id"])
    opinions = Counter(_question_key(row) for row in found)
    rows = [row for row in found if opinions[_question_key(row)] == 1]
    # The same two pictures preferred both ways would become one question with two answers.
    set_aside = [_set_aside(row, "contradictory preference") for row in found if opinions[_question_key(row)] > 1]
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    used, beyond = order[: settings.max_pairs], order[len(order[: settings.max_pairs]) :]
    set_aside += [_set_aside(rows[i], "beyond t2i.max_pairs") for i in sorted(beyond)]
    first = set(used[: len(used) // 2])
    prompts: dict[str, dict[str, Any]] = {}
    pairs: dict[str, dict[str, Any]] = {}
    for index in sorted(used):
        prompt, pair = verdict_pair(rows[index], preferred_first=index in first)
        prompts[prompt["prompt_id"]] = prompt
        pairs[pair["pair_id"]] = pair
    made = records.table(pairs.values(), "pairs")
    return Bundle(
        {
            "pairs": made,
            "prompts": records.table(prompts.values(), "prompts"),
            "set_aside": records.table(set_aside, "set_aside"),
        },
        {
            "rows_in": len(found),
            "rows_out": made.num_rows,
            "rows_set_aside": len(set_aside),
            "preferred_first": sum(pair["chosen"] == _VERDICTS[0] for pair in pairs.values()),
        },
    )


def _question_key(row: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    return row["caption"], frozenset((row["preferred"]["sha256"], row["other"]["sha256"]))


def _set_aside(row: Mapping[str, Any], reason: str) -> dict[str, str]:
    return records.set_aside_row(row["row_id"], "t2i_pairs", reason, row["caption"][:80], row["source"])
