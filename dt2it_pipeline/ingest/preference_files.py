"""Preference pairs from a file as it is published: texts, a key of the prompt, and who wrote them where it is known.

For measurements on text alone; images are not read. `ingest` is what brings sources into the pipeline.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dt2it_pipeline.errors import RowError, UserError
from dt2it_pipeline.ingest.rows import require_unicode
from dt2it_pipeline.storage import content_ids

FORMS = """Forms of a row that are understood without further options:
  chosen, rejected                          texts, objects with a text under `value` or `content`, or lists of such
                                            turns, the last of which is the answer (TRL's messages)
  response, human_ranking                   two texts and their ranks; the lower rank is the better
  Output1, Output2, Better                  two texts; Better names one of them
  conversations, rejected_conversations     lists of turns; the last ones are the answers
Prompts are distinguished by prompt_id, or question, prompt, query, Text or caption, with the image's path under image,
images, image_path, Image or video.
Who wrote the sides: chosen_model and rejected_model, or models beside human_ranking."""
_QUESTION = ("prompt_id", "question", "prompt", "query", "Text", "caption")
_NOTHING = (None, "")  # an empty cell of a CSV file is an empty text
_BATCH = 64  # rows of a Parquet file at a time; each may hold images
_IMAGE = ("image", "images", "image_path", "Image", "video")


class PreferenceFileError(UserError, ValueError):
    """The file cannot be read, or no row in it has a known form."""

    help_page: ClassVar[str] = "troubleshooting#preference-file"


@dataclass(frozen=True)
class _Malformed:
    """A line that is not JSON."""

    line: int
    fault: str


@dataclass(frozen=True)
class Columns:
    """Names that a file gives to its columns, where they are none of FORMS; None: as there."""

    chosen: str | None = None
    rejected: str | None = None
    prompt: str | None = None
    image: str | None = None

    def named(self) -> dict[str, str]:
        """Our name -> the file's name, of those that are given."""
        return {ours: theirs for ours, theirs in vars(self).items() if theirs is not None}


def read_preferences(path: Path, names: Columns | None = None) -> tuple[pd.DataFrame, Counter[str]]:
    """Read JSON (a list), JSON Lines, CSV or Parquet, rows of any of FORMS, or with columns of the given names.

    A folder is read as the Parquet files in it, for instance an export. A line that is not JSON is left out as other
    rows are.

    Returns:
        prompt_id, chosen, rejected, chosen_model, rejected_model (null where unknown), and how many rows were left out,
        by reason; what is wrong with a row costs that row alone.

    Raises:
        PreferenceFileError: there is no such file, it is damaged, or no row can be used.
    """
    names = names or Columns()
    left_out: Counter[str] = Counter()
    pairs: list[dict[str, Any]] = []
    columns: set[str] = set()
    malformed = ""
    for row in _rows(path):
        if isinstance(row, _Malformed):
            left_out["malformed JSON"] += 1
            malformed = malformed or f"{path}, line {row.line}: {row.fault}"
            continue
        if not isinstance(row, Mapping):
            left_out["not an object"] += 1
            continue
        columns |= set(row)
        try:
            sides, models, prompt = _sides(row, names), _models(row), _prompt(row, names)
            for text in (*(sides or ()), *models, prompt):
                require_unicode(text or "", "a text")
        except RowError as error:
            left_out[error.reason] += 1
            continue
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError):
            left_out["not of the form that its columns promise"] += 1
            continue
        if sides is None:
            left_out["no chosen and rejected text"] += 1
        elif sides[0] == sides[1]:
            left_out["identical sides"] += 1
        else:
            pairs.append(
                {
                    "prompt_id": prompt,
                    "chosen": sides[0],
                    "rejected": sides[1],
                    "chosen_model": models[0],
                    "rejected_model": models[1],
                }
            )
    if malformed and left_out.total() == left_out["malformed JSON"] and not pairs:
        raise PreferenceFileError(f"{malformed}; JSON (a list), JSON Lines, .csv and .parquet are read")
    found = f"columns found: {', '.join(sorted(columns)) or 'none'}"
    if absent := [theirs for theirs in names.named().values() if theirs not in columns]:
        raise PreferenceFileError(f"{path}: there is no column {', '.join(map(repr, absent))}; {found}")
    if not pairs:
        raise PreferenceFileError(
            f"{path}: no row holds a pair of a known form; {found}\n"
            f"Name the columns of the two sides (--chosen, --rejected), or bring the rows into a known form. {FORMS}"
        )
    return pd.DataFrame(pairs), left_out


def _rows(path: Path) -> Iterator[Any]:
    try:
        if path.suffix == ".parquet" or path.is_dir():
            files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
            if not files:
                others = sorted(file.name for file in path.iterdir() if file.suffix in (".json", ".jsonl", ".csv"))
                there = f"; name one of its files: {', '.join(others[:20])}" if others else ""
                raise PreferenceFileError(f"{path} cannot be read: it is a folder without Parquet files{there}")
            for file in files:
                with pq.ParquetFile(file) as opened:
                    for batch in opened.iter_batches(_BATCH):
                        yield from batch.to_pylist()
            return
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
            yield from csv.DictReader(io.StringIO(text, newline=""), restkey="(more values than columns)")
            return
        if text.lstrip().startswith("["):
            yield from json.loads(text)
            return
    except (OSError, ValueError, OverflowError, RecursionError, csv.Error, pa.ArrowException) as error:
        if isinstance(error, PreferenceFileError):
            raise
        raise PreferenceFileError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield _Malformed(number, str(error))


def _sides(row: Mapping[str, Any], names: Columns) -> tuple[str, str] | None:
    """Chosen and rejected text, None where the row has no form that is known or the ranks are equal."""
    if names.chosen is not None and names.rejected is not None:
        pair = [row.get(names.chosen), row.get(names.rejected)]
    elif "human_ranking" in row and "response" in row:
        both, ranks = list(row["response"]), list(row["human_ranking"])
        if len(both) != 2 or len(ranks) != 2 or ranks[0] == ranks[1]:
            return None
        pair = both if ranks[0] < ranks[1] else both[::-1]
    elif "Better" in row and row["Better"] in ("Output1", "Output2"):
        pair = [row.get("Output1"), row.get("Output2")][:: 1 if row["Better"] == "Output1" else -1]
    elif "rejected_conversations" in row and row.get("conversations"):
        pair = [row["conversations"][-1], row["rejected_conversations"][-1]]
    else:
        pair = [row.get("chosen"), row.get("rejected")]
    texts = [_words(side) for side in pair]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return None
    return str(texts[0]), str(texts[1])


def _words(side: Any) -> Any:
    """The text of an answer: itself, of the last of several turns, or of typed parts of a turn; else what there is."""
    if isinstance(side, list) and side and all(isinstance(part, Mapping) for part in side):
        if all("type" in part and "role" not in part for part in side):
            return "".join(part.get("text") or "" for part in side)
        return _words(side[-1])
    if isinstance(side, Mapping):
        return _words(side.get("value", side.get("content")))
    return side


def _are_turns(value: Any) -> TypeGuard[list[Any]]:
    """Whether a value is a list of turns, not of the parts of one."""
    return isinstance(value, list) and all(isinstance(turn, Mapping) and {"role", "from"} & set(turn) for turn in value)


def _image(value: Any) -> str | None:
    """The key of an image: its path, or a hash of its bytes; of several, all of them."""
    if isinstance(value, Mapping):
        content = value.get("bytes")
        return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else _image(value.get("path"))
    if isinstance(value, list):
        return " ".join(filter(None, map(_image, value))) or None
    return value if isinstance(value, str) and value else None


def _models(row: Mapping[str, Any]) -> tuple[str | None, str | None]:
    names = row.get("models")
    ranks = row.get("human_ranking")
    if names is not None and ranks is not None and len(names) == 2 and len(ranks) == 2:
        first, second = names if ranks[0] < ranks[1] else names[::-1]
    else:
        first, second = row.get("chosen_model"), row.get("rejected_model")
    return str(first) if first else None, str(second) if second else None


def _prompt(row: Mapping[str, Any], names: Columns) -> str:
    """Key of the prompt: its words and its image, so that pairs of one prompt stay together."""
    if names.prompt is None and row.get("prompt_id") not in _NOTHING:
        return str(row["prompt_id"])
    question_names = _QUESTION if names.prompt is None else (names.prompt,)
    image_names = _IMAGE if names.image is None else (names.image,)
    question = next((row[name] for name in question_names if row.get(name) not in _NOTHING), None)
    if question is None:  # turns of which the last one is the answer
        turns = row.get("conversations") or row.get(names.chosen or "chosen")
        question = (turns[:-1] or None) if _are_turns(turns) else None
    image = next((found for name in image_names if (found := _image(row.get(name)))), None)
    if question is None and image is None:  # no key of a prompt: every pair counts as one of its own
        return content_ids.content_hash("pair", *sorted(_sides(row, names) or ()))
    return content_ids.content_hash(str(question), image)
