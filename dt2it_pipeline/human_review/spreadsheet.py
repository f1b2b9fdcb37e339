"""Audited pairs as a spreadsheet (CSV) in which people write which answer is better, and the filled file back.

What belongs here: cells, columns, delimiters and encodings as spreadsheet programs write them. What does not: which
pairs are drawn (audit.py), and what several people's answers come to (audit_answers.py).

A cell that a program would take for a formula, a number or a date gets an apostrophe in front. Reading takes it away.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.human_review.answers import pseudonym
from dt2it_pipeline.human_review.tasks import AUDIT, BETTER, FIRST, SECOND, TIE, shown_sides
from dt2it_pipeline.media.pair_rows import Row
from dt2it_pipeline.storage.atomic import arrow_bytes
from dt2it_pipeline.storage.records import writable
from dt2it_pipeline.storage.table_files import kind_of_file, plain_bytes, unreadable

_MOST_CHARACTERS = 32_000  # of a cell; Excel holds 32,767 and spills the rest into other rows
_FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "'",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)  # and their full-width forms
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_TYPED = re.compile(rf"(?i)[\d\s.,:/+\-e%$]+|true|false|({_MONTHS})[a-z]*[\s./-]*\d*")  # ids that become other things
_SAID = {
    FIRST: "first 1 1.0 a left",
    SECOND: "second 2 2.0 b right",
    TIE: "tie tied equal both neither none same draw skip skipped ?",
}
_CHOICES = {word: choice for choice, words in _SAID.items() for word in words.split()}
_PSEUDONYM = re.compile(r"[0-9a-f]{10}(\+[0-9a-f]{10})*")
_DELIMITERS = ",;\t|"


class AuditError(UserError, ValueError):
    """Pairs to check cannot be drawn, or the file of answers about them cannot be read; the message says why."""

    help_page: ClassVar[str] = "troubleshooting#audit"


class Spreadsheet:
    """Rows in audit.csv; images and videos as files below media/."""

    files = "audit.csv"
    notes = (
        "Open `audit.csv` in a spreadsheet program. In the column `better`, write `first`, `second` or `tie`. Write "
        "your name in `auditor`. Leave a row empty that you did not look at. Save as CSV."
    )
    columns: ClassVar[Mapping[str, str]] = {
        "pair_id": "id of the pair",
        "prompt": "the conversation up to the answers",
        "media": "image and video files in this folder, where there are any",
        FIRST: "one answer",
        SECOND: "the other answer",
        BETTER: "for you: first, second or tie",
        "auditor": "for you: your name, of which a short hash is kept",
        "first_id, second_id": "ids of the answers",
        "source": "data source",
        "weight": "number of pairs that this one stands for",
        AUDIT: "id of the draw",
    }

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[dict[str, str]] = []
        self._cut = 0

    def add(self, row: Row) -> None:
        """Keep one pair for the file, and copy its media."""
        sides = shown_sides(row.pair)
        media = [_placed(file, self._folder) for file in (*row.images, *row.videos)]
        texts = {"prompt": _conversation(row.prompt), FIRST: sides[0][1], SECOND: sides[1][1]}
        ids = {"pair_id": row.id, "first_id": sides[0][0], "second_id": sides[1][0]}
        self._rows.append(
            {name: _text_cell(text) for name, text in texts.items()}
            | {name: id_cell(value) for name, value in ids.items()}
            | {"media": "\n".join(media), "source": id_cell(row.pair["source"]), BETTER: "", "auditor": ""}
            | {"weight": repr(float(row.pair["weight"])), AUDIT: id_cell(row.pair[AUDIT])}
        )

    def close(self) -> None:
        """Write the file: UTF-8 with a byte order mark, by which Excel knows the encoding."""
        names = [name for names in self.columns for name in names.split(", ")]
        if not any(row["media"] for row in self._rows):
            names.remove("media")
        with (self._folder / self.files).open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self._rows)


@dataclass(frozen=True)
class Sheet:
    """Answers of a file in its order, `pair_id`, `person`, `preferred_id`, `audit`; weights by pair; what is unusable.

    `unanswered` counts rows without an answer. `weights` is empty where the file has no such column.
    """

    answers: list[dict[str, Any]]
    weights: Mapping[str, float]
    unusable: list[tuple[str, str]]
    unanswered: int


def text_cell(text: str) -> str:
    """A text as a cell that no program takes for a formula; `cell_text` gives it back."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def id_cell(text: str) -> str:
    """An id as a cell that no program takes for a formula, a number, a date or a truth value."""
    return f"'{text}" if _changes(text) else text


def cell_text(cell: str) -> str:
    """What `text_cell` or `id_cell` was given."""
    return cell[1:] if cell.startswith("'") and _changes(cell[1:]) else cell


def read_sheet(file: Path) -> Sheet:
    """Read a filled spreadsheet, or a table of answers.

    A spreadsheet is text (CSV with commas, semicolons or tabs; UTF-8, UTF-16 or an 8-bit encoding) with the columns
    pair_id, first_id, second_id, better. A table of answers is text, Parquet or JSON Lines with the columns pair_id,
    better_id (empty or null: neither). In both, `auditor`, `weight` and `audit` may be there. Where no auditor is
    named, the name of the file stands for the person.

    Raises:
        AuditError: the file is neither, or no row of it can be used.
    """
    try:
        content = plain_bytes(file)
    except OSError as error:
        raise AuditError(f"{unreadable(file, error)}; name the file of answers") from error
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise AuditError(f"{file} is a workbook; save it as CSV (in Excel: CSV UTF-8), and give that file")
    rows = _table_rows(content, file) if content.startswith(b"PAR1") else _text_rows(content, file)
    if kind_of_file(file) in (".jsonl", ".json"):
        rows = _json_rows(content, file)
    answers: list[dict[str, Any]] = []
    weights: dict[str, float] = {}
    unusable: list[tuple[str, str]] = []
    unanswered = 0
    for place, row in rows:
        try:
            answer, weight = _answer(row, file)
        except ValueError as error:
            unusable.append((place, str(error)))
            continue
        if answer is None:
            unanswered += 1
            continue
        answers.append(answer)
        if weight is not None:
            weights[answer["pair_id"]] = weight
    if unusable and not answers:
        place, reason = unusable[0]
        raise AuditError(f"no answer in {file} can be used; the first, {place}: {reason}")
    return Sheet(answers, weights, unusable, unanswered)


def _answer(row: Mapping[str, Any], file: Path) -> tuple[dict[str, Any] | None, float | None]:
    """The answer of one row and its weight; None where nobody answered. Raises ValueError with what is wrong."""
    pair = _id(row["pair_id"])
    if not isinstance(pair, str) or not pair:
        missing = pair is None or pair == ""
        raise ValueError(
            "there is no pair_id" if missing else f"pair_id must be text or a whole number, found {pair!r}"
        )
    preferred: str | None
    if BETTER in row:
        said = str(row[BETTER] or "").strip().strip("'\".!").strip()
        if not said:
            return None, None
        sides = {FIRST: row["first_id"], SECOND: row["second_id"]}
        if not all(sides.values()):
            raise ValueError("first_id or second_id is missing")
        choice = {value: name for name, value in sides.items()}.get(said) or _CHOICES.get(said.casefold())
        if choice is None:
            raise ValueError(f"`{BETTER}` is {said!r}, which is none of {FIRST}, {SECOND}, {TIE}")
        preferred = sides.get(choice)
    else:
        preferred = _id(row["better_id"])
        preferred = None if preferred == "" else preferred
        if not isinstance(preferred, str | None):
            raise ValueError(f"better_id must be text, found {preferred!r}")
    answer = {"pair_id": pair, "person": _person(row.get("auditor"), file), "preferred_id": preferred}
    return answer | {AUDIT: row.get(AUDIT) or None}, _weight(row.get("weight"))


def _id(value: Any) -> Any:
    """Whole numbers as text: ids of a table whose rows are numbered. 3.0 is 3; NaN is null."""
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def named_person(name: str) -> str:
    """Pseudonym of a person who writes a name: upper and lower case are one, and a pseudonym stays what it is."""
    given = name.strip()
    return given if _PSEUDONYM.fullmatch(given) else pseudonym("spreadsheet", given.casefold())


def _person(name: Any, file: Path) -> str:
    given = str(name or "").strip()
    return named_person(given) if given else pseudonym("spreadsheet file", file.stem)


def _weight(cell: Any) -> float | None:
    if cell is None or cell != cell or not str(cell).strip():  # NaN, too
        return None
    try:
        weight = float(str(cell).strip().replace(",", "."))
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(f"weight is {cell!r}, which is no positive number")
    return weight


def _table_rows(content: bytes, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        table = pq.read_table(arrow_bytes(content))
    except (OSError, pa.ArrowException) as error:
        raise AuditError(f"{file} cannot be read: {error}; give Parquet with pair_id and better_id") from error
    wanted = _wanted(table.column_names, file)
    for place, row in enumerate(table.select(wanted).to_pylist(), 1):
        yield f"row {place}", row


def is_json_table(content: bytes) -> bool:
    """Whether the bytes are a JSON list of rows with pair_id, rather than what a tool exports."""
    try:
        entries = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(entries, list) and bool(entries) and isinstance(entries[0], dict) and "pair_id" in entries[0]


def _json_rows(content: bytes, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of JSON Lines, or of one JSON list."""
    try:
        text = content.decode("utf-8-sig")
        whole = text.lstrip().startswith("[")
        lines = enumerate(text.split("\n"), 1)
        parsed = (
            enumerate(json.loads(text), 1) if whole else ((n, json.loads(line)) for n, line in lines if line.strip())
        )
        rows = list(parsed)
    except (ValueError, RecursionError) as error:
        raise AuditError(f"{file} cannot be read: {error}; give JSON Lines with pair_id and better_id") from error
    if not all(isinstance(row, dict) for _, row in rows):
        raise AuditError(f"{file} must hold one JSON object per answer, with pair_id and better_id")
    wanted = _wanted(list(dict.fromkeys(str(name) for _, row in rows for name in row)), file)
    for number, row in rows:
        yield f"{'entry' if whole else 'line'} {number}", {name: row.get(name) for name in wanted}


def _text_rows(content: bytes, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a text file, with the number that a spreadsheet shows beside them, and their line."""
    text = _decoded(content)
    first, _, rest = text.partition("\n")
    skipped = int(first.casefold().startswith("sep="))  # a hint that Excel writes and reads
    if skipped:
        text, first = rest, rest.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    with _long_cells():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            names = [name.strip().casefold().replace(" ", "_") for name in next(reader, [])]
            wanted = {name: names.index(name) for name in _wanted(names, file)}
            line = reader.line_num + 1
            for number, cells in enumerate(reader, 2):
                start, line = line, reader.line_num + 1
                if any(cell.strip() for cell in cells):
                    cells += [""] * (len(names) - len(cells))
                    row = {name: cell_text(cells[place].strip()) for name, place in wanted.items()}
                    yield f"row {number + skipped}, line {start + skipped}", row
        except csv.Error as error:
            raise AuditError(
                f"{file}, line {reader.line_num}: {error}; is a quotation mark missing? Save it as CSV once more"
            ) from error


def _wanted(names: list[str], file: Path) -> list[str]:
    """The columns to read, of those that there are."""
    needed = ("pair_id", "first_id", "second_id", BETTER) if BETTER in names else ("pair_id", "better_id")
    missing = [name for name in needed if name not in names]
    if missing:
        raise AuditError(
            f"{file} has no column {', '.join(missing)}; a spreadsheet needs pair_id, first_id, second_id and "
            f"{BETTER}, a table of answers pair_id and better_id. It has: {', '.join(names)[:200] or 'nothing'}"
        )
    return [*needed, *(name for name in ("auditor", "weight", AUDIT) if name in names)]


def _decoded(content: bytes) -> str:
    """The text, whatever a spreadsheet program saved it as; what we read of it is plain ASCII but for names."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let cells be of any length, which the module `csv` limits for the whole process."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _changes(text: str) -> bool:
    """Whether a program might read this as anything but text."""
    return text.startswith(_FORMULA) or bool(_TYPED.fullmatch(text))


def _text_cell(text: str) -> str:
    text = writable(text)
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]} [... {len(text) - _MOST_CHARACTERS:,} more characters]"
    return text_cell(text)


def _conversation(prompt: Mapping[str, Any]) -> str:
    """A prompt as plain text: the bare text of a single turn, else each turn after its role."""
    turns = [{"role": "system", "text": prompt["system"]}] if prompt["system"] else []
    turns += prompt["turns"]
    if len(turns) == 1:
        return str(turns[0]["text"])
    return "\n\n".join(f"{turn['role']}: {turn['text']}" for turn in turns)


def _placed(file: Path, folder: Path) -> str:
    target = folder / "media" / file.name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    return f"media/{file.name}"
