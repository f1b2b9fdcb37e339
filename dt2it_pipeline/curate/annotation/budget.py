"""Which contested pairs judges are asked about when their calls are limited."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.pair_frames import select_rows
from dt2it_pipeline.curate.voters.margins import CurationError

BEYOND = "judging budget spent"


def within_budget(
    contested: pd.DataFrame, calls: int | None, judges: int, surest_first: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split contested pairs into those that judges are asked about and those that the budget does not reach.

    A pair takes one call of each judge. Where judges alone decide, the least certain pairs come first: those whose
    strength is nearest to zero. Where a verdict is added to the strength, the most certain of the contested pairs come
    first: one verdict is enough to keep them. For the least certain ones it is too little, and it says little about the
    judges' accuracy. Equal ones come in the order of pair_id. Rows keep their order.

    Args:
        contested: pair_id, strength and anything else.
        calls: most judge calls; None is no limit.
        judges: calls per pair.
        surest_first: the order.

    Returns:
        The reached rows, and the others with `reason` and `detail`.

    Raises:
        CurationError: a strength is not a number.
    """
    strength = contested["strength"].to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isnan(strength).any():
        raise CurationError(f"contested: {int(np.isnan(strength).sum())} rows have no strength")
    rank = -np.abs(strength) if surest_first else np.abs(strength)
    order = np.lexsort([contested["pair_id"].to_numpy(dtype=object).astype(str), rank])
    reached = np.zeros(len(contested), dtype=bool)
    reached[order[: len(order) if calls is None else calls // judges]] = True
    rest = select_rows(contested, ~reached)
    return select_rows(contested, reached), rest.assign(
        reason=pd.Series(BEYOND, index=rest.index, dtype="str"),
        detail=pd.Series(f"{calls} calls, {judges} a pair", index=rest.index, dtype="str"),
    )
