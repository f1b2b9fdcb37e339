"""A manifest for a file that nobody has described yet: its first rows are read, and adapter and columns proposed.

What belongs here: the guess, and what it rests on. What does not: reading itself, and the checks of a whole source.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from pydantic import ValidationError

from dt2it_pipeline.config.base import fault_message
from dt2it_pipeline.config.strict_yaml import load_yaml
from dt2it_pipeline.ingest.adapters import ADAPTERS
from dt2it_pipeline.ingest.adapters.auto import FURTHER, NEEDED, read_by_name, reading
from dt2it_pipeline.ingest.example_mapping import example
from dt2it_pipeline.ingest.forms.fields import Fields
from dt2it_pipeline.ingest.manifest import Manifest, ManifestError
from dt2it_pipeline.ingest.reading import read_named
from dt2it_pipeline.ingest.rows import ColumnError, Medium, Quarantined, Row, SourceError, shown
from dt2it_pipeline.media.root import MediaRoot

_ROWS = 20
_NAME = "proposal"  # of the manifest that the first rows are read by; the user knows of none
_REASONS = 3  # why no row can be used, that are named
_PARTNERS = {"chosen": "rejected", "rejected": "chosen", "first": "second", "second": "first"}
# In order: a benchmark looks like preferences, and only its owner knows.
_KINDS = ("preferences", "t2i", "prompts")
_MEDIA_FOLDERS = (".", "images", "image", "media", "imgs", "photos", "pictures", "videos", "..", "../images")


@dataclass(frozen=True)
class Proposal:
    """What a file's first rows suggest.

    Attributes:
        kind: kind of source.
        adapter: how its rows are read.
        columns: our field -> the file's column, where they differ from the adapter's own names.
        media_root: folder of the media, None where rows hold their images or where it was not found.
        media_prefix: taken off the front of media paths.
        found: the file's columns, in order.
        rows: rows that were looked at.
        usable: of these, rows that the proposal can read; at least one.
        fault: why the others cannot be read, the commonest reason.
        others: other adapters that read as many rows, as `kind by adapter`.
        questions: what only the owner of the file can say, one sentence each.
        verdict: value of the verdict column -> side, as the user gave it.
        same: the file's columns that are read by their names, and need no entry in the manifest.
    """

    kind: str
    adapter: str
    columns: Mapping[str, str]
    media_root: Path | None
    media_prefix: str
    found: tuple[str, ...]
    rows: int
    usable: int
    fault: str = ""
    others: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    verdict: Mapping[str, str] = field(default_factory=dict)
    same: tuple[str, ...] = ()


@dataclass
class _Trial:
    kind: str
    adapter: str
    columns: dict[str, str]
    same: tuple[str, ...] = ()
    usable: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    media: list[Medium] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.kind} by {'their columns' if self.adapter == 'auto' else self.adapter}"


def propose(
    data: Path,
    columns: Mapping[str, str] | None = None,
    verdict: Mapping[str, str] | None = None,
    rows: int = _ROWS,
) -> Proposal:
    """Look at a file's first rows and propose how they are read.

    Args:
        data: a file, folder or archive in a format that sources may have.
        columns: our field -> the file's column, where the user knows better.
        verdict: value of the verdict column -> first, second or tie, likewise.
        rows: how many rows are looked at.

    Raises:
        SourceError: it cannot be read, holds no rows, or none of the rows can be used.
        ManifestError: `columns` or `verdict` name something that is unknown.
    """
    read = list(read_named(_provisional(data, columns, None, rows), data))
    whole = [row for row in read if isinstance(row, Row)]
    if not whole:
        first = next((f": {item.reason} in {item.row_id}" for item in read if isinstance(item, Quarantined)), "")
        raise SourceError(f"{data} holds no row that can be read{first}")
    found = tuple(name for name in dict.fromkeys(str(name) for row in whole for name in row.values) if name.strip())
    if not found:
        raise SourceError(f"{data} has no named column in its first {len(read)} rows")
    if unknown := [(field, name) for field, name in (columns or {}).items() if name not in found]:
        field, name = unknown[0]
        raise SourceError(f"{data} has no column {name!r} (--column {field}={name}); its columns: {shown(found)}")
    if verdict:
        if "verdict" not in (columns or {}) and not any(Fields(row).column("verdict") for row in whole):
            raise SourceError(
                f"{data} has no verdict column; its columns: {shown(found)}. Name one "
                "with --column verdict=COLUMN, or leave --verdict out"
            )
        meanings = _provisional(data, columns, verdict, rows).verdict
        whole = [replace(row, verdict=meanings) for row in whole]
    shapes = _shapes(whole)
    try:
        trials = [_tried(trial, whole) for trial in _trials(shapes)]
    except ColumnError as error:
        lacking = [other for field, other in _PARTNERS.items() if field in shapes[0].columns]
        option = "".join(f"; name it with --column {other}=COLUMN" for other in lacking[:1])
        raise SourceError(f"{data}: {error.detail}{option}") from error
    most = max(trial.usable for trial in trials)
    # A row of a pair has all that a prompt needs: pairs may lose up to half of the rows and are still what is meant.
    # Stable: `auto` comes first among equals.
    trials.sort(key=lambda trial: (trial.kind == "prompts" or 2 * trial.usable < most, -trial.usable))
    if not most:
        raise SourceError(f"{data}: {_why_none(whole, found, len(read), trials)}")
    best = trials[0]
    others = tuple(trial.name for trial in trials[1:] if trial.usable == best.usable and trial.adapter != best.adapter)
    root, prefix, question = _media_place(best.media, data)
    questions = [question] if question else []
    if best.kind == "preferences":
        questions.append("Are these held-out pairs? Then set `kind: benchmark`, and no training set will contain them.")
    fault = best.faults.most_common(1)[0][0] if best.faults else ""
    return Proposal(
        best.kind,
        best.adapter,
        best.columns,
        root,
        prefix,
        found,
        len(read),
        best.usable,
        fault,
        others,
        tuple(questions),
        whole[0].verdict if best.adapter == "auto" else {},
        best.same,
    )


def _provisional(
    data: Path, columns: Mapping[str, str] | None, verdict: Mapping[str, str] | None, rows: int
) -> Manifest:
    """The manifest by which the first rows are read. Raises ManifestError where `columns` or `verdict` are wrong."""
    try:
        return Manifest(
            name=_NAME,
            kind="preferences",
            path=str(data.absolute()),
            licence="-",
            limit=rows,
            columns=dict(columns or {}),
            verdict=dict(verdict or {}),  # type: ignore[arg-type]  # checked there
        )
    except ValidationError as error:
        raise ManifestError(fault_message(error.errors()[0])) from None


def manifest_text(proposal: Proposal, name: str, path: str, media_root: str | None) -> str:
    """The proposal as a manifest in YAML, with comments on what it rests on and what is to be filled in.

    Args:
        proposal: as `propose` made it.
        name: of the source.
        path: of the data, as the manifest is to have it.
        media_root: likewise; None: none is written.

    Raises:
        ManifestError: what would be written is no manifest, for instance because of the name.
    """
    counted = f"{proposal.usable} of the first {proposal.rows} rows can be read this way"
    lines = [
        f"# Proposed from the first {proposal.rows} rows. Columns found: {shown(proposal.found)}.",
        f"# {counted}{f'; the others: {proposal.fault}' if proposal.fault else ''}.",
    ]
    if proposal.others:
        lines.append(
            f"# As many rows can be read as: {', '.join(proposal.others)}. Choose by where the file comes from."
        )
    lines += [f"# TO BE ANSWERED: {question}" for question in proposal.questions]
    lines = [wrapped for line in lines for wrapped in _wrapped(line)]
    lines += [f"name: {name}", f"kind: {proposal.kind}"]
    lines += [f"adapter: {proposal.adapter}"] if proposal.adapter != "auto" else []
    lines.append(f"path: {_quoted(path)}")
    lines += [f"media_root: {_quoted(media_root)}"] if media_root is not None else []
    lines += [f"media_prefix: {_quoted(proposal.media_prefix)}"] if proposal.media_prefix else []
    if proposal.columns:
        lines += ["columns:  # our field: the file's column", *_mapping(proposal.columns)]
    if proposal.verdict:
        lines += ["verdict:  # value of the verdict column: the better side", *_mapping(proposal.verdict)]
    lines += ["language: en", "licence: to be stated by whoever supplies the data"]
    text = "\n".join(lines) + "\n"
    _check(text, name)
    return text


def _shapes(rows: Sequence[Row]) -> list[Row]:
    """A row of each set of columns: those that have most of the mapped columns first, then the most frequent ones."""
    first: dict[frozenset[str], Row] = {}
    for row in rows:
        first.setdefault(frozenset(row.values), row)
    counts = Counter(frozenset(row.values) for row in rows)
    mapped = {*rows[0].columns.values()}
    return [first[names] for names in sorted(first, key=lambda names: (-len(mapped & names), -counts[names]))]


def _trials(shapes: Sequence[Row]) -> list[_Trial]:
    """Ways of reading rows like these: by their columns first, then every published schema.

    Raises ColumnError where none of them has all that is mapped.
    """
    found: dict[tuple[str, frozenset[tuple[str, str]]], _Trial] = {}
    errors: list[ColumnError] = []
    for row in shapes:
        try:
            for trial in _by_columns(row):
                known = found.setdefault((trial.kind, frozenset(trial.columns.items())), trial)
                known.same = tuple(dict.fromkeys((*known.same, *trial.same)))
        except ColumnError as error:
            errors.append(error)
    if errors and not found:
        raise errors[0]
    for kind in _KINDS:  # rows may differ in a column's name: what they do not share is read by its name in each
        several = [trial for trial in found.values() if trial.kind == kind]
        if len(several) > 1:
            shared = frozenset.intersection(*(frozenset(trial.columns.items()) for trial in several))
            names = dict.fromkeys(name for trial in several for name in (*trial.same, *trial.columns.values()))
            same = tuple(name for name in names if name not in dict(shared).values())
            found.setdefault((kind, shared), _Trial(kind, "auto", dict(shared), same))
    there = {name for row in shapes for name in row.values}
    published = (
        _Trial(kind, name, {}, tuple(column for column in ADAPTERS[name].columns if column in there))
        for name in ADAPTERS
        for kind in ADAPTERS[name].kinds
        if name != "auto"
    )
    return [*found.values(), *published]


def _by_columns(row: Row) -> Iterator[_Trial]:
    """Ways of reading rows that have this one's columns by their names. Raises ColumnError as `reading`."""
    for kind in _KINDS:
        columns = reading(row, kind)
        if columns is not None:
            same = tuple(name for name, column in columns.items() if name == column and name not in row.columns)
            others = {name: column for name, column in columns.items() if name != column}
            mapped = {**others, **row.columns}
            prompt = read_by_name(replace(row, columns=mapped)) if kind != "t2i" else ()
            further = (name for name in prompt if name not in columns.values())
            yield _Trial(kind, "auto", mapped, (*same, *further))


def _tried(trial: _Trial, rows: Sequence[Row]) -> _Trial:
    """Read the rows this way and count."""
    # The row's place is its id here: a file may use one id for several rows.
    mapped = [
        Row(str(place), row.values, trial.columns, trial.kind, row.where, row.verdict) for place, row in enumerate(rows)
    ]
    places = {row.row_id: row.where for row in mapped}
    first: dict[str, str] = {}  # faults that differ in the row's place alone -> as the first row has it
    usable: set[str] = set()
    for item in ADAPTERS[trial.adapter].items(iter(mapped)):
        if isinstance(item, Quarantined):
            fault = f"{item.reason} ({item.detail})" if item.detail else item.reason
            place = places.get(item.row_id)
            trial.faults[first.setdefault(fault.replace(place, "") if place else fault, fault)] += 1
        else:
            usable.add(item.row_id)
            trial.media.extend(item.media)
    trial.usable = len(usable)
    return trial


def _why_none(whole: Sequence[Row], found: tuple[str, ...], rows: int, trials: Sequence[_Trial]) -> str:
    """Why no row can be used: its columns are unknown, or the commonest reasons of the first reading that has them."""
    for trial in trials:
        if trial.faults and (trial.adapter == "auto" or {*ADAPTERS[trial.adapter].columns} <= {*found, "id"}):
            verdicts = [fault for fault in trial.faults if fault.startswith("verdict not understood")]
            for fault in verdicts[1:]:  # each names all values of the column
                trial.faults[verdicts[0]] += trial.faults.pop(fault)
            reasons = "; ".join(f"{fault}: {count}" for fault, count in trial.faults.most_common(_REASONS))
            return f"none of the first {rows} rows can be used as {trial.name}: {reasons}"
    needs = {kind: ", ".join(names) for kind, names in NEEDED.items()}
    needs["preferences"] += "".join(f", or question, {', '.join(names)}" for names in FURTHER)
    kinds = "; ".join(f"{kind}: {names}" for kind, names in needs.items())
    return (
        f"rows with the columns {shown(found)} are of no known kind. Name those of one kind with "
        f"--column FIELD=COLUMN ({kinds}), for instance {example(whole, found)}"
    )


def _media_place(media: Sequence[Medium], data: Path) -> tuple[Path | None, str, str]:
    """Root and prefix of the media that rows name by path, and a question where they are not found."""
    paths = [one.value for one in media if isinstance(one.value, str) and _is_path(one.value)]
    if not paths:
        return None, "", ""
    base = data if data.is_dir() else data.parent
    if data.suffix in (".zip", ".tar") and data.is_file():
        packed = MediaRoot(data)
        try:
            if any(packed.holds(path) for path in paths):
                return data.resolve(), "", ""
        finally:
            packed.close()
    if all(Path(path).is_absolute() for path in paths):
        root = Path(os.path.commonpath([Path(path).parent for path in paths]))
        there = sum(Path(path).is_file() for path in paths)
        missing = "" if there else f"The first image is {paths[0]}, and there is no such file: where are the images?"
        return (root, f"{root}/", "") if there else (None, "", missing)
    counts = {folder: sum((base / folder / path).exists() for path in paths) for folder in _MEDIA_FOLDERS}
    best = max(counts, key=lambda folder: counts[folder])
    if counts[best]:
        return (base / best).resolve(), "", ""
    place = f"{paths[0]!r}, which is not below {base.absolute()}"
    return None, "", f"The first image is {place}: fill in `media_root`, the folder of it."


def _is_path(value: str) -> bool:
    """Whether text names a file; base64 is much longer and has no extension."""
    return len(value) < 1024 and re.search(r"\.[A-Za-z0-9]{1,5}$", value) is not None


def _wrapped(line: str) -> Iterable[str]:
    """A comment in lines of at most 118 characters."""
    return textwrap.wrap(line.replace("\n", " "), 118, subsequent_indent="#   ") or [line]


def _mapping(columns: Mapping[str, str]) -> Iterator[str]:
    return (f"  {_quoted(ours)}: {_quoted(theirs)}" for ours, theirs in columns.items())


def _quoted(text: str) -> str:
    """Text as YAML, in quotes where it needs them."""
    return yaml.safe_dump(text, allow_unicode=True, width=10_000, default_style=None).split("\n...")[0].strip()


def _check(text: str, name: str) -> None:
    try:
        Manifest.model_validate(load_yaml(text))
    except ValidationError as error:
        raise ManifestError(f"a manifest {name!r} would be wrong: {fault_message(error.errors()[0])}") from None
