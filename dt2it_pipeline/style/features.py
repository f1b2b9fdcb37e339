"""How a text is written, as numbers: lengths, markup, wording and openings, and who wrote it.

What belongs here: features of texts and their differences between the sides of pairs. What does not: what they predict
(`probe`).
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from dt2it_pipeline.engines.launch import fork_server

MODELS = ("chosen_model", "rejected_model")  # columns of pairs: who wrote a side, where that is known
UNKNOWN = "unknown"  # who wrote a side of which nothing is known
_MANY, _PIECE = 100_000, 1024  # texts from which on several processes help, and those that one takes at a time

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


# What finds the same in ASCII text as the patterns of these names, and takes a fifth of their time: words, and phrases.
_BY_WORDS = {
    "hedges": ("perhaps maybe might may could possibly probably likely seem seems appear appears", "i think|i believe"),
    "certainty": ("clearly certainly definitely obviously undoubtedly indeed", "of course"),
    "connectives": ("therefore because since thus however overall first second finally", "in summary"),
    "mentions of the image": ("image images picture pictures photo photos photograph photographs", ""),
    "first person": ("i my we our", ""),
}
_PLACE_OF = {word: place for place, (words, _) in enumerate(_BY_WORDS.values()) for word in words.split()}
_PHRASES = [
    (place, tuple(phrases.split("|")), re.compile(rf"\b(?:{phrases})\b"))
    for place, (_, phrases) in enumerate(_BY_WORDS.values())
    if phrases
]
_ANY_WORD = re.compile(r"\w+")
_PATTERNS = {name: re.compile(f"(?m){pattern}") for name, pattern in _COUNTED.items()}
_FIRST = {name: re.compile(pattern) for name, pattern in _OPENINGS.items()}
_COUNTED_PIECES = [re.compile(pattern) for pattern in (_WORD, _TOKEN)]
_CLOSING_STOP = re.compile(r"[.!?。！？]\W*$")


def style_features(texts: pd.Series, processes: int = 1) -> pd.DataFrame:
    """How each text is written: one row per text, float64 columns; counts are log(1 + count), openings 0 or 1.

    Null texts count as empty. A text that is there several times is looked at once.

    Args:
        texts: in any number.
        processes: that share the work, once there are many texts; the features do not depend on them.

    Raises:
        WorkerError: one of several processes died.
    """
    plain = pd.Series(texts).fillna("").astype(object).reset_index(drop=True)
    codes, once = pd.factorize(plain)
    pieces = (list(once[start : start + _PIECE]) for start in range(0, len(once), _PIECE))
    with fork_server.table_pool(
        processes if len(once) >= _MANY else 1, "look at how texts are written", __name__
    ) as pool:
        counts = np.concatenate([*pool.map(_counts, pieces), np.zeros((0, len(_COLUMNS)))])[codes]
    found = pd.DataFrame(counts, columns=_COLUMNS)
    lengths = found["characters"].to_numpy(), found["words"].to_numpy()
    word_length = np.divide(*lengths, out=np.zeros(len(found)), where=lengths[1] > 0)
    logged = [name for name in _COLUMNS if name not in _OPENINGS and name != _NO_STOP]
    found[logged] = np.log1p(found[logged].to_numpy())
    found.insert(_COLUMNS.index("tokens") + 1, "word length", word_length)
    return found


_NO_STOP = "no closing stop"
_COLUMNS = ["characters", "words", "tokens", *_COUNTED, *_OPENINGS, _NO_STOP]


def _counts(texts: list[str]) -> np.ndarray:
    """Matches in every text, float64 [texts, columns]."""
    columns: list[list[int]] = [list(map(len, texts))]
    columns += [[len(pattern.findall(text)) for text in texts] for pattern in _COUNTED_PIECES]
    by_words = list(zip(*map(_word_counts, texts), strict=True))
    for name, pattern in _PATTERNS.items():
        if name in _BY_WORDS:
            columns.append(list(by_words[list(_BY_WORDS).index(name)]))
        else:
            columns.append([len(pattern.findall(text)) for text in texts])
    columns += [[pattern.search(text) is not None for text in texts] for pattern in _FIRST.values()]
    columns.append([_CLOSING_STOP.search(text) is None for text in texts])
    return np.array(columns, dtype=np.float64).T


def _word_counts(text: str) -> list[int]:
    """Matches of the patterns in _BY_WORDS."""
    if not text.isascii():
        return [len(_PATTERNS[name].findall(text)) for name in _BY_WORDS]
    lower = text.lower()
    counts = [0] * len(_BY_WORDS)
    for word in _ANY_WORD.findall(lower):
        if (place := _PLACE_OF.get(word)) is not None:
            counts[place] += 1
    for place, phrases, pattern in _PHRASES:
        if any(phrase in lower for phrase in phrases):
            counts[place] += len(pattern.findall(lower))
    return counts


def style_difference(pairs: pd.DataFrame, processes: int = 1) -> pd.DataFrame:
    """Style features of the chosen side minus those of the rejected one: a row per pair; see `style_features`."""
    both = style_features(pd.concat([pairs["chosen"], pairs["rejected"]], ignore_index=True), processes)
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
