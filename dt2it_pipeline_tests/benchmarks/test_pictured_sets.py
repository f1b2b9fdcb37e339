"""`benchmarks.real_noise.rebuild`: sets from made-up files in the formats of VIEScore, TC-Bench and T2IScoreScore."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.real_noise.rebuild import pictured
from benchmarks.real_noise.rebuild.__main__ import main as rebuild
from benchmarks.real_noise.rebuild.pictured import EDITS, IMAGES, TC_MODELS, TC_VOTERS, TS2_JUDGES, TS2_VOTERS
from benchmarks.real_noise.sets import NoisySet, load_set

IMAGE = "sample_1.jpg"
ASKED = "RULES: two\n\nScore: 0 to 10\n\nText Prompt: A cat: black.\n"  # what a model was given about an image


def built(name: str, tmp_path: Path, *more: str) -> NoisySet:
    rebuild([name, str(tmp_path / "checkout"), "--output", str(tmp_path / "sets"), *more])
    return load_set(tmp_path / "sets" / name)


def write_json(file: Path, made: dict[str, Any] | list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made), encoding="utf-8")


def write_table(file: Path, rows: list[dict[str, Any]], sep: str = ",") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(file, sep=sep, index=False)


def place(model: str, models: tuple[str, ...]) -> float:
    """0 to 1, greater for later models."""
    return models.index(model) / (len(models) - 1)


def write_imagenhub(
    checkout: Path, tasks: dict[str, tuple[str, tuple[str, ...]]], people: Callable[[int, float], float]
) -> None:
    """An image of each task. Later models are better; `people` says what a rater gives a model of that place.

    Gemini rates the other way round, GPT-4o as it should be, GPT-4V all alike, LLaVA has one number, Qwen-VL text.
    """
    root = checkout / "paper_implementation"
    for task, (prefix, models) in tasks.items():
        folder = f"ImagenHub_{task}"
        for rater in (1, 2, 3):
            given = {model: str([people(rater, place(model, models))] * 2) for model in models}
            given["Unscored"] = "[0.5, 0.5]"  # rated by people alone
            rated = root / "_human_annotations" / "ImagenHub_human_eval_results" / folder
            write_table(rated / f"{prefix}_rater{rater}.tsv", [{"uid": IMAGE, **given}], sep="\t")
        metric = "LPIPS" if task in EDITS else "DINO"
        for model in models:
            good = place(model, models)
            write_json(root / "_answers" / "results_autometrics" / folder / f"{model}.json", {IMAGE: {metric: good}})
            scores: dict[str, Any] = {
                "gemini": [9, 10 - 5 * good], "gpt4o": [9, 5 * good], "gpt4v": [5, 5], "llava": good,
                "qwenvl": [str(good), "9"],
            }  # fmt: skip
            for source, score in scores.items():
                rows = {IMAGE: {"score": score, "prompt_input": ASKED}}
                for part in ("SC", "PQ"):
                    write_json(root / "_answers" / f"results_{source}_0shot" / folder / model / f"{part}.json", rows)


def test_edits_are_labelled_by_one_rater_and_checked_by_the_other_two(tmp_path: Path) -> None:
    # where the third rater, who has it the wrong way round, is one of the two others, they are of no mind
    write_imagenhub(tmp_path / "checkout", EDITS, lambda rater, good: 1 - good if rater == 3 else good)
    made = built("imagenhub_edits", tmp_path)
    assert set(made.pairs["source"]) == set(EDITS) and not made.right.any()
    for pair, better, source in zip(*(made.truth[name] for name in made.truth), made.pairs["source"], strict=True):
        first, second = (place(model, EDITS[source][1]) for model in pair.split("-")[-2:])
        assert better == f"{pair}-{1 if first > second else 2}"
    assert set(made.pairs["prompt"]) == {"A cat: black."}
    scores = made.scores[made.scores["voter"] == "LPIPS"].set_index("response_id")["score"]
    assert (made.pairs["rejected_id"].map(scores) < made.pairs["chosen_id"].map(scores)).all()  # less is better
    assert list(made.scores["voter"].unique()) == ["llava", "LPIPS", "qwenvl", "gemini"]
    verdicts = made.votes.groupby("judge")["verdict"].unique()
    assert list(verdicts["gpt4o"]) == ["rejected"] and list(verdicts["gpt4v"]) == ["tie"]


def test_images_are_labelled_by_gemini_and_checked_by_three_people(tmp_path: Path) -> None:
    write_imagenhub(tmp_path / "checkout", IMAGES, lambda _, good: good)
    made = built("imagenhub_images", tmp_path)
    assert list(made.pairs["source"].unique()) == list(IMAGES) and not made.right.any()
    assert list(made.scores["voter"].unique()) == ["llava", "DINO", "qwenvl"]
    sides = [(source, model) for pair, source in zip(made.pairs["pair_id"], made.pairs["source"], strict=True)
             for model in pair.split("-")[-2:]]  # fmt: skip
    assert len(set(sides)) == len(sides) and "Unscored" not in dict(sides).values()  # no image is in two pairs
    assert built("imagenhub_images", tmp_path, "--seed", "1").pairs["pair_id"].tolist() != list(made.pairs["pair_id"])


@pytest.mark.parametrize(("most", "left"), [(0.7, False), (0.8, True)])
def test_images_that_people_rate_nearly_alike_are_left_out(tmp_path: Path, most: float, left: bool) -> None:
    def people(rater: int, good: float) -> float:
        return most if rater == 1 and good == 1 else 0.0  # so that the means differ by 0.23 and 0.27

    write_imagenhub(tmp_path / "checkout", IMAGES, people)
    assert bool(pictured.imagenhub_images(tmp_path / "checkout", 0)["pairs"]) == left


def test_a_rating_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_imagenhub(tmp_path / "checkout", IMAGES, lambda _, good: good)
    folder = tmp_path / "checkout" / "paper_implementation" / "_human_annotations" / "ImagenHub_human_eval_results"
    file = folder / "ImagenHub_Text-Guided_IG" / "Text-To-Image_rater2.tsv"
    text = file.read_text("utf-8")
    for wrong, message in (
        (text.replace("[0.25, 0.25]", "[0.25]"), "sample_1.jpg of DeepFloydIF has no two ratings, but '[0.25]'"),
        (text.replace("SDXL", "SDXXL"), "columns ['SDXL'] missing"),
        (text.replace(IMAGE, "sample_2.jpg"), "is not rated by all of 3 raters"),
    ):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(SystemExit):
            built("imagenhub_images", tmp_path)
        assert message in capsys.readouterr().err
    file.unlink()
    with pytest.raises(SystemExit):
        built("imagenhub_images", tmp_path)
    assert "Text-To-Image_rater2.tsv is missing" in capsys.readouterr().err


VIDEOS = tuple(f"{prompt:05d}-00002" for prompt in range(24))


def write_tcbench(checkout: Path) -> None:
    """Videos of 24 prompts. Later models are better by 0.5 on the mean; the third rater has it the wrong way round.

    The videos of the last model have two raters. GPT-4V has answers about the first twelve prompts alone.
    """
    folder = checkout / "eval_results"
    rated: dict[str, Any] = {}
    for number, model in enumerate(TC_MODELS):
        good = 1 + number
        last = model == TC_MODELS[-1]
        rated |= {f"{model}_{video}": [[5, 5]] * 2 if last else [[3, 3, 3], [good, good, 5 - good]] for video in VIDEOS}
        for way in TC_VOTERS.values():
            write_json(folder / way / "i2v" / f"{model}.json", dict.fromkeys(VIDEOS, number))
        assertions = [{"correct": int(place <= number)} for place in range(len(TC_MODELS))]
        write_json(folder / "gpt_eval" / "i2v" / f"{model}.json", dict.fromkeys(VIDEOS[:12], assertions))
    write_json(folder / "human_eval" / "i2v" / "human_scores_all.json", rated)
    prompts = [{"id": place, "type": "binding", "prompt": f"prompt {place}"} for place in range(len(VIDEOS))]
    write_json(checkout / "i2v_prompts.json", prompts)


def test_tcbench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tcbench(tmp_path / "checkout")
    made = built("tcbench", tmp_path, "--seed", "1")
    # the two others agree where the label is the third rater's, who is wrong
    assert not made.right.any()
    scores = made.scores[made.scores["voter"] == "viclip"].set_index("response_id")["score"]
    assert (made.pairs["rejected_id"].map(scores) > made.pairs["chosen_id"].map(scores)).all()
    parts = made.pairs["pair_id"].str.split("-")
    sides = [(one[1], model) for one in parts for model in one[3:]]
    assert len(set(sides)) == len(sides) and TC_MODELS[-1] not in dict(sides).values()
    assert {abs(TC_MODELS.index(one[3]) - TC_MODELS.index(one[4])) for one in parts} == {1, 2, 3}
    judged = made.pairs["pair_id"].isin(made.votes["pair_id"])
    number = made.pairs["prompt"].str.removeprefix("prompt ").astype(int)
    assert list(judged) == list(number < 12) and 0 < judged.sum() < len(judged)
    assert set(made.votes["verdict"]) == {"rejected"}
    assert list(built("tcbench", tmp_path).pairs["pair_id"]) != list(made.pairs["pair_id"])
    human = tmp_path / "checkout" / "eval_results" / "human_eval" / "i2v" / "human_scores_all.json"
    write_json(human, {"sora_00000-00002": [[1, 1, 1], [1, 1, 1]]})
    with pytest.raises(SystemExit):
        built("tcbench", tmp_path)
    assert "sora_00000-00002 is of none of the models" in capsys.readouterr().err
    human.unlink()
    with pytest.raises(SystemExit):
        built("tcbench", tmp_path)
    assert "human_scores_all.json is missing" in capsys.readouterr().err


def write_t2iscorescore(checkout: Path) -> None:
    """Of prompt 0, 20 images, of which every second one has an error; of prompt 1, two with as many errors.

    VIEScore is right about the first 16 images of prompt 0 and could not read those of the others.
    """
    images = [(0, f"000-{place:02d}", "0a" if place % 2 else "1b") for place in range(20)]
    images += [(1, f"001-{place:02d}", f"2{name}") for place, name in enumerate("ab")]
    rows = [
        {"id": number, "target_prompt": f"prompt {number}", "file_name": f"images/{name}.jpg", "rank": rank}
        for number, name, rank in images
    ]
    write_table(checkout / "data" / "metadata.csv", [{**row, "image_source": "SDXL"} for row in rows])
    errors = {name: int(rank[0]) for _, name, rank in images}
    scores = [{"fname": name, "score": 8 - error if name < "000-16" else -1} for name, error in errors.items()]
    write_table(checkout / "output" / "VIEScore.csv", scores)
    for file in (*TS2_VOTERS.values(), *TS2_JUDGES.values()):
        rows = [{"image_id": f"{name.replace('-', '.')}.jpg", "score": error} for name, error in errors.items()]
        write_table(checkout / "output" / file, rows)


def test_t2iscorescore(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_t2iscorescore(tmp_path / "checkout")
    made = built("t2iscorescore", tmp_path)
    assert made.right.all() and set(made.pairs["prompt"]) == {"prompt 0"}
    names = [name for pair in made.pairs["pair_id"] for name in (pair[4:10], pair[11:])]
    assert len(set(names)) == len(names) and max(names) < "000-16"
    assert set(made.votes["verdict"]) == {"rejected"} and set(made.votes["judge"]) == set(TS2_JUDGES)
    assert set(made.scores["voter"]) == set(TS2_VOTERS) and set(made.scores["score"]) == {0, 1}
    counts = [len(pictured.t2iscorescore(tmp_path / "checkout", seed)["pairs"]) for seed in range(12)]
    assert max(counts) == 4  # of a prompt, where there could be eight
    scores = tmp_path / "checkout" / "output" / "VIEScore.csv"
    scores.write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        built("t2iscorescore", tmp_path)
    assert "VIEScore.csv: columns ['fname', 'score'] missing" in capsys.readouterr().err
