"""Images and videos in columns of their own that the prompt does not show: those of one side, or a second one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.forms.fields import Fields, is_media, listed, plain_name
from dt2it_pipeline.media.store import Medium

_KIND = r"(?:images?|imgs?|photos?|pictures?|videos?)"
_SIDE = r"(?:a|b|c|d|chosen|rejected|preferred|other|better|worse|first|second|third|left|right|extra|additional)"
_COLUMN = re.compile(rf"{_KIND}_(?:path_)?{_SIDE}|{_SIDE}_{_KIND}(?:_path)?")


def require_all_shown(fields: Fields, shown: Sequence[Medium]) -> None:
    """Raise RowError where a column holds an image or a video that the prompt does not show.

    ms-swift writes `rejected_images`: those of the rejected side, which must be the prompt's.
    """
    mapped = fields.row.columns.values()
    values = [medium.value for medium in shown]
    for column in fields.matching(_COLUMN):
        if column in mapped:
            continue
        several = plain_name(column).endswith("s")
        theirs = [_plain(one) for one in _each(fields.value(column)) if is_media(one) or (several and one)]
        if not theirs or all(one in values for one in theirs) or plain_name(column) in ("other_image", "image_other"):
            continue
        raise RowError(
            "sides differ" if re.search("chosen|rejected", plain_name(column)) else "not read",
            f"column {column!r} has other images than the prompt; write all images of a prompt into a list `images`",
        )


def _each(value: Any) -> Sequence[Any]:
    found = listed(value)
    return found if isinstance(found, list | tuple) else [found]


def _plain(value: Any) -> Any:
    return (value.get("bytes") or value.get("path") or value.get("url")) if isinstance(value, Mapping) else value
