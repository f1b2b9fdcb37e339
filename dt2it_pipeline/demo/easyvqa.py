"""Reads easy-VQA: 5,000 images of one shape each, with questions and answers, from its PyPI package `easy-vqa`."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from dt2it_pipeline.demo import language
from dt2it_pipeline.errors import UserError

Split = Literal["train", "test"]


class EasyVQAMissingError(UserError, RuntimeError):
    """The package `easy-vqa`, or the data in it, is not installed."""

    help_page: ClassVar[str] = "troubleshooting#easy-vqa"


@dataclass
class ShapeImage:
    """One image of easy-VQA and its (question, answer) rows.

    `color` and `shape` are empty where no question of the image shows them, as for one image in nine.
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
            'the demo\'s images are in the package easy-vqa; install it with: pip install "dt2it-pipeline[demo]"'
        )
    return root


def load_split(split: Split) -> list[ShapeImage]:
    """The images of one split, in their order in the package."""
    folder = easy_vqa_root() / split
    rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    images: dict[int, ShapeImage] = {}
    for question, answer, number in rows:
        image = images.setdefault(number, ShapeImage(folder / "images" / f"{number}.png"))
        image.questions.append((question, answer))
        parsed = language.parse_question(question)
        # What an image shows follows from its questions: an answer, or what an answered question names.
        for word in (answer, parsed.thing if parsed.kind != "yes_no" else ""):
            if word in language.COLORS:
                image.color = word
            elif word in language.SHAPES:
                image.shape = word
        if parsed.kind == "yes_no" and (answer == "yes") != parsed.negated:
            if parsed.thing in language.SHAPES:
                image.shape = parsed.thing
            else:
                image.color = parsed.thing.removesuffix(" shape")
    return [images[number] for number in sorted(images)]
