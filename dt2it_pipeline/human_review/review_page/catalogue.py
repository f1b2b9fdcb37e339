"""The pairs that a page shows: short columns in memory, for filters; long ones in files, read per pair.

What belongs here: the columns, and what is known of one pair. What does not: where pairs come from (round_pairs.py,
table_pairs.py), and which of them are asked for (query.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dt2it_pipeline.human_review.review_page.row_file import RowFile
from dt2it_pipeline.human_review.review_page.scripts import SCRIPTS
from dt2it_pipeline.human_review.review_page.word_diff import word_diff
from dt2it_pipeline.human_review.tasks import shown_sides
from dt2it_pipeline.media.images import ImageSource
from dt2it_pipeline.media.markers import split_at_markers
from dt2it_pipeline.storage.content_ids import content_hash

OUTCOMES = ("kept", "flipped", "dropped", "undecided")
KEPT, FLIPPED, DROPPED, UNDECIDED = range(len(OUTCOMES))
SHORTER, SAME_LENGTH, LONGER = -1, 0, 1
SIDES_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("pair_id", "chosen", "rejected", "chosen_id", "rejected_id", "row_id")]
)
PROMPTS_SCHEMA = pa.schema(
    [
        ("text", pa.string()),  # what a search looks through
        ("turns", pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))),
        # kind (image or video) and name of each, as `Catalogue.open_medium` takes it, in the order of their markers
        ("media", pa.list_(pa.struct([("kind", pa.string()), ("name", pa.string())]))),
    ]
)
Medium = tuple[str, str]  # kind and name
PROMPT = "prompt"  # role of the text of a table of one's own
ASKING = ("user", PROMPT)
_OTHER = {"chosen": "rejected", "rejected": "chosen"}
_SNIPPET = 180  # characters
_WIDE = 95  # percentile of a voter's margins, of either sign, that fills a bar


@dataclass(frozen=True)
class Columns:
    """Columns of n pairs that lie in memory, about 100 bytes a pair.

    Attributes:
        ids: string [n], each id once.
        outcome: int8 [n], place in OUTCOMES.
        contested: bool [n], whether the vote left the pair in doubt.
        probability: float32 [n], that the given label is right, 0 to 1; NaN where nothing says so.
        spread_by: float64 [n], probability by which an audit is drawn; NaN where there is none.
        drawable: bool [n], whether an audit may draw the pair.
        disagree: bool [n], whether voters' margins have different signs.
        length: int8 [n], whether the given chosen answer is LONGER or SHORTER than the other.
        characters: int32 [n], of both answers together.
        script: int8 [n], place in SCRIPTS.
        source: int32 [n], place in `sources`.
        sources: names of the sources.
        prompt: int64 [n], row of the prompt; -1 where there is none.
    """

    ids: pa.Array
    outcome: np.ndarray
    contested: np.ndarray
    probability: np.ndarray
    spread_by: np.ndarray
    drawable: np.ndarray
    disagree: np.ndarray
    length: np.ndarray
    characters: np.ndarray
    script: np.ndarray
    source: np.ndarray
    sources: Sequence[str]
    prompt: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class Places:
    """Finds the row of an id, with 16 bytes of memory an id."""

    def __init__(self, ids: pa.Array) -> None:
        self._ids = ids
        hashes = _hashes(ids.to_numpy(zero_copy_only=False))
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def get(self, pair_id: str) -> int | None:
        """The row; None where no row has the id."""
        try:
            wanted = _hashes(np.array([pair_id], dtype=object))[0]
        except UnicodeEncodeError:  # half a character, which JSON may hold and no table does
            return None
        start = int(np.searchsorted(self._sorted, wanted))
        while start < len(self._sorted) and self._sorted[start] == wanted:
            place = int(self._order[start])
            if self._ids[place].as_py() == pair_id:
                return place
            start += 1
        return None


Explain = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Catalogue:
    """All that is known of the pairs.

    Attributes:
        columns: see Columns.
        sides: rows of SIDES_SCHEMA, sides as they were given.
        prompts: rows of PROMPTS_SCHEMA.
        explain: gives of a pair's row: `now` (id of the side that is chosen now, None where the pair is dropped or
            undecided), `why` (stage, reason, detail), `margins` (voter and margin, positive for the given chosen
            side), `verdicts` (see `verdict_shown`).
        open_medium: gives an image of `prompts`, or the first frame of a video. Raises MediaError, or
            VideoDecoderError where this installation reads no videos.
        margin_scales: of each voter, the margin that 95% of its margins do not exceed.
        title: what this is, for the page's head.
        notes: sentences about what is missing.
    """

    columns: Columns
    sides: RowFile
    prompts: RowFile
    explain: Explain
    open_medium: Callable[[Medium], ImageSource]
    margin_scales: Mapping[str, float]
    title: str
    notes: Sequence[str] = ()
    places: Places = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", Places(self.columns.ids))

    def media(self, place: int) -> list[Medium]:
        """The pair's images and videos."""
        return media_of(self._prompt(place))

    def side_ids(self, place: int) -> tuple[str, str]:
        """Ids of the given chosen and the other side."""
        row = self.sides[place]
        return row["chosen_id"], row["rejected_id"]

    def seen(self, place: int) -> str:
        """What stands for a pair as it is shown: another text where its prompt, a side or their order is another."""
        row = self.sides[place]
        sides = [[name, str(text or "")] for name, text in shown_sides(row)]
        return content_hash(row["pair_id"], sides, _texts(self._prompt(place)))[:16]

    def card(self, place: int) -> dict[str, Any]:
        """What a list shows of a pair."""
        row, columns = self.sides[place], self.columns
        prompt = self._prompt(place)
        return {
            "id": row["pair_id"],
            "outcome": OUTCOMES[columns.outcome[place]],
            "contested": bool(columns.contested[place]),
            "probability": _number(columns.probability[place]),
            "disagree": bool(columns.disagree[place]),
            "source": columns.sources[columns.source[place]],
            "prompt": _snippet(" ".join(_texts(prompt))),
            "chosen": _snippet(row["chosen"]),
            "rejected": _snippet(row["rejected"]),
            "media": [kind for kind, _ in media_of(prompt)],
        }

    def blind(self, place: int) -> dict[str, Any]:
        """A pair as somebody sees it who is to judge it without knowing more: prompt, images and both answers."""
        row, prompt = self.sides[place], self._prompt(place)
        (first, _), (second, _) = sides = shown_sides(row)
        left, right = word_diff(str(sides[0][1] or ""), str(sides[1][1] or ""))
        return {
            "id": row["pair_id"],
            "seen": self.seen(place),
            "turns": [{"role": turn["role"] or "", "pieces": _pieces(turn)} for turn in prompt["turns"] or ()],
            "media": [kind for kind, _ in media_of(prompt)],
            "first": {"id": first, "parts": left},
            "second": {"id": second, "parts": right},
        }

    def pair(self, place: int) -> dict[str, Any]:
        """Everything about a pair."""
        row, columns = self.sides[place], self.columns
        known = self.explain(place)
        voters = [each["voter"] for each in known["margins"]]
        return self.blind(place) | {
            "outcome": OUTCOMES[columns.outcome[place]],
            "contested": bool(columns.contested[place]),
            "probability": _number(columns.probability[place]),
            "source": columns.sources[columns.source[place]],
            "row_id": row["row_id"],
            "script": SCRIPTS[columns.script[place]],
            "given": row["chosen_id"],
            **known,
            "margin_scales": {voter: self.margin_scales[voter] for voter in voters if voter in self.margin_scales},
        }

    def _prompt(self, place: int) -> Mapping[str, Any]:
        row = int(self.columns.prompt[place])
        return {"text": "", "turns": [], "media": []} if row < 0 else self.prompts[row]


def media_of(prompt: Mapping[str, Any]) -> list[Medium]:
    """The images and videos of a row of PROMPTS_SCHEMA."""
    return [(medium["kind"], medium["name"]) for medium in prompt["media"] or ()]


def verdict_shown(row: Mapping[str, Any], sides: Mapping[str, Any], same: bool = True) -> dict[str, Any]:
    """A verdict as a pair's page shows it.

    Returns:
        `judge`; `verdict` on the given sides (chosen, rejected, tie, or None); `order` as the table has it, and
        `shown_first`, the id of the side that the judge saw first, None where that is not known; `words` of the judge,
        and `fault`, why there is no verdict, empty where there are none.

    Args:
        row: judge, order, verdict, words, fault.
        sides: chosen_id and rejected_id of the pair.
        same: whether the verdict is on the given sides; else they had been swapped before.
    """
    ids = sorted((sides["chosen_id"], sides["rejected_id"]))
    return {
        "judge": row["judge"] or "",
        "verdict": row["verdict"] if same else _OTHER.get(row["verdict"], row["verdict"]),
        "order": row["order"] or "",
        "shown_first": {"forward": ids[0], "reversed": ids[1]}.get(row["order"] or ""),
        "words": row["words"] or "",
        "fault": row["fault"] or "",
    }


class Margins:
    """Columns `votes` or `margins` (lists of voter and margin), which may come in parts.

    >>> seen = Margins()
    >>> votes = [[{"voter": "a", "margin": 2.0}, {"voter": "b", "margin": -0.1}], [{"voter": "a", "margin": 1.0}]]
    >>> seen.add(pa.array(votes)).tolist()
    [True, False]
    >>> {voter: round(scale, 2) for voter, scale in seen.scales().items()}
    {'a': 1.95, 'b': 0.1}
    """

    def __init__(self) -> None:
        self._sizes: dict[str, list[np.ndarray]] = {}

    def add(self, votes: pa.ChunkedArray | pa.Array) -> np.ndarray:
        """Bool [rows]: whether the margins of a row have different signs."""
        column = votes.combine_chunks() if isinstance(votes, pa.ChunkedArray) else votes
        every = column.flatten()
        margins = every.field("margin").to_numpy(zero_copy_only=False).astype(np.float64)
        voters = every.field("voter").dictionary_encode()
        codes = voters.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        for code, voter in enumerate(voters.dictionary.to_pylist()):
            self._sizes.setdefault(voter, []).append(np.abs(margins[codes == code]).astype(np.float32))
        counts = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        row = np.repeat(np.arange(len(column)), counts)
        favour = np.bincount(row[margins > 0], minlength=len(column)) > 0
        oppose = np.bincount(row[margins < 0], minlength=len(column)) > 0
        return np.asarray(favour & oppose)

    def scales(self) -> Mapping[str, float]:
        """The margin of each voter that 95% of its margins do not exceed; without voters whose margins are all 0."""
        found = {}
        for voter, parts in self._sizes.items():
            sizes = np.concatenate(parts)
            sizes = sizes[np.isfinite(sizes)]
            if sizes.size and sizes.max() > 0:
                # Of margins of which nearly all are 0, the widest stands in for a percentile of 0.
                found[voter] = float(np.percentile(sizes, _WIDE)) or float(sizes.max())
        return found


def lengths(chosen: pa.Array, rejected: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Int8 [rows], LONGER where the chosen text is longer; and int32 [rows], characters of both."""
    import pyarrow.compute as pc

    left, right = (
        pc.fill_null(pc.utf8_length(texts), 0).to_numpy(zero_copy_only=False).astype(np.int32)
        for texts in (chosen, rejected)
    )
    return np.sign(left - right).astype(np.int8), (left + right).astype(np.int32)


def coded(names: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Int32 [rows] and the names: a column of few names as places in a list of them."""
    codes, found = pd.factorize(np.asarray(names.to_numpy(zero_copy_only=False), dtype=object), use_na_sentinel=False)
    return codes.astype(np.int32), ["" if name is None or name != name else str(name) for name in found]


def _hashes(ids: np.ndarray) -> np.ndarray:
    return np.asarray(pd.util.hash_array(ids.astype(object), categorize=False))


def _pieces(turn: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Texts and markers of a turn; markers stand for media in what a person asks alone."""
    text = turn["text"] or ""
    return split_at_markers(text) if turn["role"] in ASKING else [("text", text)]


def _texts(prompt: Mapping[str, Any]) -> list[str]:
    return [piece for turn in prompt["turns"] or () for kind, piece in _pieces(turn) if kind == "text"]


def _snippet(text: Any) -> str:
    words = " ".join(str(text or "")[: 2 * _SNIPPET].split())
    return words if len(words) <= _SNIPPET else f"{words[:_SNIPPET]}…"


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
