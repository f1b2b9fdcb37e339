"""What choosing by the demo's reward models is worth, and what their scores mean (docs/results/best-of.md).

    python -m benchmarks.best_of --home data --output docs/results

The home holds a finished demo. Questions are from the test split of easy-VQA, which no model has seen. Their answers
are written by the demo's language: each is right with probability 0.3 and, independently, verbose with probability
0.5. A model that goes by style alone then chooses no better than at random. `--generator demo` samples the answers from
the demo's base model instead, whose style is one. The temperature of every model is fitted on pairs of a right and a
wrong answer to other questions of that split.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.demo import language
from dt2it_pipeline.demo.easyvqa import easy_vqa_root
from dt2it_pipeline.demo.evaluate import held_out_questions
from dt2it_pipeline.engines.jobs import print_progress
from dt2it_pipeline.evaluate.best_of import files
from dt2it_pipeline.evaluate.best_of.curve import BestOfCurve, best_of_curve
from dt2it_pipeline.evaluate.best_of.figure import curve_markdown, curve_svg
from dt2it_pipeline.evaluate.calibrate import calibrate
from dt2it_pipeline.reward.calibration import Calibration
from dt2it_pipeline.reward.scoring.response_scores import given_responses, score_responses, write_lines
from dt2it_pipeline.storage.artifacts import Store

RIGHT, VERBOSE = 0.3, 0.5
_KINDS = tuple(language.KINDS)


def main() -> None:
    """Score, print the tables, and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="artifact home of a finished demo")
    parser.add_argument("--output", type=Path, required=True, help="folder for the figure")
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=600, help="for the temperatures")
    parser.add_argument("--generator", help="model that the answers are sampled from, such as `demo`")
    parser.add_argument("--temperature", type=float, default=1.5, help="of the generator")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    models = models_of(given.home)
    rows = questions(given.prompts + given.pairs, given.seed)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        asked = rows[: given.prompts]
        if given.generator:
            lines = sampled(asked, given.generator, given.answers, given.temperature, given.seed, work)
        else:
            lines = written(asked, given.answers, given.seed)
        curve = measure(models, lines, work)
        print(curve_markdown(curve))
        file = "best-of-sampled.svg" if given.generator else "best-of.svg"
        (given.output / file).write_text(curve_svg(curve, "share of right answers chosen"), encoding="utf-8")
        fits = calibrations(models, pairs(rows[given.prompts :], given.seed), work)
        print(calibration_table(fits))


def models_of(home: Path) -> dict[str, str]:
    """The checkpoints of the first and the last round and of the control, by name."""
    store = Store(home)
    rounds = sorted(map(int, store.partitions("reward_model")))
    wanted = {f"round {number}": ("reward_model", str(number)) for number in (rounds[0], rounds[-1])}
    found = {name: store.read(*artifact).folder for name, artifact in wanted.items()}
    found["control"] = store.read("control_model").folder
    return {name: str(folder) for name, folder in found.items()}


def questions(count: int, seed: int) -> list[dict[str, Any]]:
    """Questions of the three kinds in turn, with image and right answer."""
    each = -(-count // len(_KINDS))
    by_kind = {kind: [row for row in held_out_questions(each, seed) if row["kind"] == kind] for kind in _KINDS}
    mixed = [row for group in zip(*by_kind.values(), strict=True) for row in group]
    random.Random(seed).shuffle(mixed)
    return mixed[:count]


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    image = str(Path(row["images"][0]).relative_to(easy_vqa_root()))
    return {"prompt": row["text"], "images": [image]}


def written(rows: list[dict[str, Any]], answers: int, seed: int) -> list[dict[str, Any]]:
    """Lines with answers whose rightness and style are drawn independently."""
    rng = random.Random(seed)
    lines = []
    for row in rows:
        responses, quality = [], []
        for _ in range(answers):
            right = rng.random() < RIGHT
            word = row["answer"] if right else language.wrong_answer(row["question"], row["answer"], rng)
            style: language.Style = "verbose" if rng.random() < VERBOSE else "plain"
            responses.append(language.answer_in_style(style, row["question"], word, rng))
            quality.append(int(right))
        lines.append({**_line(row), "responses": responses, "quality": quality})
    return lines


def sampled(
    rows: list[dict[str, Any]], generator: str, answers: int, temperature: float, seed: int, work: Path
) -> list[dict[str, Any]]:
    """Lines with answers of a model; whether they are right is read from their text."""
    from dt2it_pipeline.config.paths import model_path
    from dt2it_pipeline.engines.vllm_engine import Decoding
    from dt2it_pipeline.evaluate.best_of.sampling import sample_answers

    write_lines([{**_line(row), "id": str(place)} for place, row in enumerate(rows)], work / "prompts.jsonl")
    decoding = Decoding(temperature, 1.0, 64)
    made = sample_answers(
        model_path(generator), work / "prompts.jsonl", easy_vqa_root(), work / "media", answers, decoding=decoding
    )
    for line in made.rows:
        row = rows[int(line["id"])]
        line["quality"] = [
            int(language.read_answer(row["question"], text) == row["answer"]) for text in line["responses"]
        ]
    return made.rows


def measure(models: Mapping[str, str], lines: list[dict[str, Any]], work: Path) -> BestOfCurve:
    """The curve of all models on the same answers."""
    write_lines(lines, work / "answers.jsonl")
    given = given_responses(work / "answers.jsonl", None, easy_vqa_root(), work)
    found = {
        name: score_responses(
            model, given, work, settings=ScoringSettings(processes=1), system_prompt=None, report=print_progress
        ).by_id()
        for name, model in models.items()
    }
    quality, _ = files.qualities(given.file)
    assert quality is not None
    return best_of_curve(files.scored_answers(given, found).scores, quality)


def pairs(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Pairs of a right and a wrong answer, each in a style of its own."""
    rng = random.Random(seed + 1)
    lines = []
    for row in rows:
        wrong = language.wrong_answer(row["question"], row["answer"], rng)
        styles: list[language.Style] = ["verbose" if rng.random() < VERBOSE else "plain" for _ in range(2)]
        sides = [
            language.answer_in_style(style, row["question"], word, rng)
            for style, word in zip(styles, (row["answer"], wrong), strict=True)
        ]
        lines.append({**_line(row), "chosen": sides[0], "rejected": sides[1]})
    return lines


def calibrations(models: Mapping[str, str], lines: list[dict[str, Any]], work: Path) -> dict[str, Calibration]:
    """The temperature of every model; no checkpoint is changed."""
    write_lines(lines, work / "pairs_for_temperature.jsonl")
    settings = ScoringSettings(processes=1)
    return {
        name: calibrate(
            model, work / "pairs_for_temperature.jsonl", work / f"calibration-{place}", media=easy_vqa_root(),
            settings=settings, report=print_progress,
        ).calibration
        for place, (name, model) in enumerate(models.items())
    }  # fmt: skip


def calibration_table(fits: Mapping[str, Calibration]) -> str:
    """Temperature, log loss and calibration error of every model; those with T are cross-validated."""
    lines = [
        "| model | accuracy, % | T (95%) | log loss, T = 1 | with T | calibration error, T = 1 | with T |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, fit in fits.items():
        interval = "" if fit.low is None else f" ({fit.low:.2f} to {fit.high:.2f})"
        lines.append(
            f"| {name} | {100 * fit.accuracy:.1f} | {fit.temperature:.2f}{interval} | {fit.log_loss_before:.3f} | "
            f"{fit.log_loss_after:.3f} | {fit.error_before:.3f} | {fit.error_after:.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
