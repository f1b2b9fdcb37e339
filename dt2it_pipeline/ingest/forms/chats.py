"""Conversations as trainers write them: lists of turns under several names, with text or typed parts as content."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.forms.fields import listed
from dt2it_pipeline.ingest.rows import Turn, checked_text
from dt2it_pipeline.media.markers import IMAGE, VIDEO, escaped, marker_kinds
from dt2it_pipeline.media.store import Medium, MediumKind

ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
_ROLE_KEYS = ("role", "from")
_TEXT_KEYS = ("content", "value", "text", "response")  # of a turn
_TURN_KEYS = {*_ROLE_KEYS, *_TEXT_KEYS, "name", "loss_weight", "type"}
_BESIDE_CONTENT = ("tool_calls", "function_call", "tool_call_id", "images", "image", "videos", "video", "audio")
_MEDIUM_KEYS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "image_url", "url", "path", "value", "content", "data", "base64"),
    "video": ("video", "video_url", "url", "path", "value", "content", "data"),
}
_LEADING = re.compile(r"(?:\s*<(?:image|video)>)+\s*")  # markers at the beginning of a text
_HH = re.compile(r"\n\n(Human|Assistant):")  # how Anthropic's hh-rlhf writes a conversation as one text


class Chat(NamedTuple):
    """A conversation; `media` has one entry per marker in the turns' texts, None where a column holds the medium.

    `typed` says that its content is written as parts, so that a marker in a text is none.
    """

    system: str
    turns: tuple[Turn, ...]
    media: tuple[tuple[MediumKind, Medium | None], ...] = ()
    typed: bool = False


def is_turn(value: Any) -> bool:
    """Whether a value is one turn of a conversation."""
    return isinstance(value, Mapping) and any(value.get(key) is not None for key in _ROLE_KEYS)


def is_chat(value: Any) -> bool:
    """Whether a value is a list of turns, as it is or as text of one."""
    value = parsed_turns(value)
    return isinstance(value, list | tuple) and bool(value) and all(map(is_turn, value))


def parsed_turns(value: Any) -> Any:
    """Turns that stand as text in a cell, as JSON or as Python writes them; any other text stays one.

    An answer may itself be JSON, so that only a list of nothing but turns with known roles counts.
    """
    found = listed(value)
    if not isinstance(value, str) or found is value:
        return found
    turns = found and all(isinstance(e, Mapping) and set(e) <= _TURN_KEYS and _role(e) is not None for e in found)
    return found if turns else value


def read_chat(value: Any, where: str) -> Chat:
    """A chat written as [{from, value}] or [{role, content}], as text of one, or a question as plain text.

    Content may be typed: a list of {type: text, text} and {type: image, ...} parts, as TRL, Transformers and
    LLaMA-Factory v1 have it. A marker in a text beside parts that are media is text; as many at the beginning of texts
    repeat the parts, and are left out.

    Raises:
        RowError: it is something else, a role is unknown, or a system turn stands behind the first place.
    """
    value = parsed_turns(value)
    if isinstance(value, str):
        return hh_prompt(value) or Chat("", ({"role": "user", "text": checked_text(value, where)},))
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or not value:
        raise RowError("not a conversation", f"{where}: {value!r}"[:120])
    parts = [part for entry in value for part in _parts(entry)]
    there = sum(_is_medium(part) is not None for part in parts)
    texts = [text for part in parts if isinstance(text := _text_of(part), str)]
    leading = [match.group() for text in texts if (match := _LEADING.match(text))]
    counts = [sum(len(marker_kinds(text)) for text in some) for some in (leading, texts)]
    repeated = counts == [there, there]
    media_in_text: Callable[[str], str] = (
        (lambda text: text) if not there else (lambda text: _LEADING.sub("", text)) if repeated else escaped
    )
    turns: list[Turn] = []
    media: list[tuple[MediumKind, Medium | None]] = []
    for number, entry in enumerate(value, start=1):
        turn, found = _turn(entry, f"{where}, turn {number}", media_in_text)
        turns.append(turn)
        media += found
    system = turns.pop(0)["text"] if turns[0]["role"] == "system" else ""
    if any(turn["role"] == "system" for turn in turns):
        raise RowError("not a conversation", f"{where}: a system turn behind the first place")
    if not turns:
        raise RowError("not a conversation", f"{where}: no turn but the system prompt")
    return Chat(system, tuple(turns), tuple(media), bool(parts))


def chat(value: Any, where: str) -> tuple[str, tuple[Turn, ...]]:
    """System text and turns of a chat whose media stand in columns. Raises RowError as `read_chat`."""
    system, turns, media, _ = read_chat(value, where)
    if any(medium is not None for _, medium in media):
        raise RowError("not a conversation", f"{where}: an image inside the conversation")
    return system, turns


def message(value: Any, where: str) -> str:
    """The text of one message: {from, value}, {role, content} (typed or not), or the text itself."""
    if isinstance(value, Mapping):
        content = _first(value, _TEXT_KEYS)
        if content is None and not set(_TEXT_KEYS) & set(value):
            raise RowError("not text", f"{where}: {value!r}"[:120])
        _require_text_alone(value, where)
        text, media = _content(content, where, lambda words: words)
        if media:
            raise RowError("media in an answer", f"{where}: answers are text")
        return text
    return checked_text(value, where)


def is_hh(value: Any) -> bool:
    """Whether a text begins as Anthropic's hh-rlhf writes a conversation."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def hh_chat(text: str, where: str) -> Chat:
    """A conversation that is one text with the headings `Human:` and `Assistant:`. Raises RowError where it is none."""
    pieces = _HH.split("\n\n" + text.lstrip())
    roles = ["user" if role == "Human" else "assistant" for role in pieces[1::2]]
    turns = tuple({"role": role, "text": words.strip()} for role, words in zip(roles, pieces[2::2], strict=True))
    if not turns or pieces[0].strip() or roles != ["user", "assistant"] * (len(roles) // 2):
        raise RowError("not a conversation", f"{where}: begins with Human:, but its turns do not alternate")
    if empty := [turn["role"] for turn in turns if not turn["text"]]:
        raise RowError("missing value", f"{where}: an empty turn of the {empty[0]}")
    return Chat("", turns)


def hh_prompt(text: str) -> Chat | None:
    """A prompt that is such a text up to the heading of the answer, None for another text."""
    if not is_hh(text) or not text.rstrip().endswith("Assistant:"):
        return None
    found = hh_chat(f"{text.rstrip()} .", "the prompt")
    return found._replace(turns=found.turns[:-1])


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
    """The text of a side: its answer, and what follows it under headings. Raises RowError for two answers in a row."""
    if len(turns) == 1:
        return turns[0]["text"]
    roles = [turn["role"] for turn in turns]
    if any(one == other for one, other in pairwise(roles)):
        raise RowError("several answers", f"turns of {', '.join(roles)} follow each other")
    first, *rest = turns
    return "\n\n".join(
        [first["text"], *(("User: " if t["role"] == "user" else "Assistant: ") + t["text"] for t in rest)]
    )


def _role(entry: Mapping[str, Any]) -> str | None:
    return ROLES.get(str(_first(entry, _ROLE_KEYS)).strip().lower())


def _turn(
    entry: Any, where: str, media_in_text: Callable[[str], str]
) -> tuple[Turn, list[tuple[MediumKind, Medium | None]]]:
    if not isinstance(entry, Mapping):
        raise RowError("not a conversation", f"{where}: {entry!r}"[:120])
    role = _role(entry)
    if role is None:
        raise RowError("not a conversation", f"{where}: unknown role {_first(entry, _ROLE_KEYS)!r}"[:160])
    _require_text_alone(entry, where)
    content = _first(entry, _TEXT_KEYS)
    if role == "system" and content in ("", None, [], ()):
        return {"role": role, "text": ""}, []
    # In other turns than the user's a marker is text as it stands.
    text, media = _content(content, where, media_in_text if role == "user" else (lambda words: words))
    return {"role": role, "text": text}, media


def _require_text_alone(entry: Mapping[str, Any], where: str) -> None:
    """Raise RowError where a turn has tool calls or media beside its content, which are not read."""
    for key in _BESIDE_CONTENT if len(entry) > 2 else ():
        if entry.get(key) not in (None, "", [], {}):
            raise RowError(
                "not a conversation", f"{where}: {key!r} of a turn is not read; media are parts of `content`"
            )


def _content(
    value: Any, where: str, media_in_text: Callable[[str], str]
) -> tuple[str, list[tuple[MediumKind, Medium | None]]]:
    """Text with markers, and the media of these that the parts name."""
    if not isinstance(value, list | tuple):
        return media_in_text(checked_text(value, where)), []
    pieces: list[str] = []
    media: list[tuple[MediumKind, Medium | None]] = []
    for part in value:
        text = _text_of(part)
        if not isinstance(part, Mapping | str) or (text is not None and not isinstance(text, str)):
            raise RowError("not a conversation", f"{where}: a part is {part!r}"[:120])
        if (kind := _is_medium(part)) is not None and isinstance(part, Mapping):
            pieces.append(IMAGE if kind == "image" else VIDEO)
            media.append((kind, _medium(part, kind)))
        elif isinstance(part, Mapping) and "text" not in str(part.get("type") or "text"):  # text, input_text
            raise RowError(
                "not a conversation", f"{where}: a part of type {part.get('type')!r}; known: text, image, video"
            )
        else:
            pieces.append(media_in_text(text) if text else "")
    return checked_text("".join(pieces), where), media


def _text_of(part: Any) -> Any:
    """The text of a part, None where it has none."""
    if isinstance(part, Mapping) and _is_medium(part) is None:
        return _first(part, ("text", "value", "content"))
    return part if isinstance(part, str) else None


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
