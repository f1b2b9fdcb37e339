"""Which contested pairs judges are asked about when their calls are limited."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.pair_frames import select_rows
from dt2it_pipeline.curate.voters.margins import CurationError

BEYOND = "judging budget spent"


def within_budget(contested: pd.DataFrame, calls: int | None, judges: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split contested pairs into those that judges are asked about and those that the budget does not reach.

    A pair takes one call of each judge. The least certain pairs come first: those whose strength is nearest to zero,
    and equal ones in the order of pair_id. Rows keep their order.

    Args:
        contested: pair_id, strength and anything else.
        calls: most judge calls; None is no limit.
        judges: calls per pair.

    Returns:
        The reached rows, and the others with `reason` and `detail`.

    Raises:
        CurationError: a strength is not a number.
    """
    strength = contested["strength"].to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isnan(strength).any():
        raise CurationError(f"contested: {int(np.isnan(strength).sum())} rows have no strength")
    order = np.lexsort([contested["pair_id"].to_numpy(dtype=object).astype(str), np.abs(strength)])
    reached = np.zeros(len(contested), dtype=bool)
    reached[order[: len(order) if calls is None else calls // judges]] = True
    rest = select_rows(contested, ~reached)
    return select_rows(contested, reached), rest.assign(
        reason=pd.Series(BEYOND, index=rest.index, dtype="str"),
        detail=pd.Series(f"{calls} calls, {judges} a pair", index=rest.index, dtype="str"),
    )
