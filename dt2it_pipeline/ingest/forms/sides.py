"""Two answers under neutral names, and the column that says which is better."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.forms.fields import COUPLES, NAMES, Fields, plain_name
from dt2it_pipeline.ingest.forms.verdicts import (
    FIRST,
    SECOND,
    TIE,
    VerdictError,
    Verdicts,
    number_of,
    value_text,
    word_meaning,
)
from dt2it_pipeline.ingest.rows import Row

# What stands around the token that tells the sides apart, the likeliest first.
STEMS = (
    "response_{}", "answer_{}", "output_{}", "completion_{}", "generation_{}", "reply_{}", "candidate_{}",
    "model_output_{}", "model_response_{}", "model_{}_response", "model_{}_answer", "model_{}_output",
    "generated_text_{}", "text_{}", "message_{}", "messages_{}", "conversation_{}", "assistant_{}", "continuation_{}",
    "option_{}", "side_{}", "summary_{}", "{}_response", "{}_answer", "{}_output", "{}_completion", "{}_text",
)  # fmt: skip
_TOKENS = (("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"), ("first", "second"))
_MODELS = ("model_{}", "{}_model", "generator_{}", "{}_generator", "system_{}", "model_name_{}")
CODE = 80  # characters of a text that may still name a side
_CONTENT = (
    "question",
    "conversation",
    "answers",
    "caption",
    "preferred",
    "other",
    "image",
    "images",
    "video",
    "videos",
)
# Columns of a side's score, by its token or by the name of its own column. Ranks are none: 1 is the best there.
_SCORES = ("score", "rating", "reward", "overall_score", "overall_rating")
_OTHER = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}
_ONE_HOT = ("winner", "preferred", "better", "preference")


@dataclass(frozen=True)
class Sides:
    """Columns of two answers of equal standing, and of the verdict on them.

    Attributes:
        first: column of the first answer.
        second: column of the second.
        tokens: what tells their names apart.
        turned: whether the manifest calls the side `first` whose name says that it is the second: 1, A and model_a then
            mean the second one.
    """

    first: str
    second: str
    tokens: tuple[str, str] = ("a", "b")
    turned: bool = False


def neutral_sides(fields: Fields) -> Sides | None:
    """The two sides of a row under neutral names, or as the manifest maps them; None where there are none."""
    mapped = fields.row.columns
    if "first" in mapped or "second" in mapped:
        first, second = fields.column("first"), fields.column("second")
        if first is None or second is None:
            raise fields.missing("first" if first is None else "second")
        found = _sides((plain_name(first), plain_name(second)), (first, second))
        if found is None:
            return Sides(first, second, ("", ""))
        return found if found.first == first else Sides(first, second, found.tokens, turned=True)
    return _sides(tuple(fields.names), tuple(fields.names.values()))


@functools.lru_cache(maxsize=1024)
def is_neutral(column: str) -> bool:
    """Whether a column's name says that it is one of two sides, and not which is better."""
    plain = plain_name(column)
    return any(stem.format(token) == plain for stem in STEMS for tokens in _TOKENS for token in tokens)


def score_columns(fields: Fields, sides: Sides) -> tuple[str, str] | None:
    """The columns with the scores of a row's two sides; None where there are none, or several couples."""
    tokens = sides.tokens[::-1] if sides.turned else sides.tokens
    marks = tokens, (plain_name(sides.first), plain_name(sides.second))
    return _score_columns(tuple(fields.names), tuple(fields.names.values()), marks)


def is_content(column: str) -> bool:
    """Whether a column's name says that it holds a prompt, an answer or a medium, so that what has it is a row.

    >>> is_content("Response_A"), is_content("pairs"), is_content("version")
    (True, False, False)
    """
    return plain_name(column) in _content() or is_neutral(column)


@functools.cache
def _content() -> frozenset[str]:
    names = {name for field in _CONTENT for name in NAMES[field]}
    return frozenset(names.union(*COUPLES))


def name_sides(fields: Fields, columns: tuple[str, str], answers: Sequence[Any], sides: Sides | None) -> bool:
    """Whether the columns of a better and a worse side name sides beside a row's answers, and hold none themselves.

    They do where the one names the first and the other the second side. What repeats the answers is text, and so is
    anything else in `chosen` and `rejected`. A winner and a loser that are none of two answers are names, known or not.

    Args:
        fields: of the row.
        columns: of the better and the worse side.
        answers: that the row has elsewhere.
        sides: their columns, where two have neutral names.
    """
    values = [fields.value(column) for column in columns]
    texts = [value_text(value) if isinstance(value, str | int | float) else "" for value in values]
    if not all(texts) or max(map(len, texts)) > CODE:
        return False
    given = {text.strip() for each in answers if (text := text_of(each))}
    if given and given.issuperset(texts):
        return False
    if sides is None and len(answers) != 2:
        return False
    if {*map(plain_name, columns)} <= {"winner", "loser", "better", "worse"}:
        return True
    names = {} if sides is None else _side_names(fields, sides)
    tokens = ("", "") if sides is None else sides.tokens
    numbers = [number_of(text) for text in texts]
    codes = [set(tokens)] if tokens in (("0", "1"), ("1", "2")) else [{"0", "1"}, {"1", "2"}]
    if set(numbers) in codes:
        return True
    said = [names.get(text.lower()) or word_meaning(text) for text in texts]
    return set(said) == {FIRST, SECOND}


def meaning_of(fields: Fields, sides: Sides, text: str) -> str | None:
    """Which side a name or a word means, `first`, `second` or `tie`; None where it says nothing for certain."""
    named = _side_names(fields, sides).get(text.lower())
    word = word_meaning(text)
    return named or (_OTHER[word] if word is not None and sides.turned else word)


def is_name_of_side(column: str, beginnings: tuple[str, ...]) -> bool:
    """Whether a column's plain name begins in one of some ways."""
    return plain_name(column).startswith(beginnings)


def text_of(answer: Any) -> str:
    """The text of an answer, be it a text, a message, or a list of one."""
    if isinstance(answer, list | tuple) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, Mapping):
        answer = next((answer[name] for name in ("content", "text", "answer", "response") if name in answer), "")
    return answer if isinstance(answer, str) else ""


@functools.lru_cache(maxsize=1024)
def _sides(plain: tuple[str, ...], columns: tuple[str, ...]) -> Sides | None:
    names = dict(zip(plain, columns, strict=True))
    for stem in STEMS:
        for tokens in _TOKENS:
            first, second = (names.get(stem.format(token)) for token in tokens)
            if first is not None and second is not None:
                return Sides(first, second, tokens)
    return None


@functools.lru_cache(maxsize=1024)
def _score_columns(
    plain: tuple[str, ...], columns: tuple[str, ...], marks: tuple[tuple[str, str], ...]
) -> tuple[str, str] | None:
    names = dict(zip(plain, columns, strict=True))
    forms = [form.format(word) for word in _SCORES for form in ("{}_{{}}", "{{}}_{}", "model_{{}}_{}")]
    couples = {(names.get(form.format(one)), names.get(form.format(other))) for form in forms for one, other in marks}
    found = [(one, other) for one, other in couples if one is not None and other is not None]
    return found[0] if len(found) == 1 else None


class Judged:
    """The verdicts of a source: which column has them and what its values mean, from its first rows."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._verdicts: dict[str, Verdicts] = {}
        for row in rows:
            if (mapped := row.columns.get("verdict")) is not None and mapped not in row.values:
                continue  # it is quarantined when it is read
            for column in self.columns(Fields(row)):
                verdicts = self._verdicts.setdefault(column, Verdicts(column, row.verdict))
                verdicts.look([row.values.get(column)])

    def columns(self, fields: Fields) -> Sequence[str]:
        """The columns of a row that may hold a verdict on two sides."""
        if "verdict" in fields.row.columns:
            column = fields.column("verdict")
            return () if column is None else (column,)
        named = [fields.plain(name) for name in NAMES["verdict"]]
        found = [name for name in named if name is not None and _may_be_code(fields.value(name))]
        # Beside a verdict, a strength says how much better, and not which.
        return [name for name in found if len(found) == 1 or not plain_name(name).endswith("strength")]

    def has_verdict(self, fields: Fields) -> bool:
        """Whether a row, or one of the source's first rows, has a column that may say which side is better."""
        return bool(self._verdicts or self.columns(fields) or _one_hot(fields)[0])

    def of(self, fields: Fields, sides: Sides, texts: tuple[Any, Any]) -> str:
        """Which side of a row is better: `first`, `second` or `tie`.

        Args:
            fields: of the row.
            sides: its two answers' columns.
            texts: its two answers.

        Raises:
            RowError: the row has no verdict, or one that is not understood, or several that differ.
            SourceError: see `Verdicts.meaning`.
        """
        columns = self.columns(fields)
        found = {name: _OTHER[meaning] if sides.turned else meaning for name, meaning in (_one_hot(fields),) if meaning}
        if not columns and not found:
            raise self._missing(fields, sides)
        names, answers = _side_names(fields, sides), _texts(texts)
        fault: RowError | None = None
        for column in columns:
            try:
                found[column] = self._meaning(column, fields, sides, names, answers)
            except RowError as error:
                fault = fault or error
        if not found:
            assert fault is not None
            raise fault
        if len(set(found.values())) > 1:
            said = ", ".join(f"column {name!r} prefers the {meaning}" for name, meaning in found.items())
            raise VerdictError(
                "verdicts differ", f"{said}: name the column that counts, `verdict` under `columns` in the manifest"
            )
        if fault is not None and columns[0] not in found:  # the likeliest column is the one that is not understood
            raise fault
        return next(iter(found.values()))

    def _meaning(
        self, column: str, fields: Fields, sides: Sides, names: Mapping[str, str], texts: Mapping[str, str]
    ) -> str:
        verdicts, value = self._of(column, fields.row), fields.value(column)
        if not sides.turned or verdicts.meanings:
            return verdicts.meaning(value, names, sides.tokens, texts)
        # Words and numbers mean the sides by their names; names and texts are looked up as if these came first, too.
        turned = [{name: _OTHER[side] for name, side in each.items()} for each in (names, texts)]
        return _OTHER[verdicts.meaning(value, turned[0], sides.tokens, turned[1])]

    def strength(self, fields: Fields) -> float | None:
        """How far apart the sides of a row are by its verdict, where that is a number on a scale; see `Verdicts`."""
        found = (self._of(column, fields.row).strength(fields.value(column)) for column in self.columns(fields))
        return next((each for each in found if each is not None), None)

    def _missing(self, fields: Fields, sides: Sides) -> VerdictError:
        lists = [name for name in map(fields.plain, NAMES["verdict"]) if name and isinstance(fields.value(name), list)]
        hint = f"; the value of {lists[0]!r} is a list" if lists else ""
        return VerdictError(
            "no verdict column",
            f"two answers ({sides.first!r}, {sides.second!r}) stand in {fields.row.where or fields.row.row_id}, but no "
            f"column says which is better{hint}; it has {fields.row.columns_in_words}. Map `verdict` under "
            "`columns` in the manifest, or with --column verdict=COLUMN",
        )

    def _of(self, column: str, row: Row) -> Verdicts:
        """What is known of a column from the first rows; what a later row has changes nothing for the others."""
        return self._verdicts.get(column) or Verdicts(column, row.verdict)


def _side_names(fields: Fields, sides: Sides) -> Mapping[str, str]:
    """Other names of the sides in a row: of their columns, and of the models where these differ."""
    names: dict[str, str] = {}
    for first, second in ((sides.first, sides.second), _models(fields, sides)):
        if first and second and first.lower() != second.lower():
            names |= {first.lower(): FIRST, second.lower(): SECOND}
    return names


def _texts(texts: tuple[Any, Any]) -> Mapping[str, str]:
    """The answers themselves, which a verdict column may repeat; none where they are alike or long."""
    plain = [text.strip().lower() if isinstance(text, str) else "" for text in texts]
    short = min(map(len, plain)) > 0 and max(map(len, plain)) <= CODE and plain[0] != plain[1]
    return {plain[0]: FIRST, plain[1]: SECOND} if short else {}


def _models(fields: Fields, sides: Sides) -> tuple[str, str]:
    for tokens in _TOKENS:
        for form in _MODELS:
            columns = [fields.plain(form.format(token)) for token in tokens]
            if all(columns):
                first, second = (str(fields.value(column) or "") for column in columns)
                return (second, first) if sides.turned else (first, second)
    return "", ""


def models(fields: Fields, sides: Sides) -> tuple[str | None, str | None]:
    """Who wrote the first and the second side, None where it is not known."""
    first, second = _models(fields, sides)
    return first or None, second or None


def _one_hot(fields: Fields) -> tuple[str, str]:
    """A verdict over columns of ones and zeros (winner_model_a, winner_model_b, winner_tie), and a name for them."""
    if "verdict" in fields.row.columns:
        return "", ""
    for stem in _ONE_HOT:
        columns = [fields.plain(f"{stem}_model_a"), fields.plain(f"{stem}_model_b"), fields.plain(f"{stem}_tie")]
        if columns[0] is None or columns[1] is None:
            continue
        values = [value_text(fields.value(column)) in ("1", "true") for column in columns]
        if sum(values) != 1:
            raise RowError("no verdict", f"columns {columns} name {sum(values)} sides")
        return f"{stem}_*", (FIRST, SECOND, TIE)[values.index(True)]
    return "", ""


def _may_be_code(value: Any) -> bool:
    """Whether a value may name a side: it is short, or missing; an answer is longer, and a list is none."""
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= CODE)
