"""What every policy does to a frame of pairs: take and join rows, set strengths, swap sides, compare lengths.

What belongs here: changes of frames that keep a row's columns consistent. What does not: which rows to change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from dt2it_pipeline.curate.voters import votes as vote_column
from dt2it_pipeline.storage.table_files import key_strings

_HASHED = 1 << 16  # rows whose values are Python objects at a time
OTHER_SIDE = {"chosen": "rejected", "rejected": "chosen", "tie": "tie"}  # verdict -> that on the swapped pair


def select_rows(frame: pd.DataFrame, where: np.ndarray) -> pd.DataFrame:
    """The rows marked in `where` (bool [n]), numbered from 0."""
    return frame.loc[where].reset_index(drop=True)


def stack(*parts: pd.DataFrame) -> pd.DataFrame:
    """The rows of all parts, numbered from 0; an empty part would only blur the column types of the others."""
    filled = [part for part in parts if len(part)] or [parts[0]]
    return pd.concat(filled, ignore_index=True) if len(filled) > 1 else filled[0].reset_index(drop=True)


def length_difference(pairs: pd.DataFrame) -> np.ndarray:
    """log(1 + characters of chosen) - log(1 + characters of rejected), float64 [n]; zeros where there are no texts."""
    if not {"chosen", "rejected"} <= set(pairs.columns):
        return np.zeros(len(pairs))
    lengths = [np.log1p(pairs[side].str.len().fillna(0).to_numpy(dtype=np.float64)) for side in ("chosen", "rejected")]
    return lengths[0] - lengths[1]


def phrases(names: Sequence[str], codes: np.ndarray) -> pd.Series:
    """A column of text: the names with these numbers, held as Arrow strings.

    Examples:
        >>> phrases(["kept", "dropped"], np.array([0, 1, 0])).tolist()
        ['kept', 'dropped', 'kept']
    """
    return pa.array(names, pa.large_string()).take(pa.array(codes)).to_pandas()


def row_hashes(frame: pd.DataFrame, columns: Iterable[str]) -> np.ndarray:
    """uint64 [n], a number for what stands in these columns of every row, whichever file the table was read from.

    Examples:
        >>> table = pd.DataFrame({"chosen": ["a", "b"], "score": [1.0, 2.0]})
        >>> bool((row_hashes(table, ["chosen", "score"]) == row_hashes(table[::-1], ["chosen", "score"])[::-1]).all())
        True
    """
    found = np.zeros(len(frame), dtype=np.uint64)
    for column in columns:
        for start in range(0, len(frame), _HASHED):
            part = frame[column].iloc[start : start + _HASHED]
            if pd.api.types.is_float_dtype(part.dtype):  # a reader of CSV may change the last digit
                with np.errstate(over="ignore"):
                    values = part.to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32)
            else:
                values = key_strings(part).fillna("").to_numpy(dtype=object)  # an empty text of CSV is read as null
            found[start : start + _HASHED] *= np.uint64(31)
            found[start : start + _HASHED] += pd.util.hash_array(values, categorize=False)
    return found


def swapped_columns(columns: Iterable[object], named: Iterable[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """Which columns change sides where a pair is flipped: those named, and <x>chosen<y> with its <x>rejected<y>.

    No column is in two of the pairs: those that are named come first.

    Examples:
        >>> swapped_columns(["chosen", "rejected", "chosen_id", "words_chosen", "words_rejected", "good", "bad"],
        ...                 [("good", "bad")])
        [('good', 'bad'), ('chosen', 'rejected'), ('words_chosen', 'words_rejected')]
    """
    names = list(map(str, columns))
    found = dict.fromkeys((left, right) for left, right in named if {left, right} <= set(names))
    taken = {name for sides in found for name in sides}
    for name in names:
        sides = name, name.replace("chosen", "rejected")
        if sides[0] != sides[1] and sides[1] in names and not taken & set(sides):
            found[sides] = None
            taken |= set(sides)
    return list(found)


def with_strength(frame: pd.DataFrame, strength: np.ndarray) -> pd.DataFrame:
    """A copy with `strength` set and `label` present."""
    label = frame["label"].astype("str") if "label" in frame else pd.Series("original", index=frame.index, dtype="str")
    return frame.assign(strength=strength, label=label)


def swap_sides(frame: pd.DataFrame, where: np.ndarray) -> pd.DataFrame:
    """A copy in which the marked rows change sides: `swapped_columns`, strength and votes."""
    swapped = frame.copy()
    if not where.any():
        return swapped
    for left, right in swapped_columns(frame.columns):
        swapped[left] = frame[left].mask(where, frame[right])
        swapped[right] = frame[right].mask(where, frame[left])
    swapped["strength"] = np.where(where, -frame["strength"].to_numpy(), frame["strength"].to_numpy())
    swapped["votes"] = vote_column.negate(frame["votes"], where)
    return swapped


def swap_verdicts(votes: pd.DataFrame, where: np.ndarray) -> pd.DataFrame:
    """A copy in which the verdicts of the marked rows (bool [votes]) name the other side of their pair."""
    verdict = votes["verdict"].astype(object)
    return votes.assign(verdict=np.where(where, verdict.map(OTHER_SIDE), verdict))
