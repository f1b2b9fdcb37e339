"""`clean_preference_files`: files end as `clean_preferences` says of tables, in batches or as a whole."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from threading import enumerate as enumerate_threads
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline import clean_preferences
from dt2it_pipeline.curate import preference_files
from dt2it_pipeline.curate.evidence_table import EVIDENCE, FILE
from dt2it_pipeline.curate.out_of_core import preference_streams
from dt2it_pipeline.curate.preference_files import clean_preference_files
from dt2it_pipeline.curate.voters.margins import CurationError
from dt2it_pipeline.storage.atomic import read_parquet, write_parquet
from dt2it_pipeline.storage.table_files import read_table_file

NUMBER = "my number"  # its whole numbers, of which some are missing, are whole numbers still in what is written


@pytest.fixture
def in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that do not divide the tables."""
    monkeypatch.setattr(preference_streams, "_FEWEST", 1)
    monkeypatch.setattr(preference_streams, "_MOST", 37)
    monkeypatch.setattr(preference_streams, "_SCORE_ROWS", 53)


class World:
    """Tables drawn at random, with whatever a user may have, and the settings of a call."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.count = int(self.random.integers(150, 400))
        self.right = self.random.random(self.count) < self.random.uniform(0.6, 0.95)
        self.with_ids = self.some(0.8)
        self.settings: dict[str, Any] = {"seed": int(self.random.integers(5))}
        self.pair_ids = self.any_of(self._numbers, self._words, self._hashes)() if self.some(0.85) else None
        self.pairs = self._pairs()
        self.files: dict[str, pd.DataFrame | list[pd.DataFrame]] = {}
        if self.with_ids and self.some(0.9):
            self.files["scores"] = self._scores()
        for name, chance, make in (("votes", 0.7, self._votes), ("audit", 0.6, self._audit)):
            if self.some(chance):
                self.files[name] = make()
        if self.some(0.3):
            self.settings["label_accuracy"] = 0.8
        if self.some(0.4):
            self.settings |= self.any_of({"wrong_label_cost": 2.0}, {"keep_probability": 0.7}, {"call_cost": 0.0})

    def some(self, chance: float) -> bool:
        return bool(self.random.random() < chance)

    def any_of(self, *choices: Any) -> Any:
        return choices[int(self.random.integers(len(choices)))]

    def with_gaps(self, values: Any, chance: float = 0.1) -> pd.Series:
        return pd.Series(values).mask(self.random.random(self.count) < chance)

    def _numbers(self) -> pd.Series:
        return pd.Series(self.random.permutation(5 * self.count)[: self.count])

    def _words(self) -> pd.Series:
        return "pair " + self._numbers().astype("str")

    def _hashes(self) -> pd.Series:
        return pd.Series([f"{number:032x}" for number in self._numbers()], dtype="str")

    def _texts(self) -> pd.Series:
        return self.with_gaps(["ü" * int(size) for size in self.random.integers(0, 60, self.count)], 0.05)

    def _pairs(self) -> pd.DataFrame:
        rows = range(self.count)
        columns: dict[str, Any] = {"my first": rows}
        if self.pair_ids is not None:
            columns["pair_id"] = self.pair_ids
        if self.with_ids:
            columns |= {"chosen_id": [f"c{row}" for row in rows], "rejected_id": [f"r{row}" for row in rows]}
        if self.some(0.8):
            names = self.any_of(("chosen", "rejected"), ("good answer", "bad answer"))
            columns |= dict(zip(names, (self._texts(), self._texts()), strict=True))
            if names[0] != "chosen" or self.some(0.2):
                self.settings |= {"chosen": names[0], "rejected": names[1]}
        if not self.with_ids or self.some(0.3):
            sign = np.where(self.right, 1.0, -1.0)
            columns |= {"up": self.with_gaps(sign + self.random.normal(size=self.count)), "down": 0.0}
            self.settings |= {"chosen_scores": ["up"], "rejected_scores": ["down"]}
        others = {
            "source": lambda: self.with_gaps([f"source {row % 3}" for row in rows]),
            "row_id": lambda: self.any_of(self.with_gaps([f"line {row}" for row in rows]), list(rows)),
            "probability": lambda: self.random.random(self.count),
            NUMBER: lambda: self.with_gaps(list(rows)),
            "chosen_rank": lambda: self.with_gaps(self.random.random(self.count)),
            "rejected_rank": lambda: self.random.random(self.count),
            "words": lambda: [[f"word {word}" for word in range(row % 4)] for row in rows],
            "flag": lambda: self.random.random(self.count) < 0.5,
            "when": lambda: pd.Timestamp("2024-01-01") + pd.to_timedelta(rows, unit="h"),
            "chosen_turns": lambda: [[{"role": "user", "text": f"a{row}"}] for row in rows],
            "rejected_turns": lambda: [[{"role": "user", "text": f"b{row}"}] for row in rows],
        }
        return pd.DataFrame(columns | {name: make() for name, make in others.items() if self.some(0.5)})

    def _scores(self) -> list[pd.DataFrame]:
        ids = pd.concat([self.pairs["chosen_id"], self.pairs["rejected_id"], pd.Series(["elsewhere"])])
        sign = np.where(self.right, 1.0, -1.0)
        made = []
        for voter in range(int(self.random.integers(1, 4))):
            score = np.concatenate([sign, -sign, [0.0]]) + 1.5 * self.random.normal(size=len(ids))
            score[self.random.random(len(ids)) < 0.03] = self.any_of(np.nan, np.inf)
            table = pd.DataFrame({"response_id": ids, "voter": f"v{voter}", "score": score.astype(np.float32)})
            made.append(table.sample(frac=self.random.uniform(0.8, 1.0), random_state=voter)
                        if self.some(0.5) and voter else table)  # fmt: skip
        if len(made) == 1 and self.some(0.5):
            made = [made[0].drop(columns="voter")]
        return made

    def _better(self, rows: np.ndarray, right: float) -> tuple[pd.Series, np.ndarray]:
        """Ids of pairs, and whether an annotator who is right so often is for the chosen side."""
        ids = pd.Series(np.arange(self.count)) if self.pair_ids is None else self.pair_ids
        errs = self.random.random(len(rows)) >= right
        return ids.iloc[rows].reset_index(drop=True), self.right[rows] ^ errs

    def _votes(self) -> pd.DataFrame:
        rows = self.random.integers(0, self.count, self.count)
        ids, better = self._better(rows, 0.8)
        verdict = pd.Series(np.where(better, "chosen", " Rejected")).mask(self.random.random(len(rows)) < 0.1)
        verdict = verdict.mask(self.random.random(len(rows)) < 0.1, "tie")
        votes = pd.DataFrame({"pair_id": ids, "verdict": verdict})
        if self.with_ids and self.some(0.5):
            sides = np.where(better, self.pairs["chosen_id"].iloc[rows], self.pairs["rejected_id"].iloc[rows])
            votes["better_id"] = pd.Series(sides, dtype="str").mask(self.random.random(len(rows)) < 0.5)
        if self.some(0.8):
            votes["judge"] = np.where(self.random.random(len(rows)) < 0.5, "judge a", "judge b")
        if self.some(0.5):
            votes["order"] = "forward"
            votes["words"] = pd.Series(["A is better. " * int(n) for n in self.random.integers(0, 400, len(rows))])
        more = votes.iloc[:1].assign(pair_id=-1 if votes["pair_id"].dtype != "str" else "elsewhere")
        return pd.concat([votes, more], ignore_index=True)

    def _audit(self) -> pd.DataFrame:
        rows = self.random.permutation(self.count)[: int(self.random.integers(5, 80))]
        ids, better = self._better(rows, 1.0)
        answers = pd.DataFrame({"pair_id": ids, "better_id": np.where(better, "chosen", "rejected")})
        other = answers["better_id"].map({"chosen": "rejected", "rejected": "chosen"})
        return pd.concat([answers, answers.assign(better_id=other)[:3], answers[3:5]], ignore_index=True)

    def by_table(self) -> Any:
        """What `clean_preferences` makes of it."""
        scores = self.files.get("scores")
        together = pd.concat(scores, ignore_index=True) if isinstance(scores, list) else None
        votes, audit = self.files.get("votes"), self.files.get("audit")
        return clean_preferences(self.pairs, together, votes, audit, **self.settings)

    def by_files(self, folder: Path, kind: str = "parquet") -> Any:
        """What `clean_preference_files` makes of it; the tables lie in files of this kind."""
        given: dict[str, Any] = {}
        for name, tables in self.files.items():
            parts = tables if isinstance(tables, list) else [tables]
            files = [write(part, folder / f"{name}{place}.{kind}") for place, part in enumerate(parts)]
            given[name] = files if name == "scores" else files[0]
        pairs = write(self.pairs, folder / f"pairs.{kind}")
        return clean_preference_files(pairs, folder / "out", **given, **self.settings)


def write(table: pd.DataFrame, file: Path) -> Path:
    if file.suffix == ".parquet":
        table.to_parquet(file, row_group_size=100)
    else:
        table.to_json(file, orient="records", lines=True)
    return file


def check_same(found: Any, folder: Path, expected: Any, pairs: pd.DataFrame) -> None:
    """A result and its files are those of `clean_preferences`, bit by bit."""
    pd.testing.assert_frame_equal(found.pairs, expected.pairs, check_exact=True)
    pd.testing.assert_frame_equal(found.wanted, expected.wanted, check_exact=True)
    pd.testing.assert_frame_equal(found.sensitivity, expected.sensitivity, check_exact=True)
    assert str(found.label_accuracy) == str(expected.label_accuracy)
    assert [note for note in found.notes if "which is kept; the model's is" not in note] == list(expected.notes)
    kept = expected.apply(pairs)
    write_parquet(kept, folder / "kept.parquet")
    written, there = read_table_file(folder / "kept.parquet"), read_table_file(folder / "out/pairs.parquet")
    assert list(there) == list(kept)
    loose = [name for name in there if name == NUMBER]
    pd.testing.assert_frame_equal(there.drop(columns=loose), written.drop(columns=loose), check_exact=True)
    pd.testing.assert_frame_equal(there[loose], written[loose], check_dtype=False, check_exact=True)
    outcomes = read_table_file(folder / "out/outcomes.parquet")
    carried = {name: pairs[name].to_numpy() for name in ("source", "row_id") if name in pairs}
    pd.testing.assert_frame_equal(outcomes, expected.pairs.assign(**carried), check_exact=True)
    expected.evidence().write(folder / FILE)
    assert read_parquet(folder / "out" / FILE, EVIDENCE).equals(read_parquet(folder / FILE, EVIDENCE))


@pytest.mark.parametrize("seed", range(24))  # nearly all couples of what a table may have
def test_files_in_batches_end_as_tables_do(seed: int, tmp_path: Path, in_small_batches: None) -> None:
    world = World(seed)
    found = world.by_files(tmp_path)
    check_same(found, tmp_path, world.by_table(), world.pairs)


@pytest.mark.parametrize("seed", range(3))
def test_files_of_other_formats_end_as_tables_do(seed: int, tmp_path: Path) -> None:
    world = World(seed)
    found = world.by_files(tmp_path, "jsonl")
    read = {name: read_table_file(tmp_path / f"{name}0.jsonl") for name in ("votes", "audit") if name in world.files}
    if isinstance(world.files.get("scores"), list):
        files = sorted(tmp_path.glob("scores*.jsonl"))
        read["scores"] = pd.concat([read_table_file(file) for file in files], ignore_index=True)
    pairs = read_table_file(tmp_path / "pairs.jsonl")
    check_same(found, tmp_path, clean_preferences(pairs, **read, **world.settings), pairs)


def table_of_types() -> pa.Table:
    """Pairs whose columns have types that Python objects would lose."""
    world = World(0)
    count = world.count
    sign = np.where(world.right, 1.0, -1.0)
    return pa.table({
        "chosen": pa.array(["c"] * count, pa.string()), "rejected": pa.array(["r"] * count, pa.large_string()),
        "good": sign, "bad": np.zeros(count), "n": pa.array([None, *range(count - 1)], pa.int64()),
        "votes": pa.array([[]] * count, pa.list_(pa.struct([("voter", pa.string()), ("margin", pa.float64())]))),
        "chosen_rank": pa.array([1] * count, pa.int8()), "rejected_rank": pa.array([2] * count, pa.int8()),
    })  # fmt: skip


def test_columns_keep_their_order_and_types(tmp_path: Path) -> None:
    table = table_of_types()
    pq.write_table(table, tmp_path / "pairs.parquet")
    better = ["chosen" if value > 0 else "rejected" for value in table["good"].to_pylist()]
    pd.DataFrame({"pair_id": range(len(table)), "better_id": better}).to_csv(tmp_path / "audit.csv", index=False)
    named = {"chosen_scores": ["good"], "rejected_scores": ["bad"], "audit": tmp_path / "audit.csv"}
    found = clean_preference_files(tmp_path / "pairs.parquet", tmp_path / "out", **named)
    written = read_parquet(tmp_path / "out/pairs.parquet")
    assert written.column_names == [*table.column_names, "probability"]
    same = ("votes", "n", "chosen_rank", "rejected_rank", "good", "bad")
    assert [written.schema.field(name).type for name in same] == [table.schema.field(name).type for name in same]
    flipped = (found.pairs["outcome"] == "flipped")[found.pairs["outcome"] != "dropped"].tolist()
    assert any(flipped) and not all(flipped)
    for left, right, before in (("chosen", "rejected", "cr"), ("chosen_rank", "rejected_rank", (1, 2))):
        sides = list(zip(written[left].to_pylist(), written[right].to_pylist(), strict=True))
        assert sides == [tuple(before)[::-1] if turned else tuple(before) for turned in flipped]
    assert set(written["good"].to_pylist()) == {1.0, 0.0}  # what is flipped had -1, and now has the other's 0


@pytest.mark.parametrize("kind", ["an index", "a dictionary", "sides of two types", "compressed"])
def test_what_cannot_be_read_in_batches_is_read_as_a_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(4)
    pairs, file = world.pairs, tmp_path / "pairs.parquet"
    written: list[Path] = []
    whole = preference_files._read
    monkeypatch.setattr(preference_files, "_read", lambda path: [written.append(path), whole(path)][1])
    if kind == "an index":
        pairs = pairs.set_index("my first")
    elif kind == "a dictionary":
        pairs = pairs.assign(group=pd.Categorical(["a"] * len(pairs)))
    elif kind == "sides of two types":
        pairs = pairs.assign(chosen_size=1, rejected_size=0.5)
    pairs.to_parquet(file)
    if kind == "compressed":
        import gzip

        file = tmp_path / "pairs.parquet.gz"
        file.write_bytes(gzip.compress((tmp_path / "pairs.parquet").read_bytes()))
    settings = {"chosen_scores": world.settings.get("chosen_scores", []), "rejected_scores": []}
    settings["rejected_scores"] = world.settings.get("rejected_scores", [])
    found = clean_preference_files(file, tmp_path / "out", **settings)
    assert written == ([] if kind == "an index" else [file])
    expected = clean_preferences(pairs, **settings)
    there = pd.read_parquet(tmp_path / "out/pairs.parquet")
    pd.testing.assert_frame_equal(found.pairs, expected.pairs, check_exact=True)
    assert list(there) == list(expected.apply(pairs))


@pytest.mark.parametrize("seed", range(6))
def test_people_who_check_a_table_without_ids_name_its_sides_by_their_texts(
    seed: int, tmp_path: Path, in_small_batches: None
) -> None:
    from dt2it_pipeline.human_review.own_tables import blind_id

    random = np.random.default_rng(seed)
    right = random.random(120) < 0.7
    pairs = pd.DataFrame({
        "pair_id": [f"p{row}" for row in random.permutation(120)],
        "chosen": [f"good {row}" for row in range(120)], "rejected": [f"bad {row}" for row in range(120)],
        "up": np.where(right, 1.0, -1.0) + 0.3 * random.normal(size=120), "down": 0.0,
    })  # fmt: skip
    some = pairs.iloc[random.permutation(120)[:40]]
    named = np.where(right[some.index], some["chosen"], some["rejected"])
    blind = [blind_id(pair, text) for pair, text in zip(some["pair_id"], named, strict=True)]
    pd.DataFrame({"pair_id": some["pair_id"], "better_id": blind}).to_csv(tmp_path / "audit.csv", index=False)
    pairs.to_parquet(tmp_path / "pairs.parquet")
    columns = {"chosen_scores": "up", "rejected_scores": "down"}
    found = clean_preference_files(
        tmp_path / "pairs.parquet", tmp_path / "out", audit=tmp_path / "audit.csv", **columns
    ).pairs
    checked = found.iloc[some.index]
    assert (checked["outcome"] == np.where(right[some.index], "kept", "flipped")).all()
    assert set(checked["reason"]) == {"checked"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("two scores", "voter 'v0' gives response 'c0' two different scores"),
        ("null voter", "rows have no voter"),
        ("no scores", "no pair of `pairs` has finite scores of both its sides"),
        ("torn", "scores0.parquet cannot be read"),
        ("repeated id", "repeat a pair_id, for example"),
        ("no such column", r"pairs: missing columns \['answer'\]"),
    ],
)
def test_what_is_wrong_in_a_batch_is_one_sentence(
    change: str, message: str, tmp_path: Path, in_small_batches: None
) -> None:
    rows = range(200)
    pairs = pd.DataFrame({
        "pair_id": [f"p{row}" for row in rows], "chosen_id": [f"c{row}" for row in rows],
        "rejected_id": [f"r{row}" for row in rows], "chosen": "text", "rejected": "text",
    })  # fmt: skip
    ids = pd.concat([pairs["chosen_id"], pairs["rejected_id"]], ignore_index=True)
    scores = pd.DataFrame({"response_id": ids, "voter": "v0", "score": np.arange(400.0)})
    settings = {}
    if change == "two scores":
        scores = pd.concat([scores, scores.iloc[:1].assign(score=-1.0)])
    elif change == "null voter":
        scores["voter"] = scores["voter"].mask(scores.index == 300)
    elif change == "no scores":
        scores["response_id"] += "x"
    elif change == "repeated id":
        pairs.loc[150, "pair_id"] = "p3"
    elif change == "no such column":
        settings["chosen"] = "answer"
    pairs.to_parquet(tmp_path / "pairs.parquet")
    file = write(scores, tmp_path / "scores0.parquet")
    if change == "torn":
        content = bytearray(file.read_bytes())
        content[4:200] = bytes(196)
        file.write_bytes(bytes(content))
    with pytest.raises(CurationError, match=message):
        clean_preference_files(tmp_path / "pairs.parquet", tmp_path / "out", [file], **settings)
    assert not (tmp_path / "out").exists()


def test_nothing_is_read_on_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pd.DataFrame({"pair_id": ["p"] * 3000, "chosen": "text", "rejected": "text"})
    pairs.to_parquet(tmp_path / "pairs.parquet", row_group_size=10)
    monkeypatch.setattr(preference_streams, "_BATCH_BYTES", 1)
    monkeypatch.setattr(preference_streams, "_FEWEST", 1)
    taken, failed, read, others = preference_streams._batches, Event(), [], enumerate_threads()

    def slowly(*given: Any) -> Any:
        for batch in taken(*given):
            failed.wait(0 if read else 30)  # the first batch comes when the command has failed
            read.append(batch)
            yield batch

    monkeypatch.setattr(preference_streams, "_batches", slowly)
    with pytest.raises(CurationError, match="2999 rows repeat a pair_id"):
        clean_preference_files(tmp_path / "pairs.parquet", tmp_path / "out")
    failed.set()
    (thread,) = [each for each in enumerate_threads() if each.name.startswith("lengths") and each not in others]
    thread.join(30)
    assert len(read) == 1
