"""Conversations as trainers write them: lists of turns under several names, with text or typed parts as content."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.rows import Turn, checked_text
from dt2it_pipeline.media.markers import IMAGE, VIDEO, escaped
from dt2it_pipeline.media.store import Medium, MediumKind

ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "system": "system",
}  # fmt: skip
_ROLE_KEYS = ("role", "from")
_TEXT_KEYS = ("content", "value", "text")  # of a turn, and of a part of it
_MEDIUM_KEYS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "image_url", "url", "path", "value", "content", "data", "base64"),
    "video": ("video", "video_url", "url", "path", "value", "content", "data"),
}
_HH = re.compile(r"\n\n(Human|Assistant):")  # how Anthropic's hh-rlhf writes a conversation as one text


class Chat(NamedTuple):
    """A conversation; `media` has one entry per marker in the turns' texts, None where a column holds the medium."""

    system: str
    turns: tuple[Turn, ...]
    media: tuple[tuple[MediumKind, Medium | None], ...] = ()


def is_turn(value: Any) -> bool:
    """Whether a value is one turn of a conversation."""
    return isinstance(value, Mapping) and any(value.get(key) is not None for key in _ROLE_KEYS)


def is_chat(value: Any) -> bool:
    """Whether a value is a list of turns, as it is or as JSON text."""
    value = parsed(value)
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and all(map(is_turn, value))


def parsed(value: Any) -> Any:
    """A list or object that stands as JSON text in a cell, as CSV has it; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") and value.rstrip()[-1:] in ("]", "}"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):  # a text that begins like JSON
            return value
    return value


def parsed_turns(value: Any) -> Any:
    """Turns, a turn or its parts that stand as JSON text in a cell; any other text stays one, JSON or not."""
    found = parsed(value)
    entries = found if isinstance(found, list) else [found]
    shaped = [is_turn(entry) or (isinstance(entry, Mapping) and "type" in entry) for entry in entries]
    return found if shaped and all(shaped) else value


def read_chat(value: Any, where: str) -> Chat:
    """A chat written as [{from, value}] or [{role, content}], as JSON text of one, or a question as plain text.

    Content may be typed: a list of {type: text, text} and {type: image, ...} parts, as TRL, Transformers and
    LLaMA-Factory v1 have it. Markers in the text of such a chat are text, where one of its parts is a medium.

    Raises:
        RowError: it is something else, a role is unknown, or a system turn stands behind the first place.
    """
    if isinstance(value, str) and not is_chat(value):
        return Chat("", ({"role": "user", "text": checked_text(value, where)},))
    value = parsed(value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or not value:
        raise RowError("not a conversation", f"{where}: {value!r}"[:120])
    typed = any(_is_medium(part) for entry in value for part in _parts(entry))
    turns, media = [], []
    for number, entry in enumerate(value, start=1):
        turn, found = _turn(entry, f"{where}, turn {number}", typed)
        turns.append(turn)
        media += found
    system = turns.pop(0)["text"] if turns[0]["role"] == "system" else ""
    if any(turn["role"] == "system" for turn in turns):
        raise RowError("not a conversation", f"{where}: a system turn behind the first place")
    return Chat(system, tuple(turns), tuple(media))


def chat(value: Any, where: str) -> tuple[str, tuple[Turn, ...]]:
    """System text and turns of a chat whose media stand in columns. Raises RowError as `read_chat`."""
    system, turns, media = read_chat(value, where)
    if any(medium is not None for _, medium in media):
        raise RowError("not a conversation", f"{where}: an image inside the conversation")
    return system, turns


def message(value: Any, where: str) -> str:
    """The text of one message: {from, value}, {role, content} (typed or not), or the text itself."""
    if isinstance(value, Mapping):
        content = _first(value, _TEXT_KEYS)
        if content is None and not set(_TEXT_KEYS) & set(value):
            raise RowError("not text", f"{where}: {value!r}"[:120])
        text, media = _content(content, where, typed=False)
        if media:
            raise RowError("media in an answer", f"{where}: answers are text")
        return text
    return checked_text(value, where)


def hh_chat(text: str) -> Chat | None:
    """A conversation that is one text with the headings `Human:` and `Assistant:`, None for another text."""
    pieces = _HH.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if len(pieces) < 3 or pieces[0].strip():
        return None
    roles = ("user" if role == "Human" else "assistant" for role in pieces[1::2])
    turns = tuple({"role": role, "text": words.strip()} for role, words in zip(roles, pieces[2::2], strict=True))
    ends = turns[0]["role"] == "user" and turns[-1]["role"] == "assistant"
    return Chat("", turns) if ends and all(turn["text"] for turn in turns) else None


def two_sides(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> tuple[tuple[Turn, ...], str, str]:
    """Prompt and two answers from two whole chats: what both begin with is the prompt, the rest of each is its side.

    Where the chats part before their last answers, as when two models each led their own conversation, a side holds
    all that follows: its answers, and the questions between them under the heading `User:`.

    Raises:
        RowError: the chats do not begin with a question that is the same in both, or one ends there.
    """
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    while same and chosen[same - 1]["role"] != "user":
        same -= 1
    sides = chosen[same:], rejected[same:]
    if not same or not all(side and side[-1]["role"] == "assistant" for side in sides):
        identical = list(chosen) == list(rejected)
        raise RowError("identical sides" if identical else "conversations do not begin alike", str(chosen[:1])[:120])
    return tuple(chosen[:same]), answer(sides[0]), answer(sides[1])


def answer(turns: Sequence[Turn]) -> str:
    """The text of a side: its answer, and what follows it under headings."""
    first, *rest = turns
    return "\n\n".join(
        [first["text"], *(("User: " if t["role"] == "user" else "Assistant: ") + t["text"] for t in rest)]
    )


def _turn(entry: Any, where: str, typed: bool) -> tuple[Turn, list[tuple[MediumKind, Medium | None]]]:
    if not isinstance(entry, Mapping):
        raise RowError("not a conversation", f"{where}: {entry!r}"[:120])
    role = ROLES.get(str(_first(entry, _ROLE_KEYS)).strip().lower())
    if role is None:
        raise RowError("not a conversation", f"{where}: unknown role in {sorted(entry)}: {entry!r}"[:160])
    text, media = _content(_first(entry, _TEXT_KEYS), where, typed)
    return {"role": role, "text": text}, media


def _content(value: Any, where: str, typed: bool) -> tuple[str, list[tuple[MediumKind, Medium | None]]]:
    """Text with markers, and the media of these that the parts name."""
    if not isinstance(value, list | tuple):
        text = checked_text(value, where)
        return (escaped(text) if typed else text), []
    pieces: list[str] = []
    media: list[tuple[MediumKind, Medium | None]] = []
    for part in value:
        if isinstance(part, str):
            pieces.append(escaped(part) if typed else part)
        elif not isinstance(part, Mapping):
            raise RowError("not a conversation", f"{where}: a part is {part!r}"[:120])
        elif (kind := _is_medium(part)) is not None:
            pieces.append(IMAGE if kind == "image" else VIDEO)
            media.append((kind, _medium(part, kind)))
        elif "text" in str(part.get("type", "text")):  # text, input_text
            text = _first(part, ("text", "value", "content"))
            if text is not None and not isinstance(text, str):
                raise RowError("not text", f"{where}: a part is {part!r}"[:120])
            pieces.append((escaped(text) if typed else text) if text else "")
        else:
            raise RowError(
                "not a conversation", f"{where}: a part of type {part.get('type')!r}; known: text, image, video"
            )
    return checked_text("".join(pieces), where), media


def _parts(entry: Any) -> Sequence[Any]:
    content = _first(entry, _TEXT_KEYS) if isinstance(entry, Mapping) else None
    return content if isinstance(content, list | tuple) else ()


def _is_medium(part: Any) -> MediumKind | None:
    """The kind of a part that is a medium, None for another."""
    name = str(part.get("type", "")) if isinstance(part, Mapping) else ""
    return "image" if "image" in name else "video" if "video" in name else None


def _medium(part: Mapping[str, Any], kind: MediumKind) -> Medium | None:
    """What a part of a turn names: a path, a data URI or bytes; None where it only says that a medium stands here."""
    value = _first(part, _MEDIUM_KEYS[kind])
    if isinstance(value, Mapping):  # {url}, or {bytes, path} as `datasets` gives undecoded images
        value = _first(value, ("url", "bytes", "path", "base64", "data"))
    return Medium(kind, value) if isinstance(value, str | bytes) and value else None


def _first(entry: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The first of these that is there and not null: Parquet fills in nulls for keys that a part lacks."""
    return next((entry[key] for key in keys if entry.get(key) is not None), None)
