"""Builders of sets of images and videos, from files of VIEScore (ImagenHub), TC-Bench and T2IScoreScore.

No image or video is in two pairs: the candidates of a prompt are drawn in an order, and neighbours make a pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.real_noise.rebuild.building import (
    Tables,
    add_scores,
    add_vote,
    complete,
    empty,
    numeric,
    parsing,
    read,
    read_object,
    read_table,
)
from benchmarks.real_noise.sets import SetError

# task of ImagenHub: how its raters' files begin, and the models that VIEScore has results of
EDITS = {
    "Text-Guided_IE": (
        "Text-Guided_IE",
        (
            "CycleDiffusion", "DiffEdit", "InstructPix2Pix", "MagicBrush", "Pix2PixZero", "Prompt2prompt", "SDEdit",
            "Text2Live",
        ),
    ),
    "Mask-Guided_IE": ("Mask-Guided_IE", ("BlendedDiffusion", "Glide", "SDInpaint", "SDXLInpaint")),
}  # fmt: skip
IMAGES = {
    "Text-Guided_IG": ("Text-To-Image", ("DALLE2", "DeepFloydIF", "OpenJourney", "SD", "SDXL")),
    "Subject-Driven_IG": (
        "Subject-Driven_IG",
        ("BLIPDiffusion_Gen", "DreamBooth", "DreamBoothLora", "TextualInversion"),
    ),
    "Multi-Concept_IC": ("Multi-Subject_IG", ("CustomDiffusion", "DreamBooth", "TextualInversion")),
    "Control-Guided_IG": ("Control-Guided_IG", ("ControlNet", "UniControl")),
    "Subject-Driven_IE": ("Subject-Driven_IE", ("BLIPDiffusion_Edit", "DreamEdit", "PhotoSwap")),
}
RATERS = (1, 2, 3)
LEAST_RATED = 0.25  # difference of mean ratings of 0 to 1, from which one image is the better one
IMAGENHUB_JUDGES = ("gpt4o", "gpt4v")
# the published files of these lack images of a task and model, those of Qwen-VL up to a quarter
INCOMPLETE = ("gemini", "gpt4v", "llava", "qwenvl")
LEAST_PRESENT = 0.5  # share of images or videos that a file which lacks some must have
# automatic metrics, and 1, or -1 where less is better
METRICS = {"CLIP_Score": 1, "CLIP_I": 1, "DINO": 1, "LPIPS": -1}

TC_MODELS = ("dynamicrafter", "lavie", "modelscope", "seine", "videocrafter")
TC_VOTERS = {"clipscore": "clip_eval", "viclip": "viclip_eval", "umtscore": "umtscore_eval"}
TC_JUDGE = "gpt4v"
LEAST_DIFFERENCE = 0.5  # of mean ratings of 1 to 5, from which one video is the better one

TS2_LABEL = "VIEScore.csv"
TS2_VOTERS = {name: f"scores_per_image/{name}_score.csv" for name in ("clipscore", "alignscore", "blipscore")}
TS2_JUDGES = {
    "dsg-fuyu": "scores_per_image/DSG/fuyu_dsg_score.csv",
    "dsg-llava": "scores_per_image/DSG/llava_dsg_score.csv",
    "dsg-gpt4v": "gpt4v_dsg_score.csv",
}
MOST_PAIRS = 4  # of a prompt

Scores = dict[str, float]  # of one voter or judge by image or video


def imagenhub_edits(checkout: Path, seed: int) -> Tables:
    """Edited images of ImagenHub: the label is one of three raters', the truth the mean rating of the other two.

    The rater is drawn among those who prefer a side. A rating is the mean of what a rater gives for consistency and for
    quality, 0 to 1 each; pairs whose mean ratings differ by less than 0.25 are left out.
    """
    return _imagenhub(checkout, EDITS, ("llava", *METRICS, "qwenvl", "gemini"), None, seed)


def imagenhub_images(checkout: Path, seed: int) -> Tables:
    """Generated images of ImagenHub: the label is Gemini's by its ratings, the truth the mean rating of three people.

    Pairs that Gemini rates alike and those whose mean ratings differ by less than 0.25 of 0 to 1 are left out.
    """
    return _imagenhub(checkout, IMAGES, ("llava", *METRICS, "qwenvl"), "gemini", seed)


def _imagenhub(
    checkout: Path,
    tasks: dict[str, tuple[str, tuple[str, ...]]],
    voters: tuple[str, ...],
    labeller: str | None,
    seed: int,
) -> Tables:
    root, draw, tables = checkout / "paper_implementation", np.random.default_rng(seed), empty()
    answers = root / "_answers"
    models_rating = [name for name in (*voters, *IMAGENHUB_JUDGES, labeller) if name and name not in METRICS]
    for task, (prefix, models) in tasks.items():
        folder = f"ImagenHub_{task}"
        people = _people(root / "_human_annotations" / "ImagenHub_human_eval_results" / folder, prefix, models)
        rated: dict[str, Scores] = {}
        for model in models:
            for name in models_rating:
                source = answers / f"results_{name}_0shot" / folder / model
                least = LEAST_PRESENT if name in INCOMPLETE else 1.0
                rated.setdefault(name, {}).update(_viescore(source, people, least))
            metrics = answers / "results_autometrics" / folder / f"{model}.json"
            with parsing(metrics):
                scores = {
                    image: {name: METRICS[name] * numeric(row[name]) for name in METRICS.keys() & row.keys()}
                    for image, row in read_object(metrics).items()
                }
            every = {name for row in scores.values() for name in row}  # a task has metrics of its own
            complete(metrics, {image for image, row in scores.items() if row and row.keys() == every}, people)
            for image, row in scores.items():
                for metric, score in row.items():
                    rated.setdefault(metric, {})[f"{model}/{image}"] = score
        prompts = _prompts(answers / "results_gpt4o_0shot" / folder / models[0] / "SC.json")
        for image, ratings in people.items():
            for first, second in _neighbours(sorted(ratings), draw):
                items = (f"{first}/{image}", f"{second}/{image}")
                apart = [a - b for a, b in zip(ratings[first], ratings[second], strict=True)]
                label = _better(rated[labeller], items) if labeller else _drawn(apart, draw)
                difference = float(np.mean(apart))
                if not label or abs(difference) < LEAST_RATED - 1e-9:
                    continue
                pair = f"ih-{task}-{image.removesuffix('.jpg')}-{first}-{second}"
                ids = _add(tables, pair, task, prompts[image], label, difference)
                _evidence(tables, pair, ids, label, items, rated, voters, IMAGENHUB_JUDGES)
    # voter by voter, so that the first and the last one are those that rated all tasks
    tables["scores"].sort(key=lambda row: voters.index(row["voter"]))
    return tables


def tcbench(checkout: Path, seed: int) -> Tables:
    """Videos between two given frames: the label is one of three raters', the truth the mean rating of the other two.

    The rater is drawn among those who prefer a side. A rating is the mean of two questions, 1 to 5; pairs whose mean
    ratings differ by less than 0.5 are left out. The judge is GPT-4V, by the share of assertions that hold.
    """
    folder, draw, tables = checkout / "eval_results", np.random.default_rng(seed), empty()
    human = folder / "human_eval" / "i2v" / "human_scores_all.json"
    videos: dict[str, dict[str, list[float]]] = {}
    with parsing(human):
        for name, (one, other) in read_object(human).items():
            model, _, video = name.partition("_")
            if model not in TC_MODELS:
                raise SetError(f"{human}: {name} is of none of the models {', '.join(TC_MODELS)}")
            if len(one) == len(other) == len(RATERS):  # one video has two raters only
                ratings = [(numeric(a) + numeric(b)) / 2 for a, b in zip(one, other, strict=True)]
                videos.setdefault(video, {})[model] = ratings
    rated: dict[str, Scores] = {}
    for model in TC_MODELS:
        wanted = [f"{model}_{video}" for video, given in videos.items() if model in given]
        for voter, way in TC_VOTERS.items():
            file = folder / way / "i2v" / f"{model}.json"
            with parsing(file):
                scores = {f"{model}_{video}": numeric(score) for video, score in read_object(file).items()}
            complete(file, scores, wanted)
            rated.setdefault(voter, {}).update(scores)
        file = folder / "gpt_eval" / "i2v" / f"{model}.json"
        with parsing(file):
            shares = {f"{model}_{video}": _share(assertions) for video, assertions in read_object(file).items()}
        complete(file, shares, wanted, LEAST_PRESENT)  # the published files lack up to 11 of a model's 196 videos
        rated.setdefault(TC_JUDGE, {}).update(shares)
    file = checkout / "i2v_prompts.json"
    with parsing(file):
        prompts = {int(row["id"]): (row["type"], row["prompt"]) for row in read(file)}
        abouts = {video: prompts[int(video.split("-")[0])] for video in videos}
    for video, given in videos.items():
        for first, second in _neighbours(sorted(given), draw):
            apart = [a - b for a, b in zip(given[first], given[second], strict=True)]
            label = _drawn(apart, draw)
            difference = float(np.mean(apart))
            if not label or abs(difference) < LEAST_DIFFERENCE - 1e-9:
                continue
            pair = f"tc-{video}-{first}-{second}"
            ids = _add(tables, pair, *abouts[video], label, difference)
            items = (f"{first}_{video}", f"{second}_{video}")
            _evidence(tables, pair, ids, label, items, rated, TC_VOTERS, (TC_JUDGE,))
    return tables


def t2iscorescore(checkout: Path, seed: int) -> Tables:
    """Images of T2IScoreScore: VIEScore gives the label, the number of errors that the authors found the truth.

    Pairs with as many errors on both sides and those that VIEScore rates alike are left out; of those of a prompt the
    first four are taken. Judges are the signs of what three models answer to DSG's questions.
    """
    draw, tables = np.random.default_rng(seed), empty()
    file = checkout / "data" / "metadata.csv"
    images = read_table(file, ("id", "target_prompt", "file_name", "image_source", "rank"), dtype=str)
    images.index = images["file_name"].str.removeprefix("images/").str.removesuffix(".jpg")
    with parsing(file):
        errors = images["rank"].str[0].astype(int)  # 1a and 1b have one error each, and not the same
    ways = {**TS2_VOTERS, **TS2_JUDGES}
    rated = {name: _ts2_scores(checkout / "output" / way, images.index) for name, way in ways.items()}
    label_scores = _ts2_scores(checkout / "output" / TS2_LABEL, images.index, "fname")
    complete(file, images.index, label_scores)
    for _, rows in images.groupby("id", sort=False):
        kept = 0
        for items in _neighbours(list(rows.index), draw):
            first, second = items
            label, difference = _better(label_scores, items), float(errors[second] - errors[first])
            if not label or not difference or kept == MOST_PAIRS:
                continue
            kept += 1
            about, pair = rows.loc[first], f"ts2-{first}-{second}"
            ids = _add(tables, pair, str(about["image_source"]), str(about["target_prompt"]), label, difference)
            _evidence(tables, pair, ids, label, items, rated, TS2_VOTERS, TS2_JUDGES)
    return tables


def _neighbours(names: Sequence[str], draw: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Pairs of names in a drawn order, each name in one pair at most."""
    order = [str(name) for name in draw.permutation(names)]
    return zip(order[0::2], order[1::2], strict=False)


def _drawn(apart: list[float], draw: np.random.Generator) -> int | None:
    """Take a rater who prefers a side out of `apart`, ratings of the first minus those of the second side.

    Returns that rater's side, or None where nobody prefers one.
    """
    decided = [rater for rater, difference in enumerate(apart) if difference]
    return _side(apart.pop(decided[int(draw.integers(len(decided)))])) if decided else None


def _side(difference: float) -> int:
    """1 or 2, which side a difference, first minus second, prefers, or 0."""
    return 0 if not difference else 1 if difference > 0 else 2


def _better(scores: Scores, items: tuple[str, str]) -> int | None:
    """The side that has the higher score, 0 where both are alike, None where one is missing."""
    first, second = (scores.get(item) for item in items)
    return None if first is None or second is None else _side(first - second)


def _add(tables: Tables, pair: str, source: str, prompt: str, label: int, difference: float) -> dict[int, str]:
    """Append a pair and its truth, by the sign of `difference`, first minus second side; returns the sides' ids."""
    ids = {1: f"{pair}-1", 2: f"{pair}-2"}
    sides = {"chosen_id": ids[label], "rejected_id": ids[3 - label]}
    tables["pairs"].append({"pair_id": pair, "source": source, "prompt": prompt, **sides})
    tables["truth"].append({"pair_id": pair, "better_id": ids[_side(difference)]})
    return ids


def _evidence(
    tables: Tables,
    pair: str,
    ids: dict[int, str],
    label: int,
    items: tuple[str, str],
    rated: dict[str, Scores],
    voters: Iterable[str],
    judges: Iterable[str],
) -> None:
    """Append what voters and judges have of a pair; a judge's verdict is the side of the higher score."""
    for voter in voters:
        add_scores(tables, pair, voter, [rated.get(voter, {}).get(item) for item in items])
    for judge in judges:
        if (better := _better(rated[judge], items)) is not None:
            add_vote(tables, pair, judge, ids.get(better), ids[label])


def _people(folder: Path, prefix: str, models: tuple[str, ...]) -> dict[str, dict[str, list[float]]]:
    """Ratings by image and model, one for each rater."""
    made: dict[str, dict[str, list[float]]] = {}
    for rater in RATERS:
        file = folder / f"{prefix}_rater{rater}.tsv"
        for row in read_table(file, ("uid", *models), sep="\t", dtype=str).to_dict("records"):
            for model in models:
                try:
                    consistency, quality = map(numeric, json.loads(row[model]))
                except (TypeError, ValueError):
                    raise SetError(f"{file}: {row['uid']} of {model} has no two ratings, but {row[model]!r}") from None
                made.setdefault(row["uid"], {}).setdefault(model, []).append((consistency + quality) / 2)
    for image, ratings in made.items():
        if any(len(given) != len(RATERS) for given in ratings.values()):
            raise SetError(f"{folder}: {image} is not rated by all of {len(RATERS)} raters")
    return made


def _viescore(folder: Path, images: Iterable[str], least: float) -> Scores:
    """A model's ratings of a folder's images: the mean of consistency and quality, each the least of its parts.

    Of parts VIEScore takes the least, too. Images without one of the two are left out; each file must have at least a
    share `least` of `images`.
    """
    parts = []
    for file in (folder / "SC.json", folder / "PQ.json"):
        with parsing(file):
            parts.append({image: _least(row["score"]) for image, row in read_object(file).items()})
        complete(file, parts[-1], images, least)
    consistency, quality = parts
    return {
        f"{folder.name}/{image}": (score + quality[image]) / 2
        for image, score in consistency.items()
        if image in quality
    }


def _least(score: float | list[float]) -> float:
    return min(map(numeric, score)) if isinstance(score, list) else numeric(score)


def _share(assertions: list[dict[str, float]]) -> float:
    """The share of assertions that hold."""
    if not assertions:
        raise ValueError("a video without assertions")
    return float(np.mean([numeric(one["correct"]) for one in assertions]))


def _prompts(file: Path) -> dict[str, str]:
    """By image, the last line that the model was given, without what stands before its colon."""
    with parsing(file):
        return {
            image: row["prompt_input"].strip().rpartition("\n")[2].partition(": ")[2]
            for image, row in read_object(file).items()
        }


def _ts2_scores(file: Path, wanted: Iterable[str], name: str = "image_id") -> Scores:
    """Scores by image, all of `wanted`; VIEScore's -1 stands for an answer that could not be read, and is left out."""
    table = read_table(file, (name,), ("score",), dtype=str)
    images = table[name].str.removesuffix(".jpg").str.replace(".", "-", regex=False)
    complete(file, set(images), wanted)
    given = zip(images, table["score"], strict=True)
    return {str(image): score for image, score in given if name == "image_id" or score >= 0}
