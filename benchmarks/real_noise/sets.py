"""Sets with real label noise: reading them, drawing some of their pairs, and the scenarios made of them.

A set is a folder with four Parquet files. `pairs`: pair_id, source, chosen_id, rejected_id, in the direction of the
noisy label, and perhaps prompt and the texts chosen and rejected. `scores`: response_id, voter, score. `votes`:
pair_id, judge, order, better_id, verdict (chosen, rejected, tie or null). `truth`: pair_id, better_id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.real_noise.evidence import VERDICTS, Evidence
from dt2it_pipeline.storage.atomic import read_parquet

FILES = {
    "pairs": ("pair_id", "source", "chosen_id", "rejected_id"),
    "scores": ("response_id", "voter", "score"),
    "votes": ("pair_id", "judge", "order", "better_id", "verdict"),
    "truth": ("pair_id", "better_id"),
}
AUDITED = 50  # pairs of an audit


class SetError(Exception):
    """A set is missing or malformed; the text says which file and what to do."""


@dataclass(frozen=True)
class NoisySet:
    """A set, its tables as on disk; `truth` has one row per pair."""

    name: str
    pairs: pd.DataFrame
    scores: pd.DataFrame
    votes: pd.DataFrame
    truth: pd.DataFrame

    @property
    def right(self) -> np.ndarray:
        """Bool [n]: the noisy label is right."""
        better = self.pairs["pair_id"].map(self.truth.set_index("pair_id")["better_id"])
        return (better == self.pairs["chosen_id"]).to_numpy(dtype=bool)


@dataclass(frozen=True)
class Scenario:
    """Which evidence there is: voters and judges by name, and whether there is an audit."""

    name: str
    voters: tuple[str, ...]
    judges: tuple[str, ...]
    audit: bool = False


def load_sets(folder: Path, names: Sequence[str] = ()) -> list[NoisySet]:
    """The sets in the folders of `folder`, sorted by name, or those with these `names`.

    Raises:
        SetError: there is none, or one lacks a file, a column or a truth.
    """
    there = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not there:
        raise SetError(f"{folder}: there are no set folders; each needs {_files()}")
    if unknown := sorted(set(names) - set(there)):
        raise SetError(f"{folder}: there is no set {', '.join(unknown)}; there are: {', '.join(there)}")
    return [load_set(folder / name) for name in (names or there)]


def load_set(folder: Path) -> NoisySet:
    """The set in a folder, under the folder's name.

    Raises:
        SetError: a file or a column is missing, a pair id repeats, or a pair has no truth.
    """
    if missing := [f"{name}.parquet" for name in FILES if not (folder / f"{name}.parquet").is_file()]:
        raise SetError(f"{folder}: {', '.join(missing)} missing; a set needs {_files()}")
    tables = {}
    for name, columns in FILES.items():
        table = tables[name] = read_parquet(folder / f"{name}.parquet").to_pandas()
        if absent := [column for column in columns if column not in table.columns]:
            raise SetError(f"{folder / name}.parquet: columns {absent} missing; it has {list(table.columns)}")
    pairs, truth = tables["pairs"], tables["truth"]
    for name, table in (("pairs", pairs), ("truth", truth)):
        if table["pair_id"].duplicated().any():
            first = table.loc[table["pair_id"].duplicated(), "pair_id"].iloc[0]
            raise SetError(f"{folder / name}.parquet: pair_id {first} occurs twice; keep one row per pair")
    better = pairs["pair_id"].map(truth.set_index("pair_id")["better_id"])
    known = (better == pairs["chosen_id"]) | (better == pairs["rejected_id"])
    if not known.all():
        first = pairs.loc[~known, "pair_id"].iloc[0]
        raise SetError(
            f"{folder / 'truth.parquet'}: {int((~known).sum())} pairs have no better_id that is one of their sides; "
            f"the first is {first}; leave these pairs out of pairs.parquet"
        )
    return NoisySet(folder.name, pairs.reset_index(drop=True), tables["scores"], tables["votes"], truth)


def _files() -> str:
    return ", ".join(f"{name}.parquet" for name in FILES)


def subsample(given: NoisySet, count: int, seed: int) -> NoisySet:
    """A set of `count` pairs drawn without replacement, in their order, with the scores and votes on them alone."""
    if count >= len(given.pairs):
        return given
    drawn = np.sort(np.random.default_rng(seed).permutation(len(given.pairs))[:count])
    pairs = given.pairs.iloc[drawn].reset_index(drop=True)
    responses = pd.concat([pairs["chosen_id"], pairs["rejected_id"]])
    return NoisySet(
        given.name,
        pairs,
        given.scores[given.scores["response_id"].isin(responses)].reset_index(drop=True),
        given.votes[given.votes["pair_id"].isin(pairs["pair_id"])].reset_index(drop=True),
        given.truth[given.truth["pair_id"].isin(pairs["pair_id"])].reset_index(drop=True),
    )


def scenarios(given: NoisySet) -> list[Scenario]:
    """The scenarios of a set; those that come to the same voters, judges and audit appear once.

    The two judges that are most or least often right are chosen with the truth in view: they say how good the judges of
    a scenario are, and no method learns of it. Judges of equal merit are taken by name.
    """
    voters, judges = tuple(given.scores["voter"].unique()), tuple(given.votes["judge"].unique())
    truly = judge_accuracy(given)
    agree = judge_agreement(given)
    best, worst = _two(judges, truly, 1), _two(judges, truly, -1)
    made = [
        Scenario("all voters", voters, ()),
        Scenario("first voter", voters[:1], ()),
        Scenario("last voter", voters[-1:], ()),
        Scenario("no voter, 2 best judges", (), best),
        Scenario("all voters, 1 judge", voters, best[:1]),
        Scenario("all voters, 2 best judges", voters, best),
        Scenario("all voters, 2 worst judges", voters, worst),
        Scenario("all voters, 2 judges nearest the label", voters, _two(judges, agree, 1)),
        Scenario("all voters, all judges", voters, judges),
        Scenario("all voters, audit", voters, (), audit=True),
        Scenario("all voters, 2 best judges, audit", voters, best, audit=True),
    ]
    seen: dict[tuple[tuple[str, ...], tuple[str, ...], bool], Scenario] = {}
    for scenario in made:
        if scenario.voters or scenario.judges:
            key = tuple(sorted(scenario.voters)), tuple(sorted(scenario.judges)), scenario.audit
            seen.setdefault(key, scenario)
    return list(seen.values())


def judge_accuracy(given: NoisySet) -> dict[str, float]:
    """Share of each judge's verdicts that name the better side; a tie counts half, no verdict is left out."""
    sign = np.where(given.right, 1.0, -1.0)
    return _shares(given, dict(zip(given.pairs["pair_id"], sign, strict=True)))


def judge_agreement(given: NoisySet) -> dict[str, float]:
    """Share of each judge's verdicts that are for the noisy label; a tie counts half, no verdict is left out."""
    return _shares(given, dict.fromkeys(given.pairs["pair_id"], 1.0))


def _shares(given: NoisySet, sign: dict[str, float]) -> dict[str, float]:
    votes = given.votes[given.votes["verdict"].notna()]
    said = (1 + votes["verdict"].map(VERDICTS) * votes["pair_id"].map(sign)) / 2
    return {str(judge): float(share) for judge, share in said.groupby(votes["judge"]).mean().items()}


def _two(judges: Sequence[str], merit: dict[str, float], direction: int) -> tuple[str, ...]:
    return tuple(sorted(judges, key=lambda judge: (-direction * merit.get(judge, 0.5), judge))[:2])


def evidence_of(given: NoisySet, scenario: Scenario, seed: int, audited: int = AUDITED) -> Evidence:
    """What a scenario lets methods see of a set; an audit is a random sample of `audited` pairs.

    Raises:
        SetError: the set has fewer than twice as many pairs as the audit.
    """
    audit = None
    if scenario.audit:
        if len(given.pairs) < 2 * audited:
            raise SetError(f"{given.name}: an audit of {audited} needs {2 * audited} pairs")
        chosen = np.random.default_rng([seed, 1]).permutation(len(given.pairs))[:audited]
        ids = given.pairs["pair_id"].iloc[np.sort(chosen)]
        audit = given.truth[given.truth["pair_id"].isin(ids)].reset_index(drop=True)
    return Evidence(
        given.pairs,
        given.scores[given.scores["voter"].isin(scenario.voters)].reset_index(drop=True),
        given.votes[given.votes["judge"].isin(scenario.judges)].reset_index(drop=True),
        audit,
        seed,
    )
