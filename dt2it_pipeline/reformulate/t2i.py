"""Text-to-image preferences as two-image questions with two short textual answers (DT2IT-MRM, arXiv 2604.19544).

A reward model for text answers learns from human judgements of images this way: the prompt shows both images and
asks which is the better one for the caption; chosen and rejected are the two verdict sentences. `verdict_pair` makes
one such row; `reformulate` makes the same rows for a whole table, column by column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.config.sections.t2i import T2ISettings
from dt2it_pipeline.media.markers import MARKER, without_markers
from dt2it_pipeline.reformulate import columns
from dt2it_pipeline.reformulate.phrasings import CAPTION, Phrasing, Phrasings, language_of, load_phrasings
from dt2it_pipeline.storage import content_ids, records, schemas
from dt2it_pipeline.storage.artifacts import Artifact

TIE, IDENTICAL = "tie", "identical images"
CONTRADICTORY, DUPLICATE = "contradictory preference", "duplicate preference"
BEYOND = "beyond t2i.max_pairs"
_STAGE = "t2i_pairs"
_TEXTS = ("preference_id", "row_id", "caption", "language", "source")


def verdict_pair(
    preference: Mapping[str, Any], preferred_first: bool, phrasings: Phrasings | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prompt row and pair row of one row of `t2i_preferences`, the preferred image first or second.

    A caption that holds an `<image>` marker of its own loses it: markers stand for images. The phrasing is one of the
    row's language and follows from the preference's id, so that it is the same wherever the row stands.
    """
    phrasings = load_phrasings() if phrasings is None else phrasings
    sides = [preference["preferred"], preference["other"]]
    media = sides if preferred_first else sides[::-1]
    own = phrasings[language_of(preference["language"], phrasings)]
    phrasing = own[columns.draw(preference["preference_id"]) % len(own)]
    caption = without_markers(preference["caption"], " ")
    turns = [{"role": "user", "text": phrasing.question.replace(CAPTION, caption)}]
    prompt = {
        "prompt_id": content_ids.prompt_id("", turns, [medium["sha256"] for medium in media]),
        "source": preference["source"],
        "system": "",
        "turns": turns,
        "media": media,
        "reference": None,
        "language": preference["language"],
        "meta": _meta(phrasing),
    }
    verdicts = (phrasing.first, phrasing.second)
    chosen, rejected = verdicts if preferred_first else verdicts[::-1]
    pair = records.make_pair(
        prompt["prompt_id"],
        chosen,
        rejected,
        strength=preference["strength"],
        label="reformulated",
        source=preference["source"],
        row_id=preference.get("row_id"),
    )
    return prompt, pair


def reformulate(
    preferences: pa.Table, settings: T2ISettings, seed: int, phrasings: Phrasings | None = None
) -> Artifact:
    """Turn T2I preferences into two-image pairs; the preferred image stands first in exactly half of them.

    An odd count differs by one, and so does, at most, each phrasing of each source. Which rows are used (`max_pairs`),
    and which of them get the preferred image first, is drawn with `seed`; the rows keep the order of their ids. Ties
    (a strength of 0), identical images, repeated preferences and images preferred both ways are quarantined.

    Returns an artifact of `pairs`, `prompts` and `quarantine`; metadata: rows_in, rows_out, rows_quarantined,
    preferred_first, ties.
    """
    phrasings = load_phrasings(count=settings.phrasings) if phrasings is None else phrasings
    table = preferences.sort_by([("preference_id", "ascending"), ("source", "ascending")]).combine_chunks()
    rows = pd.DataFrame({name: table[name].to_pandas() for name in _TEXTS})
    rows["strength"] = table["strength"].to_numpy(zero_copy_only=False)
    for side in ("preferred", "other"):
        rows[side] = pc.struct_field(table[side], "sha256").to_pandas()
    rows["caption"] = rows["caption"].str.replace(MARKER, " ", regex=True)
    rows["reason"] = _unusable(rows)
    rng = np.random.default_rng(seed)
    usable = np.flatnonzero(rows["reason"].to_numpy() == "")
    order = rng.permutation(usable)
    used = np.sort(order[: settings.max_pairs])
    rows.loc[order[len(used) :], "reason"] = BEYOND
    known, flat, offsets = _flatten(rows, phrasings)
    chosen_phrasing = np.array(
        [columns.draw(name) for name in rows["preference_id"].iloc[used].tolist()], dtype=np.int64
    )
    first_of, count_of = (offsets[known[used]], np.diff(offsets)[known[used]])
    phrasing = first_of + chosen_phrasing % count_of
    first = _balanced(rows["source"].array[used], phrasing, rng)
    prompts, pairs = _tables(table.take(pa.array(used)), rows["caption"].array[used], flat, phrasing, first)
    quarantine = _quarantine(rows[rows["reason"] != ""])
    return Artifact(
        {"pairs": pairs, "prompts": prompts, "quarantine": quarantine},
        {
            "rows_in": table.num_rows,
            "rows_out": pairs.num_rows,
            "rows_quarantined": quarantine.num_rows,
            "preferred_first": int(first.sum()),
            "ties": int((rows["reason"] == TIE).sum()),
        },
    )


def _unusable(rows: pd.DataFrame) -> np.ndarray:
    """Why a row cannot be used, as text [rows]; empty where it can. The first of several reasons counts."""
    reason = np.full(len(rows), "", dtype=object)
    reason[rows["preferred"].to_numpy() == rows["other"].to_numpy()] = IDENTICAL
    reason[(rows["strength"].to_numpy() == 0) & (reason == "")] = TIE
    open_rows = np.flatnonzero(reason == "")
    own = rows.iloc[open_rows]
    forward = (own["preferred"] < own["other"]).to_numpy()
    low, high = own["preferred"].where(forward, own["other"]), own["other"].where(forward, own["preferred"])
    question = pd.DataFrame({"caption": own["caption"], "low": low, "high": high}).groupby(
        ["caption", "low", "high"], sort=False
    ).ngroup()  # fmt: skip
    codes = question.to_numpy()
    size = codes.max(initial=-1) + 1
    ways = np.zeros((size, 2), dtype=bool)
    ways[codes, forward.astype(int)] = True
    both = np.logical_and(ways[:, 0], ways[:, 1])[codes]
    reason[open_rows[both]] = CONTRADICTORY
    reason[open_rows[question.duplicated().to_numpy() & ~both]] = DUPLICATE
    return reason


def _flatten(rows: pd.DataFrame, phrasings: Phrasings) -> tuple[np.ndarray, list[Phrasing], np.ndarray]:
    """Language of each row as a number, all phrasings in one list, and where each language's begin in it."""
    names = sorted(phrasings)
    flat = [phrasing for name in names for phrasing in phrasings[name]]
    offsets = np.cumsum([0, *(len(phrasings[name]) for name in names)])
    codes, spelled = pd.factorize(rows["language"])
    known = np.array([names.index(language_of(str(code), phrasings)) for code in spelled], dtype=np.int64)
    return known[codes], flat, offsets


def _balanced(sources: Any, phrasing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whether the preferred image stands first [rows]: every other row of a random order within each stratum."""
    stratum, _ = pd.factorize(pd.MultiIndex.from_arrays([np.asarray(sources, dtype=object), phrasing]), sort=True)
    order = np.lexsort((rng.random(len(phrasing)), stratum))
    first = np.zeros(len(phrasing), dtype=bool)
    first[order[1::2]] = True
    return first


def _tables(
    table: pa.Table, captions: Any, flat: list[Phrasing], phrasing: np.ndarray, first: np.ndarray
) -> tuple[pa.Table, pa.Table]:
    """Prompts and pairs of the used rows, in their order."""
    if not len(first):
        return schemas.table([], "prompts"), schemas.table([], "pairs")
    texts = columns.fill([p.question for p in flat], phrasing, CAPTION, pa.array(captions, pa.string()))
    preferred, other = (table[side].combine_chunks() for side in ("preferred", "other"))
    both = pa.concat_arrays([preferred, other])
    count = len(first)
    places = np.arange(count)
    shown = np.stack([np.where(first, places, places + count), np.where(first, places + count, places)], axis=1)
    media = pa.ListArray.from_arrays(
        pa.array(np.arange(0, 2 * count + 1, 2, dtype=np.int32)), both.take(pa.array(shown.reshape(-1)))
    )
    hashes = [pc.struct_field(both.take(pa.array(shown[:, place])), "sha256") for place in (0, 1)]
    prompt_ids = columns.prompt_ids(texts, hashes)
    first_words, second_words = (pa.array([getattr(p, side) for p in flat]) for side in ("first", "second"))
    picked = pa.array(phrasing)
    one, two = first_words.take(picked), second_words.take(picked)
    mask = pa.array(first)
    chosen, rejected = pc.if_else(mask, one, two), pc.if_else(mask, two, one)
    chosen_ids, rejected_ids = (columns.response_ids(prompt_ids, words) for words in (chosen, rejected))
    prompts = {
        "prompt_id": prompt_ids,
        "source": table["source"],
        "system": columns.constant("", count),
        "turns": columns.user_turns(texts),
        "media": media,
        "reference": pa.nulls(count, pa.string()),
        "language": table["language"],
        "meta": pa.array([_meta(p) for p in flat]).take(picked),
    }
    pairs = {
        "pair_id": columns.pair_ids(prompt_ids, chosen_ids, rejected_ids),
        "prompt_id": prompt_ids,
        "chosen": chosen,
        "rejected": rejected,
        "chosen_id": chosen_ids,
        "rejected_id": rejected_ids,
        "strength": table["strength"],
        "label": columns.constant("reformulated", count),
        "round": pa.array(np.full(count, -1, dtype=np.int32)),
        "source": table["source"],
        "votes": columns.empty_lists(count, schemas.SCHEMAS["pairs"].field("votes").type),
        "row_id": table["row_id"],
    }
    return schemas.validate(pa.table(prompts), "prompts"), schemas.validate(pa.table(pairs), "pairs")


def _quarantine(rows: pd.DataFrame) -> pa.Table:
    made = {
        "row_id": pa.array(rows["row_id"].fillna(rows["preference_id"]), pa.string()),
        "stage": columns.constant(_STAGE, len(rows)),
        "reason": pa.array(rows["reason"], pa.string()),
        "detail": pa.array(rows["caption"].str.slice(0, 80), pa.string()),
        "source": pa.array(rows["source"], pa.string()),
    }
    return schemas.validate(pa.table(made), "quarantine")


def _meta(phrasing: Phrasing) -> str:
    return json.dumps({"phrasing": phrasing.hash})
