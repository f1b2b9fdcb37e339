"""Pairs and their balance by several processes, and styles of texts: the same to the last bit."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dt2it_pipeline.config.sections.pairing import PairingSettings
from dt2it_pipeline.construct import pairs as pairing
from dt2it_pipeline.construct.debias import debias
from dt2it_pipeline.construct.pairs import form_pairs_with_spares
from dt2it_pipeline.storage import content_ids, schemas
from dt2it_pipeline.style import features
from dt2it_pipeline.style.features import style_features

STYLES = ("{}.", "## Answer\n\n- **It is** {}!", "I think it may be {}, of course. 图片")
WORDS = [
    "i",
    "I'm",
    "think",
    "i think",
    "in summary",
    "of course",
    "FIRST",
    "may_be",
    "may",
    "photo's",
    "ı",
    "K",
    "图片",
    ".",
]


def judged(prompts: int) -> tuple[object, ...]:
    rng = random.Random(4)
    asked, answers, judgements = [], [], []
    for number in range(prompts):
        turns = [{"role": "user", "text": f"What is in {number}?"}]
        key = content_ids.prompt_id("", turns, [])
        asked.append({"prompt_id": key, "source": "s", "system": "", "turns": turns, "media": [], "reference": None,
                      "language": "en", "meta": "{}"})  # fmt: skip
        for place in range(rng.randint(0, 5)):
            text = rng.choice(STYLES).format(f"{rng.choice('abc')} {place}")
            ids = {"prompt_id": key, "response_id": content_ids.response_id(key, text)}
            answers.append({**ids, "text": text, "generator": rng.choice(["m", "n|t=1"])})
            for mode, order in (("listwise", [1, 0]), ("pointwise", [])):
                judgements.append({**ids, "judge": "j", "mode": mode, "order": order, "template_hash": "-",
                                   "score": rng.choice([2.0, 5.0, 8.5]) + 2 * text.startswith("#"), "criteria": "{}",
                                   "status": "ok"})  # fmt: skip
    kinds = (asked, "prompts"), (answers, "responses"), (judgements, "judgements")
    return tuple(schemas.table(rows, kind) for rows, kind in kinds)


def test_the_number_of_processes_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "_MANY", 10)
    monkeypatch.setattr(features, "_MANY", 10)
    monkeypatch.setattr(features, "_PIECE", 17)
    bins = [{"from_strength": 0.5, "share": 0.7}, {"from_strength": 4, "share": 0.3}]
    settings = PairingSettings(strength_bins=bins, max_pairs_per_prompt=2)
    one, three = (form_pairs_with_spares(*judged(120), settings, 0, processes) for processes in (1, 3))  # type: ignore[arg-type]
    assert all(table.equals(other) for table, other in zip(one, three, strict=True))
    assert set(one[2]["reason"].to_pylist()) >= {pairing.TIED, pairing.SURPLUS, pairing.FULL, pairing.DISAGREE}
    made = [debias(one[0], one[1], 0.6, 3, seed=1, processes=processes) for processes in (1, 3)]
    assert made[0] == made[1] and 0 < made[0].pairs.num_rows < one[0].num_rows


@given(st.lists(st.sampled_from(WORDS), max_size=9), st.sampled_from([" ", "  ", "-", "\n"]))
def test_words_of_a_style_are_counted_as_their_patterns_do(words: list[str], between: str) -> None:
    text = between.join(words)
    by_pattern = [len(features._PATTERNS[name].findall(text)) for name in features._BY_WORDS]
    assert features._word_counts(text) == by_pattern


def test_a_text_has_its_features_wherever_it_stands() -> None:
    texts = pd.Series(["May I?", None, "a\n- b", "May I?", ""])
    whole = style_features(texts)
    assert whole.to_dict("records") == [style_features(texts[at : at + 1]).to_dict("records")[0] for at in range(5)]
    assert np.expm1(whole["hedges"]).tolist() == [1, 0, 0, 1, 0] and len(style_features(texts[:0])) == 0
