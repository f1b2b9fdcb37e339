"""Reads easy-VQA: 5,000 pictures of one shape each, with questions and answers, from its PyPI package `easy-vqa`."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dt2it_pipeline.demo import language

Split = Literal["train", "test"]


class EasyVQAMissingError(RuntimeError):
    """The package `easy-vqa`, or the data in it, is not installed."""


@dataclass
class Picture:
    """One picture of easy-VQA and its (question, answer) rows.

    `color` and `shape` are empty where no question of the picture tells, as for one picture in nine.
    """

    path: Path
    color: str = ""
    shape: str = ""
    questions: list[tuple[str, str]] = field(default_factory=list)


def easy_vqa_root() -> Path:
    """Folder of easy-VQA's data, with `train` and `test` in it; raises EasyVQAMissingError when it is not installed."""
    spec = importlib.util.find_spec("easy_vqa")
    folders = spec.submodule_search_locations if spec else None
    root = Path(folders[0]) / "data" if folders else None
    if root is None or not (root / "train" / "questions.json").is_file():
        raise EasyVQAMissingError(
            'the demo\'s pictures are in the package easy-vqa; install it with: pip install "dt2it-pipeline[demo]"'
        )
    return root


def load_split(split: Split) -> list[Picture]:
    """The pictures of one split, in their order in the package."""
    folder = easy_vqa_root() / split
    rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    pictures: dict[int, Picture] = {}
    for question, answer, number in rows:
        picture = pictures.setdefault(number, Picture(folder / "images" / f"{number}.png"))
        picture.questions.append((question, answer))
        parsed = language.parse_question(question)
        # What a picture shows follows from its questions: an answer, or what an answered question names.
        for word in (answer, parsed.thing if parsed.kind != "yes_no" else ""):
            if word in language.COLORS:
                picture.color = word
            elif word in language.SHAPES:
                picture.shape = word
        if parsed.kind == "yes_no" and (answer == "yes") != parsed.negated:
            if parsed.thing in language.SHAPES:
                picture.shape = parsed.thing
            else:
                picture.color = parsed.thing.removesuffix(" shape")
    return [pictures[number] for number in sorted(pictures)]
