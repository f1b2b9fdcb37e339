"""The `votes` column of a pairs table: who voted on a pair, and by which margin.

A cell is a list of (voter, margin). A margin always reads in the row's present direction, chosen over rejected, so a
swap of the sides negates it. The column is Arrow-backed: a million pairs with three votes each stay 70 MB and no
Python object is made per row.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa

VOTES_TYPE = pa.list_(pa.struct([pa.field("voter", pa.string()), pa.field("margin", pa.float64())]))


def from_matrix(voters: tuple[str, ...], margins: np.ndarray) -> pd.Series:
    """Votes of n pairs by the same V voters; `margins` is [n, V]."""
    count, width = margins.shape
    names = pa.array(voters, pa.string()).take(pa.array(np.tile(np.arange(width, dtype=np.int32), count)))
    return _series(np.arange(count + 1) * width, names, margins.ravel())


def to_matrix(votes: pd.Series, voters: tuple[str, ...]) -> np.ndarray:
    """Margins of these voters, float64 [n, V]; not a number where one has not voted. Of several, the last counts."""
    rows, names, margins = _flat(votes, len(votes))
    places = pd.Index(voters).get_indexer(names.to_numpy(zero_copy_only=False))
    found = np.full((len(votes), len(voters)), np.nan)
    found[rows[places >= 0], places[places >= 0]] = margins[places >= 0]
    return found


def voters_in(votes: pd.Series) -> list[str]:
    """Names of all that voted on any pair, sorted."""
    return sorted(_flat(votes, len(votes))[1].unique().to_pylist())


def append(
    existing: pd.Series | None, rows: np.ndarray, voters: pd.Series, margins: np.ndarray, count: int
) -> pd.Series:
    """Votes with new ones after the old ones of each pair.

    Args:
        existing: votes of `count` pairs, or None where there are none yet.
        rows: int [m], the position of the pair of each new vote.
        voters: m voter names.
        margins: float64 [m].
        count: number of pairs.
    """
    old_rows, old_names, old_margins = _flat(existing, count)
    all_rows = np.concatenate([old_rows, rows])
    order = np.argsort(all_rows, kind="stable")
    names = pa.concat_arrays([old_names, _one_chunk(pa.array(voters, pa.string(), from_pandas=True))])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(all_rows, minlength=count))])
    return _series(offsets, names.take(pa.array(order)), np.concatenate([old_margins, margins])[order])


def negate(votes: pd.Series, where: np.ndarray) -> pd.Series:
    """Votes whose margins change sign for the pairs marked in `where` (bool [n])."""
    rows, names, margins = _flat(votes, len(votes))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(votes)))])
    # 0 - x, not -x: a tie stays 0.0 and never becomes -0.0.
    return _series(offsets, names, np.where(where[rows], 0.0 - margins, margins))


def _series(offsets: np.ndarray, names: pa.Array, margins: np.ndarray) -> pd.Series:
    struct = pa.StructArray.from_arrays([names, pa.array(margins, pa.float64())], fields=list(VOTES_TYPE.value_type))
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), struct)
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([lists], VOTES_TYPE)))


def _flat(votes: pd.Series | None, count: int) -> tuple[np.ndarray, pa.Array, np.ndarray]:
    """Row position, voter and margin of every vote."""
    if votes is None:
        return np.empty(0, dtype=np.int64), pa.array([], pa.string()), np.empty(0)
    if isinstance(votes.dtype, pd.ArrowDtype):
        lists = _one_chunk(pa.array(votes)).cast(VOTES_TYPE)
    else:  # rows made by hand or by `Table.to_pandas()`
        cells = [[] if cell is None or cell is pd.NA else list(cell) for cell in votes]
        lists = pa.array(cells, VOTES_TYPE)
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    flat = lists.flatten()
    margins = flat.field("margin").to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(count), lengths), flat.field("voter"), margins


def _one_chunk(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
