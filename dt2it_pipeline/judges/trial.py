"""One call to a judge before a run makes thousands: an easy question about a drawn image, and what came back.

What belongs here: the question, the call, and what a person should see of it. What does not: which judges a recipe has.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from dt2it_pipeline.config.sections.judging import EndpointJudgeSettings
from dt2it_pipeline.judges.factory import make_judge
from dt2it_pipeline.judges.protocol import PAIRWISE, POINTWISE, JudgeError, JudgeRequest, JudgeStopped
from dt2it_pipeline.judges.rubric import CONTRACTS, MAX_SCORE, OK, Verdict, read_reply
from dt2it_pipeline.judges.templates import load_template
from dt2it_pipeline.storage import content_ids

QUESTION, RIGHT, WRONG = "What colour is the square?", "The square is red.", "The square is blue."
_SIDE = 224  # pixels
_LONGEST_WAIT = 5.0  # seconds before the one retry: whoever waits sits at a terminal


@dataclass(frozen=True)
class Trial:
    """What one call to a judge gave.

    Attributes:
        request: what was sent, in words: question, responses, characters, image, tokens as the endpoint counted them.
        prompt: the words that were sent, whole.
        reply: the judge's text as it came; empty where none came.
        understood: how the reply was read.
        usable: whether it is a judgement.
        right: whether it prefers the right answer; None where it is no judgement.
        seconds: that the call took.
        cost: of this call, in the currency of the recipe's prices; None where these are zero.
    """

    request: str
    prompt: str
    reply: str
    understood: str
    usable: bool
    right: bool | None
    seconds: float
    cost: float | None = None


def try_judge(settings: EndpointJudgeSettings, mode: str = PAIRWISE) -> Trial:
    """Ask a judge behind an endpoint once about an easy question, of whose answers the first one is right.

    Args:
        settings: of the judge.
        mode: in which it is asked: two answers (pairwise, listwise), or the right one alone (pointwise).

    Raises:
        JudgeError: it cannot be built (its key is not set), or the call failed.
    """
    patience = min(settings.longest_wait_seconds, _LONGEST_WAIT)
    settings = settings.model_copy(update={"retries": min(settings.retries, 1), "longest_wait_seconds": patience})
    responses = (RIGHT,) if mode == POINTWISE else (RIGHT, WRONG)
    with tempfile.TemporaryDirectory(prefix="dt2it_trial_") as folder:
        row = _prompt(Path(folder))
        request = JudgeRequest(row, responses, mode)
        judge = make_judge(settings, [row], Path(folder))
        started = time.monotonic()
        try:
            _, reply = next(iter(judge.judge([request])))
        except JudgeStopped as error:
            raise JudgeError(str(error)) from error
    seconds = time.monotonic() - started
    if isinstance(reply, JudgeError):
        raise reply
    verdicts = read_reply(reply, mode, len(responses))
    words = load_template(mode, row["language"]).render(request)
    shown = " / ".join(f"{number} {text!r}" for number, text in enumerate(responses, start=1))
    size = f"{mode}, {QUESTION!r} with {shown}, {len(words):,} characters and 1 image of {_SIDE} x {_SIDE} pixels"
    size += f"; {reply.prompt_tokens:,} tokens in, {reply.completion_tokens:,} out"
    spent = reply.prompt_tokens * settings.input_price + reply.completion_tokens * settings.output_price
    cost = spent / 1e6 if settings.input_price or settings.output_price else None
    understood, right = _understood(verdicts, mode)
    return Trial(size, words, reply.text, understood, right is not None, right, seconds, cost)


def _understood(verdicts: list[Verdict], mode: str) -> tuple[str, bool | None]:
    """How the verdicts read, and whether they prefer the right answer; None where they are no judgement."""
    fault = next((verdict.status for verdict in verdicts if verdict.status != OK), None)
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    if fault is not None or len(scores) != len(verdicts):
        return f"no judgement: {fault}. {CONTRACTS[mode]}", None
    if mode == POINTWISE:
        return f"response 1 scores {scores[0]:g} of {MAX_SCORE}", scores[0] > MAX_SCORE / 2
    first, second = scores
    better = "a tie" if first == second else f"response {1 if first > second else 2} is better"
    return better if mode == PAIRWISE else f"{better} ({first:g} and {second:g} of {MAX_SCORE})", first > second


def _prompt(folder: Path) -> dict[str, Any]:
    """A prompts row about a red square, whose image is drawn into `folder`."""
    image = Image.new("RGB", (_SIDE, _SIDE), "white")
    ImageDraw.Draw(image).rectangle((_SIDE // 4, _SIDE // 4, 3 * _SIDE // 4, 3 * _SIDE // 4), fill="red")
    file = folder / "square.png"
    image.save(file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    turns = [{"role": "user", "text": f"<image>\n{QUESTION}"}]
    return {
        "prompt_id": content_ids.prompt_id("", turns, [sha256]),
        "source": "trial",
        "system": "",
        "turns": turns,
        "media": [{"kind": "image", "sha256": sha256, "path": file.name}],
        "reference": "red",
        "language": "en",
        "meta": "{}",
    }
