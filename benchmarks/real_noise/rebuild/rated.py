"""Builders of sets of WMT23 and Simplicity-DA: the label is one person's rating of texts, the truth is other people's.

The rules were fixed before a method saw the sets.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.real_noise.rebuild.building import (
    Tables,
    add_pair,
    add_scores,
    add_vote,
    complete,
    empty,
    numeric,
    parsing,
    read_table,
    read_text,
)
from benchmarks.real_noise.sets import SetError

WMT23 = Path("data") / "mt-metrics-eval-v2" / "wmt23"
CAMPAIGN = Path("data") / "campaign-ruction-rc5"
VOTERS = {
    "chrf": "chrF-refA",
    "bertscore": "BERTscore-refA",
    "bleurt": "BLEURT-20-refA",
    "cometkiwi": "CometKiwi-src",
}
JUDGES = {"gemba-mqm-gpt4": "GEMBA-MQM-src", "instructscore-llama": "instructscore-refA"}
REFERENCE = "refA"  # metrics compare with it, so that it is no side of a pair

# MQM's weights, as the repositories of the ratings have them; other severities weigh nothing
WEIGHTS = {"Major": 5.0, "Minor": 1.0}
PUNCTUATION, NON_TRANSLATION = ("Minor", "Fluency/Punctuation", 0.1), ("Major", "Non-translation!", 25.0)

METRICS = {"sari": "sari", "bleu": "bleu", "bertscore": "bertscore_P"}
LEAST_DIFFERENCE = 15.0  # of mean ratings from 0 to 100, from which one simplification is the better one

Segments = dict[str, list[float | None]]
Experts = dict[tuple[int, str], dict[str, float]]


def wmt23_zhen(checkout: Path, ratings: Path, seed: int) -> Tables:
    """WMT23's Chinese-English translations: the label is one professional translator's, the truth is three others'.

    All of them marked errors (MQM), the three in all systems of a segment side by side (`ratings`). The annotator who
    gave a score of 0 to 100 (DA+SQM) is a judge.
    """
    scores = checkout / WMT23 / "human-scores"
    people = {"sqm-annotator": scores / "zh-en.da-sqm.seg.score"}
    label = scores / "zh-en.mqm.seg.score"
    return _wmt23(checkout, "zh-en", label, lambda places: _side_by_side(ratings, places), people, seed)


def wmt23_ende(checkout: Path, seed: int) -> Tables:
    """WMT23's English-German translations: the label is annotators', the truth is two professional translators'.

    The annotators gave a score of 0 to 100 (DA+SQM), the translators, of two campaigns, marked errors (MQM). A rater of
    the second campaign, who marked errors and then gave a score (ESA), is a judge.
    """
    scores = checkout / WMT23 / "human-scores"

    def experts(places: Mapping[tuple[str, int], int]) -> Experts:
        files = (scores / "en-de.mqm.seg.score", checkout / CAMPAIGN / "en-de.MQM-1.seg.score")
        campaigns = [_segments(file, len(places)) for file in files]
        systems = sorted({system for rated in campaigns for system in rated})
        for file, rated in zip(files, campaigns, strict=True):
            complete(file, rated, systems)
        made: Experts = {}
        for campaign, rated in enumerate(campaigns):
            for system, own in rated.items():
                for index, score in enumerate(own):
                    if score is not None:
                        made.setdefault((index, system), {})[f"campaign-{campaign}"] = score
        return made

    people = {"esa-rater": checkout / CAMPAIGN / "en-de.ESA-1.seg.score"}
    return _wmt23(checkout, "en-de", scores / "en-de.da-sqm.seg.score", experts, people, seed)


def simplicity(checkout: Path, seed: int) -> Tables:
    """Simplicity-DA: label and judges are three crowd workers who rated both simplifications, the truth the others.

    Simplifications of a sentence are drawn into a ring, so that each is in two pairs at most. The mean ratings of the
    twelve or more other workers differ by 15 or more of 100 points.
    """
    folder, keys = checkout / "data", ["sent_id", "sys_name"]
    ratings = folder / "ratings_per_annotator" / "simplicity_DA_ratings.csv"
    rated = read_table(ratings, [*keys, "orig_sent", "simp_sent", "rater_id"], ["simplicity"])
    with parsing(ratings):
        rated = rated.astype({"rater_id": int})
    file = folder / "metrics_per_sentence" / "metrics_simplicity_DA.csv"
    scored = read_table(file, [*keys, "test_set"], list(METRICS.values()))
    scores = {(row["sent_id"], row["sys_name"]): row for row in scored[scored["test_set"] == "all"].to_dict("records")}
    complete(ratings, set(zip(rated["sent_id"], rated["sys_name"], strict=True)), scores)
    draw, tables = np.random.default_rng(seed), empty()
    for sentence, rows in rated.groupby("sent_id"):
        texts = {str(system): str(text) for system, text in zip(rows["sys_name"], rows["simp_sent"], strict=True)}
        given = {
            str(system): dict(zip(own["rater_id"], own["simplicity"], strict=True))
            for system, own in rows.groupby("sys_name")
        }
        ring = [str(system) for system in draw.permutation(sorted(texts))]
        for first, second in pairwise([*ring, *ring[: len(ring) > 2]]):
            raters = [int(one) for one in draw.permutation(sorted(set(given[first]) & set(given[second])))]
            apart = {rater: given[first][rater] - given[second][rater] for rater in raters}
            labeller = next((rater for rater in raters if apart[rater]), None)
            if labeller is None or len(raters) < 3:
                continue
            judges = [rater for rater in raters if rater != labeller][:2]
            means = [
                np.mean([score for rater, score in given[system].items() if rater not in (labeller, *judges)])
                for system in (first, second)
            ]
            if abs(means[0] - means[1]) < LEAST_DIFFERENCE:
                continue
            pair = f"sda-{sentence}-{first}-{second}"
            ids = {1: f"sda-{sentence}-{first}", 2: f"sda-{sentence}-{second}"}
            label = _side(apart[labeller])
            sides = {1: texts[first], 2: texts[second]}
            tables["pairs"].append(
                {
                    "pair_id": pair,
                    "source": "simplicity",
                    "prompt": str(rows["orig_sent"].iloc[0]),
                    "chosen_id": ids[label],
                    "rejected_id": ids[3 - label],
                    "chosen": sides[label],
                    "rejected": sides[3 - label],
                }
            )
            tables["truth"].append({"pair_id": pair, "better_id": ids[_side(means[0] - means[1])]})
            for place, judge in enumerate(judges, 1):
                add_vote(tables, pair, f"rater-{place}", ids.get(_side(apart[judge])), ids[label])
        for system in ring:
            if (sentence, system) not in scores:
                raise SetError(f"{file}: no row of sentence {sentence} and system {system}, which is rated")
            tables["scores"] += [
                {
                    "response_id": f"sda-{sentence}-{system}",
                    "voter": voter,
                    "score": float(scores[sentence, system][column]),
                }
                for voter, column in METRICS.items()
            ]
    return tables


def _wmt23(
    checkout: Path,
    languages: str,
    label: Path,
    experts: Callable[[Mapping[tuple[str, int], int]], Experts],
    people: Mapping[str, Path],
    seed: int,
) -> Tables:
    """Pairs of two systems' translations of one segment; each translation is in one pair at most.

    The label is the higher score in `label`, the better side the one that two experts or more prefer and none finds
    worse; pairs without either and pairs of equal texts are left out. `experts` makes the experts' scores from the row
    of each document and place in it; `people` are files of raters who are judges.
    """
    folder = checkout / WMT23
    sources = _lines(folder / "sources" / f"{languages}.txt")
    kinds, places = _documents(folder / "documents" / f"{languages}.docs", len(sources))
    labels = _segments(label, len(sources))
    rated = experts(places)
    systems = sorted({system for _, system in rated} - {REFERENCE})
    complete(label, labels, systems)

    def metric(name: str) -> Segments:
        file = folder / "metric-scores" / languages / f"{name}.seg.score"
        made = _segments(file, len(sources), systems)
        for system in systems:
            if None in made[system]:  # people scored some of the segments, metrics all of them
                raise SetError(f"{file}: {system} has no score of segment {made[system].index(None) + 1}")
        return made

    voters = {voter: metric(name) for voter, name in VOTERS.items()}
    judges = {judge: metric(name) for judge, name in JUDGES.items()}
    judges |= {judge: _segments(file, len(sources), systems) for judge, file in people.items()}
    texts = {
        system: _lines(folder / "system-outputs" / languages / f"{system}.txt", len(sources)) for system in systems
    }
    draw, tables = np.random.default_rng(seed), empty()
    for index, source in enumerate(sources):
        there = [system for system in systems if (index, system) in rated]
        order = [str(system) for system in draw.permutation(there)]
        for both in zip(order[0::2], order[1::2], strict=False):
            first, second = both
            better = _agreed(rated[index, first], rated[index, second])
            side = _preferred(labels, both, index)
            one, other = (texts[system][index] for system in both)
            if not better or not side or one == other:
                continue
            pair = f"{languages}-{index:04d}-{first}-{second}"
            chosen = add_pair(tables, pair, kinds[index], source, one, other, side)
            tables["truth"].append({"pair_id": pair, "better_id": f"{pair}-{better}"})
            for voter, scores in voters.items():
                add_scores(tables, pair, voter, [scores[system][index] for system in both])
            for judge, scores in judges.items():
                if (verdict := _preferred(scores, both, index)) is not None:
                    add_vote(tables, pair, judge, f"{pair}-{verdict}" if verdict else None, chosen)
    return tables


def _side_by_side(ratings: Path, places: Mapping[tuple[str, int], int]) -> Experts:
    """Scores by segment, system and expert from a table with a row per marked error; 0 is free of errors."""
    columns = ["system", "doc", "docSegId", "rater", "category", "severity"]
    errors = read_table(ratings, columns, sep="\t", quoting=csv.QUOTE_NONE)
    made: Experts = {}
    with parsing(ratings):
        errors = errors.astype({"docSegId": int})
    for row in errors.to_dict("records"):
        document, place = str(row["doc"]).split(":")[0], row["docSegId"]
        if (document, place) not in places:
            raise SetError(f"{ratings}: segment {place} of {document} is not one of the checkout's documents")
        weight = WEIGHTS.get(row["severity"], 0.0)
        for severity, category, special in (PUNCTUATION, NON_TRANSLATION):
            if (row["severity"], row["category"]) == (severity, category):
                weight = special
        own = made.setdefault((places[document, place], str(row["system"])), {})
        own[row["rater"]] = own.get(row["rater"], 0.0) - weight
    return made


def _agreed(first: Mapping[str, float], second: Mapping[str, float]) -> int:
    """1 or 2, the side that two experts or more prefer and none finds worse, or 0."""
    sides = [_side(score - second[expert]) for expert, score in first.items() if expert in second]
    decided = [side for side in sides if side]
    return decided[0] if len(decided) > 1 and len(set(decided)) == 1 else 0


def _preferred(scores: Segments, both: tuple[str, str], index: int) -> int | None:
    """1 or 2 for the system with the higher score of a segment, 0 if they are equal, None where one has none."""
    first, second = (scores[system][index] if system in scores else None for system in both)
    return None if first is None or second is None else _side(first - second)


def _side(difference: float) -> int:
    """1 where the first side has more, 2 where the second one has, 0 where none has."""
    return 1 if difference > 0 else 2 if difference < 0 else 0


def _documents(file: Path, count: int) -> tuple[list[str], dict[tuple[str, int], int]]:
    """The kind of text of each segment, and the row of each "kind_document" and place in it, which counts from 1."""
    rows = [tuple(line.split("\t")) for line in _lines(file, count)]
    if any(len(row) != 2 for row in rows):
        raise SetError(f"{file}: expected lines of a kind and a document with a tab between; download it again")
    seen: dict[str, int] = {}
    places = {}
    for index, (kind, document) in enumerate(rows):
        name = f"{kind}_{document}"
        seen[name] = seen.get(name, 0) + 1
        places[name, seen[name]] = index
    return [kind for kind, _ in rows], places


def _segments(file: Path, count: int, systems: Iterable[str] = ()) -> Segments:
    """The scores of all segments by system, None where a segment has none; `systems` must be there."""
    made: Segments = {}
    for line, text in enumerate(_lines(file), 1):
        system, _, score = text.partition("\t")
        try:
            made.setdefault(system, []).append(None if score == "None" else numeric(score))
        except ValueError:
            raise SetError(f"{file}, line {line}: {score!r} is no score; download it again") from None
    for system in (*made, *systems):
        if len(made.get(system, ())) != count:
            raise SetError(
                f"{file}: {system} has {len(made.get(system, ()))} scores for {count} segments; download it again"
            )
    return made


def _lines(file: Path, count: int | None = None) -> list[str]:
    lines = read_text(file).removesuffix("\n").split("\n")
    if count not in (None, len(lines)):
        raise SetError(f"{file}: {len(lines)} lines for {count} segments; download it again")
    return lines
