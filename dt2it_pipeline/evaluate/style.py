"""Can style alone tell the chosen side of a pair from the rejected one?

A reward model trained on pairs whose chosen side can be told by its style learns the style (arXiv:2604.19544).
The probe measures how far that is possible: a classifier that sees only how a text is written, never what it says, and
is tested on pairs that it was not fitted on. Area under the ROC curve 0.5: style says nothing; 1.0: style says it all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

MIN_PAIRS = 20
MAX_PAIRS = 20_000  # more say nothing new: the interval is then 0.01 wide

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
_OPENINGS = {
    "opens: the image": r"(?i)^\W*(?:the|this|in the|in this) (?:image|picture|photo)|^\W*(?:这张|图中|图片)",
    "opens: based on": r"(?i)^\W*(?:based on|looking at|according to|upon|from the)",
    "opens: courtesy": r"(?i)^\W*(?:sure|certainly|of course|great|thank|hello|hi\b|absolutely)",
    "opens: first person": r"(?i)^\W*(?:i|we|let me|let's)\b",
    "opens: answer label": r"(?i)^\W*(?:answer|response|final answer|to answer|here)\b",
    "opens: markup": r"^\s*[#*`>|-]",
}


@dataclass(frozen=True)
class StyleProbe:
    """Result of the probe.

    Attributes:
        auc: area under the ROC curve on held-out pairs, None when it could not be measured.
        ci_low, ci_high: its 95% interval (DeLong), None with it.
        n: pairs used.
        features: the style features that count most, strongest first; positive means more of it on the chosen side.
        reason: why there is no AUC, else empty.
    """

    auc: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    features: tuple[tuple[str, float], ...] = ()
    reason: str = ""


def style_features(texts: pd.Series) -> pd.DataFrame:
    """How each text is written: one row per text, float64 columns; counts are log(1 + count), openings 0 or 1.

    Null texts count as empty.
    """
    # Plain Python strings and `re`: half of the patterns use look-around, which the Arrow engine does not have.
    plain = pd.Series(texts).fillna("").astype(object).reset_index(drop=True)
    words = plain.str.count(r"\S+").to_numpy(dtype=np.float64)
    characters = plain.str.len().to_numpy(dtype=np.float64)
    columns: dict[str, np.ndarray] = {
        "characters": np.log1p(characters),
        "words": np.log1p(words),
        "word length": np.divide(characters, words, out=np.zeros_like(words), where=words > 0),
    }
    for name, pattern in _COUNTED.items():
        columns[name] = np.log1p(plain.str.count(f"(?m){pattern}").to_numpy(dtype=np.float64))
    for name, pattern in _OPENINGS.items():
        columns[name] = plain.str.contains(pattern, regex=True).to_numpy(dtype=np.float64)
    columns["no closing stop"] = (~plain.str.contains(r"[.!?。！？]\W*$", regex=True)).to_numpy(dtype=np.float64)
    return pd.DataFrame(columns)


def style_probe(pairs: pd.DataFrame, folds: int = 5, seed: int = 0) -> StyleProbe:
    """Cross-validated style-only classifier of the chosen side.

    Each pair becomes the difference of the style features of its two sides, in an order that a seeded coin decides, and
    a logistic regression without intercept predicts whether the first is the chosen one. Pairs of one prompt share
    responses, so a prompt never lies in two folds (where `prompt_id` is there).

    Args:
        pairs: chosen and rejected (texts), optionally prompt_id; a sample of 20,000 where there are more.
        folds: number of folds, 2 or more; fewer where there are fewer prompts.
        seed: of the coin, the folds and the sample.

    Returns:
        The probe; without an AUC, and with the reason, when there are fewer than 20 pairs or a single prompt.

    Raises:
        ValueError: the text columns are missing, or folds < 2.
    """
    # Imported here: scikit-learn takes 2 s, and Dagster loads this module in every process.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.preprocessing import StandardScaler

    if folds < 2:
        raise ValueError(f"folds must be at least 2, not {folds}")
    missing = {"chosen", "rejected"} - set(pairs.columns)
    if missing:
        raise ValueError(f"pairs have no columns {sorted(missing)}; they have {list(pairs.columns)}")
    if len(pairs) < MIN_PAIRS:
        return StyleProbe(None, None, None, len(pairs), reason=f"{len(pairs)} pairs, fewer than {MIN_PAIRS}")
    random = np.random.default_rng(seed)
    if len(pairs) > MAX_PAIRS:
        pairs = pairs.iloc[np.sort(random.choice(len(pairs), MAX_PAIRS, replace=False))]
    count = len(pairs)
    groups = pd.factorize(pairs["prompt_id"])[0] if "prompt_id" in pairs else np.arange(count)
    folds = min(folds, int(groups.max()) + 1)
    if folds < 2:
        return StyleProbe(None, None, None, count, reason="all pairs belong to one prompt")

    both = style_features(pd.concat([pairs["chosen"], pairs["rejected"]], ignore_index=True))
    names = list(both.columns)
    values = both.to_numpy()
    first_is_chosen = _balanced_coin(count, random)
    sign = np.where(first_is_chosen, 1.0, -1.0)
    difference = (values[:count] - values[count:]) * sign[:, None]
    predicted = np.zeros(count)
    weights = np.zeros(len(names))
    splitter = GroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(difference, groups=groups):
        if len(np.unique(first_is_chosen[train])) < 2:
            continue  # only a handful of pairs outside one huge prompt: predict nothing for this fold
        scaler = StandardScaler(with_mean=False).fit(difference[train])
        model = LogisticRegression(fit_intercept=False, C=0.1, max_iter=1000)
        model.fit(scaler.transform(difference[train]), first_is_chosen[train])
        predicted[test] = model.decision_function(scaler.transform(difference[test]))
        weights += model.coef_[0] / folds
    auc, error = _auc(predicted[first_is_chosen], predicted[~first_is_chosen])
    leading = sorted(zip(names, weights.tolist(), strict=True), key=lambda item: -abs(item[1]))[:6]
    features = tuple((name, round(weight, 3)) for name, weight in leading if abs(weight) >= 0.001)
    return StyleProbe(auc, max(0.0, auc - 1.96 * error), min(1.0, auc + 1.96 * error), count, features)


def _balanced_coin(count: int, random: np.random.Generator) -> np.ndarray:
    """Bool [count], half of them True (one less where the count is odd), in random order."""
    coin = np.zeros(count, dtype=bool)
    coin[: count // 2] = True
    return random.permutation(coin)


def _auc(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve and its standard error (DeLong 1988, by mid-ranks)."""
    from scipy.stats import rankdata

    m, n = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    above = (ranks[:m] - rankdata(positive)) / n  # share of negatives below each positive
    below = 1 - (ranks[m:] - rankdata(negative)) / m  # share of positives above each negative
    variance = above.var(ddof=1) / m + below.var(ddof=1) / n
    return float(above.mean()), float(np.sqrt(variance))
