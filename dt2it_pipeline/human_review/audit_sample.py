"""The random sample of an audit: which pairs people check, and for how many pairs each of them stands.

A pair is drawn with a known probability. Its weight is the inverse: how many pairs it stands for. So a weighted mean
over the drawn pairs estimates the mean over all pairs without bias, however small sources are drawn more densely.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from dt2it_pipeline.human_review.spreadsheet import AuditError
from dt2it_pipeline.storage import records
from dt2it_pipeline.storage.content_ids import content_hash

_PARTS = 4  # of a source, by probability
_EVERYTHING = "all pairs"


def draw_audit(
    pairs: pd.DataFrame,
    count: int = 50,
    seed: int = 0,
    probability: Sequence[float] | np.ndarray | pd.Series | None = None,
) -> pd.DataFrame:
    """Draw pairs at random for people to check, spread over sources and over claimed probabilities.

    Each source gets a share of `count` by its size, and one pair at least; with more sources than `count`, sources are
    not told apart. Within a source, pairs are put in the order of their probability and cut into up to four parts of
    one size, and each part gets its share: so sure pairs are among the drawn ones. Within a part, chance alone decides:
    by a hash of pair id and seed, so that the same pairs are drawn in whatever order the rows are.

    >>> import pandas as pd
    >>> from dt2it_pipeline.human_review.audit_sample import draw_audit
    >>> pairs = pd.DataFrame({"pair_id": [f"p{n}" for n in range(103)], "source": ["large"] * 100 + ["small"] * 3})
    >>> drawn = draw_audit(pairs, count=11)
    >>> drawn.groupby("source")["weight"].agg(["size", "sum"]).to_dict("index")
    {'large': {'size': 10, 'sum': 100.0}, 'small': {'size': 1, 'sum': 3.0}}

    Args:
        pairs: pair_id, `source` (one source where absent), and any other columns, which are kept.
        count: number of pairs to draw; all pairs where there are fewer.
        seed: any integer; another seed draws other pairs.
        probability: float [pairs], in the order of the rows, 0 to 1: the claimed probability that the label is right.
            NaN where there is none, which stands before all others. When None, the column `probability` of `pairs`,
            where there is one.

    Returns:
        The drawn pairs in a random order, with `probability` (NaN where not known), `stratum` (the part that a pair was
        drawn from) and `weight` (pairs of the stratum / pairs drawn from it: the inverse of the probability with which
        the pair was drawn).

    Raises:
        AuditError: no column pair_id; a pair_id is null, no text, or there twice; `count` is below 1; or a probability
            lies outside 0 to 1, or there are more or fewer than pairs.
    """
    if count < 1:
        raise AuditError(f"count must be at least 1, not {count}")
    ids = _checked_ids(pairs)
    chance = _checked_probability(pairs, probability)
    source = np.full(len(pairs), "", dtype=object)
    if "source" in pairs:
        source = pairs["source"].astype(object).where(pairs["source"].notna(), "").astype("str").to_numpy(dtype=object)
    # Which part a pair is in must not depend on the hash that draws it: else the first pairs of a tie are drawn more.
    order = np.lexsort((_hashes(ids, "order"), np.nan_to_num(chance, nan=-1.0)))
    ranks = _hashes(ids, f"draw {seed}")
    groups = {name: order[source[order] == name] for name in sorted(set(source))}
    if len(groups) > count:
        groups = {_EVERYTHING: order}
    shares = _allocated([len(rows) for rows in groups.values()], count)
    places, strata, weights = [], [], []
    for (name, rows), share in zip(groups.items(), shares, strict=True):
        number = min(_PARTS, share) if np.isfinite(chance[rows]).any() else 1
        parts = np.array_split(rows, number)
        for part, (within, wanted) in enumerate(zip(parts, _allocated([len(p) for p in parts], share), strict=True), 1):
            chosen = within[np.argsort(ranks[within], kind="stable")[:wanted]]
            title = name or _EVERYTHING
            places += chosen.tolist()
            strata += [f"{title}, part {part} of {number} by probability" if number > 1 else title] * wanted
            weights += [len(within) / wanted] * wanted
    drawn = pairs.iloc[places].reset_index(drop=True)
    drawn["probability"] = chance[places]
    drawn["stratum"] = pd.Series(strata, dtype="str")
    drawn["weight"] = np.array(weights, dtype=np.float64)
    shuffled = np.argsort(_hashes(ids[places], f"shown {seed}"), kind="stable")
    return drawn.iloc[shuffled].reset_index(drop=True)


def _checked_ids(pairs: pd.DataFrame) -> np.ndarray:
    if "pair_id" not in pairs:
        raise AuditError(f"pairs have no column pair_id; they have: {', '.join(map(str, pairs.columns))[:200]}")
    ids = pairs["pair_id"].to_numpy(dtype=object)
    for row, value in enumerate(ids):
        if not isinstance(value, str) or value != records.writable(value):
            raise AuditError(f"pair_id of row {row} is {value!r}; ids must be text")
    repeated = pairs["pair_id"].duplicated().to_numpy()
    if repeated.any():
        raise AuditError(
            f"{int(repeated.sum())} pair ids are there twice, the first {ids[repeated][0]!r}; keep one each"
        )
    return ids


def _checked_probability(pairs: pd.DataFrame, probability: Any) -> np.ndarray:
    """Float64 [pairs], NaN where there is none."""
    if probability is None:
        probability = pairs["probability"] if "probability" in pairs else np.full(len(pairs), np.nan)
    try:
        found = pd.to_numeric(pd.Series(np.asarray(probability))).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise AuditError(f"probability: {error}; give numbers from 0 to 1") from error
    if len(found) != len(pairs):
        raise AuditError(f"there are {len(found)} probabilities for {len(pairs)} pairs")
    wrong = (found < 0) | (found > 1)
    if wrong.any():
        raise AuditError(f"probability of row {int(wrong.argmax())} is {found[wrong][0]}; it must lie between 0 and 1")
    return found


def _hashes(ids: np.ndarray, salt: str) -> np.ndarray:
    """Uint64 [ids]: a keyed hash (SipHash) of each id, whatever the order; salts give independent ones."""
    return np.asarray(pd.util.hash_array(ids, hash_key=content_hash(salt)[:16], categorize=False))


def _allocated(sizes: Sequence[int], count: int) -> list[int]:
    """How many of `count` each part gets: one at least where there are as many as parts, then in proportion."""
    total = sum(sizes)
    least = int(count >= len(sizes))
    shares = [min(least, size) for size in sizes]
    # The part that is furthest below its share comes next; the first one of equals.
    waiting = [
        (share - count * size / total, place) for place, (size, share) in enumerate(zip(sizes, shares, strict=True))
    ]
    heapq.heapify(waiting)
    for _ in range(min(count, total) - sum(shares)):
        while shares[waiting[0][1]] >= sizes[waiting[0][1]]:
            heapq.heappop(waiting)
        deficit, place = waiting[0]
        shares[place] += 1
        heapq.heapreplace(waiting, (deficit + 1, place))
    return shares
