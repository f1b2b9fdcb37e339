"""Preference pairs from a row of any form that is known: which answers it has, and which is better.

The forms, in the order in which they are looked for:

1. a better and a worse answer: `chosen` and `rejected`, or one of the other couples of names (fields.COUPLES);
2. two answers under neutral names (`response_a` and `response_b`, `Output1` and `Output2`) and a verdict column, or a
   score of each (`score_a` and `score_b`);
3. a list of answers with ranks or ratings, or a list of two with a verdict.

Answers are texts, messages, or conversations: those of both sides then begin alike, and that is the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.forms import answer_lists
from dt2it_pipeline.ingest.forms.chats import (
    ROLES,
    Chat,
    answer,
    hh_chat,
    is_chat,
    is_hh,
    is_turn,
    message,
    parsed_turns,
    read_chat,
    two_sides,
)
from dt2it_pipeline.ingest.forms.fields import COUPLES, Fields, is_blank, listed
from dt2it_pipeline.ingest.forms.prompts import answers_of, hidden_prompt, prompt, whole_prompt, with_columns
from dt2it_pipeline.ingest.forms.sides import Judged, Sides, is_neutral, models, name_sides, neutral_sides
from dt2it_pipeline.ingest.forms.strengths import contradicted, score_difference, strengths
from dt2it_pipeline.ingest.forms.verdicts import FIRST, SECOND, TIE, VerdictError
from dt2it_pipeline.ingest.rows import TIE as TIED
from dt2it_pipeline.ingest.rows import ColumnError, Conversation, Item, Quarantined, Row, Turn, checked_text
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
    typed: bool = False

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
            SourceError: a verdict shows that earlier ones mean something else.
        """
        fields = Fields(row)
        if (column := fields.column("tie")) is not None and fields.bare.flag(column):
            yield Quarantined(row.row_id, TIED, f"column {column!r}")
        elif (couple := _couple(fields)) is not None:
            yield from self._of_couple(fields, couple)
        elif (sides := neutral_sides(fields)) is not None and not {"answers", "ratings", "ranks"} & set(row.columns):
            yield self._of_sides(fields, sides, (fields.value(sides.first), fields.value(sides.second)))
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
        if "verdict" in fields.row.columns:
            raise VerdictError(
                "verdict ignored",
                f"columns {couple[0]!r} and {couple[1]!r} say which answer is better, and `verdict` is mapped too",
            )
        value, other = fields.value(couple[0]), fields.value(couple[1])
        several = _several(other)
        one, two = (_name(fields.value(fields.plain(name))) for name in ("chosen_model", "rejected_model"))
        given = strengths(fields, len(several) or 1)
        for number, rejected in enumerate(several or [other]):
            fault = contradicted(fields, couple, number, given[number])
            if fault is not None:
                yield fault
                continue
            list_id, ranks = answer_lists.place_of(fields)
            if len(several) > 1:
                list_id, ranks = None, (1.0, 2 + (len(several) - 1) / 2)
            part = str(number) if len(several) > 1 else ""
            made = self._pair(fields, couple, (value, rejected), given[number], part, ranks, (one, two))
            yield made if list_id is None else replace(made, list_id=list_id)

    def _of_sides(self, fields: Fields, sides: Sides, values: tuple[Any, Any]) -> Item:
        difference = None if self.judged.has_verdict(fields) else score_difference(fields, sides)
        if difference == 0:
            return Quarantined(fields.row.row_id, TIED, f"{sides.first} and {sides.second} have equal scores")
        if difference is None:
            meaning = self.judged.of(fields, sides, values)
        else:
            meaning = FIRST if difference > 0 else SECOND
        if meaning == TIE:
            return Quarantined(fields.row.row_id, TIED, "by its verdict")
        columns, names = (sides.first, sides.second), models(fields, sides)
        if meaning != FIRST:
            columns, values, names = columns[::-1], values[::-1], names[::-1]
        strength = strengths(fields, 1)[0]
        if strength is None:
            strength = self.judged.strength(fields) if difference is None else difference
        return self._pair(fields, columns, values, None if strength is None else abs(strength), models=names)

    def _of_list(self, fields: Fields, column: str) -> Iterator[Item]:
        row_id = fields.row.row_id
        try:
            rated = answer_lists.answers(fields, column)
        except ColumnError:
            values = listed(fields.value(column))
            if not isinstance(values, list | tuple) or len(values) != 2 or not self.judged.columns(fields):
                raise
            yield self._of_sides(fields, Sides(f"{column}[0]", f"{column}[1]"), (values[0], values[1]))
            return
        unknown = [number for number, entry in enumerate(rated) if entry.worth is None]
        if unknown:
            yield Quarantined(row_id, "answers without a rank", f"{column}: answers {unknown}, counted from 0")
        ranks = answer_lists.ranks(rated)
        for pair in answer_lists.pairs(rated):
            one, other = rated[pair.chosen], rated[pair.rejected]
            part = f"{min(pair[:2])}-{max(pair[:2])}"
            if pair.strength == 0:
                yield Quarantined(row_id, TIED, f"answers {part} of {column!r} are equal")
                continue
            places = (ranks[pair.chosen] or 0.0, ranks[pair.rejected] or 0.0)
            sides = tuple(_Side(({"role": "assistant", "text": entry.text},)) for entry in (one, other))
            yield self._made(fields, sides[0], sides[1], pair.strength, part, places, (one.model, other.model))

    def _pair(
        self,
        fields: Fields,
        columns: tuple[str, str],
        values: tuple[Any, Any],
        strength: float | None,
        part: str = "",
        ranks: tuple[float, float] | None = None,
        models: tuple[str | None, str | None] = (None, None),
    ) -> Conversation:
        if (turned := _alternating(fields, values)) is not None:
            chosen, rejected = turned
        elif all(map(is_hh, values)):
            found = [hh_chat(value, f"column {column!r}") for value, column in zip(values, columns, strict=True)]
            chosen, rejected = (_Side(chat.turns) for chat in found)
        else:
            # Text that looks like a conversation is one where both sides do; an answer may be such a text.
            chats = all(is_chat(value) for value in values if isinstance(value, str))
            chosen, rejected = (_side(v, column, chats) for v, column in zip(values, columns, strict=True))
        return self._made(fields, chosen, rejected, strength, part, ranks, models)

    def _made(
        self,
        fields: Fields,
        chosen: _Side,
        rejected: _Side,
        strength: float | None,
        part: str,
        ranks: tuple[float, float] | None,
        models: tuple[str | None, str | None],
    ) -> Conversation:
        if chosen.whole or rejected.whole:
            if not rejected.whole:  # ms-swift: a whole conversation, and another last answer
                rejected = chosen._replace(turns=(*chosen.turns[:-1], *rejected.turns))
            elif not chosen.whole:
                chosen = rejected._replace(turns=(*rejected.turns[:-1], *chosen.turns))
            turns, better, worse = two_sides(chosen.turns, rejected.turns)
            if chosen.system != rejected.system:
                raise RowError("sides differ", "the conversations have different system prompts")
            places = len(marker_kinds("".join(turn["text"] for turn in turns)))
            if max(len(chosen.media), len(rejected.media)) > places:
                raise RowError("media in an answer", "answers are text")
            if chosen.media != rejected.media:
                raise RowError("sides differ", "the conversations have different images")
            found = whole_prompt(fields, chosen.system, Chat("", turns, chosen.media, chosen.typed))
        else:
            better, worse = answer(chosen.turns), answer(rejected.turns)
            if chosen.media or rejected.media:
                raise RowError("media in an answer", "answers are text")
            found = self._prompt(fields, better)
        found, media = with_columns(fields, found)
        _require_same_images(fields)
        row = fields.row
        group = fields.text("group") if row.kind == "benchmark" or "group" in row.columns else None
        return Conversation(
            row.row_id,
            found.turns,
            media,
            better,
            worse,
            system=found.system,
            strength=strength,
            group=group,
            part=part,
            ranks=ranks,
            models=models,
        )

    def _prompt(self, fields: Fields, chosen: str) -> Chat:
        found = prompt(fields, chosen)
        if found is not None:
            return found
        hidden = hidden_prompt(fields)
        if hidden is not None:
            raise ColumnError(
                "no prompt",
                f"column {hidden!r} may hold the prompt: map `question` or `conversation` to the one that does",
            )
        if not self.promptless:
            raise fields.missing("question", "conversation")
        return Chat("", ())


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


def says_which(fields: Fields) -> bool:
    """Whether the names of a row's columns say which answer is better, so that no verdict is needed.

    Where a mapped column is missing it is so, too: whoever reads the row finds that out.
    """
    try:
        return _couple(fields) is not None
    except ColumnError:
        return True


def _couple(fields: Fields) -> tuple[str, str] | None:
    """The columns of the better and the worse answer, None where the row has none that say so."""
    mapped = fields.row.columns
    if "chosen" in mapped or "rejected" in mapped:
        chosen, rejected = fields.column("chosen"), fields.column("rejected")
        if chosen is None or rejected is None:
            raise fields.missing("chosen" if chosen is None else "rejected")
        return chosen, rejected
    if {"first", "second", "answers"} & set(mapped):
        return None
    neutral = neutral_sides(fields)
    found: list[tuple[str, str]] = []
    for one, other in fields.couples(COUPLES):
        if not _fits(fields, one, other, neutral):
            continue
        found.append((one, other))
        if fields.value(one) is not None and fields.value(other) is not None:
            return one, other
    # Tables of several forms have nulls in the columns of the others.
    return found[0] if found and neutral is None and answer_lists.list_column(fields) is None else None


def _fits(fields: Fields, one: str, other: str, neutral: Sides | None) -> bool:
    """Whether two columns of a couple's names hold answers, and not the names of the better and the worse one."""
    answers: Sequence[Any] = ()
    if neutral is not None:
        answers = (fields.value(neutral.first), fields.value(neutral.second))
    elif (column := answer_lists.list_column(fields)) not in (None, one, other):
        entries = listed(fields.value(column))
        answers = entries if isinstance(entries, list) else ()
    if answers and name_sides(fields, (one, other), answers, neutral):
        return False
    if one != fields.plain("messages") or fields.value(one) is None:
        return True
    value = parsed_turns(fields.value(one))  # a whole conversation, whose last turn is the better answer
    last = value[-1] if isinstance(value, list | tuple) and value else None
    return isinstance(last, Mapping) and is_turn(last) and ROLES.get(_role(last)) == "assistant"


def _side(value: Any, where: str, chats: bool) -> _Side:
    """An answer from what a column may hold: a text, a message, typed parts, or the turns of a conversation."""
    value = parsed_turns(value) if chats else value
    if isinstance(value, list | tuple) and value and all(isinstance(entry, str) for entry in value):
        if len(value) > 1:
            raise RowError("several answers", f"column {where!r} has a list of {len(value)} texts; one is expected")
        value = value[0]
    if isinstance(value, str):
        return _Side(({"role": "assistant", "text": checked_text(value, f"column {where!r}")},))
    if isinstance(value, list | tuple) and value and not any(map(is_turn, value)):
        value = {"content": value}  # the parts of one answer
    if isinstance(value, Mapping):
        return _Side(({"role": "assistant", "text": message(value, f"column {where!r}")},))
    if value is not None and not isinstance(value, list | tuple):
        raise RowError("not text", f"column {where!r}: {value!r}"[:120])
    if not value:
        raise RowError("missing value", f"column {where!r}: {value!r}"[:120])
    found = read_chat(value, f"column {where!r}")
    return _Side(found.turns, found.media, found.system, found.typed)


def _several(value: Any) -> Sequence[Any]:
    """The rejected answers of a row that has a list of them; empty where it has one."""
    if not isinstance(value, list | tuple) or not value:
        return ()
    if all(isinstance(entry, str) for entry in value):
        return value
    if all(isinstance(entry, list) and is_chat(entry) for entry in value):
        return value
    roles = [_role(entry) for entry in value if is_turn(entry)]
    return value if len(roles) == len(value) > 1 and {*map(ROLES.get, roles)} == {"assistant"} else ()


def _role(turn: Mapping[str, Any]) -> str:
    return str(turn.get("role", turn.get("from"))).lower()


def _alternating(fields: Fields, values: tuple[Any, Any]) -> tuple[_Side, _Side] | None:
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
    return _Side(turns[0]), _Side(turns[1])


def _require_same_images(fields: Fields) -> None:
    """Raise RowError where a row has further images for the rejected side, as ms-swift may have them."""
    other = fields.value(fields.plain("rejected_images"))
    if other is None:
        return
    theirs, ours = (
        [each] if isinstance(each, str | bytes | Mapping) else list(each or ())
        for each in (other, fields.get("images") or fields.get("image"))
    )
    if theirs and theirs != ours:
        raise RowError("sides differ", "column 'rejected_images' has other images than the chosen side")


def _name(value: Any) -> str | None:
    """The name of a model, None where there is none."""
    return None if is_blank(value) else value if isinstance(value, str) else str(value)
