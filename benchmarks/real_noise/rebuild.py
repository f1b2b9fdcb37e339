"""Builds three sets from files of their sources, which the user has downloaded.

    python -m benchmarks.real_noise.rebuild llmbar_palm LLMBAR --output SETS
    python -m benchmarks.real_noise.rebuild pandalm PANDALM --output SETS
    python -m benchmarks.real_noise.rebuild tifa160 TIFA --ratings dsg_tifa160_anns.csv --output SETS

LLMBAR, PANDALM and TIFA are checkouts of github.com/princeton-nlp/LLMBar (MIT), github.com/WeOpenML/PandaLM
(Apache-2.0) and github.com/Yushi-Hu/tifa (Apache-2.0). `dsg_tifa160_anns.csv` is in `datasets/` of
github.com/linzhiqiu/t2v_metrics (Apache-2.0). In `pandalm` and `tifa160` the annotator whose label is the noisy one is
drawn: another seed gives another set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.real_noise.sets import FILES

Rows = list[dict[str, Any]]
Tables = dict[str, Rows]

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
    tables = _empty()
    for subset in SUBSETS:
        folder = checkout / "Dataset" / "LLMBar" / subset
        name = folder.name.lower()
        told = {way: _read(folder / "evaluators" / way / "result.json") for way in _ways()}
        for index, row in enumerate(_read(folder / "dataset.json")):
            pair = f"lb-{name}-{index:03d}"
            label = told[LABEL][index]["results"][-1]["swap = False"]["winner"]
            if label not in ("1", "2"):
                continue
            chosen = _pair(tables, pair, name, row["input"], row["output_1"], row["output_2"], int(label))
            tables["truth"].append({"pair_id": pair, "better_id": f"{pair}-{row['label']}"})
            for voter, way in RATINGS.items():
                found = told[way][index]["results"][-1]
                _scores(tables, pair, voter, [_number(found[f"score_{side}"][0]) for side in (1, 2)])
            for judge, way in JUDGES.items():
                winner = told[way][index]["results"][-1]["swap = False"]["winner"]
                _vote(tables, pair, judge, f"{pair}-{winner}" if winner in ("1", "2") else None, chosen)
    return tables


def pandalm(checkout: Path, seed: int) -> Tables:
    """PandaLM's test set: one annotator's label is the noisy one, the truth is what the other two agree on."""
    draw = np.random.default_rng(seed)
    folder, tables = checkout / "data", _empty()
    judged = [_read(folder / f"{name}-testset-v1.json") for name in ("gpt-3.5-turbo", "pandalm-7b")]
    for row, (gpt, own) in zip(_read(folder / "testset-v1.json"), zip(*judged, strict=True), strict=True):
        said = [row[f"annotator{number}"] for number in (1, 2, 3)]
        label = said.pop(int(draw.integers(3)))
        if label not in (1, 2) or said[0] != said[1] or said[0] not in (1, 2):
            continue
        pair = f"pl-{row['idx']:04d}"
        prompt = "\n".join(filter(None, (row["instruction"], row["input"])))
        chosen = _pair(tables, pair, "all", prompt, row["response1"], row["response2"], label)
        tables["truth"].append({"pair_id": pair, "better_id": f"{pair}-{said[0]}"})
        for judge, result in (("gpt35", gpt["gpt_result"]), ("pandalm7b", own["pandalm_result"])):
            side = int(result) if str(result) in ("1", "2") else 0
            half = {1: 0.5, 2: -0.5, 0: 0.0}[side]
            _scores(tables, pair, f"{judge}-as-score", [half, 0.0 - half])
            _vote(tables, pair, judge, f"{pair}-{side}" if side else None, chosen)
    return tables


def tifa160(checkout: Path, ratings: Path, seed: int) -> Tables:
    """TIFA v1.0 images: label and judges are three of DSG's raters, the truth is the mean of the others and TIFA's two.

    A pair is two images of one caption which four raters or more rated both. Its mean ratings differ by 0.5 or more.
    """
    draw = np.random.default_rng(seed)
    images = json.loads((checkout / "human_annotations" / "human_annotations_with_scores.json").read_text("utf-8"))
    rated = pd.read_csv(ratings)
    names = rated["source_id"] + "_" + rated["model_type"].map(MODELS)
    by_image = {
        str(name): dict(zip(rows["worker_id"], rows["answer"], strict=True)) for name, rows in rated.groupby(names)
    }
    tables, captions = _empty(), pd.Series({name: row["text_id"] for name, row in images.items()})
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
            for number, worker in enumerate(left[:2], 1):
                better = sides[apart[worker] < 0] if apart[worker] else None
                _vote(tables, pair, f"rater-{number}", better, chosen)
    for name, row in images.items():
        tables["scores"] += [
            {"response_id": name, "voter": voter, "score": float(row[column])} for voter, column in METRICS.items()
        ]
    return tables


def write(tables: Tables, folder: Path) -> None:
    """Write a set's four files into a folder, which may not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        pd.DataFrame(tables[name]).to_parquet(folder / f"{name}.parquet", index=False)


def _empty() -> Tables:
    return {name: [] for name in FILES}


def _ways() -> Iterable[str]:
    return [LABEL, *RATINGS.values(), *JUDGES.values()]


def _read(file: Path) -> Rows:
    made: Rows = json.loads(file.read_text(encoding="utf-8"))
    return made


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _pair(tables: Tables, pair: str, source: str, prompt: str, first: str, second: str, label: int) -> str:
    """Append a pair whose `label` (1 or 2) side is chosen; returns chosen_id."""
    texts = {1: str(first), 2: str(second)}  # PandaLM has a response that JSON reads as a truth value
    tables["pairs"].append(
        {
            "pair_id": pair,
            "source": source,
            "prompt": prompt,
            "chosen_id": f"{pair}-{label}",
            "rejected_id": f"{pair}-{3 - label}",
            "chosen": texts[label],
            "rejected": texts[3 - label],
        }
    )
    return f"{pair}-{label}"


def _scores(tables: Tables, pair: str, voter: str, scores: Iterable[float | None]) -> None:
    for side, score in enumerate(scores, 1):
        if score is not None:
            tables["scores"].append({"response_id": f"{pair}-{side}", "voter": voter, "score": score})


def _vote(tables: Tables, pair: str, judge: str, better: str | None, chosen: str) -> None:
    verdict = "tie" if better is None else "chosen" if better == chosen else "rejected"
    tables["votes"].append({"pair_id": pair, "judge": judge, "order": "ab", "better_id": better, "verdict": verdict})


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_noise.rebuild",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("set", choices=("llmbar_palm", "pandalm", "tifa160"))
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--ratings", type=Path, help="DSG's ratings, for tifa160")
    parser.add_argument("--output", type=Path, required=True, help="folder in which the set's folder is made")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.set == "tifa160" and given.ratings is None:
        parser.error("tifa160 needs --ratings dsg_tifa160_anns.csv")
    builders: dict[str, Callable[[], Tables]] = {
        "llmbar_palm": lambda: llmbar_palm(given.checkout),
        "pandalm": lambda: pandalm(given.checkout, given.seed),
        "tifa160": lambda: tifa160(given.checkout, given.ratings, given.seed),
    }
    try:
        tables = builders[given.set]()
    except FileNotFoundError as error:
        parser.error(f"{error.filename} is missing; is {given.checkout} a checkout of the set's source?")
    write(tables, given.output / given.set)
    print(f"{given.output / given.set}: {len(tables['pairs'])} pairs")


if __name__ == "__main__":
    main()
