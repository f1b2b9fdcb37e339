"""What stands beside a prompt in columns of its own: part of the prompt, a repetition of it, or a reason to ask.

What belongs here: columns that hold content of the question, such as a passage, earlier turns or options. What does
not: columns for those who judge answers (`reference`, `rubric`, `rationale`), which no model is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.forms.chats import Chat, is_chat, read_chat
from dt2it_pipeline.ingest.forms.fields import NAMES, Fields, is_blank, listed
from dt2it_pipeline.ingest.rows import Turn, checked_text
from dt2it_pipeline.media.markers import escaped, without_markers

QUESTIONS = ("question", "prompt", "query", "instruction", "problem", "user_prompt", "user_query", "prompt_text",
             "prompt_content")  # fmt: skip  # a row has one of these, or they agree
_JOINED = {"input": "{0}\n{1}", "context": "{1}\n\n{0}"}  # with the question
_HISTORIES = ("history", "chat_history", "conversation_history", "dialogue_history", "dialog_history",
              "message_history", "previous_turns", "previous_messages", "past_turns", "past_messages")  # fmt: skip
_PASSAGES = (
    "text", "passage", "passages", "document", "documents", "article", "post", "contexts", "background", "paragraph",
    "story", "scenario", "persona", "transcript", "email", "code", "code_snippet", "table", "hint", "knowledge",
    "evidence", "facts", "source_text", "source_document", "retrieved_documents", "retrieved_context", "selftext",
    "instructions", "additional_context", "extra_context", "body",
)  # fmt: skip
_CAPTIONS = ("caption", "image_caption", "image_captions", "image_description", "image_text", "ocr", "ocr_text")
_OPTIONS = ("options", "choices", "answer_choices", "answer_options")
_NOT_READ = ("tools", "functions", "audio", "audios", "audio_path")
_CONVERSATIONS = NAMES["conversation"]
_ALL = tuple(dict.fromkeys((*_JOINED, *_HISTORIES, *_PASSAGES, *_CAPTIONS, *_OPTIONS, *_NOT_READ, *_CONVERSATIONS)))
_OPTION = re.compile(r"(?:(?:option|choice)_(?:[a-h]|\d)|[a-h])")  # of multiple choice, one column each
_LABEL = re.compile(r"^\W?(?:[A-Ha-h]|\d)[.):]\s+")  # of an option: A. or (A)
_FEWEST_WORDS = 4  # of a text; what is shorter may be a name, a number, or a word of the question
_DEEPEST = 8  # levels of lists and objects
_NO_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_WAY_OUT = "join them, or map `question` to the one meant"


def stands_beside(fields: Fields) -> bool:
    """Whether a row has columns that may belong to the prompt, so that no single column is all of it."""
    return any(fields.once("beside", _beside)) or bool(_option_columns(fields))


def columns_beside(fields: Fields) -> tuple[str, ...]:
    """The columns that `with_beside` looks at, in order, each once."""
    there, questions, options = fields.once("beside", _beside)
    named = (column for name, column in (*there, *questions) if name not in _NOT_READ)
    return tuple(dict.fromkeys((*named, *options)))


def with_beside(fields: Fields, found: Chat, answers: Sequence[str] = ()) -> Chat:
    """A prompt with what stands beside it in columns of its own.

    `context` goes before the question, `input` behind it (as does `text` where the question is an `instruction`), and
    the turns of `history` before all. What the prompt has already is left out, as is a text that holds the prompt and
    an answer. Where the manifest maps the prompt, it is as it stands.

    Args:
        fields: of the row.
        found: the prompt so far.
        answers: of the row.

    Raises:
        RowError: a column holds something that belongs to the prompt, and where in it is not known; or it is of a
            kind that is not read.
    """
    there, questions, options = fields.once("beside", _beside)
    if not there and not questions and not options:
        return found
    options = _option_columns(fields)
    if {"question", "conversation"} & set(fields.row.columns):
        return found
    _require_read(fields)
    mapped = set(fields.row.columns.values())
    whole = _Whole(fields, found, answers)
    history = Chat("", ())
    joined: dict[str, str] = {}
    for name, column in there:
        value = listed(fields.value(column))
        if column in mapped or is_blank(value) or value in ([], {}) or name in _NOT_READ:
            continue
        if is_chat(value):
            chat = read_chat(value, f"column {column!r}")
            if name in _HISTORIES:
                history = history if whole.begins_with(chat) else chat
            elif not whole.has_turns(chat):
                raise RowError("two prompts", f"the turns of column {column!r} are not in the prompt; {_WAY_OUT}")
        elif name in _HISTORIES and not isinstance(value, str):
            turns = Chat("", tuple(_exchanges(value, column)))
            history = history if whole.begins_with(turns) else turns
        elif name in _JOINED or (name == "text" and _is_instruction(fields)):
            text = _one_text(value, column)
            if whole.has(text):
                continue
            if name == "text" and whole.is_in(text):
                raise RowError("two prompts", f"column {column!r} has the question, and more; {_WAY_OUT}")
            joined[name] = text
        else:
            _require_held(fields, whole, name, column, value)
    for _, column in questions:
        value = fields.value(column)
        if isinstance(value, str) and not is_chat(value) and column not in mapped:
            whole.require(value, column, fewest=0)
    options = [column for column in options if column not in mapped]
    if len(options) > 2:
        _require_options(whole, [fields.value(column) for column in options], options[0])
    return _after(history, _joined(found, joined))


def _beside(fields: Fields) -> tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]], Sequence[str]]:
    """Columns that may belong to the prompt, those with questions where there are several, and those of options."""
    questions, options = fields.present(QUESTIONS), fields.matching(_OPTION)
    return fields.present(_ALL), questions if len(questions) > 1 else (), options if len(options) > 2 else ()


class _Whole:
    """All that a row shows a model, as words, to be compared with a further column."""

    def __init__(self, fields: Fields, found: Chat, answers: Sequence[str]) -> None:
        system = fields.value(fields.column("system"))
        self._turns = [_words(turn["text"]) for turn in found.turns]
        self._prompt = " ".join([_words(system) if isinstance(system, str) else "", _words(found.system), *self._turns])
        self._answers = [_words(answer) for answer in answers]
        self.image = fields.media if not found.media else None

    def has(self, text: str) -> bool:
        """Whether the prompt has a text, or the text is an answer or a rendering of the row or of its conversation."""
        words = _words(text)
        if (
            words in self._turns
            or words in self._answers
            or (count_words(words) >= _FEWEST_WORDS and words in self._prompt)
        ):
            return True
        if not self.is_in(text):
            return False
        if any(answer in words for answer in self._answers if answer):
            return True
        rest = words
        for turn in self._turns:
            rest = rest.replace(turn, " ", 1)
        # The headings of a transcript remain: Human:, Assistant:.
        return len(self._turns) > 1 and count_words(rest) <= 2 * len(self._turns)

    def is_in(self, text: str) -> bool:
        """Whether a text holds the whole question."""
        return all(turn in _words(text) for turn in self._turns)

    def has_turns(self, chat: Chat) -> bool:
        """Whether all turns of a conversation, but an answer at its end, are in the prompt or in the answers."""
        turns = chat.turns[:-1] if chat.turns[-1]["role"] == "assistant" and len(chat.turns) > 1 else chat.turns
        single, everything = {*self._turns, *self._answers}, " ".join([self._prompt, *self._answers])
        words = [_words(turn["text"]) for turn in turns]
        return all(each in single or (count_words(each) >= _FEWEST_WORDS and each in everything) for each in words)

    def begins_with(self, history: Chat) -> bool:
        """Whether earlier turns are the prompt's first ones."""
        return self._turns[: len(history.turns)] == [_words(turn["text"]) for turn in history.turns]

    def is_answer(self, texts: Sequence[str]) -> bool:
        """Whether texts are the answers themselves."""
        return {*map(_words, texts)} <= {*self._answers}

    def lacks(self, texts: Sequence[str]) -> bool:
        """Whether the prompt lacks one of some short texts."""
        return not all(_LABEL.sub("", _words(text)).casefold() in self._prompt.casefold() for text in texts)

    def require(self, text: str, column: str, fewest: int = _FEWEST_WORDS) -> None:
        """Raise RowError where the prompt lacks a text of as many words."""
        words = _words(text)
        if count_words(words) >= fewest and words and words not in self._prompt and not self.has(text):
            last = self._turns[-1]
            if fewest == 0 and last and last in words and count_words(words) - count_words(last) < _FEWEST_WORDS:
                return  # the question in a template
            raise RowError("two prompts", f"column {column!r} stands beside the question; {_WAY_OUT}")


def count_words(text: str) -> int:
    """Words of a text; in scripts without spaces between words, two characters count as one.

    >>> count_words("Tom is a cat"), count_words("\u6c64\u59c6\u662f\u4e00\u53ea\u732b")
    (4, 3)
    """
    without = _NO_SPACES.sub("", text)
    return len(without.split()) + (len(text) - len(without)) // 2


def texts_in(value: Any, deep: int = 0) -> Iterator[str]:
    """The texts in a value that may be lists and objects of texts."""
    if isinstance(value, str):
        yield value
    elif deep < _DEEPEST and isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(each, deep + 1)


def _require_read(fields: Fields) -> None:
    """Raise RowError where a row has tools or sounds, which are not read."""
    for _, column in fields.present(_NOT_READ):
        value = listed(fields.value(column))
        if not is_blank(value) and value not in ([], {}, "[]"):
            raise RowError(
                "not read", f"column {column!r}: tools and audio are not read; map `question` to leave them out"
            )


def _require_held(fields: Fields, whole: _Whole, name: str, column: str, value: Any) -> None:
    """Raise RowError where a column holds a text that belongs to the prompt and is not there."""
    texts = list(texts_in(value))
    if name in _OPTIONS and not isinstance(value, str):
        _require_options(whole, texts, column)
    elif name in _CAPTIONS:  # of an image that is shown; without one, a model knows the image by it alone
        if texts and whole.image is not None and not whole.image():
            whole.require(" ".join(texts), column)
    elif len(texts) > 1 and all(map(whole.has, texts)):
        return
    elif texts:
        whole.require(" ".join(texts), column)


def _require_options(whole: _Whole, values: Sequence[Any], column: str) -> None:
    """Raise RowError where the question lacks its options, unless they are the answers, or yes and no."""
    texts = [text for text in values if isinstance(text, str) and len(text.strip()) > 1]
    plain = {text.strip().casefold() for text in texts}
    if len(texts) < 2 or plain <= {"yes", "no", "true", "false"} or whole.is_answer(texts) or not whole.lacks(texts):
        return
    raise RowError("two prompts", f"the options of column {column!r} are not in the question; {_WAY_OUT}")


def _option_columns(fields: Fields) -> list[str]:
    """Columns of options, `option_a` and so on, or A, B and C as MMBench has them; empty for fewer than three."""
    return [column for column in fields.once("beside", _beside)[2] if not is_blank(fields.value(column))]


def _is_instruction(fields: Fields) -> bool:
    column = fields.column("question")
    return column is not None and fields.plain_of(column) == "instruction"


def _one_text(value: Any, column: str) -> str:
    """The text of a column that is joined with the question; a list of one text is that text."""
    found = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    if isinstance(found, list | tuple | Mapping):
        raise RowError(
            "two prompts",
            f"column {column!r} holds {len(found)} parts, which may be passages or turns; {_WAY_OUT}",
        )
    return checked_text(found, f"column {column!r}")


def _exchanges(value: Any, column: str) -> Iterator[Turn]:
    """Earlier turns as a list of [question, answer], as Alpaca's descendants write them."""
    for number, entry in enumerate(value if isinstance(value, list | tuple) else [value], start=1):
        if not isinstance(entry, list | tuple) or len(entry) != 2:
            raise RowError("not a conversation", f"column {column!r}, entry {number}: {entry!r}"[:120])
        for role, text in zip(("user", "assistant"), entry, strict=True):
            yield {"role": role, "text": checked_text(text, f"column {column!r}, entry {number}")}


def _joined(found: Chat, texts: Mapping[str, str]) -> Chat:
    """A prompt whose question has further texts before or behind it."""
    if not texts:
        return found
    if len(found.turns) != 1:
        raise RowError(
            "two prompts",
            f"column {next(iter(texts))!r} stands beside a conversation of {len(found.turns)} turns, and may belong to "
            f"any of them; {_WAY_OUT}",
        )
    last = found.turns[0]["text"]
    for name, text in texts.items():
        last = _JOINED.get(name, _JOINED["input"]).format(last, escaped(text) if found.typed else text)
    return found._replace(turns=({"role": "user", "text": last},))


def _after(history: Chat, found: Chat) -> Chat:
    """A prompt with the turns before it."""
    if not history.turns:
        return found
    if history.system and found.system and history.system != found.system:
        raise RowError("two system prompts", f"{history.system[:60]!r} and {found.system[:60]!r}")
    if history.typed != found.typed and (history.media or found.media):
        raise RowError("two prompts", "the history and the prompt name images in different ways; join them")
    turns = history.turns
    if [_words(turn["text"]) for turn in turns[-len(found.turns) :]] == [_words(turn["text"]) for turn in found.turns]:
        return history._replace(system=history.system or found.system)
    return Chat(
        history.system or found.system,
        (*turns, *found.turns),
        (*history.media, *found.media),
        history.typed or found.typed,
    )


def _words(text: str) -> str:
    return " ".join(without_markers(text).split())
