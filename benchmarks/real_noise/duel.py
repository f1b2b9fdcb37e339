"""Runs all methods on all sets, scenarios and sizes; one record per method and draw."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.real_noise import baselines, crowds, policies, prefcleanbench
from benchmarks.real_noise.evidence import Evidence, NotApplicable, Refused
from benchmarks.real_noise.measures import (
    Stated,
    at_same_share,
    best_of,
    difference,
    lost_by_chance,
    measure,
    resample_counts,
    under_assumptions,
)
from benchmarks.real_noise.sets import AUDITED, NoisySet, evidence_of, scenarios, subsample

Method = Callable[[Evidence], pd.DataFrame]

SIMPLE: Mapping[str, Method] = {
    "nothing": baselines.nothing,
    "margin sign": baselines.margin_sign,
    "drop, voters": baselines.drop_voters,
    "drop, judges": baselines.drop_judges,
    "drop, both": baselines.drop_both,
    "judges' majority": baselines.judges_majority,
    "audit regression": baselines.audit_regression,
}
# What only trusted pairs show: which side is better, and not how right labels are.
OF_TRUSTED: Mapping[str, Method] = {"side regression": baselines.side_regression}
RIVALS: Mapping[str, tuple[str, ...]] = {
    "all": tuple(SIMPLE),
    "that do not relabel": ("nothing", "drop, voters", "drop, judges", "drop, both"),
    "that see no checked label": (*(name for name in SIMPLE if name != "audit regression"), "side regression"),
}
PUBLISHED: Mapping[str, Method] = {
    "LLM-Judge-R": prefcleanbench.llm_judge_r,
    "LLM-Judge-F": prefcleanbench.llm_judge_f,
    "RwGap-R": prefcleanbench.rw_gap_r,
    "RwGap-F": prefcleanbench.rw_gap_f,
    "VoteAll-R": prefcleanbench.vote_all_r,
    "VoteAll-F": prefcleanbench.vote_all_f,
    "VoteMaj-R": prefcleanbench.vote_maj_r,
    "VoteMaj-F": prefcleanbench.vote_maj_f,
    "Dawid-Skene": crowds.dawid_skene,
    "CROWDLAB": crowds.crowdlab,
    "confident learning": crowds.confident_learning,
}
OURS: Mapping[str, Method] = {
    "paper": policies.paper,
    "clean_preferences": policies.clean_preferences,
    "clean_preferences, wanted": policies.clean_preferences_wanted,
    "clean_preferences, trusted": policies.clean_preferences_trusted,
}
METHODS: Mapping[str, Method] = {**SIMPLE, **OF_TRUSTED, **PUBLISHED, **OURS}


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        sizes: numbers of pairs; None is all pairs.
        repeats: draws per size; of all pairs without an audit there is one.
        cost: of a wrong label that is kept, for the utility.
        seed: of all draws.
        methods: names among METHODS.
        audited: pairs of an audit; of twice as many pairs at least.
    """

    sizes: Sequence[int | None]
    repeats: int = 5
    cost: float = 3.0
    seed: int = 0
    methods: Sequence[str] = tuple(METHODS)
    audited: int = AUDITED


def run(sets: Sequence[NoisySet], plan: Plan) -> tuple[list[dict[str, Any]], list[str]]:
    """The records, and sentences about methods that ran nowhere or refused evidence.

    A record has set, scenario, size ("all" or a number), repeat, method, `pairs` that were measured, `before` (their
    label accuracy), and what `measures.Measured` has, intervals as {estimate, low, high}; `after` is the label accuracy
    of kept pairs as a method states it: estimate, low, high. The project's methods and the simple ones also have
    `against`, by kind of simple baselines without the method itself: the best `rival`, the `advantage` over it, and
    `by_chance` and `if_alike`: numbers of the resamples in which a method that is as good as that rival counts as
    worse. Resamples of the same number draw the same pairs of a set. `bounds` are those of a sensitivity table, over
    all its assumptions, and `assumed` is a `measures.Assumed` of the claim.
    """
    records: list[dict[str, Any]] = []
    reasons: dict[str, list[NotApplicable]] = {}
    for given in sets:
        for size in plan.sizes:
            if size is not None and size >= len(given.pairs):
                continue
            for scenario in scenarios(given):
                if scenario.audit and (size or len(given.pairs)) < 2 * plan.audited:
                    continue
                for repeat in range(1 if size is None and not scenario.audit else plan.repeats):
                    drawn = subsample(given, size or len(given.pairs), plan.seed + repeat)
                    evidence = evidence_of(drawn, scenario, repeat, plan.audited)
                    head = {"set": given.name, "scenario": scenario.name, "size": size or "all", "repeat": repeat}
                    records += [head | made for made in _one(evidence, given, plan, reasons)]
            print(f"{given.name}, {size or 'all'} pairs: done", file=sys.stderr, flush=True)
    ran = {record["method"] for record in records}
    said = []
    for name, errors in reasons.items():
        refused = [error for error in errors if isinstance(error, Refused)]
        if refused:
            said.append(f"{name} refused {len(refused)} draws; the first: {refused[0]}")
        elif name not in ran:
            said.append(f"{name} was left out: {errors[0]}.")
    return records, said


def _one(
    evidence: Evidence, given: NoisySet, plan: Plan, reasons: dict[str, list[NotApplicable]]
) -> Iterator[dict[str, Any]]:
    """The records of all methods on one draw of one scenario."""
    truth = given.truth.set_index("pair_id")["better_id"]
    measured = ~evidence.audited
    better = evidence.pairs["pair_id"].map(truth)
    label_right = (better == evidence.pairs["chosen_id"]).to_numpy(dtype=bool)
    right = label_right[measured]
    answers: dict[str, pd.DataFrame] = {}
    for name in dict.fromkeys([*SIMPLE, *OF_TRUSTED, *plan.methods]):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answers[name] = METHODS[name](evidence)
        except NotApplicable as error:
            if name in plan.methods:
                reasons.setdefault(name, []).append(error)
    simple = {name: answers[name][measured] for name in SIMPLE if name in answers}
    rivals = simple | {name: answers[name][measured] for name in OF_TRUSTED if name in answers}
    place = pd.Series(np.arange(len(given.pairs)), given.pairs["pair_id"])[evidence.pairs["pair_id"]].to_numpy()
    counts = resample_counts(len(given.pairs), plan.seed)[:, place[measured]]  # the same of all draws of a set
    for name in plan.methods:
        if name in answers:
            made, attrs = answers[name][measured], answers[name].attrs
            known = _after(answers[name], label_right)[~measured] if attrs.get("audited_too") else np.zeros(0)
            stated = Stated(*attrs["after"], known[np.isfinite(known)]) if "after" in attrs else None
            found = measure(made, right, simple, plan.seed, plan.cost, stated)
            head = {"method": name, "pairs": len(right), "before": float(right.mean())}
            assumes = {}
            if "assumed" in attrs:
                shares, sides, table = attrs["assumed"]
                kept = made["keep"].to_numpy(dtype=bool)
                under = under_assumptions(shares, sides[measured], table, made["probability"].to_numpy(), right, kept)
                assumes = {} if under is None else {"assumed": asdict(under)}
            others = {other: answer for other, answer in rivals.items() if other != name}
            compared = name in OURS or name in SIMPLE
            against = {"against": _against(made, right, others, counts, plan.seed)} if compared else {}
            yield (
                head
                | asdict(found)
                | against
                | assumes
                | {key: attrs[key] for key in ("after", "wanted", "bounds") if key in attrs}
            )


def _against(
    made: pd.DataFrame,
    label_right: np.ndarray,
    simple: Mapping[str, pd.DataFrame],
    counts: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """By kind of simple baselines: the best one, the difference to it, and resamples that are lost by chance."""
    own = resample_counts(len(label_right), seed)  # as for the interval of `measure`
    keep = made["keep"].to_numpy(dtype=bool)
    right, kept = label_right ^ made["flip"].to_numpy(dtype=bool), keep.astype(float)
    found: dict[str, Any] = {}
    compared: list[set[str]] = []
    for kind, names in RIVALS.items():
        there = {name: simple[name] for name in names if name in simple}
        others = at_same_share(there, label_right, int(keep.sum()))
        if others and set(others) not in compared:  # without an audit some kinds are the same baselines
            compared.append(set(others))
            rival = best_of(others)
            lost = {
                key: np.flatnonzero(lost_by_chance((right, kept), others, counts, alike=alike)).tolist()
                for key, alike in (("by_chance", False), ("if_alike", True))
            }
            advantage = asdict(difference(right, kept, *others[rival], own))
            found[kind] = {"rival": rival, "advantage": advantage, **lost}
    return found


def _after(answer: pd.DataFrame, label_right: np.ndarray) -> np.ndarray:
    """Of every pair, 1 where its label is right after the decision, 0 where wrong, NaN where it is dropped."""
    right = label_right ^ answer["flip"].to_numpy(dtype=bool)
    return np.where(answer["keep"].to_numpy(dtype=bool), right, np.nan)


def one_thread() -> None:
    """Keep numeric libraries to one thread, unless the environment says otherwise; call before they start any."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
