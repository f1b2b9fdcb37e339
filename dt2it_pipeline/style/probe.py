"""Can style alone predict the chosen side of a pair?

A reward model trained on pairs whose chosen side style predicts learns the style (DT2IT-MRM, arXiv:2604.19544). The
probe measures how far that is possible: a classifier that sees only how a text is written, never its content, and is
tested on pairs that it was not fitted on. Area under the ROC curve 0.5: style predicts nothing; 1.0: style predicts
every pair. Who wrote a side counts as style, where that is known: a model has more habits than can be listed.
`features` has the features.

What belongs here: features of texts and what they tell of pairs. What does not: reading files (see `dt2it style`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dt2it_pipeline.style.features import MODELS, model_difference, pair_difference

MIN_PAIRS = 20
MAX_PAIRS = 20_000  # more add nothing: the interval is then 0.01 wide


@dataclass(frozen=True)
class StyleProbe:
    """Result of the probe.

    Attributes:
        auc: area under the ROC curve on held-out pairs, None when it could not be measured.
        ci_low, ci_high: its 95% interval (DeLong), None with it.
        n: pairs used.
        features: the style features that count most, strongest first; positive means more of it on the chosen side.
        reason: why there is no AUC, else empty.
        leaks: what each feature predicts by itself, most predictive first: the share of pairs with more of it on the
            chosen side, where equal ones count half. Features that predict nothing (within 0.01 of 0.5) are left out.
    """

    auc: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    features: tuple[tuple[str, float], ...] = ()
    reason: str = ""
    leaks: tuple[tuple[str, float], ...] = ()


def style_probe(pairs: pd.DataFrame, folds: int = 5, seed: int = 0) -> StyleProbe:
    """Cross-validated style-only classifier of the chosen side.

    Each pair becomes the difference of the features of its two sides (`pair_difference`), in an order that a seeded
    coin decides, and a logistic regression without intercept predicts whether the first is the chosen one. Pairs of one
    prompt share responses, so a prompt never lies in two folds (where `prompt_id` is there). The bias that it
    measures is that of DT2IT-MRM (arXiv 2604.19544); the interval is DeLong's (1988).

    Examples:
        >>> import pandas as pd
        >>> from dt2it_pipeline import style_probe
        >>> words = ["red", "blue", "green", "round", "square"]
        >>> plain = [f"{a} {b}" for a in words for b in words]
        >>> pairs = pd.DataFrame({"chosen": [f"**Sure!** It is {text}." for text in plain], "rejected": plain})
        >>> probe = style_probe(pairs)
        >>> probe.auc, probe.n
        (1.0, 25)
        >>> probe.leaks[0]
        ('characters', 1.0)

    Args:
        pairs: chosen and rejected (texts), optionally prompt_id, and chosen_model and rejected_model (who wrote them);
            a sample of 20,000 where there are more.
        folds: number of folds, 2 or more; fewer where there are fewer prompts.
        seed: of the order of sides, the folds and the sample.

    Returns:
        The probe; without an AUC, and with the reason, when there are fewer than 20 pairs or a single prompt.

    Raises:
        ValueError: the text columns are missing, or folds < 2.
    """
    missing = {"chosen", "rejected"} - set(pairs.columns)
    if missing:
        raise ValueError(f"pairs have no columns {sorted(missing)}; they have {list(pairs.columns)}")
    return probe_differences(pair_difference, pairs, folds, seed)


def all_probes(pairs: pd.DataFrame) -> dict[str, StyleProbe]:
    """The probes of pairs by what they see: `style`, `source model`, and both together where pairs name their writers.

    Args:
        pairs: as for `style_probe`.

    Raises:
        ValueError: as `style_probe`.
    """
    probes = {
        "style": style_probe(pairs.drop(columns=list(MODELS), errors="ignore")),
        "source model": source_probe(pairs),
    }
    if not model_difference(pairs).empty:
        probes["style and source model"] = style_probe(pairs)
    return probes


def source_probe(pairs: pd.DataFrame, folds: int = 5, seed: int = 0) -> StyleProbe:
    """As `style_probe`, by who wrote the two sides alone, of pairs of which both writers are known."""
    known = pairs[pairs[list(MODELS)].notna().all(axis=1)] if set(MODELS) <= set(pairs.columns) else pairs.iloc[:0]
    return probe_differences(model_difference, known, folds, seed)


def leak_scores(difference: pd.DataFrame, seed: int = 0) -> np.ndarray:
    """How clearly style predicts the chosen side of each pair, float [pairs], log-odds; below 0 where it predicts the
    wrong one.

    By the classifier of the probe, fitted once on all pairs (a sample of 20,000 where there are more).
    """
    random = np.random.default_rng(seed)
    values = difference.to_numpy()
    count = len(values)
    if count < 2:
        return np.zeros(count)
    some = random.choice(count, MAX_PAIRS, replace=False) if count > MAX_PAIRS else np.arange(count)
    first = _balanced_order(len(some), random)
    scaler, model = _fitted(values[some] * np.where(first, 1.0, -1.0)[:, None], first)
    scores: np.ndarray = model.decision_function(scaler.transform(values))
    return scores


def leak_table(probe: StyleProbe) -> pa.Table:
    """The leaks of a probe as a table: feature, and the share of pairs with more of it on the chosen side."""
    names, shares = zip(*probe.leaks, strict=True) if probe.leaks else ((), ())
    return pa.table(
        {"feature": pa.array(names, pa.string()), "more_on_the_chosen_side": pa.array(shares, pa.float64())}
    )


def probe_differences(
    features: pd.DataFrame | Callable[[pd.DataFrame], pd.DataFrame], pairs: pd.DataFrame, folds: int = 5, seed: int = 0
) -> StyleProbe:
    """The probe on any features: their differences, a row per pair, or what makes them from pairs."""
    from sklearn.model_selection import GroupKFold  # scikit-learn takes 2 s, and Dagster loads this module everywhere

    if folds < 2:
        raise ValueError(f"folds must be at least 2, not {folds}")
    if len(pairs) < MIN_PAIRS:
        return StyleProbe(None, None, None, len(pairs), reason=f"{len(pairs)} pairs, fewer than {MIN_PAIRS}")
    random = np.random.default_rng(seed)
    if len(pairs) > MAX_PAIRS:
        some = np.sort(random.choice(len(pairs), MAX_PAIRS, replace=False))
        pairs = pairs.iloc[some]
        features = features.iloc[some] if isinstance(features, pd.DataFrame) else features
    count = len(pairs)
    groups = pd.factorize(pairs["prompt_id"])[0] if "prompt_id" in pairs else np.arange(count)
    folds = min(folds, int(groups.max()) + 1)
    if folds < 2:
        return StyleProbe(None, None, None, count, reason="all pairs belong to one prompt")
    plain = features if isinstance(features, pd.DataFrame) else features(pairs)
    names = list(plain.columns)
    if not names:
        return StyleProbe(None, None, None, count, reason="both sides of every pair have one writer")
    first_is_chosen = _balanced_order(count, random)
    difference = plain.to_numpy() * np.where(first_is_chosen, 1.0, -1.0)[:, None]
    predicted = np.zeros(count)
    weights = np.zeros(len(names))
    splitter = GroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(difference, groups=groups):
        if len(np.unique(first_is_chosen[train])) < 2:
            continue  # only a handful of pairs outside one huge prompt: predict nothing for this fold
        scaler, model = _fitted(difference[train], first_is_chosen[train])
        predicted[test] = model.decision_function(scaler.transform(difference[test]))
        weights += model.coef_[0] / folds
    auc, error = _auc(predicted[first_is_chosen], predicted[~first_is_chosen])
    leading = sorted(zip(names, weights.tolist(), strict=True), key=lambda item: -abs(item[1]))[:6]
    strongest = tuple((name, round(weight, 3)) for name, weight in leading if abs(weight) >= 0.001)
    low, high = max(0.0, auc - 1.96 * error), min(1.0, auc + 1.96 * error)
    return StyleProbe(auc, low, high, count, strongest, leaks=_leaks(plain))


def _fitted(difference: np.ndarray, first_is_chosen: np.ndarray) -> tuple[Any, Any]:
    """Scaler and logistic regression of the probe."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    scaler = StandardScaler(with_mean=False).fit(difference)
    model = LogisticRegression(fit_intercept=False, C=0.1, max_iter=1000)
    # For some twenty columns threads do little but wait for each other: on busy cores ten times as long as they work.
    with threadpool_limits(1, user_api="blas"):
        model.fit(scaler.transform(difference), first_is_chosen)
    return scaler, model


def _leaks(difference: pd.DataFrame) -> tuple[tuple[str, float], ...]:
    """Per feature, the share of pairs with more of it on the chosen side, ties counting half; most predictive first."""
    values = difference.to_numpy()
    shares = ((values > 1e-9) + 0.5 * (np.abs(values) <= 1e-9)).mean(axis=0)
    ranked = sorted(zip(difference.columns, shares.tolist(), strict=True), key=lambda item: -abs(item[1] - 0.5))
    return tuple((str(name), round(share, 4)) for name, share in ranked if abs(share - 0.5) > 0.01)


def _balanced_order(count: int, random: np.random.Generator) -> np.ndarray:
    """Bool [count], half of them True (one less where the count is odd), in random order."""
    first = np.zeros(count, dtype=bool)
    first[: count // 2] = True
    return random.permutation(first)


def _auc(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve and its standard error (DeLong 1988, by mid-ranks)."""
    from scipy.stats import rankdata

    m, n = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    above = (ranks[:m] - rankdata(positive)) / n  # share of negatives below each positive
    below = 1 - (ranks[m:] - rankdata(negative)) / m  # share of positives above each negative
    variance = above.var(ddof=1) / m + below.var(ddof=1) / n
    return float(above.mean()), float(np.sqrt(variance))
