"""Preference pairs from a row of any form that is known: which answers it has, and which is better.

The forms, in the order in which they are looked for:

1. a better and a worse answer: `chosen` and `rejected`, or one of the other couples of names (fields.COUPLES);
2. two answers under neutral names (`response_a` and `response_b`, `Output1` and `Output2`) and a verdict column, or a
   score of each (`score_a` and `score_b`);
3. a list of answers with ranks or ratings, or a list of two with a verdict.

Answers are texts, messages, or conversations: those of both sides then begin alike, and that is the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.forms import answer_lists
from dt2it_pipeline.ingest.forms.beside import with_beside
from dt2it_pipeline.ingest.forms.chats import (
    ROLES,
    Chat,
    answer,
    hh_chat,
    is_chat,
    is_hh,
    is_turn,
    parsed_turns,
    two_sides,
)
from dt2it_pipeline.ingest.forms.codes import further, require_other_loser, require_two, resolved
from dt2it_pipeline.ingest.forms.fields import COUPLES, Fields, is_blank, listed
from dt2it_pipeline.ingest.forms.prompts import hidden_prompt, prompt, whole_prompt, with_columns
from dt2it_pipeline.ingest.forms.side_media import require_all_shown
from dt2it_pipeline.ingest.forms.sides import Judged, Sides, is_neutral, models, name_sides, neutral_sides
from dt2it_pipeline.ingest.forms.strengths import contradicted, require_scores_agree, score_difference, strengths
from dt2it_pipeline.ingest.forms.verdicts import FIRST, SECOND, TIE, VerdictError
from dt2it_pipeline.ingest.forms.written_sides import Side, alternating, role_of, several, written_side
from dt2it_pipeline.ingest.rows import TIE as TIED
from dt2it_pipeline.ingest.rows import ColumnError, Conversation, Item, Quarantined, Row, SourceError
from dt2it_pipeline.media.markers import marker_kinds

FIELDS = (
    "question", "conversation", "chosen", "rejected", "first", "second", "verdict", "answers", "ranks", "order",
    "ratings", "image", "images", "video", "videos", "group", "system", "strength", "tie",
)  # fmt: skip


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
        self._require_no_verdict(fields, couple)
        value, other = resolved(fields, couple)
        others = several(other)
        one, two = (_name(fields.value(fields.plain(name))) for name in ("chosen_model", "rejected_model"))
        given = strengths(fields, len(others) or 1, couple)
        for number, rejected in enumerate(others or [other]):
            fault = contradicted(fields, couple, number, given[number])
            if fault is not None:
                yield fault
                continue
            list_id, ranks = answer_lists.place_of(fields)
            if len(others) > 1:
                list_id, ranks = None, (1.0, 2 + (len(others) - 1) / 2)
            part = str(number) if len(others) > 1 else ""
            made = self._pair(fields, couple, (value, rejected), given[number], part, ranks, (one, two))
            yield made if list_id is None else replace(made, list_id=list_id)

    def _require_no_verdict(self, fields: Fields, couple: tuple[str, str]) -> None:
        """Raise VerdictError where a verdict is mapped beside a couple, or is one's own on the same two answers."""
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
        sides = None if fields.row.columns else fields.once("sides", neutral_sides)
        if sides is None or sides.first in couple or sides.second in couple:
            return
        texts = (fields.value(sides.first), fields.value(sides.second))
        order = (fields.value(couple[0]), fields.value(couple[1]))
        if order in (texts, texts[::-1]):
            self._require_agreement(fields, sides, texts, FIRST if order == texts else SECOND)

    def _require_agreement(self, fields: Fields, sides: Sides, texts: tuple[Any, Any], better: str) -> None:
        """Raise VerdictError where a row's verdict is understood and prefers another side than its other columns."""
        try:
            meaning = self.judged.of(fields, sides, texts)
        except SourceError:
            return
        except RowError as error:
            if error.reason == "verdicts differ":
                raise
            return
        if meaning != better:
            raise VerdictError(
                "verdicts differ",
                f"column {self.judged.columns(fields)[0]!r} prefers the {meaning} answer, other columns prefer the "
                f"{better} one: take out what does not count",
            )

    def _of_sides(self, fields: Fields, sides: Sides, values: tuple[Any, Any]) -> Item:
        require_two(fields, sides)
        difference = None if self.judged.has_verdict(fields) else score_difference(fields, sides)
        if difference == 0:
            return Quarantined(fields.row.row_id, TIED, f"{sides.first} and {sides.second} have equal scores")
        if difference is None:
            meaning = self.judged.of(fields, sides, values)
        else:
            meaning = FIRST if difference > 0 else SECOND
        if meaning == TIE:
            return Quarantined(fields.row.row_id, TIED, "by its verdict")
        require_other_loser(fields, sides, meaning)
        require_scores_agree(fields, sides, meaning)
        columns, names = (sides.first, sides.second), models(fields, sides)
        if meaning != FIRST:
            columns, values, names = columns[::-1], values[::-1], names[::-1]
        strength = strengths(fields, 1)[0]
        if strength is None:
            strength = self.judged.strength(fields) if difference is None else difference
        strength = None if strength is None else abs(strength)
        return self._pair(fields, columns, values, strength, models=names, turn=fields.value(fields.plain("turn")))

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
        if len(rated) == 2 and None not in (worths := [entry.worth for entry in rated]) and worths[0] != worths[1]:
            texts, better = (rated[0].text, rated[1].text), FIRST if worths[0] > worths[1] else SECOND  # type: ignore[operator]
            self._require_agreement(fields, Sides(f"{column}[0]", f"{column}[1]"), texts, better)
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
            sides = tuple(Side(({"role": "assistant", "text": entry.text},)) for entry in (one, other))
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
        turn: Any = None,
    ) -> Conversation:
        if (turned := alternating(fields, values)) is not None:
            chosen, rejected = turned
        elif all(map(is_hh, values)):
            found = [hh_chat(value, f"column {column!r}") for value, column in zip(values, columns, strict=True)]
            chosen, rejected = (Side(chat.turns) for chat in found)
        else:
            # Text that looks like a conversation is one where both sides do; an answer may be such a text.
            chats = all(is_chat(value) for value in values if isinstance(value, str))
            chosen, rejected = (written_side(v, column, chats) for v, column in zip(values, columns, strict=True))
        if turn is not None:
            chosen, rejected = chosen.up_to(turn), rejected.up_to(turn)
        return self._made(fields, chosen, rejected, strength, part, ranks, models)

    def _made(
        self,
        fields: Fields,
        chosen: Side,
        rejected: Side,
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
        if found.turns:
            found = with_beside(fields, found, (better, worse))
        found, media = with_columns(fields, found)
        require_all_shown(fields, media)
        if strength is not None and not math.isfinite(strength):
            raise RowError("strength is not finite", f"it is {strength:g}")
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
        # Of more than two answers, a couple of codes may name any: `resolved` finds out.
        answers = () if further(fields, neutral) else (fields.value(neutral.first), fields.value(neutral.second))
    elif (column := answer_lists.list_column(fields)) not in (None, one, other):
        entries = listed(fields.value(column))
        answers = entries if isinstance(entries, list) else ()
    if answers and name_sides(fields, (one, other), answers, neutral):
        return False
    if one != fields.plain("messages") or fields.value(one) is None:
        return True
    value = parsed_turns(fields.value(one))  # a whole conversation, whose last turn is the better answer
    last = value[-1] if isinstance(value, list | tuple) and value else None
    return isinstance(last, Mapping) and is_turn(last) and ROLES.get(role_of(last)) == "assistant"


def _name(value: Any) -> str | None:
    """The name of a model, None where there is none."""
    return None if is_blank(value) else value if isinstance(value, str) else str(value)
