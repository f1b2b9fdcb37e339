"""Files of prompts and responses that a person brings to be scored: JSON Lines, one prompt with its responses per line.

    {"prompt": "<image>What is shown?", "images": ["a.png"], "responses": ["A cat.", "A dog."]}
    {"prompt": "What is shown?", "image": "a.png", "chosen": "A cat.", "rejected": "A dog."}

What belongs here: reading them into tables. What does not: scoring (scorer.py) and the pipeline's sources (ingest/).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.ingest.rows import RowError, checked_text, medium
from dt2it_pipeline.media.markers import user_marker_kinds, with_media_first, without_markers
from dt2it_pipeline.media.store import MediaError, store_image, store_video
from dt2it_pipeline.storage import content_ids, schemas
from dt2it_pipeline.storage.table_files import unreadable

FORM = (
    "one JSON object per line: `responses` (a list of texts) or `chosen` and `rejected` (texts), `prompt` (a text) or "
    "`turns` (a list of role and text, the last of the user), and, where there are any, `system`, `images` or `image`, "
    "`videos` or `video` (paths; base64 of images) and `id`"
)


ANSWERS = ("responses", "chosen", "rejected", "quality", "truth")  # fields of answers; the last two are of `best-of`
FIELDS = ("prompt", "turns", "system", "images", "image", "videos", "video", "id", *ANSWERS)


class ResponseFileError(UserError, ValueError):
    """A file of responses cannot be read; the message says why and what it should hold."""


@dataclass(frozen=True)
class ResponseFile:
    """What a file holds.

    Attributes:
        rows: the objects of its lines, as read; a line that is no object is {}.
        names: of each row: its own `id` as text, else `line N`.
        prompts: table of kind `prompts`.
        responses: table of kind `responses`, each response that can be scored once.
        ids: of each row: the ids of its responses in their order; none where the row cannot be used.
        prompt_ids: of each row: the id of its prompt; empty where the row cannot be used.
        faults: reason and detail of each row that cannot be used, by its place in `rows`.
        response_faults: reason and detail of each response that cannot be scored, such as an empty one, by its id.
        columns: field of FORM -> the key that holds it, where rows name it otherwise; see `fields`.
    """

    rows: list[dict[str, Any]]
    names: list[str]
    prompts: pa.Table
    responses: pa.Table
    ids: list[list[str]]
    prompt_ids: list[str]
    faults: Mapping[int, tuple[str, str]]
    response_faults: Mapping[str, tuple[str, str]]
    columns: Mapping[str, str] = field(default_factory=dict)

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """One of `rows` by the names of FORM."""
        return _fields(row, self.columns)

    def key_of(self, name: str) -> str:
        """A field of FORM as messages name it: by the key that holds it."""
        return _key(name, self.columns)


def read_response_file(
    path: Path,
    media_root: Path,
    store: Path,
    *,
    with_responses: bool = True,
    columns: Mapping[str, str] | None = None,
) -> ResponseFile:
    """Read a file of prompts and responses. What is wrong with a row costs that row, with a response that response.

    Args:
        path: JSON Lines, in the form of FORM.
        media_root: folder from which paths of images and videos count, and which they may not leave.
        store: media store into which images and videos are imported; paths of the prompts are relative to it.
        with_responses: False: the rows' `responses` are not looked at, as of prompts that are yet to be answered.
        columns: field of FORM -> the key that holds it, where rows name it otherwise.

    Raises:
        ResponseFileError: the file cannot be read, no row of it, or no response, can be used, or no row has a key that
            `columns` names.
        VideoDecoderError: there are video files, and OpenCV is not installed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ResponseFileError(unreadable(path, error)) from error
    except ValueError as error:
        raise ResponseFileError(f"{path} cannot be read: {error}; it should hold {FORM}") from error
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    ids: list[list[str]] = []
    faults: dict[int, tuple[str, str]] = {}
    prompts: dict[str, dict[str, Any]] = {}
    prompt_ids: list[str] = []
    responses: dict[str, dict[str, Any]] = {}
    unusable: dict[str, tuple[str, str]] = {}
    columns = columns or {}
    absent = dict(columns)  # what no row had so far
    form = True  # whether the first fault may be one of the form; a medium that cannot be used is none
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row: Any = {}
        own: list[str] = []
        try:
            row = _object(line)
            absent = {name: column for name, column in absent.items() if column not in row}
            named = _fields(row, columns)
            if all(named.get(name) is None for name in ("prompt", "turns")):
                raise _no_prompt(row, columns)
            prompt = _prompt(named, columns, media_root, store)
            texts = _responses(named, columns) if with_responses else ()
            own = [content_ids.response_id(prompt["prompt_id"], each) for each in texts]
        except (MediaError, RowError) as error:
            form = form if faults else not isinstance(error, MediaError)
            faults[len(rows)] = (error.reason, error.detail)
        else:
            prompts[prompt["prompt_id"]] = prompt
            for name, each in zip(own, texts, strict=True):
                if fault := _response_fault(each):
                    unusable[name] = fault
                    continue
                responses[name] = {
                    "response_id": name, "prompt_id": prompt["prompt_id"], "text": each, "generator": ""
                }  # fmt: skip
        rows.append(row)
        own_id = _fields(row, columns).get("id")
        names.append(f"line {number}" if own_id in (None, "") else str(own_id))
        ids.append([] if len(rows) - 1 in faults else own)
        prompt_ids.append("" if len(rows) - 1 in faults else prompt["prompt_id"])
    if absent and any(rows):
        there = ", ".join(dict.fromkeys(str(key) for row in rows for key in row))[:200]
        raise ResponseFileError(f"no row of {path} has {', '.join(map(repr, absent.values()))}; there are: {there}")
    if not prompts or (with_responses and not responses):
        whole = [(names[place], fault) for place, fault in faults.items()]
        single = [(name, unusable[key]) for name, own in zip(names, ids, strict=True) for key in own]
        first = next(iter(whole + single), None)
        why = f"{first[0]}: {first[1][0]} ({first[1][1]})" if first else "it is empty"
        should = f". It should hold {FORM}" if form else ""
        raise ResponseFileError(f"no row of {path} can be used; the first: {why}{should}")
    return ResponseFile(
        rows,
        names,
        schemas.table(prompts.values(), "prompts"),
        schemas.table([responses[name] for name in sorted(responses)], "responses"),
        ids,
        prompt_ids,
        faults,
        unusable,
        columns,
    )


def is_pair(row: Mapping[str, Any]) -> bool:
    """Whether a row's responses are the two sides of a pair.

    >>> is_pair({"chosen": "A cat.", "rejected": "A dog."}), is_pair({"responses": ["A cat."], "chosen": "A cat."})
    (True, False)
    """
    return "responses" not in row and "chosen" in row and "rejected" in row


def _fields(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """A row by the names of FORM; what a field is read from has no other meaning.

    >>> _fields({"question": "What?", "prompt": "a template", "note": "x"}, {"prompt": "question"})
    {'note': 'x', 'prompt': 'What?'}
    """
    if not columns:
        return row
    others = {key: value for key, value in row.items() if key not in columns and key not in columns.values()}
    return others | {name: row[column] for name, column in columns.items() if column in row}


def _key(name: str, columns: Mapping[str, str]) -> str:
    """A field as messages name it: by the key that holds it.

    >>> _key("responses", {"responses": "good"}), _key("prompt", {"responses": "good"})
    ('`good` (read as `responses`)', '`prompt`')
    """
    column = columns.get(name, name)
    return f"`{name}`" if column == name else f"`{column}` (read as `{name}`)"


def _no_prompt(row: Mapping[str, Any], columns: Mapping[str, str]) -> RowError:
    there = ", ".join(map(str, row))[:200] or "none"
    prompt, turns = _key("prompt", columns), _key("turns", columns)
    return RowError(
        "no prompt",
        f"the row has neither {prompt} nor {turns}; its columns: {there}. Name the one that holds it with "
        "--column prompt=COLUMN",
    )


def _responses(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Any]:
    if is_pair(row):
        return [row["chosen"], row["rejected"]]
    texts = row.get("responses")
    if not isinstance(texts, list) or not texts:
        responses, chosen, rejected = (_key(name, columns) for name in ("responses", "chosen", "rejected"))
        raise RowError(
            "no responses",
            f"{responses} must be a list of texts, or {chosen} and {rejected} texts; found {repr(texts)[:120]}",
        )
    return texts


def _response_fault(text: Any) -> tuple[str, str] | None:
    """Why a response cannot be scored, or None where it can."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return "empty response", repr(text)[:120]
    try:
        checked_text(text, "a response")
    except RowError as error:
        return error.reason, error.detail
    return None


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError("malformed JSON", str(error)[:200]) from None
    if not isinstance(row, dict):
        raise RowError("not an object", type(row).__name__)
    return row


def _prompt(row: Mapping[str, Any], columns: Mapping[str, str], media_root: Path, store: Path) -> dict[str, Any]:
    """A row of a prompts table, its media imported; the row has `prompt` or `turns`."""
    turns = row.get("turns")
    if turns is None:
        turns = [{"role": "user", "text": row.get("prompt")}]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        list_of = f"{_key('turns', columns)} must be a list of {{role, text}}"
        raise RowError("no prompt", f"{list_of}, or {_key('prompt', columns)} a text")
    said = [
        {"role": checked_text(turn.get("role"), "a turn's role"), "text": checked_text(turn.get("text"), "a turn")}
        for turn in turns
    ]
    if row.get("prompt") not in (None, "") and _words(row["prompt"]) != _words(said[-1]["text"]):
        prompt, several = _key("prompt", columns), _key("turns", columns)
        raise RowError(
            "prompt given twice", f"the row has {prompt}, and {several} that do not end with it; leave one out"
        )
    system = row.get("system")
    given = {kind: _media(row, kind, columns) for kind in ("image", "video")}
    shown = user_marker_kinds(said)
    if not shown:  # markers may be left out
        shown = ["image"] * len(given["image"]) + ["video"] * len(given["video"])
        said = with_media_first(said, shown)
    for kind, items in given.items():
        if shown.count(kind) != len(items):
            raise RowError(
                "markers do not fit", f"{shown.count(kind)} <{kind}> markers in the user's turns, {len(items)} {kind}s"
            )
    queues = {kind: iter(items) for kind, items in given.items()}
    media = []
    for kind in shown:
        several = f"{kind}s"
        name = kind if row.get(several) is None else several
        column = columns.get(name, name)
        if kind == "image":
            media.append(store_image(medium(next(queues[kind]), "image", column).value, media_root, store).row)
        else:
            media.append(store_video(medium(next(queues[kind]), "video", column).value, media_root, store).row)
    words = "" if system in (None, "") else checked_text(system, _key("system", columns))
    return {
        "prompt_id": content_ids.prompt_id(words, said, [each["sha256"] for each in media]),
        "source": "",
        "system": words,
        "turns": said,
        "media": media,
        "reference": None,
        "language": "",
        "meta": "{}",
    }


def _words(text: Any) -> Any:
    """A prompt as it is compared with another form of it: markers may be left out."""
    return without_markers(text).strip() if isinstance(text, str) else text


def _media(row: Mapping[str, Any], kind: str, columns: Mapping[str, str]) -> list[Any]:
    """Of `images` (a list) or `image` (one, or a list), and the same of videos."""
    several, one = row.get(f"{kind}s"), row.get(kind)
    if several is None:
        return [] if one in (None, "") else one if isinstance(one, list) else [one]
    if not isinstance(several, list):
        raise RowError(f"{kind}s are not a list", f"{_key(f'{kind}s', columns)}: {several!r}"[:200])
    if one not in (None, "") and [one] != several:
        single = _key(kind, columns)
        raise RowError(f"{kind}s given twice", f"the row has {single} and {_key(f'{kind}s', columns)}; leave one out")
    return several
