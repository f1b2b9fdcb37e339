"""Formats in which people choose the better of two answers: Label Studio and Argilla.

They do not see the present label: the order of the answers is that of a hash of their ids. Images travel inside, as
data URIs, so that no file server is needed. What people answer comes back by `human_review.answers`.
"""

from __future__ import annotations

import base64
import html
import json
import mimetypes
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dt2it_pipeline.media.markers import split_at_markers
from dt2it_pipeline.media.pair_rows import ROW_ID, Row, RowFault
from dt2it_pipeline.storage.content_ids import content_hash

FIRST, SECOND, TIE = "first", "second", "tie"
BETTER = "better"  # name of the question
AUDIT = "audit"  # marks a task that was drawn at random, by the id of the draw
PERSON = "person:"  # begins the name of a person among voters
_TITLES = {FIRST: "The first is better", SECOND: "The second is better", TIE: "Neither is better"}
GUIDELINES = "Which answer is better? Right answers come before well-written ones; length and layout do not count."

_LABELLING = f"""<View>
  <Header value="{GUIDELINES}"/>
  <HyperText name="prompt" value="$prompt"/>
  <Header value="First answer"/>
  <Text name="first" value="$first"/>
  <Header value="Second answer"/>
  <Text name="second" value="$second"/>
  <Choices name="{BETTER}" toName="prompt" choice="single" required="true">
    {"".join(f'<Choice value="{value}" html="{title}"/>' for value, title in _TITLES.items())}
  </Choices>
</View>
"""


class _JsonList:
    """Rows of one JSON list, written as they come."""

    def __init__(self, file: Path) -> None:
        self._stream = file.open("w", encoding="utf-8")
        self._stream.write("[")
        self._count = 0

    def add(self, row: Row) -> None:
        """Write one pair. Raises RowFault where it has a video."""
        made = json.dumps(self.row(row), ensure_ascii=False)
        self._stream.write((",\n" if self._count else "\n") + made)
        self._count += 1

    def row(self, row: Row) -> dict[str, Any]:
        """The entry of one pair."""
        raise AssertionError("every format has its own")

    def close(self) -> None:
        """End the list."""
        self._stream.write("\n]\n")
        self._stream.close()


class LabelStudio(_JsonList):
    """Tasks in tasks.json, and the labelling interface in labeling.xml."""

    files = "tasks.json"
    notes = (
        "In Label Studio, make a project with `labeling.xml` as its labelling interface and import `tasks.json`. "
        "Export what people did as JSON (not JSON-MIN), and hand the file to `dt2it review import`."
    )
    columns: ClassVar[Mapping[str, str]] = {
        "data.prompt": "the conversation up to the answers, as HTML with its images",
        "data.first": "one answer",
        "data.second": "the other answer",
        "data.pair_id": "id of the pair in the pipeline",
        "data.first_id, data.second_id": "ids of the answers",
        "data.source, data.row_id": f"data source, and {ROW_ID}",
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / self.files)
        (folder / "labeling.xml").write_text(_LABELLING, encoding="utf-8")

    def row(self, row: Row) -> dict[str, Any]:
        """A task."""
        sides = shown_sides(row.pair)
        return {"data": {"prompt": _prompt(row)} | _texts(sides) | _ids(row, sides)}


class Argilla(_JsonList):
    """A dataset as `argilla.Dataset.to_disk` writes one."""

    files = "records.json"
    notes = (
        "Load it with `argilla.Dataset.from_disk(FOLDER, name=..., workspace=...)`. Afterwards write what people did "
        "with `Dataset.to_disk` into another folder, and hand its records.json to "
        "`dt2it review import`. Submitted answers count; drafts and discarded ones are counted and left out. Earlier "
        "versions of Argilla do not write the status of an answer: then those of completed records count."
    )
    columns: ClassVar[Mapping[str, str]] = {
        "fields.prompt": "the conversation up to the answers, as HTML with its images",
        "fields.first": "one answer",
        "fields.second": "the other answer",
        "metadata.pair_id": "id of the pair in the pipeline",
        "metadata.first_id, metadata.second_id": "ids of the answers",
        "metadata.source, metadata.row_id": f"data source, and {ROW_ID}",
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / self.files)
        settings = folder / ".argilla"
        settings.mkdir()
        common = {"guidelines": GUIDELINES, "allow_extra_metadata": True}
        spread = {"distribution": {"strategy": "overlap", "min_submitted": 1}}
        # The id only has to be one: loading the dataset makes a new one.
        dataset = {"id": str(uuid.UUID(int=0)), "name": "contested_pairs", "status": "ready"} | common | spread
        form = common | spread | {
            "fields": [_field(name, name == "prompt") for name in ("prompt", FIRST, SECOND)],
            "questions": [
                {
                    "name": BETTER,
                    "title": "Which answer is better?",
                    "required": True,
                    "settings": {
                        "type": "label_selection",
                        "options": [{"value": value, "text": title} for value, title in _TITLES.items()],
                        "visible_options": len(_TITLES),
                    },
                }
            ],
            "vectors": [],
            "metadata": [],
        }  # fmt: skip
        for name, value in (("dataset", dataset), ("settings", form)):
            (settings / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")

    def row(self, row: Row) -> dict[str, Any]:
        """A record."""
        sides = shown_sides(row.pair)
        return {
            "id": row.id,
            "fields": {"prompt": _prompt(row)} | _texts(sides),
            "metadata": _ids(row, sides),
            "suggestions": {},
            "responses": {},
            "vectors": {},
            "status": "pending",
        }


def shown_sides(pair: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Id and text of both answers, in the order in which people see them.

    A hash of the ids gives the order, since ids of other people's tables may tell the label, such as `c7` and `r7`.
    """
    sides = [(pair[f"{side}_id"], pair[side]) for side in ("chosen", "rejected")]
    return sorted(sides, key=lambda side: content_hash("shown side", side[0]))


def _texts(sides: list[tuple[str, str]]) -> dict[str, str]:
    return {FIRST: sides[0][1], SECOND: sides[1][1]}


def _ids(row: Row, sides: list[tuple[str, str]]) -> dict[str, str]:
    ids = {"pair_id": row.id, "first_id": sides[0][0], "second_id": sides[1][0], "source": row.pair["source"]}
    more = {name: row.pair.get(name) for name in ("row_id", AUDIT)}
    return ids | {name: value for name, value in more.items() if value is not None}


def _prompt(row: Row) -> str:
    """The conversation as HTML. Nothing of a source's text is taken for HTML."""
    if row.videos:
        raise RowFault("video not supported", "people see images and text only")
    images = iter(row.images)
    turns = [{"role": "system", "text": row.prompt["system"]}] if row.prompt["system"] else []
    parts = []
    for turn in [*turns, *row.prompt["turns"]]:
        pieces = split_at_markers(turn["text"]) if turn["role"] == "user" else [("text", turn["text"])]
        words = "".join(
            "<br>".join(html.escape(line) for line in piece.splitlines()) + "<br>" * piece.endswith("\n")
            if kind == "text"
            else f'<br><img src="{_data_uri(next(images))}" style="max-width: 100%"><br>'
            for kind, piece in pieces
        )
        parts.append(f"<p><b>{html.escape(turn['role'])}</b>: {words}</p>")
    return "".join(parts)


def _data_uri(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"


def _field(name: str, markdown: bool) -> dict[str, Any]:
    settings = {"type": "text", "use_markdown": markdown}
    return {"name": name, "title": name.capitalize(), "required": True, "settings": settings}
