"""Preference pairs from a row of any form that is known: which answers it has, which is better, and their prompt.

The forms, in the order in which they are looked for:

1. a better and a worse answer: `chosen` and `rejected`, or one of the other couples of names (fields.COUPLES);
2. two answers under neutral names (`response_a` and `response_b`, `Output1` and `Output2`) and a verdict column;
3. a list of answers with ranks or ratings, or a list of two with a verdict.

Answers are texts, messages, or conversations: those of both sides then begin alike, and that is the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.forms import answer_lists
from dt2it_pipeline.ingest.forms.chats import (
    ROLES,
    Chat,
    answer,
    hh_chat,
    is_chat,
    is_turn,
    message,
    parsed,
    parsed_turns,
    read_chat,
    two_sides,
)
from dt2it_pipeline.ingest.forms.fields import COUPLES, RATINGS, Fields
from dt2it_pipeline.ingest.forms.sides import Judged, Sides, is_neutral, models, neutral_sides
from dt2it_pipeline.ingest.forms.verdicts import FIRST, TIE, VerdictError
from dt2it_pipeline.ingest.rows import TIE as TIED
from dt2it_pipeline.ingest.rows import ColumnError, Conversation, Item, Quarantined, Row, Turn, as_number, checked_text
from dt2it_pipeline.media.markers import marker_kinds
from dt2it_pipeline.media.store import Medium, MediumKind

FIELDS = (
    "question", "conversation", "chosen", "rejected", "first", "second", "verdict", "answers", "ranks", "order",
    "ratings", "image", "images", "video", "videos", "group", "system", "strength", "tie",
)  # fmt: skip
_Media = tuple[tuple[MediumKind, Medium | None], ...]


class _Side(NamedTuple):
    """One answer as it stands: a whole conversation that ends with it, or the answer alone."""

    turns: tuple[Turn, ...]
    media: _Media = ()
    system: str = ""

    @property
    def whole(self) -> bool:
        """Whether it begins with the prompt."""
        return self.turns[0]["role"] == "user"


@dataclass(frozen=True)
class PairReader:
    """Reads the rows of one source.

    Attributes:
        judged: what the source's verdicts mean.
        promptless: whether a pair needs no prompt; it then has no turns.
    """

    judged: Judged
    promptless: bool = False

    def items(self, row: Row) -> Iterator[Item]:
        """The pairs of a row; a tie is quarantined, as is every answer of a list that has no rank.

        Raises:
            ColumnError: the row has no form that is known, or a verdict that is not understood.
            RowError: it has one, and lacks a value or has one that is not of this form.
        """
        fields = Fields(row)
        if (column := fields.column("tie")) is not None and fields.bare.flag(column):
            yield Quarantined(row.row_id, TIED, f"column {column!r}")
        elif (couple := _couple(fields)) is not None:
            yield from self._of_couple(fields, couple)
        elif (sides := neutral_sides(fields)) is not None:
            yield self._judged(fields, sides, (fields.value(sides.first), fields.value(sides.second)))
        elif (column := answer_lists.list_column(fields)) is not None:
            yield from self._of_list(fields, column)
        else:
            raise fields.missing("chosen", "rejected")

    def _of_couple(self, fields: Fields, couple: tuple[str, str]) -> Iterator[Item]:
        if is_neutral(couple[0]) and is_neutral(couple[1]) and (columns := self.judged.columns(fields)):
            raise VerdictError(
                "verdict ignored",
                f"columns {couple[0]!r} and {couple[1]!r} are mapped to chosen and rejected, and {columns[0]!r} may "
                "say which is better: map them to `first` and `second`, and it to `verdict`",
            )
        chosen = _side(fields.value(couple[0]), couple[0])
        several = _several(fields.value(couple[1]))
        models = fields.plain("chosen_model"), fields.plain("rejected_model")
        names = tuple(_name(fields.value(column)) for column in models)
        strengths = _strengths(fields, len(several) or 1)
        for number, value in enumerate(several or [fields.value(couple[1])]):
            rejected = _side(value, f"{couple[1]}, answer {number + 1}" if several else couple[1])
            ranks = (1.0, 2 + (len(several) - 1) / 2) if len(several) > 1 else None
            part = str(number) if len(several) > 1 else ""
            strength = strengths[number]
            if strength is not None and strength <= 0 and _rated(fields):
                detail = f"{couple} have ratings that differ by {strength:g}"
                yield Quarantined(fields.row.row_id, "ratings contradict the sides" if strength else TIED, detail)
                continue
            yield self._pair(fields, chosen, rejected, strength, part, ranks, (names[0], names[1]))

    def _judged(self, fields: Fields, sides: Sides, values: tuple[Any, Any]) -> Item:
        meaning = self.judged.of(fields, sides)
        if meaning == TIE:
            return Quarantined(fields.row.row_id, TIED, "by its verdict")
        made = _side(values[0], sides.first), _side(values[1], sides.second)
        names = models(fields)
        if meaning != FIRST:
            made, names = made[::-1], names[::-1]
        strength = _strengths(fields, 1)[0]
        return self._pair(fields, *made, None if strength is None else abs(strength), models=names)

    def _of_list(self, fields: Fields, column: str) -> Iterator[Item]:
        row_id = fields.row.row_id
        try:
            listed = answer_lists.answers(fields, column)
        except ColumnError:
            values = parsed(fields.value(column))
            if len(values) != 2 or not isinstance(values, list | tuple) or not self.judged.columns(fields):
                raise
            yield self._judged(fields, Sides(f"{column}[0]", f"{column}[1]"), (values[0], values[1]))
            return
        unknown = [number for number, entry in enumerate(listed) if entry.worth is None]
        if unknown:
            yield Quarantined(row_id, "answers without a rank", f"{column}: answers {unknown}, counted from 0")
        ranks = answer_lists.ranks(listed)
        for pair in answer_lists.pairs(listed):
            one, other = listed[pair.chosen], listed[pair.rejected]
            part = f"{min(pair[:2])}-{max(pair[:2])}"
            if pair.strength == 0:
                yield Quarantined(row_id, TIED, f"answers {part} of {column!r} are equal")
                continue
            places = (ranks[pair.chosen] or 0.0, ranks[pair.rejected] or 0.0)
            better, worse = (_Side(({"role": "assistant", "text": entry.text},)) for entry in (one, other))
            yield self._pair(fields, better, worse, pair.strength, part, places, (one.model, other.model))

    def _pair(
        self,
        fields: Fields,
        chosen: _Side,
        rejected: _Side,
        strength: float | None,
        part: str = "",
        ranks: tuple[float, float] | None = None,
        models: tuple[str | None, str | None] = (None, None),
    ) -> Conversation:
        if chosen.whole or rejected.whole:
            if not rejected.whole:  # ms-swift: a whole conversation, and another last answer
                rejected = _Side((*chosen.turns[:-1], *rejected.turns), chosen.media, chosen.system)
            elif not chosen.whole:
                chosen = _Side((*rejected.turns[:-1], *chosen.turns), rejected.media, rejected.system)
            turns, better, worse = two_sides(chosen.turns, rejected.turns)
            system, media = chosen.system or rejected.system, chosen.media
            if len(marker_kinds("".join(turn["text"] for turn in turns))) < len(media):
                raise RowError("media in an answer", "answers are text")
        else:
            better, worse = answer(chosen.turns), answer(rejected.turns)
            if chosen.media or rejected.media:
                raise RowError("media in an answer", "answers are text")
            system, turns, media = self._prompt(fields, better)
        row = fields.row
        group = fields.text("group") if row.kind == "benchmark" or "group" in row.columns else None
        return Conversation(
            row.row_id,
            turns,
            _media(fields, media),
            better,
            worse,
            system=fields.text("system") or system,
            strength=strength,
            group=group,
            part=part,
            ranks=ranks,
            models=models,
        )

    def _prompt(self, fields: Fields, chosen: str) -> Chat:
        found = prompt(fields)
        if found is None:
            if self.promptless:
                return Chat("", ())
            raise fields.missing("question", "conversation")
        turns = found.turns
        if turns[-1] == {"role": "assistant", "text": chosen}:  # a whole conversation beside its last answer
            turns = turns[:-1]
        if not turns or turns[-1]["role"] != "user":
            raise RowError("not a conversation", "the prompt ends with an answer")
        return found._replace(turns=turns)


def prompt(fields: Fields) -> Chat | None:
    """The prompt of a row: a conversation, or a question with Alpaca's `input` and `history`; None where it has none.

    Raises RowError where it is not of one of these forms.
    """
    mapped = fields.row.columns
    column = fields.column("conversation")
    if column is not None and "question" not in mapped and ("conversation" in mapped or is_chat(fields.value(column))):
        return read_chat(fields.value(column), f"column {column!r}")
    column = fields.column("question")
    value = fields.value(column)
    if value in (None, "", []):
        if column is None:
            return None
        raise RowError("missing value", f"column {column!r}: {value!r}")
    found = read_chat(value, f"column {column!r}")
    if "question" in mapped or is_chat(value):
        return found
    turns = list(found.turns)
    extra = fields.value(fields.plain("input")) if column != fields.plain("input") else None
    if column == fields.plain("instruction") and not _blank(extra):
        turns[-1] = {"role": "user", "text": f"{turns[-1]['text']}\n{checked_text(extra, 'column input')}"}
    return found._replace(turns=(*_history(fields), *turns))


def sides(fields: Fields) -> dict[str, str]:
    """Which columns hold a row's answers and say which is better; empty where it has no form that is known."""
    if (couple := _couple(fields)) is not None:
        return {"chosen": couple[0], "rejected": couple[1]}
    if (neutral := neutral_sides(fields)) is not None:
        found = {"first": neutral.first, "second": neutral.second}
    elif (column := answer_lists.list_column(fields)) is not None:
        named = ((name, fields.column(name)) for name in ("ranks", "order", "ratings"))
        found = {"answers": column} | {name: column for name, column in named if column is not None}
    else:
        return {}
    if len(found) < 3 and (columns := Judged().columns(fields)):
        found["verdict"] = columns[0]
    return found


def _couple(fields: Fields) -> tuple[str, str] | None:
    """The columns of the better and the worse answer, None where the row has none that say so."""
    mapped = fields.row.columns
    if "chosen" in mapped or "rejected" in mapped:
        chosen, rejected = fields.column("chosen"), fields.column("rejected")
        if chosen is None or rejected is None:
            raise fields.missing("chosen" if chosen is None else "rejected")
        return chosen, rejected
    if {"first", "second", "answers", "verdict"} & set(mapped):
        return None
    for names in COUPLES:
        one, other = fields.plain(names[0]), fields.plain(names[1])
        if one is not None and other is not None:
            return one, other
    return None


def _side(value: Any, where: str) -> _Side:
    """An answer from what a column may hold: a text, a message, typed parts, or the turns of a conversation."""
    value = parsed_turns(value)
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, str):
        if (found := hh_chat(value)) is not None:
            return _Side(found.turns)
        return _Side(({"role": "assistant", "text": checked_text(value, f"column {where!r}")},))
    if isinstance(value, list | tuple) and value and not any(map(is_turn, value)):
        value = {"content": value}  # the parts of one answer
    if isinstance(value, Mapping):
        return _Side(({"role": "assistant", "text": message(value, f"column {where!r}")},))
    found = read_chat(value, f"column {where!r}") if value else None
    if found is None or not found.turns:
        raise RowError("missing value", f"column {where!r}: {value!r}"[:120])
    return _Side(found.turns, found.media, found.system)


def _several(value: Any) -> Sequence[Any]:
    """The rejected answers of a row that has a list of them; empty where it has one."""
    value = parsed_turns(value)
    if not isinstance(value, list | tuple) or not value:
        return ()
    if all(isinstance(entry, str) for entry in value) or all(
        isinstance(entry, list) and is_chat(entry) for entry in value
    ):
        return value
    roles = [str(entry.get("role", entry.get("from"))).lower() for entry in value if is_turn(entry)]
    return value if len(roles) == len(value) > 1 and {*map(ROLES.get, roles)} == {"assistant"} else ()


def _media(fields: Fields, inside: _Media) -> tuple[Medium, ...]:
    """The media of a prompt: those that its parts name, and from the columns those of parts that name none."""
    columns = fields.media()
    if not any(medium is not None for _, medium in inside):
        return columns
    queues = {kind: iter([medium for medium in columns if medium.kind == kind]) for kind in ("image", "video")}
    found = [medium if medium is not None else next(queues[kind], None) for kind, medium in inside]
    if None in found or any(next(queue, None) is not None for queue in queues.values()):
        raise RowError(
            "image markers and images differ",
            f"the conversation has places for {len(inside)}, columns hold {len(columns)}",
        )
    return tuple(medium for medium in found if medium is not None)


def _history(fields: Fields) -> Iterator[Turn]:
    """Earlier turns as Alpaca writes them: a list of [question, answer]."""
    value = parsed(fields.value(fields.plain("history")))
    for number, entry in enumerate(value if isinstance(value, list | tuple) else ()):
        if not isinstance(entry, list | tuple) or len(entry) != 2:
            raise RowError("not a conversation", f"column 'history', entry {number + 1}: {entry!r}"[:120])
        for role, text in zip(("user", "assistant"), entry, strict=True):
            yield {"role": role, "text": checked_text(text, f"column 'history', entry {number + 1}")}


def _strengths(fields: Fields, count: int) -> list[float | None]:
    """How much better, for each of the rejected answers; the difference of ratings where these are given."""
    column = fields.column("strength")
    value = fields.value(column)
    strength = None if _blank(value) else as_number(value, f"column {column!r}")
    if strength is not None and not math.isnan(strength):
        # TRL's trainers take no null for a margin; exports write 0 for what is not known.
        return [None if strength == 0 and "strength" not in fields.row.columns else strength] * count
    if (columns := _rated(fields)) is None:
        return [None] * count
    better, worse = (parsed(fields.value(column)) for column in columns)
    each = worse if isinstance(worse, list | tuple) else [worse] * count
    if _blank(better) or len(each) != count or any(map(_blank, each)):
        return [None] * count
    top = as_number(better, f"column {columns[0]!r}")
    return [round(top - as_number(one, f"column {columns[1]!r}"), 6) for one in each]


def _rated(fields: Fields) -> tuple[str, str] | None:
    """The columns with the ratings of the better and the worse answer, where the row has both."""
    if not _blank(fields.value(fields.column("strength"))):
        return None
    for names in RATINGS:
        one, other = fields.plain(names[0]), fields.plain(names[1])
        if one is not None and other is not None:
            return one, other
    return None


def _blank(value: Any) -> bool:
    """Whether a cell holds nothing, as files with texts alone write it."""
    return value is None or (isinstance(value, str) and not value.strip())


def _name(value: Any) -> str | None:
    return (
        None
        if value in (None, "")
        else checked_text(value, "the name of a model")
        if isinstance(value, str)
        else str(value)
    )
