"""What is longer than a model reads: the limit, the reason in quarantine tables, and one line that counts it.

What belongs here: the words about length, without a model. What does not: encoding (data/preparation.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

TOO_LONG = "longer than max_length"
_DETAIL = re.compile(r"(\d+) tokens, the limit is (\d+)")


def length_limit(max_length: int | None, text_config: Any) -> int:
    """Most tokens of a prompt with one response: the setting, or what the model's positions allow where that is None.

    Args:
        max_length: the setting, in tokens.
        text_config: of the model's configuration, an object or a mapping with `max_position_embeddings`.

    >>> length_limit(None, {"max_position_embeddings": 2048}), length_limit(512, {"max_position_embeddings": 2048})
    (2048, 512)
    """
    if max_length is not None:
        return max_length
    key = "max_position_embeddings"
    return int(text_config[key] if isinstance(text_config, Mapping) else getattr(text_config, key))


def too_long(tokens: int, limit: int) -> tuple[str, str] | None:
    """Reason and detail of a quarantine row where `tokens` exceed the limit, else None."""
    return (TOO_LONG, f"{tokens} tokens, the limit is {limit}") if tokens > limit else None


@dataclass(frozen=True)
class LeftOut:
    """How many rows a quarantine table has for their length, the longest of them, and the limit, in tokens."""

    count: int
    longest: int
    limit: int

    def in_words(self, total: int, what: str, setting: str, value: int | None) -> str:
        """One line: how many of how many are left out, and what lifts the limit.

        Args:
            total: rows that came in.
            what: they are, in the plural, such as `pairs`.
            setting: that holds the limit, such as `training.max_length`.
            value: of the setting; None where it is not set and the model's context is the limit.

        >>> LeftOut(123, 3412, 512).in_words(371, "pairs", "training.max_length", 512).partition(". ")[0]
        '123 of 371 pairs are left out: longer than training.max_length (512 tokens; the longest has 3,412)'
        """
        words = f"{self.count:,} of {total:,} {what} are left out: longer than "
        if value is None:
            return (
                f"{words}the context of the model ({self.limit:,} tokens; the longest has {self.longest:,}). Shorten "
                f"them, scale images down ({setting.replace('max_length', 'max_pixels')}), or take another model"
            )
        return (
            f"{words}{setting} ({self.limit:,} tokens; the longest has {self.longest:,}). Raise it, or remove it: then "
            "the context of the model is the limit"
        )


def left_out(quarantine: pa.Table | None) -> LeftOut | None:
    """What a quarantine table has of rows that are too long; None where it has none."""
    if quarantine is None:
        return None
    columns = (quarantine[name].to_pylist() for name in ("reason", "detail"))
    return counted(detail for reason, detail in zip(*columns, strict=True) if reason == TOO_LONG)


def counted(details: Iterable[str]) -> LeftOut | None:
    """The same from the details of rows that are too long."""
    found = [match for detail in details if (match := _DETAIL.search(detail or ""))]
    if not found:
        return None
    return LeftOut(len(found), max(int(match[1]) for match in found), int(found[0][2]))
