"""The request that a model card shows, read back from its text."""

from __future__ import annotations

import json
import shlex
from typing import Any


def request_of(card_text: str) -> dict[str, Any]:
    """The body of the request in a model model_card."""
    (line,) = (line for line in card_text.splitlines() if line.startswith("curl "))
    return json.loads(shlex.split(line)[-1])  # type: ignore[no-any-return]
