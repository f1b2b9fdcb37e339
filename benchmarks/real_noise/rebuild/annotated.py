"""Builders of sets from files of LLMBar, PandaLM and TIFA."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.real_noise.rebuild.building import (
    Tables,
    add_pair,
    add_scores,
    add_vote,
    complete,
    empty,
    number,
    numeric,
    parsing,
    read,
    read_object,
    read_table,
)

SUBSETS = ("Natural", "Adversarial/Neighbor", "Adversarial/GPTInst", "Adversarial/GPTOut", "Adversarial/Manual")
RATINGS = {
    "gpt4-rating": "GPT-4/Rating",
    "gpt4-rating-norules": "GPT-4/Rating_NoRules",
    "chatgpt-rating": "ChatGPT/Rating",
    "chatgpt-rating-norules": "ChatGPT/Rating_NoRules",
}
JUDGES = {
    "gpt4-vanilla": "GPT-4/Vanilla",
    "gpt4-metricsref": "GPT-4/Metrics_Reference",
    "palm2-metrics": "PaLM2/Metrics",
    "chatgpt0301-cot": "ChatGPT-0301/CoT",
    "chatgpt-vanilla": "ChatGPT/Vanilla",
    "llama2-metricsref": "LLaMA2/Metrics_Reference",
    "falcon-metrics": "Falcon/Metrics",
}
LABEL = "PaLM2/Vanilla"
METRICS = {
    "clipscore": "clipscore_vitb32",
    "tifa_mplug": "tifa_mplug-large",
    "tifa_blip2": "tifa_blip2-flant5xl",
    "tifa_git": "tifa_git-large",
    "meteor": "meteor",
}
MODELS = {
    "mini-dalle": "mini_dalle",
    "sd1dot1": "stable_diffusion_v1_1",
    "sd1dot5": "stable_diffusion_v1_5",
    "sd2dot1": "stable_diffusion_v2_1",
    "vq-diffusion": "vq_diffusion",
}
LEAST_DIFFERENCE = 0.5  # of mean ratings, from which one image is the better one


def llmbar_palm(checkout: Path) -> Tables:
    """LLMBar with PaLM2's verdict (prompt Vanilla, first order) as the noisy label; pairs without one are left out."""
    tables = empty()
    for subset in SUBSETS:
        folder = checkout / "Dataset" / "LLMBar" / subset
        name = folder.name.lower()
        told = {way: read(folder / "evaluators" / way / "result.json") for way in _ways()}
        file = folder / "dataset.json"
        rows = read(file)
        for way, verdicts in told.items():
            complete(folder / "evaluators" / way / "result.json", range(len(verdicts)), range(len(rows)))
            complete(file, range(len(rows)), range(len(verdicts)))
        with parsing(folder):
            for index, row in enumerate(rows):
                pair = f"lb-{name}-{index:03d}"
                label = told[LABEL][index]["results"][-1]["swap = False"]["winner"]
                if label not in ("1", "2"):
                    continue
                chosen = add_pair(tables, pair, name, row["input"], row["output_1"], row["output_2"], int(label))
                tables["truth"].append({"pair_id": pair, "better_id": f"{pair}-{row['label']}"})
                for voter, way in RATINGS.items():
                    found = told[way][index]["results"][-1]
                    add_scores(tables, pair, voter, [number(found[f"score_{side}"][0]) for side in (1, 2)])
                for judge, way in JUDGES.items():
                    winner = told[way][index]["results"][-1]["swap = False"]["winner"]
                    add_vote(tables, pair, judge, f"{pair}-{winner}" if winner in ("1", "2") else None, chosen)
    return tables


def pandalm(checkout: Path, seed: int) -> Tables:
    """PandaLM's test set: one annotator's label is the noisy one, the truth is what the other two agree on."""
    draw = np.random.default_rng(seed)
    folder, tables = checkout / "data", empty()
    judged = [read(folder / f"{name}-testset-v1.json") for name in ("gpt-3.5-turbo", "pandalm-7b")]
    with parsing(folder):
        for row, (gpt, own) in zip(read(folder / "testset-v1.json"), zip(*judged, strict=True), strict=True):
            said = [row[f"annotator{number}"] for number in (1, 2, 3)]
            label = said.pop(int(draw.integers(3)))
            if label not in (1, 2) or said[0] != said[1] or said[0] not in (1, 2):
                continue
            pair = f"pl-{row['idx']:04d}"
            prompt = "\n".join(filter(None, (row["instruction"], row["input"])))
            chosen = add_pair(tables, pair, "all", prompt, row["response1"], row["response2"], label)
            tables["truth"].append({"pair_id": pair, "better_id": f"{pair}-{said[0]}"})
            for judge, result in (("gpt35", gpt["gpt_result"]), ("pandalm7b", own["pandalm_result"])):
                side = int(result) if str(result) in ("1", "2") else 0
                half = {1: 0.5, 2: -0.5, 0: 0.0}[side]
                add_scores(tables, pair, f"{judge}-as-score", [half, 0.0 - half])
                add_vote(tables, pair, judge, f"{pair}-{side}" if side else None, chosen)
    return tables


def tifa160(checkout: Path, ratings: Path, seed: int) -> Tables:
    """TIFA v1.0 images: label and judges are three of DSG's raters, the truth is the mean of the others and TIFA's two.

    A pair is two images of one caption which four raters or more rated both. Its mean ratings differ by 0.5 or more.
    """
    draw = np.random.default_rng(seed)
    file = checkout / "human_annotations" / "human_annotations_with_scores.json"
    with parsing(file):
        images = {
            name: {
                **{key: row[key] for key in ("text_id", "text")},
                "human_scores": [numeric(score) for score in row["human_scores"]],
                **{column: numeric(row[column]) for column in METRICS.values()},
            }
            for name, row in read_object(file).items()
        }
    rated = read_table(ratings, ("source_id", "model_type", "worker_id"), ("answer",))
    with parsing(ratings):
        rated = rated.astype({"worker_id": int})
    names = rated["source_id"] + "_" + rated["model_type"].map(MODELS)
    by_image = {
        str(name): dict(zip(rows["worker_id"], rows["answer"], strict=True)) for name, rows in rated.groupby(names)
    }
    complete(ratings, by_image, images)
    tables, captions = empty(), pd.Series({name: row["text_id"] for name, row in images.items()})
    for _, ids in captions.groupby(captions, sort=False):
        for first, second in combinations(ids.index, 2):
            both = sorted(set(by_image.get(first, {})) & set(by_image.get(second, {})))
            apart = {worker: by_image[first][worker] - by_image[second][worker] for worker in both}
            decided = [worker for worker in both if apart[worker]]
            if len(both) < 4 or not decided:
                continue
            labeller = decided[int(draw.integers(len(decided)))]
            left = [int(worker) for worker in draw.permutation([worker for worker in both if worker != labeller])]
            own = [a - b for a, b in zip(images[first]["human_scores"], images[second]["human_scores"], strict=True)]
            difference = float(np.mean([*(apart[worker] for worker in left[2:]), *own]))
            if abs(difference) < LEAST_DIFFERENCE:
                continue
            pair, sides = f"tifa-{len(tables['pairs']):04d}", (first, second)
            chosen, rejected = sides if apart[labeller] > 0 else sides[::-1]
            source, prompt = images[first]["text_id"].split("_")[0], images[first]["text"]
            tables["pairs"].append(
                {"pair_id": pair, "source": source, "prompt": prompt, "chosen_id": chosen, "rejected_id": rejected}
            )
            tables["truth"].append({"pair_id": pair, "better_id": sides[difference < 0]})
            for place, worker in enumerate(left[:2], 1):
                better = sides[apart[worker] < 0] if apart[worker] else None
                add_vote(tables, pair, f"rater-{place}", better, chosen)
    for name, row in images.items():
        tables["scores"] += [
            {"response_id": name, "voter": voter, "score": row[column]} for voter, column in METRICS.items()
        ]
    return tables


def _ways() -> Iterable[str]:
    return [LABEL, *RATINGS.values(), *JUDGES.values()]
