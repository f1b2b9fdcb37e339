"""What is reviewed: a round or a table, its pairs as they are now, its audit, and where answers go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.human_review.audit_draws import AUDIT_PAIRS, draw_id, keep_sample, kept_sample, sample_row
from dt2it_pipeline.human_review.audit_sample import draw_audit
from dt2it_pipeline.human_review.review_page.catalogue import Catalogue
from dt2it_pipeline.human_review.review_page.galleries import BenchmarkErrors, Quarantine
from dt2it_pipeline.human_review.review_page.kept_answers import FolderAnswers, HomeAnswers
from dt2it_pipeline.human_review.review_page.query import Finder
from dt2it_pipeline.human_review.review_page.round_pairs import read_round, round_version
from dt2it_pipeline.human_review.review_page.row_file import ReviewError
from dt2it_pipeline.human_review.review_page.table_pairs import OwnTable, read_table, table_version
from dt2it_pipeline.human_review.review_page.thumbnails import Thumbnails
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Store

_LOOK_AGAIN = 1.0  # seconds between two looks at whether the pairs have changed
_AFTER_A_FAULT = 5.0
_OWN = -1  # number of the round that a table of one's own has


@dataclass(frozen=True)
class Shown:
    """The pairs as they were at one time."""

    version: str
    catalogue: Catalogue
    finder: Finder
    images: Thumbnails

    @classmethod
    def of(cls, version: str, catalogue: Catalogue) -> Shown:
        """The pairs, with nothing asked for yet."""
        return cls(version, catalogue, Finder(catalogue), Thumbnails(catalogue.open_medium))


class Subject:
    """What is reviewed. Made by `round_subject` or `table_subject`.

    Args:
        read: reads the pairs.
        version: stands for what `read` would give.
        answers: where answers go.
        number: of the round; -1 for a table.
        store: artifact home of the round; None for a table.
        count: pairs of an audit.
        seed: of the draw of an audit.
    """

    def __init__(
        self,
        read: Callable[[], Catalogue],
        version: Callable[[], str],
        answers: HomeAnswers | FolderAnswers,
        number: int = _OWN,
        store: Store | None = None,
        count: int = 50,
        seed: int = 0,
    ) -> None:
        self._read, self._version, self.answers = read, version, answers
        self._number, self._store, self._count, self._seed = number, store, count, seed
        self._lock, self._drawing = threading.Lock(), threading.Lock()
        self._look_at = time.monotonic() + _LOOK_AGAIN
        found = version()
        self._shown = Shown.of(found, read())
        self.problem = ""  # why the pairs are not the newest ones; empty where they are
        self._audit: pd.DataFrame | None = None
        self._benchmark: tuple[str, BenchmarkErrors] | None = None
        self._quarantine: tuple[str, Quarantine] | None = None

    @property
    def views(self) -> list[str]:
        """Which views of the page there is something for."""
        return ["pairs", "audit", *([] if self._store is None else ["quarantine", "benchmark"])]

    def shown(self) -> Shown:
        """The pairs as they are now. Where they cannot be read, as they were before; `problem` says why."""
        if time.monotonic() < self._look_at or not self._lock.acquire(blocking=False):
            return self._shown  # while one request reads them again, the others see what was there
        try:
            found = self._version()
            if found != self._shown.version:
                self._shown = Shown.of(found, self._read())
            self.problem = ""
            self._look_at = time.monotonic() + _LOOK_AGAIN
        except UserError as error:
            self.problem = f"The newest state cannot be read, so this is the one before: {error}"
            self._look_at = time.monotonic() + _AFTER_A_FAULT
        finally:
            self._lock.release()
        return self._shown

    def audit(self) -> pd.DataFrame:
        """The pairs of the audit (table kind `audit_pairs`), in the order in which people see them.

        A draw of the same round, seed and size that was kept goes on; else pairs are drawn, and kept.

        Raises:
            AuditError, ReviewError: they cannot be drawn.
            OSError: they cannot be kept.
        """
        with self._drawing:
            if self._audit is None:
                self._audit = self._kept_draw()
            if self._audit is None:
                self._audit = self._drawn()
            return self._audit

    def benchmark_errors(self) -> BenchmarkErrors | None:
        """What the round's model gets wrong; None for a table. Raises StoreError where it has not been measured."""
        if self._store is None:
            return None
        key = str(self._store.current("benchmark_scores", str(self._number)))
        if self._benchmark is None or self._benchmark[0] != key:
            self._benchmark = key, BenchmarkErrors(self._store, str(self._number))
        return self._benchmark[1]

    def quarantine(self) -> Quarantine | None:
        """Quarantined rows; None for a table. Raises StoreError where a table is damaged."""
        if self._store is None:
            return None
        key = self.shown().version
        if self._quarantine is None or self._quarantine[0] != key:
            self._quarantine = key, Quarantine.of(self._store, str(self._number))
        return self._quarantine[1]

    def _kept_draw(self) -> pd.DataFrame | None:
        kept = kept_sample(self.answers.samples).to_pandas()
        kept = kept[(kept["round"] == self._number) & (kept["seed"] == self._seed)]
        wanted = min(self._count, int(self.shown().catalogue.columns.drawable.sum()))
        sizes = kept.groupby("audit", sort=False).size()
        fitting = [name for name, size in sizes.items() if size == wanted]
        if not fitting:
            return None
        return kept[kept["audit"] == fitting[-1]].reset_index(drop=True)

    def _drawn(self) -> pd.DataFrame:
        catalogue = self.shown().catalogue
        columns = catalogue.columns
        places = np.flatnonzero(columns.drawable)
        if not len(places):
            raise ReviewError("there is no pair that an audit could draw")
        names = np.array(columns.sources, dtype=object)[columns.source[places]]
        ids = columns.ids.take(pa.array(places)).to_pylist()
        frame = pd.DataFrame({"pair_id": pd.Series(ids, dtype=object), "source": names, "place": places})
        drawn = draw_audit(frame, self._count, self._seed, columns.spread_by[places])
        name = draw_id(drawn, self._number, self._seed, len(places))
        rows = []
        for row in drawn.to_dict("records"):
            pair = {**catalogue.sides[row["place"]], "source": row["source"]}
            rows.append(sample_row(pair, name, row["stratum"], row["weight"], self._seed, self._number))
        table = schemas.table(rows, AUDIT_PAIRS)
        keep_sample(self.answers.samples, table)
        return table.to_pandas()


def round_subject(home: str | Path, number: int, count: int = 50, seed: int = 0) -> Subject:
    """A round of an artifact home; answers are kept there.

    Args:
        home: the artifact home.
        number: of the round, which need not be finished.
        count: pairs of a blind audit.
        seed: of its draw; another seed draws other pairs.

    Raises:
        StoreError: the round has no voted pairs yet, or a table is damaged.
        ReviewError: its texts do not fit into the temporary folder, or it has no pair.
    """
    store = Store(home)
    name = str(number)
    answers = HomeAnswers(store.home)
    return Subject(
        lambda: read_round(store, name), lambda: round_version(store, name), answers, number, store, count, seed
    )


def table_subject(table: OwnTable, answers: str | Path | None = None, count: int = 50, seed: int = 0) -> Subject:
    """A table of one's own.

    Args:
        table: which, and what to show of it.
        answers: folder of the files of answers; `<table>.review` beside the table where None.
        count: as for `round_subject`.
        seed: as for `round_subject`.

    Raises:
        AuditError, ReviewError: as `read_table`; or the folder cannot be made.
    """
    folder = table.pairs.with_name(f"{table.pairs.name}.review") if answers is None else Path(answers)
    subject: list[Any] = []

    def side_of(pair_id: str, side: str | None) -> str | None:
        catalogue = subject[0].shown().catalogue
        place = catalogue.places.get(pair_id)
        if side is None or place is None:
            return None if side is not None else "tie"
        return dict(zip(catalogue.side_ids(place), ("chosen", "rejected"), strict=True)).get(side)

    kept = FolderAnswers(folder, side_of)
    subject.append(Subject(lambda: read_table(table), lambda: table_version(table), kept, _OWN, None, count, seed))
    made: Subject = subject[0]
    return made
