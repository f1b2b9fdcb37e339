"""The prompt of a row, and its media, from whichever columns hold them."""

from __future__ import annotations

import re
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.forms.beside import QUESTIONS, count_words
from dt2it_pipeline.ingest.forms.chats import Chat, is_chat, read_chat
from dt2it_pipeline.ingest.forms.fields import NAMES, Fields, is_blank, listed
from dt2it_pipeline.ingest.rows import Turn
from dt2it_pipeline.media.markers import escaped, user_marker_kinds, without_markers
from dt2it_pipeline.media.store import Medium

_MORE_WORDS = 4  # than another question: it is not the same one, spelled otherwise
# How models' templates mark turns; a question has none of these.
_TEMPLATE = re.compile(r"###|<\|\w+\|>|\[/?INST\]|</?s>|\b(?:USER|ASSISTANT|Human|Assistant|User):")
_HINTS = ("post", "context", "trajectory", "turns", "history", "passage", "document", "dialogue", "article",
          "user", "human", "request", "user_message", "user_input", "user_question", "input_text")  # fmt: skip


def prompt(fields: Fields, answer: str | None = None) -> Chat | None:
    """The prompt of a row: a conversation or a question; None where it has none. `beside` adds what stands beside it.

    Args:
        fields: of the row.
        answer: an answer that may end the conversation, and is then not part of the prompt.

    Raises:
        RowError: the prompt is not of one of these forms, ends with another answer, or two columns have different ones.
    """
    mapped = fields.row.columns
    column = fields.column("conversation")
    value = fields.value(column)
    conversation = None
    if column is not None and ("conversation" in mapped or ("question" not in mapped and is_chat(value))):
        conversation = read_chat(value, f"column {column!r}")
        if conversation.turns[-1] == {"role": "assistant", "text": answer}:
            conversation = conversation._replace(turns=conversation.turns[:-1])
    question = _question(fields, column if conversation is not None else None, answer)
    if conversation is None or question is None:
        found = conversation or question
    elif "conversation" in mapped and "question" in mapped:
        found = question._replace(
            system=conversation.system or question.system,
            turns=(*conversation.turns, *question.turns),
            media=(*conversation.media, *question.media),
            typed=conversation.typed or question.typed,
        )
    else:
        found = _agreed(conversation, question, column or "")
    if found is not None and (not found.turns or found.turns[-1]["role"] != "user"):
        raise RowError("not a conversation", "the prompt ends with an answer")
    return found


def whole_prompt(fields: Fields, system: str, chat: Chat) -> Chat:
    """The prompt with which both sides of a row begin, or the longer one that a column has.

    Raises RowError where a column has another prompt, or another system prompt.
    """
    column = fields.column("question")
    value = fields.value(column)
    if column is None or is_blank(value) or value == []:
        return chat._replace(system=system)
    if "question" not in fields.row.columns and fields.plain_of(column) not in QUESTIONS:
        return chat._replace(system=system)  # it stands beside the prompt
    if (questions := answers_of(value)) is not None and questions[0] == chat.turns[0]["text"]:
        return chat._replace(system=system)  # one question per turn, as in the sides
    given = read_chat(value, f"column {column!r}")
    if is_chat(value) and _ends_with(given.turns, chat.turns):
        found = given if len(given.turns) > len(chat.turns) or given.media else chat
        return found._replace(system=_one_system(given.system, system))
    # Of a conversation some columns give the first question alone, or the last one.
    if any(_words(given.turns[-1]) == _words(turn) for turn in chat.turns if turn["role"] == "user"):
        return chat._replace(system=_one_system(given.system, system))
    raise RowError(
        "two prompts",
        f"column {column!r} differs from what the conversations begin with; map `question` to the one meant",
    )


def with_columns(fields: Fields, found: Chat) -> tuple[Chat, tuple[Medium, ...]]:
    """A prompt with the system prompt of its column, and with its media: from its parts and from the columns.

    Raises RowError where there are two system prompts, or places for other media than there are.
    """
    system = "" if is_blank(fields.get("system")) else fields.text("system") or ""
    for _, column in fields.present(NAMES["system"]) if system and "system" not in fields.row.columns else ():
        if isinstance(another := fields.value(column), str) and another.strip():
            system = _one_system(system, another)
    found = found._replace(system=_one_system(system, found.system))
    columns = fields.media()
    named = [medium for _, medium in found.media if medium is not None]
    if found.typed and not found.media and not columns and user_marker_kinds(found.turns):
        turns = (turn | {"text": escaped(turn["text"])} if turn["role"] == "user" else turn for turn in found.turns)
        found = found._replace(turns=tuple(turns))
    if not named or named == list(columns):
        return found, columns
    queues = {kind: iter([medium for medium in columns if medium.kind == kind]) for kind in ("image", "video")}
    media = [medium if medium is not None else next(queues[kind], None) for kind, medium in found.media]
    if None in media or any(next(queue, None) is not None for queue in queues.values()):
        raise RowError(
            "image markers and images differ",
            f"the conversation names {len(named)} of its {len(found.media)} images, columns hold {len(columns)} others",
        )
    return found, tuple(medium for medium in media if medium is not None)


def hidden_prompt(fields: Fields) -> str | None:
    """A column that may hold the prompt of a row in which none was found; None where there is no such column."""
    for column in fields.names.values():
        if fields.plain_of(column) in _HINTS and not is_blank(fields.value(column)):
            return column
    return next((column for column in fields.names.values() if _is_hidden_chat(fields, column)), None)


def _is_hidden_chat(fields: Fields, column: str) -> bool:
    return fields.plain_of(column) not in ("chosen", "rejected") and is_chat(fields.value(column))


def _question(fields: Fields, conversation: str | None, answer: str | None) -> Chat | None:
    """The question of a row, without what stands beside it."""
    column = fields.column("question")
    value = fields.value(column)
    if column is None or column == conversation:
        return None
    if is_blank(value) or value == []:
        if conversation is not None:
            return None
        raise RowError("missing value", f"column {column!r}: {value!r}")
    if "question" not in fields.row.columns and len(fields.present(QUESTIONS)) > 1:
        column = _fullest(fields, column, answer)
    return read_chat(fields.value(column), f"column {column!r}")


def _fullest(fields: Fields, column: str, answer: str | None) -> str:
    """Of several columns with a question, the one that has those of the others; a conversation comes first.

    Raises RowError where there is none, or it is the others' in a template, or with an answer.
    """
    values = {each: fields.value(each) for _, each in fields.present(QUESTIONS)}
    texts = {each: value for each, value in values.items() if isinstance(value, str) and value.strip()}
    chats = [each for each, value in values.items() if is_chat(value)]
    if chats:
        return column if column in chats else chats[0]
    if column not in texts:
        return column
    for each in sorted(texts, key=lambda name: -len(texts[name])):
        more = count_words(texts[each]) - count_words(texts[column])
        if texts[column].strip() not in texts[each] or more < _MORE_WORDS:
            continue
        if (answer and answer.strip() in texts[each]) or _TEMPLATE.search(texts[each]):
            continue
        column = each
    for other, text in texts.items():
        if text.strip() in texts[column]:
            continue
        if texts[column].strip() not in text or count_words(text) - count_words(texts[column]) >= _MORE_WORDS:
            raise RowError("two prompts", f"columns {column!r} and {other!r} differ; map `question` to the one meant")
    return column


def _agreed(conversation: Chat, question: Chat, column: str) -> Chat:
    """The one prompt of a row that has two: the conversation, where the question is one of its turns."""
    if any(_words(question.turns[-1]) == _words(turn) for turn in conversation.turns if turn["role"] == "user"):
        # A conversation may end with an answer that is none of the row's.
        return conversation if conversation.turns[-1]["role"] == "user" else question
    users = [_words(turn) for turn in conversation.turns if turn["role"] == "user"]
    asked = _words(question.turns[-1])
    if conversation.turns[-1]["role"] != "user" and any(asked in words or words in asked for words in users):
        return question
    raise RowError(
        "two prompts",
        f"the question is no turn of column {column!r}; map `question` or `conversation`, or both where one goes on "
        "with the other",
    )


def _ends_with(turns: tuple[Turn, ...], last: tuple[Turn, ...]) -> bool:
    end = turns[-len(last) :]
    return len(end) == len(last) and all(
        one["role"] == other["role"] and _words(one) == _words(other) for one, other in zip(end, last, strict=True)
    )


def _words(turn: Turn) -> str:
    return " ".join(without_markers(turn["text"]).split())


def _one_system(first: str, second: str) -> str:
    if first and second and first.strip() != second.strip():
        raise RowError("two system prompts", f"{first[:60]!r} and {second[:60]!r}")
    return first or second


def answers_of(value: Any) -> list[Any] | None:
    """A list of texts, as Chatbot Arena's sets have one per turn; None for anything else."""
    found = listed(value)
    return found if isinstance(found, list) and found and all(isinstance(one, str) for one in found) else None
