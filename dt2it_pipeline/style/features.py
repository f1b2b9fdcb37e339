"""How a text is written, as numbers: lengths, markup, wording and openings, and who wrote it.

What belongs here: features of texts and their differences between the sides of pairs. What does not: what they predict
(`probe`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

MODELS = ("chosen_model", "rejected_model")  # columns of pairs: who wrote a side, where that is known
UNKNOWN = "unknown"  # who wrote a side of which nothing is known

# Matches per text. Content words (yes, no, names, numbers as answers) stay out: the probe would find the right answer.
_COUNTED = {
    "headings": r"^\s{0,3}#{1,6}\s",
    "bold": r"\*\*[^*\n]+\*\*|__[^_\n]+__",
    "italics": r"(?<![*\w])\*[^*\s][^*\n]*\*(?![*\w])",
    "bullets": r"^\s*[-*+•]\s",
    "numbered items": r"^\s*\d{1,2}[.)]\s",
    "code": r"`[^`\n]+`|```",
    "tables": r"^\s*\|.*\|\s*$",
    "line breaks": r"\n",
    "paragraphs": r"\n\s*\n",
    "digits": r"\d",
    "commas": r"[,，、]",
    "colons": r"[:：;；]",
    "exclamations": r"[!！]",
    "questions": r"[?？]",
    "brackets": r"[()\[\]（）]",
    "quotes": r"[\"“”「」]",
    "sentence ends": r"[.!?。！？](?:\s|$)",
    "capital letters": r"[A-Z]",
    "hedges": r"(?i)\b(?:perhaps|maybe|might|may|could|possibly|probably|likely|seems?|appears?|i think|i believe)\b"
    r"|可能|也许|似乎|大概",
    "certainty": r"(?i)\b(?:clearly|certainly|definitely|obviously|undoubtedly|indeed|of course)\b|显然|肯定|一定",
    "connectives": r"(?i)\b(?:therefore|because|since|thus|however|overall|in summary|first|second|finally)\b"
    r"|因此|因为|所以|然而|总之",
    "mentions of the image": r"(?i)\b(?:images?|pictures?|photos?|photographs?)\b|图片|图像|照片",
    "first person": r"(?i)\b(?:i|i'm|my|we|our)\b|我",
}
_WORD = r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+"  # Chinese characters count as words
# The pieces into which tokenizers split a text first; no model's own tokens, so that the probe needs no model.
_TOKEN = r"[A-Za-z]+|\d|[^\sA-Za-z\d]"
_OPENINGS = {
    "opens: the image": r"(?i)^\W*(?:the|this|in the|in this) (?:image|picture|photo)|^\W*(?:这张|图中|图片)",
    "opens: based on": r"(?i)^\W*(?:based on|looking at|according to|upon|from the)",
    "opens: courtesy": r"(?i)^\W*(?:sure|certainly|of course|great|thank|hello|hi\b|absolutely)",
    "opens: first person": r"(?i)^\W*(?:i|we|let me|let's)\b",
    "opens: article": r"(?i)^\W*(?:a|an|the)\b",
    "opens: pronoun": r"(?i)^\W*(?:it|its|this|that|these|those|there|they|he|she)\b|^\W*(?:这|那|它)",
    "opens: preposition": r"(?i)^\W*(?:in|on|at|from|to|with|by|for|as)\b|^\W*(?:在|根据|从)",
    "opens: answer label": r"(?i)^\W*(?:answer|response|final answer|to answer|here)\b",
    "opens: markup": r"^\s*[#*`>|-]",
}


def style_features(texts: pd.Series) -> pd.DataFrame:
    """How each text is written: one row per text, float64 columns; counts are log(1 + count), openings 0 or 1.

    Null texts count as empty.
    """
    # Plain Python strings and `re`: half of the patterns use look-around, which the Arrow engine does not have.
    plain = pd.Series(texts).fillna("").astype(object).reset_index(drop=True)
    words = plain.str.count(_WORD).to_numpy(dtype=np.float64)
    tokens = plain.str.count(_TOKEN).to_numpy(dtype=np.float64)
    characters = plain.str.len().to_numpy(dtype=np.float64)
    columns: dict[str, np.ndarray] = {
        "characters": np.log1p(characters),
        "words": np.log1p(words),
        "tokens": np.log1p(tokens),
        "word length": np.divide(characters, words, out=np.zeros_like(words), where=words > 0),
    }
    for name, pattern in _COUNTED.items():
        columns[name] = np.log1p(plain.str.count(f"(?m){pattern}").to_numpy(dtype=np.float64))
    for name, pattern in _OPENINGS.items():
        columns[name] = plain.str.contains(pattern, regex=True).to_numpy(dtype=np.float64)
    columns["no closing stop"] = (~plain.str.contains(r"[.!?。！？]\W*$", regex=True)).to_numpy(dtype=np.float64)
    return pd.DataFrame(columns)


def style_difference(pairs: pd.DataFrame) -> pd.DataFrame:
    """Style features of the chosen side minus those of the rejected one: a row per pair."""
    both = style_features(pd.concat([pairs["chosen"], pairs["rejected"]], ignore_index=True))
    count = len(pairs)
    return both.iloc[:count].reset_index(drop=True) - both.iloc[count:].reset_index(drop=True)


def model_difference(pairs: pd.DataFrame) -> pd.DataFrame:
    """Who wrote the sides: a column per model, float64; 1 where it wrote the chosen side, -1 the rejected one, else 0.

    A null is a writer of its own, "unknown". Columns that are 0 throughout are left out, so that there are none where
    both sides of every pair have one writer, or where pairs have no writers.
    """
    if not set(MODELS) <= set(pairs.columns):
        return pd.DataFrame(index=range(len(pairs)))
    chosen, rejected = (
        np.array([UNKNOWN if pd.isna(model) else str(model) for model in pairs[name]], dtype=object) for name in MODELS
    )
    columns = {}
    for name in sorted({*chosen, *rejected}):
        difference = (chosen == name).astype(np.float64) - (rejected == name)
        if difference.any():
            columns[f"by {name}"] = difference
    return pd.DataFrame(columns, index=range(len(pairs)))


def pair_difference(pairs: pd.DataFrame) -> pd.DataFrame:
    """All that the probe sees of pairs: `style_difference`, and `model_difference` where pairs have their writers."""
    return pd.concat([style_difference(pairs), model_difference(pairs)], axis=1)
