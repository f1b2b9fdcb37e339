"""Builders of sets whose noisy label is a model's, from files of JudgeBench, GenAI-Bench and T2VScore."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

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
    read,
    read_lines,
    read_object,
    read_table,
)
from benchmarks.real_noise.sets import SetError

JUDGEBENCH = "dataset=judgebench,response_model=gpt-4o-2024-05-13"
REWARD_MODELS = {
    "internlm2-7b": "internlm_internlm2-7b-reward",
    "internlm2-20b": "internlm_internlm2-20b-reward",
    "skywork-llama-8b": "Skywork_Skywork-Reward-Llama-3.1-8B",
    "skywork-gemma-27b": "Skywork_Skywork-Reward-Gemma-2-27B",
    "grm-gemma-2b": "Ray2333_GRM-Gemma-2B-rewardmodel-ft",
}
O1 = "o1-mini-2024-09-12"
SIDES = {"A>B": 1, "B>A": 2, "A=B": 0}

# task of GenAI-Bench: whose verdict is the label, whose are voters, whose are judges
GENAI = {
    "genai_images": (
        "image_generation",
        "gemini-1.5-pro",
        ("idefics2", "qwenVL"),
        ("gpt4o", "videollava", "minicpm-V-2.5", "llavanext"),
    ),
    "genai_edits": (
        "image_edition",
        "gpt4o",
        ("gemini-1.5-pro", "instructblip"),
        ("idefics2", "videollava", "minicpm-V-2.5"),
    ),
    "genai_videos": ("video_generation", "gemini-1.5-pro", ("idefics2",), ("gpt4o", "cogvlm", "llavanext")),
}
HUMAN = {"leftvote": 1, "rightvote": 2}

T2V_VOTERS = {"clipscore": "CLIP Score", "blip-bleu": "BLIP-BLEU"}
T2V_LABEL, T2V_JUDGE = "X-CLIP Score", "T2VScore-A (GPT-4V)"
Taken = TypeVar("Taken")

LEAST_DIFFERENCE = 0.5  # of mean ratings, from which one video is the better one


def judgebench(checkout: Path, label: str) -> Tables:
    """JudgeBench's pairs of GPT-4o's answers: one is right and one is wrong, which was checked.

    The noisy label is the sign of a reward model (`label` "grm-gemma-2b"), which is then no voter, or o1-mini's verdict
    in the order of the file ("o1"), when its verdict in the other order is the only one kept. Pairs with a label of
    neither side are left out.
    """
    file = checkout / "data" / f"{JUDGEBENCH}.jsonl"
    with parsing(file):
        data = [
            (
                row["pair_id"],
                row["source"].split("-")[0],
                (row["question"], row["response_A"], row["response_B"]),
                {1: 1, 2: 2}[SIDES[row["label"]]],  # one is right
            )
            for row in read_lines(file)
        ]
    ids = {key for key, *_ in data}
    o1 = _judged(checkout, "arena_hard", O1, ids, _decisions)
    complete(file, ids, o1)
    models = {voter: _judged(checkout, "reward_model", name, ids, _scores) for voter, name in REWARD_MODELS.items()}
    tables = empty()
    for index, (key, source, texts, right) in enumerate(data):
        scores = {voter: judged[key] for voter, judged in models.items()}
        first, second = o1[key]
        verdicts = {"ab": first, "ba": 3 - second if second else second}  # the second time A and B are exchanged
        side = verdicts.pop("ab") if label == "o1" else _higher(scores.pop(label))
        if not side:
            continue
        pair = f"jb-{index:03d}"
        chosen = add_pair(tables, pair, source, *texts, side)
        tables["truth"].append({"pair_id": pair, "better_id": f"{pair}-{right}"})
        for voter, given in scores.items():
            add_scores(tables, pair, voter, given)
        for order, better in verdicts.items():
            if better is not None:
                add_vote(tables, pair, "o1-mini", f"{pair}-{better}" if better else None, chosen, order)
    return tables


def genai_bench(checkout: Path, name: str) -> Tables:
    """A task of GenAI-Bench: the truth is a visitor's vote for one side, label, voters and judges are models' verdicts.

    Pairs where the visitor or the labelling model did not prefer a side are left out. A voter's score is 0.5 for the
    better side and -0.5 for the other, 0 both at a tie. Where no verdict could be read there is none.
    """
    task, labeller, voters, judges = GENAI[name]
    folder = checkout / "results" / task
    file = folder / labeller / "pairwise.json"
    with parsing(file):
        rows = [
            (int(row["idx"]), HUMAN.get(row["human_vote"]), row["prompt" if "prompt" in row else "instruct_prompt"])
            for row in read(file)
        ]
    indices = [index for index, *_ in rows]
    told = {model: _verdicts(folder / model / "pairwise.json", indices) for model in (labeller, *voters, *judges)}
    tables = empty()
    for index, better, prompt in rows:
        said = {model: verdicts.get(index) for model, verdicts in told.items()}
        label = said[labeller]
        if not better or not label:
            continue
        pair = f"{name.replace('_', '-')}-{index:04d}"
        ids = {1: f"{pair}-1", 2: f"{pair}-2"}
        tables["pairs"].append(
            {
                "pair_id": pair,
                "source": task,
                "prompt": prompt,
                "chosen_id": ids[label],
                "rejected_id": ids[3 - label],
            }
        )
        tables["truth"].append({"pair_id": pair, "better_id": ids[better]})
        for voter in voters:
            if (side := said[voter]) is not None:
                half = {1: 0.5, 2: -0.5, 0: 0.0}[side]
                add_scores(tables, pair, f"{voter}-as-score", [half, 0.0 - half])
        for judge in judges:
            if (side := said[judge]) is not None:
                add_vote(tables, pair, judge, ids.get(side), ids[label])
    return tables


def t2vscore(checkout: Path, seed: int) -> Tables:
    """Videos of five models: the label is X-CLIP's, the truth the mean of human ratings of alignment.

    Of each prompt two pairs without a common video are drawn, so that a video is in one pair at most. Pairs whose mean
    ratings differ by less than 0.5 or whose label's scores are equal are left out. The judge is the sign of T2VScore-A,
    which asks GPT-4V questions.
    """
    folder = checkout / "datasets"
    file = folder / "t2vscore_alignment_score.json"
    with parsing(file):
        rated = {
            key: (row["prompt"], {model: _mean(ratings) for model, ratings in row["models"].items()})
            for key, row in read_object(file).items()
        }
    scored, columns = folder / "t2vscore_results.csv", (T2V_LABEL, T2V_JUDGE, *T2V_VOTERS.values())
    table = read_table(scored, ("video_id", "model_name"), columns)
    scores = {(str(row["video_id"]), row["model_name"]): row for row in table.to_dict("records")}
    draw, tables = np.random.default_rng(seed), empty()
    for key, (prompt, means) in rated.items():
        models = [str(model) for model in draw.permutation(sorted(means))]
        for first, second in zip(models[0::2], models[1::2], strict=False):
            difference = means[first] - means[second]
            if missing := [model for model in (first, second) if (key, model) not in scores]:
                raise SetError(f"{scored}: no row of video {key} and model {missing[0]}, which is rated")
            given = [scores[key, model] for model in (first, second)]
            label = _higher([one[T2V_LABEL] for one in given])
            if abs(difference) < LEAST_DIFFERENCE - 1e-9 or not label:
                continue
            pair = f"t2v-{key}-{first}-{second}"
            ids = {1: f"{pair}-1", 2: f"{pair}-2"}
            tables["pairs"].append(
                {
                    "pair_id": pair,
                    "source": "t2v",
                    "prompt": prompt,
                    "chosen_id": ids[label],
                    "rejected_id": ids[3 - label],
                }
            )
            tables["truth"].append({"pair_id": pair, "better_id": ids[1 if difference > 0 else 2]})
            for voter, column in T2V_VOTERS.items():
                add_scores(tables, pair, voter, [one[column] for one in given])
            better = _higher([one[T2V_JUDGE] for one in given])
            add_vote(tables, pair, "t2vscore-a", ids.get(better), ids[label])
    return tables


def _judged(checkout: Path, way: str, model: str, ids: set[str], of: Callable[[Any], Taken]) -> dict[str, Taken]:
    """What `of` takes of the judgments on each pair, all of `ids` among them."""
    file = checkout / "outputs" / f"{JUDGEBENCH},judge_name={way},judge_model={model}.jsonl"
    with parsing(file):
        judged = {row["pair_id"]: of(row["judgments"]) for row in read_lines(file)}
    if missing := sorted(ids - set(judged)):
        raise SetError(f"{file}: {len(missing)} of the pairs in data/ have no judgment; the first is {missing[0]}")
    return judged


def _decisions(judgments: Any) -> tuple[int | None, int | None]:
    """The verdicts in two orders: 1 or 2, 0 for a tie, None where there is none."""
    first, second = (SIDES.get(str(one["decision"])) for one in judgments)
    return first, second


def _scores(judgments: Any) -> list[float]:
    """The scores of both responses."""
    first, second = map(numeric, judgments[0]["judgment"]["scores"])
    return [first, second]


def _mean(ratings: Any) -> float:
    if not ratings:
        raise ValueError("a video without ratings")
    return float(np.mean([numeric(rating) for rating in ratings]))


def _higher(pair: list[float]) -> int:
    """1 or 2, which score is higher, or 0."""
    return 0 if pair[0] == pair[1] else 1 if pair[0] > pair[1] else 2


def _verdicts(file: Path, indices: list[int]) -> dict[int, int | None]:
    """Verdicts by index, all of `indices`."""
    with parsing(file):
        made = {int(row["idx"]): _verdict(row["model_vote"]) for row in read(file)}
    complete(file, made, indices)
    return made


def _verdict(text: str | None) -> int | None:
    """1 or 2 for a side, 0 for a tie, None where the answer cannot be read."""
    found = str(text).strip("[] ").replace(" ", "")
    return 0 if found in ("A=B=Good", "A=B=Bad", "A=B", "Tie") else SIDES.get(found)
