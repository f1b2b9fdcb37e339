"""Which pairs a person asks for, and in which order. It runs over columns in memory; a search reads the texts."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.human_review.review_page.catalogue import (
    FLIPPED,
    LONGER,
    OUTCOMES,
    SHORTER,
    Catalogue,
)
from dt2it_pipeline.human_review.review_page.row_file import ReviewError
from dt2it_pipeline.human_review.review_page.scripts import SCRIPTS

SORTS = {
    "wrong": "given label most probably wrong first",
    "wrong_now": "present label most probably wrong first",
    "unsure": "least sure first",
    "long": "longest first",
    "table": "order of the table",
}
_MOST_SEARCH = 200  # characters
_KEPT_RESULTS = 24


@dataclass(frozen=True)
class Query:
    """What a person asks for. Empty parts do not restrict.

    Attributes:
        outcome: names of OUTCOMES, or `contested`.
        source: name of a source.
        low, high: bounds of the probability that the given label is right, 0 to 1. Pairs without one are left out
            where a bound is set.
        disagree: only pairs whose voters disagree.
        script: one of SCRIPTS.
        length: `longer` or `shorter`: what the given chosen answer is.
        search: text that the prompt or an answer holds, upper and lower case alike.
        sort: one of SORTS.
    """

    outcome: frozenset[str] = frozenset()
    source: str = ""
    low: float = 0.0
    high: float = 1.0
    disagree: bool = False
    script: str = ""
    length: str = ""
    search: str = ""
    sort: str = "wrong"

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Query:
        """A query of the parameters of an address. Raises ReviewError where one is none that there is."""
        outcome = frozenset(filter(None, given.get("outcome", "").split(",")))
        search = given.get("search", "").strip()
        checks = (
            ("outcome", outcome <= {*OUTCOMES, "contested"}, ", ".join((*OUTCOMES, "contested"))),
            ("script", given.get("script", "") in ("", *SCRIPTS), ", ".join(SCRIPTS)),
            ("length", given.get("length", "") in ("", "longer", "shorter"), "longer, shorter"),
            ("sort", given.get("sort", "wrong") in SORTS, ", ".join(SORTS)),
            ("search", len(search) <= _MOST_SEARCH, f"at most {_MOST_SEARCH} characters"),
        )
        for name, right, known in checks:
            if not right:
                raise ReviewError(f"{name}={given[name][:80]!r} is not known; give {known}")
        try:
            low, high = (float(given.get(name) or default) for name, default in (("low", 0), ("high", 1)))
        except ValueError:
            low = high = np.nan
        if not 0 <= low <= high <= 1:
            raise ReviewError("low and high are probabilities from 0 to 1, low first")
        return cls(
            outcome,
            given.get("source", ""),
            low,
            high,
            given.get("disagree") == "1",
            given.get("script", ""),
            given.get("length", ""),
            search,
            given.get("sort", "wrong"),
        )


@dataclass
class Finder:
    """Answers queries on one catalogue; the last results stay in memory, so that scrolling costs nothing."""

    catalogue: Catalogue
    _results: OrderedDict[Query, np.ndarray] = field(default_factory=OrderedDict)
    _matches: OrderedDict[str, np.ndarray] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, query: Query) -> np.ndarray:
        """Int64: the rows of the pairs that a query asks for, in its order."""
        with self._lock:  # two people who ask for the same wait for one result
            if query in self._results:
                self._results.move_to_end(query)
                return self._results[query]
            found = self._found(query)
            self._results[query] = found
            if len(self._results) > _KEPT_RESULTS:
                self._results.popitem(last=False)
            return found

    def _found(self, query: Query) -> np.ndarray:
        columns = self.catalogue.columns
        mask = np.ones(len(columns), dtype=bool)
        if named := [OUTCOMES.index(name) for name in query.outcome if name in OUTCOMES]:
            mask &= np.isin(columns.outcome, named)
        if "contested" in query.outcome:
            mask &= columns.contested
        if query.source:
            code = list(columns.sources).index(query.source) if query.source in columns.sources else -1
            mask &= columns.source == code
        if query.low > 0 or query.high < 1:
            mask &= (columns.probability >= query.low) & (columns.probability <= query.high)
        if query.disagree:
            mask &= columns.disagree
        if query.script:
            mask &= columns.script == SCRIPTS.index(query.script)
        if query.length:
            mask &= columns.length == (LONGER if query.length == "longer" else SHORTER)
        if query.search:
            mask &= self._matching(query.search)
        places = np.flatnonzero(mask)
        key = self._key(query.sort)
        return places if key is None else places[np.argsort(key[places], kind="stable")]

    def _key(self, sort: str) -> np.ndarray | None:
        columns = self.catalogue.columns
        probability = np.nan_to_num(columns.probability, nan=2.0)  # pairs without one come last
        match sort:
            case "wrong":
                return probability
            case "wrong_now":
                turned = (columns.outcome == FLIPPED) & (probability <= 1)
                return np.where(turned, 1 - probability, probability)
            case "unsure":
                return np.abs(probability - 0.5)
            case "long":
                return -columns.characters
        return None

    def _matching(self, search: str) -> np.ndarray:
        words = search.casefold()
        if words in self._matches:
            return self._matches[words]

        def holds(texts: pa.Array) -> np.ndarray:
            found = pc.match_substring(texts, search, ignore_case=True)
            return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False))

        catalogue = self.catalogue
        prompts = [holds(batch.column("text")) for batch in catalogue.prompts.batches()]
        prompt = np.concatenate([*prompts, [False]]).astype(bool)  # the last one stands for pairs without a prompt
        sides = [holds(batch.column("chosen")) | holds(batch.column("rejected")) for batch in catalogue.sides.batches()]
        side = np.concatenate([*sides, np.zeros(0, dtype=bool)]).astype(bool)
        exact = catalogue.places.get(search)  # an id that was pasted
        found = side | prompt[catalogue.columns.prompt]
        if exact is not None:
            found[exact] = True
        self._matches[words] = found
        if len(self._matches) > _KEPT_RESULTS:
            self._matches.popitem(last=False)
        return found
