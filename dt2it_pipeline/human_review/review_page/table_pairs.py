"""The pairs of a table of one's own, with what `dt2it clean` made of them."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dt2it_pipeline.human_review.own_tables import OwnPairs, cleaned_probability, read_own_pairs
from dt2it_pipeline.human_review.review_page.catalogue import (
    OUTCOMES,
    PROMPT,
    PROMPTS_SCHEMA,
    SIDES_SCHEMA,
    UNDECIDED,
    Catalogue,
    Columns,
    Margins,
    Medium,
    coded,
    lengths,
    verdict_shown,
)
from dt2it_pipeline.human_review.review_page.row_file import BATCH, EmbeddedImages, ReviewError, RowFile
from dt2it_pipeline.human_review.review_page.scripts import script_codes
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.images import ImageSource
from dt2it_pipeline.media.markers import escaped, marker_kinds
from dt2it_pipeline.media.root import MediaRoot
from dt2it_pipeline.media.store import inline_content
from dt2it_pipeline.media.video import first_frame
from dt2it_pipeline.storage.atomic import iter_parquet
from dt2it_pipeline.storage.schemas import SCHEMAS, RecordError
from dt2it_pipeline.storage.table_files import as_keys

MEDIA_COLUMNS = {"image": ("images", "image"), "video": ("videos", "video")}  # looked for where none is named
_EVIDENCE = "cleaning_evidence.parquet"  # of `dt2it clean`
_MOST_EMBEDDED = 32  # images of one pair that the table holds itself


@dataclass(frozen=True)
class OwnTable:
    """A table, and what to show of it.

    Attributes:
        pairs: Parquet, CSV or JSON Lines, as `dt2it clean` takes it, with the texts of both sides.
        cleaned: output of `dt2it clean` for the table; None: it has not been cleaned.
        chosen, rejected: columns of the texts; `chosen` and `rejected` where None.
        image: column of image paths, each a text or `{"path": text}`, or a list of them; `images` or `image` where
            None, if there is one. Images may also be bytes, `{"bytes": ...}`, `data:` addresses or base64.
        video: the same of videos: files, or folders of frames; `videos` or `video` where None.
        media: folder (or .zip, .tar, which may hold images alone) that these paths are relative to; without it no
            path is shown. Images that the table holds itself are shown in any case.
    """

    pairs: Path
    cleaned: Path | None = None
    chosen: str | None = None
    rejected: str | None = None
    image: str | None = None
    video: str | None = None
    media: Path | None = None


def table_version(table: OwnTable) -> str:
    """Another text as soon as the table, or what was made of it, is another file."""
    made = ("outcomes.parquet", _EVIDENCE)
    files = [table.pairs, *([] if table.cleaned is None else [table.cleaned / name for name in made])]
    stamps = []
    for file in files:
        try:
            found = file.stat()
            stamps.append(f"{found.st_mtime_ns:x}.{found.st_size:x}")
        except OSError:
            stamps.append("")
    return "-".join(stamps)


def read_table(table: OwnTable) -> Catalogue:
    """The pairs of a table. One in Parquet is read some rows at a time; others lie in memory while they are read.

    Raises:
        AuditError: the table or the cleaning result cannot be read, or a column is missing.
        ReviewError: ids are there twice, a probability is none, a named column is missing, or the temporary folder is
            full.
    """
    own = read_own_pairs(table.pairs, table.chosen, table.rejected)
    frame, notes = own.frame, []
    if (twice := frame["pair_id"][frame["pair_id"].duplicated()]).size:
        raise ReviewError(f"{table.pairs}: {len(twice)} pair ids are there twice, the first {twice.iloc[0]!r}")
    if frame["pair_id"].isna().any():
        raise ReviewError(f"{table.pairs}: pair_id is empty in row {int(frame['pair_id'].isna().to_numpy().argmax())}")
    media = _media_columns(table, own)
    measured: list[tuple[np.ndarray, ...]] = []
    prompts: list[pa.RecordBatch] = []
    named: set[str] = set()  # kinds of which there are paths
    embedded, hidden = EmbeddedImages(), 0

    def given() -> Any:
        nonlocal hidden
        for rows in own.pieces(list(media.values())):
            made = [_side_row(row) for row in rows]
            batch = pa.RecordBatch.from_pylist(made, schema=SIDES_SCHEMA)
            measured.append((*lengths(batch["chosen"], batch["rejected"]), script_codes(batch["chosen"])))
            asked_of = []
            for row in rows:
                asked, whole = _prompt_row(row, media, table.media is not None, embedded, named)
                asked_of.append(asked)
                hidden += not whole
            prompts.append(pa.RecordBatch.from_pylist(asked_of, schema=PROMPTS_SCHEMA))
            yield batch

    sides = RowFile(SIDES_SCHEMA, given())
    if named and table.media is None:
        words = " and ".join(f"the column `{media[kind]}` names {kind}s" for kind in media if kind in named)
        notes.append(f"{words[0].upper()}{words[1:]}; --media FOLDER shows them.")
    asked = RowFile(PROMPTS_SCHEMA, prompts)
    prompts.clear()
    if hidden:
        notes.append(
            f"{hidden:,} pairs have images or videos in the table itself that the page does not show: videos, more "
            f"than {_MOST_EMBEDDED} images of a pair, files above 64 MiB, text that is no base64, or all beyond 4 GiB. "
            "Write them into a folder, name the files in the table, and give the folder with --media."
        )
    count = len(frame)
    length, characters, script = (np.concatenate(parts) for parts in zip(*measured, strict=True))
    outcome, why = _outcomes(table, frame)
    evidence = None if table.cleaned is None else _Evidence.of(table.cleaned, frame["pair_id"])
    probability = np.full(count, np.nan)
    if table.cleaned is not None:
        probability = cleaned_probability(table.cleaned, frame)
    elif "probability" in frame:
        probability = pd.to_numeric(frame["probability"], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    if (wrong := (probability < 0) | (probability > 1)).any():  # infinite ones, too
        where = f"{table.pairs}" if table.cleaned is None else f"{table.cleaned} for {table.pairs}"
        raise ReviewError(
            f"{where}: probability of pair {frame['pair_id'].iloc[int(wrong.argmax())]!r} is {probability[wrong][0]}; "
            "it must lie between 0 and 1, or be empty where it is not known"
        )
    names = frame["source"] if "source" in frame else pd.Series([""] * count, dtype=object)
    source, sources = coded(pa.array(names.astype(object).where(names.notna(), "").astype(str).tolist(), pa.string()))
    columns = Columns(
        ids=pa.array(frame["pair_id"].tolist(), pa.string()),
        outcome=outcome,
        contested=_contested(why, count),
        probability=(probability if evidence is None else evidence.probability).astype(np.float32),
        spread_by=probability,
        drawable=np.ones(count, dtype=bool),
        disagree=np.zeros(count, dtype=bool) if evidence is None else evidence.disagree,
        length=length,
        characters=characters,
        script=script,
        source=source,
        sources=sources,
        prompt=np.arange(count),
    )
    if table.cleaned is None:
        notes.append("The table has not been cleaned: there are no outcomes. --cleaned FOLDER shows them.")
    elif evidence is None:
        notes.append(f"{table.cleaned} has no {_EVIDENCE}: `dt2it clean` again, to see margins and verdicts.")
    elif np.isnan(evidence.probability).all():
        notes.append("The policy of this cleaning gives no probabilities.")
    explain = partial(_explained, sides, outcome, why, evidence, "chosen_id" in frame)
    opened = _opener(table.media, embedded)
    scales = {} if evidence is None else evidence.margin_scales
    return Catalogue(columns, sides, asked, explain, opened, scales, table.pairs.name, notes)


def _media_columns(table: OwnTable, own: OwnPairs) -> dict[str, str]:
    """The column of each kind of media, where there is one."""
    found = {}
    for kind, wanted in (("image", table.image), ("video", table.video)):
        if wanted is not None and wanted not in own.names:
            raise ReviewError(f"{table.pairs} has no column {wanted!r}; it has: {', '.join(own.names)[:200]}")
        if column := wanted or next((name for name in MEDIA_COLUMNS[kind] if name in own.names), None):
            found[kind] = column
    return found


def _opener(media: Path | None, embedded: EmbeddedImages) -> Callable[[Medium], ImageSource]:
    if media is not None and not media.exists():
        raise ReviewError(f"there is no {media}; --media names the folder of images, or a .zip or .tar of them")
    try:
        root = None if media is None else MediaRoot(media)
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ReviewError(f"--media {media} cannot be read: {error}; name a folder, a .zip or a .tar") from error

    def opened(medium: Medium) -> ImageSource:
        kind, name = medium
        if kind == "image" and (content := embedded.read(name)) is not None:
            return content
        if root is None:
            raise MediaError(f"missing {kind}", f"{name}: name the folder of {kind}s with --media")
        return root.read(name) if kind == "image" else first_frame(root.locate(name))

    return opened


def _side_row(row: dict[str, Any]) -> dict[str, Any]:
    texts = {name: None if row[name] is None else str(row[name]) for name in ("chosen", "rejected")}
    ids = {name: str(row[name]) for name in ("pair_id", "chosen_id", "rejected_id")}
    return {**texts, **ids, "row_id": None}


def _prompt_row(
    row: dict[str, Any], columns: dict[str, str], named_shown: bool, embedded: EmbeddedImages, named: set[str]
) -> tuple[dict[str, Any], bool]:
    """A row of PROMPTS_SCHEMA, and whether it has all media that the table itself holds.

    Markers stand for media where there are as many of each kind as the row has; else they are text, as in a question
    about the characters.

    Args:
        row: of the table.
        columns: of each kind of media.
        named_shown: whether media that are paths are part of it.
        embedded: takes the images that are none.
        named: gets the kinds of media that are paths.
    """
    prompt = row.get("prompt")
    text = "" if prompt is None else prompt if isinstance(prompt, str) else str(prompt)
    media: list[dict[str, str]] = []
    kinds, whole = [], True
    for kind, column in columns.items():
        for each in _listed(row.get(column)):
            try:
                value = _value_of(each)
                content = None if value is None else inline_content(value)
            except MediaError:
                value, content = None, b""
            if content is None:
                if not value:
                    continue
                named.add(kind)
                kinds.append(kind)
                media += [{"kind": kind, "name": str(value)}] if named_shown else []
                continue
            kinds.append(kind)
            fits = kind == "image" and content and len(media) < _MOST_EMBEDDED
            name = embedded.add(content) if fits else None
            whole &= name is not None
            media += [] if name is None else [{"kind": kind, "name": name}]
    marked = sorted(marker_kinds(text)) == sorted(kinds)
    turns = [{"role": PROMPT, "text": text if marked else escaped(text)}] if text else []
    return {"text": text, "turns": turns, "media": media}, whole


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]


def _value_of(medium: Any) -> str | bytes | None:
    """What a cell holds of a medium: its content, a `data:` address or base64, or a path; None where nothing."""
    if isinstance(medium, dict):
        found = (medium.get(key) for key in ("bytes", "path", "url"))
        medium = next((value for value in found if value), None)
    return medium if isinstance(medium, str | bytes) and medium else None


def _outcomes(table: OwnTable, frame: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame | None]:
    """Int8 [pairs], and stage, reason and detail of each, where they are known."""
    if table.cleaned is None:
        return np.full(len(frame), UNDECIDED, dtype=np.int8), None
    try:
        found = pq.read_table(table.cleaned / "outcomes.parquet").to_pandas(ignore_metadata=True)
        found.index = pd.Index(as_keys(found["pair_id"]))
        found = found[~found.index.duplicated()].reindex(frame["pair_id"])
        codes = found["outcome"].map({name: code for code, name in enumerate(OUTCOMES)}).fillna(UNDECIDED)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise ReviewError(f"{table.cleaned} is no readable output of `dt2it clean`: {error}") from error
    why = found[[name for name in ("stage", "reason", "detail") if name in found]].reset_index(drop=True)
    return codes.to_numpy(dtype=np.int8), why


class _Evidence:
    """Margins and verdicts of a cleaned table (table kind `cleaning_evidence`), in the rows of the pairs.

    Attributes:
        probability: float64 [pairs], that the given label is right; NaN where that is not known.
        disagree: bool [pairs], whether voters' margins have different signs.
        margin_scales: see Catalogue.
    """

    def __init__(self, file: Path, pair_ids: pd.Series) -> None:
        ids: list[pa.Array] = []
        found: list[tuple[np.ndarray, np.ndarray]] = []
        margins = Margins()

        def given() -> Iterator[pa.RecordBatch]:
            for piece in iter_parquet(file, "cleaning_evidence", BATCH):
                ids.append(piece["pair_id"].combine_chunks())
                probability = piece["given_probability"].to_numpy(zero_copy_only=False)
                found.append((probability.astype(np.float64), margins.add(piece["margins"])))
                yield from piece.select(["margins", "verdicts"]).to_batches()

        kind = SCHEMAS["cleaning_evidence"]
        self._rows = RowFile(pa.schema([kind.field("margins"), kind.field("verdicts")]), given())
        self.margin_scales = margins.scales()
        known = pa.concat_arrays(ids) if ids else pa.array([], pa.string())
        wanted = pa.array(pair_ids.tolist(), pa.string())
        self._place = pc.fill_null(pc.index_in(wanted, value_set=known), -1).to_numpy(zero_copy_only=False)
        parts = list(zip(*found, strict=True)) or [(np.zeros(0),), (np.zeros(0, dtype=bool),)]
        probability, disagree = (np.concatenate(part) for part in parts)
        # The last place stands for pairs that the evidence does not know.
        self.probability = np.append(probability, np.nan)[self._place]
        self.disagree = np.append(disagree, False)[self._place].astype(bool)

    @classmethod
    def of(cls, cleaned: Path, pair_ids: pd.Series) -> _Evidence | None:
        """That of a cleaning result; None where it is of a version that wrote none. Raises ReviewError."""
        file = cleaned / _EVIDENCE
        if not file.exists():
            return None
        try:
            return cls(file, pair_ids)
        except (OSError, pa.ArrowException, RecordError) as error:
            raise ReviewError(f"{file} cannot be read: {error}; `dt2it clean` the table again") from error

    def of_pair(self, place: int) -> dict[str, Any]:
        """Margins and verdicts of a pair."""
        row = int(self._place[place])
        return {"margins": [], "verdicts": []} if row < 0 else self._rows[row]


def _contested(why: pd.DataFrame | None, count: int) -> np.ndarray:
    """Bool [pairs]: judges' votes decided about the pair, or failed to (policy `paper`)."""
    if why is None or not {"stage", "reason"} <= set(why):
        return np.zeros(count, dtype=bool)
    return ((why["stage"] == "annotated_pairs") | (why["reason"] == "annotated")).to_numpy(dtype=bool)


def _explained(
    sides: RowFile,
    outcome: np.ndarray,
    why: pd.DataFrame | None,
    evidence: _Evidence | None,
    has_ids: bool,
    place: int,
) -> dict[str, Any]:
    """See `Catalogue.explain`. Which side a judge saw first is known where the table has ids of its own."""
    row, name = sides[place], OUTCOMES[outcome[place]]
    known = {} if why is None else why.iloc[place].dropna().astype(str).to_dict()
    now = {"kept": row["chosen_id"], "flipped": row["rejected_id"]}.get(name)
    reasons = {part: known.get(part, "") for part in ("stage", "reason", "detail")}
    heard = {"margins": [], "verdicts": []} if evidence is None else evidence.of_pair(place)
    verdicts = [verdict_shown(vote, row) for vote in heard["verdicts"]]
    if not has_ids:  # the ids that the page gives such sides say nothing about what a judge saw
        verdicts = [vote | {"shown_first": None} for vote in verdicts]
    return {"now": now, "why": reasons, "margins": heard["margins"], "verdicts": verdicts}
