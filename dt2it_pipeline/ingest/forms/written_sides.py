"""An answer as a column holds it: a text, a message, typed parts, or the turns of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.forms.chats import ROLES, is_chat, is_turn, message, parsed_turns, read_chat
from dt2it_pipeline.ingest.forms.fields import Fields, listed
from dt2it_pipeline.ingest.forms.prompts import answers_of
from dt2it_pipeline.ingest.rows import Turn, as_number, checked_text
from dt2it_pipeline.media.markers import marker_kinds
from dt2it_pipeline.media.store import Medium, MediumKind

_Media = tuple[tuple[MediumKind, Medium | None], ...]


class Side(NamedTuple):
    """One answer as it stands: a whole conversation that ends with it, or the answer alone."""

    turns: tuple[Turn, ...]
    media: _Media = ()
    system: str = ""
    typed: bool = False

    @property
    def whole(self) -> bool:
        """Whether it begins with the prompt."""
        return self.turns[0]["role"] == "user"

    def up_to(self, turn: Any) -> Side:
        """The conversation up to the answer that was judged, as MT-bench's column `turn` counts them, from 1.

        Raises RowError where the conversation has several answers and the number is below 1.
        """
        try:
            number = int(as_number(turn, ""))
        except (RowError, ValueError, OverflowError):
            return self
        ends = [place for place, each in enumerate(self.turns, start=1) if each["role"] == "assistant"]
        if not self.whole or number >= len(ends):
            return self
        if number < 1:
            raise RowError("turn not understood", f"column 'turn' is {turn!r}; the first answer is 1")
        turns = self.turns[: ends[number - 1]]
        return self._replace(
            turns=turns, media=self.media[: len(marker_kinds("".join(each["text"] for each in turns)))]
        )


def written_side(value: Any, where: str, chats: bool) -> Side:
    """An answer from what a column may hold: a text, a message, typed parts, or the turns of a conversation."""
    value = parsed_turns(value) if chats else value
    if isinstance(value, list | tuple) and value and all(isinstance(entry, str) for entry in value):
        if len(value) > 1:
            raise RowError("several answers", f"column {where!r} has a list of {len(value)} texts; one is expected")
        value = value[0]
    if isinstance(value, str):
        return Side(({"role": "assistant", "text": checked_text(value, f"column {where!r}")},))
    if isinstance(value, list | tuple) and value and not any(map(is_turn, value)):
        value = {"content": value}  # the parts of one answer
    if isinstance(value, Mapping):
        return Side(({"role": "assistant", "text": message(value, f"column {where!r}")},))
    if value is not None and not isinstance(value, list | tuple):
        raise RowError("not text", f"column {where!r}: {value!r}"[:120])
    if not value:
        raise RowError("missing value", f"column {where!r}: {value!r}"[:120])
    found = read_chat(value, f"column {where!r}")
    return Side(found.turns, found.media, found.system, found.typed)


def several(value: Any) -> Sequence[Any]:
    """The rejected answers of a row that has a list of them; empty where it has one."""
    if not isinstance(value, list | tuple) or not value:
        return ()
    if all(isinstance(entry, str) for entry in value):
        return value
    if all(isinstance(entry, list) and is_chat(entry) for entry in value):
        return value
    roles = [role_of(entry) for entry in value if is_turn(entry)]
    return value if len(roles) == len(value) > 1 and {*map(ROLES.get, roles)} == {"assistant"} else ()


def role_of(turn: Mapping[str, Any]) -> str:
    """The role of a turn in lower case, as the file has it."""
    return str(turn.get("role", turn.get("from"))).lower()


def alternating(fields: Fields, values: tuple[Any, Any]) -> tuple[Side, Side] | None:
    """Sides whose question and answers are lists of texts, one per turn, as Chatbot Arena's sets have them."""
    column = fields.column("question")
    questions = answers_of(fields.value(column))
    if questions is None:
        return None
    sides = list(map(answers_of, values))
    for value in values:
        entries = listed(value)
        texts = isinstance(entries, list) and all(entry is None or isinstance(entry, str) for entry in entries)
        if texts and not all(entry and entry.strip() for entry in entries):
            raise RowError("missing value", f"a turn is empty: {value!r}"[:120])
    if any(side is None or len(side) != len(questions) for side in sides):
        return None
    made = [[text for both in zip(questions, side or (), strict=True) for text in both] for side in sides]
    turns = [
        tuple({"role": ("user", "assistant")[number % 2], "text": text} for number, text in enumerate(texts))
        for texts in made
    ]
    same = next((n for n, (a, b) in enumerate(zip(*turns, strict=True)) if a != b), len(turns[0]))
    if same % 2 == 0 and same < len(turns[0]):
        raise RowError("conversations do not begin alike", str(turns[0][:1])[:120])
    return Side(turns[0]), Side(turns[1])
