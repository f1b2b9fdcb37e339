"""A cheap guess of a text's language: the script that it is written in, such as Latin or Han.

It tells no two languages of one script apart. A text with several scripts counts for the first one in `SCRIPTS` that
it holds, so an English word does not make a Chinese text Latin.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_SEEN = 400  # characters of a text that are looked at
_CLASSES = {
    "Kana (Japanese)": r"[\p{Hiragana}\p{Katakana}]",
    "Hangul (Korean)": r"\p{Hangul}",
    "Han (Chinese)": r"\p{Han}",
    "Cyrillic": r"\p{Cyrillic}",
    "Arabic": r"\p{Arabic}",
    "Hebrew": r"\p{Hebrew}",
    "Devanagari": r"\p{Devanagari}",
    "Thai": r"\p{Thai}",
    "Greek": r"\p{Greek}{3}",  # single letters are formulas
    "Latin": r"\p{Latin}",
}
SCRIPTS = (*_CLASSES, "other")


def script_codes(texts: pa.Array) -> np.ndarray:
    """Int8 [texts]: the place in `SCRIPTS` of each text's script.

    >>> [SCRIPTS[code] for code in script_codes(pa.array(["It is red.", "红色 red", "", None]))]
    ['Latin', 'Han (Chinese)', 'other', 'other']
    """
    start = pc.utf8_slice_codeunits(pc.fill_null(texts, ""), 0, _SEEN)
    codes = np.full(len(texts), len(_CLASSES), dtype=np.int8)
    for code, pattern in reversed(list(enumerate(_CLASSES.values()))):
        found = pc.match_substring_regex(start, pattern).to_numpy(zero_copy_only=False)
        codes[found] = code
    return codes
