"""Small prompts with real image files, and a scripted engine, for the tests of `construct` and `curate.annotate`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dt2it_pipeline.config.sections.judging import JudgingSettings
from dt2it_pipeline.construct.judge import JudgeJob
from dt2it_pipeline.engines.vllm_engine import Decoding, EngineError, Sample, SampleRequest
from dt2it_pipeline.storage import atomic, content_ids, schemas

COLORS = ("red", "blue", "green", "yellow", "teal", "brown")


def prompt_row(
    root: Path, color: str, question: str = "what color is the shape?", reference: str | None = None
) -> dict:
    """A prompt about an image of one colour, which is written below `root`."""
    file = root / f"{color}.png"
    if not file.exists():
        Image.new("RGB", (64, 64), color).save(file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    turns = [{"role": "user", "text": f"<image>\n{question}"}]
    return {
        "prompt_id": content_ids.prompt_id("", turns, [sha256]),
        "source": "test",
        "system": "",
        "turns": turns,
        "media": [{"kind": "image", "sha256": sha256, "path": file.name}],
        "reference": color if reference is None else reference,
        "language": "en",
        "meta": "{}",
    }


def judging_job(
    folder: Path, prompts: Sequence[dict[str, Any]], responses: Sequence[dict[str, Any]], settings: JudgingSettings
) -> JudgeJob:
    """A job of `construct.judge` on rows that are written into `folder`, where their images lie."""
    for name, rows in (("prompts", prompts), ("responses", responses)):
        atomic.write_parquet(schemas.table(rows, name), folder / f"{name}.parquet")
    return JudgeJob(
        prompts=folder / "prompts.parquet",
        responses=folder / "responses.parquet",
        media_root=folder,
        output=folder / "judged",
        cache=folder / "replies.sqlite",
        settings=settings,
        seed=0,
    )


def response_rows(prompt: dict[str, Any], *texts: str) -> list[dict[str, Any]]:
    key = prompt["prompt_id"]
    return [
        {"response_id": content_ids.response_id(key, text), "prompt_id": key, "text": text, "generator": "test"}
        for text in texts
    ]


class ScriptedEngine:
    """Answers with what `answer(request)` returns; remembers the requests it saw."""

    def __init__(self, answer: Callable[[SampleRequest], list[Sample] | EngineError]) -> None:
        self.answer = answer
        self.requests: list[SampleRequest] = []

    def sample(self, requests: Sequence[SampleRequest], decoding: Decoding) -> list[list[Sample] | EngineError]:
        self.requests += requests
        return [self.answer(request) for request in requests]


def color_of(request: SampleRequest) -> str:
    """Name of the colour of the image that a request shows."""
    pixel = request.prompt.images[0].getpixel((0, 0))
    return next(name for name in COLORS if Image.new("RGB", (1, 1), name).getpixel((0, 0)) == pixel)
