"""One call to a judge before a run makes thousands: an easy question about a drawn image, and what came back.

What belongs here: the question, the call, and what a person should see of it. What does not: which judges a recipe has.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from PIL import Image, ImageDraw

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.annotation import PairJudgeSettings
from dt2it_pipeline.config.sections.judging import (
    EndpointJudgeSettings,
    LikelihoodCheckSettings,
    LikelihoodJudgeSettings,
    VllmJudgeSettings,
)
from dt2it_pipeline.engines.jobs import Job, Reporter, Summary
from dt2it_pipeline.engines.launch.launcher import JobFailed
from dt2it_pipeline.engines.launch.local_launcher import LocalLauncher
from dt2it_pipeline.engines.vllm_engine import Decoding, EngineError, Sample, SampleRequest, SamplingEngine
from dt2it_pipeline.judges.factory import likelihood_judge, make_judge
from dt2it_pipeline.judges.pair_judges import AnswerJudge, LikelihoodJudge, PairJudge, Prompts
from dt2it_pipeline.judges.pairwise_votes import CHOSEN, TIE, NoVerdict
from dt2it_pipeline.judges.protocol import PAIRWISE, POINTWISE, JudgeError, JudgeRequest, JudgeStopped, Reply
from dt2it_pipeline.judges.reply_cache import ReplyCache
from dt2it_pipeline.judges.rubric import CONTRACTS, MAX_SCORE, OK, SIX_CRITERIA, Verdict, read_reply
from dt2it_pipeline.judges.templates import load_template
from dt2it_pipeline.storage import content_ids, records
from dt2it_pipeline.storage.leftovers import owned_prefix

LocalJudge: TypeAlias = VllmJudgeSettings | LikelihoodJudgeSettings | LikelihoodCheckSettings | PairJudgeSettings
QUESTION, RIGHT, WRONG = "What colour is the square?", "The square is red.", "The square is blue."
_COLOURS = ("red", "blue", "green", "yellow", "black")  # the first one is asked about, others are compared with it
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


class TrialJob(Job):
    """One call to a judge that loads its model on this machine.

    Attributes:
        judge: which.
        mode: see `try_judge`.
    """

    entry_point: ClassVar[str] = "dt2it_pipeline.judges.trial:run"

    judge: LocalJudge
    mode: str


def run(job: TrialJob, report: Reporter) -> Summary:
    """Do the call in this process; returns the trial. Raises as `try_judge` does."""
    if isinstance(job.judge, PairJudgeSettings):
        return asdict(_try_pair_judge(job.judge))
    return asdict(try_judge(job.judge, job.mode))


def try_local_judge(settings: LocalJudge, mode: str = PAIRWISE) -> Trial:
    """As `try_judge`, in a process of its own, which gives the model's memory back at its end.

    Raises:
        JudgeError: the model cannot be loaded, or the call failed.
    """
    with tempfile.TemporaryDirectory(prefix=owned_prefix("dt2it_trial")) as work:
        try:
            printed = LocalLauncher(on_line=lambda line: None).launch(
                TrialJob(judge=settings, mode=mode), work=Path(work)
            )
        except JobFailed as error:
            raise JudgeError(str(error)) from None
    return Trial(**printed)


def try_judge(
    settings: EndpointJudgeSettings | VllmJudgeSettings | LikelihoodJudgeSettings | LikelihoodCheckSettings,
    mode: str = PAIRWISE,
) -> Trial:
    """Ask a judge once about an easy question, of whose answers the first one is right.

    A check of content is asked whether both answers say the same.

    Args:
        settings: of the judge.
        mode: in which it is asked: two answers (pairwise, listwise), or the right one alone (pointwise).

    Raises:
        JudgeError: it cannot be built (its key is not set, its model cannot be loaded), or the call failed.
    """
    if isinstance(settings, EndpointJudgeSettings):
        patience = min(settings.longest_wait_seconds, _LONGEST_WAIT)
        settings = settings.model_copy(update={"retries": min(settings.retries, 1), "longest_wait_seconds": patience})
    checks = isinstance(settings, LikelihoodCheckSettings)
    responses = (RIGHT,) if mode == POINTWISE and not checks else (RIGHT, WRONG)
    with tempfile.TemporaryDirectory(prefix=owned_prefix("dt2it_trial")) as folder:
        row = _prompt(Path(folder))
        request = JudgeRequest(row, responses, mode)
        judge = (
            likelihood_judge(settings, Path(folder))
            if isinstance(settings, LikelihoodCheckSettings)
            else make_judge(settings, [row], Path(folder))
        )
        started = time.monotonic()
        try:
            _, reply = next(iter(judge.judge([request])))
        except JudgeStopped as error:
            raise JudgeError(str(error)) from error
    seconds = time.monotonic() - started
    if isinstance(reply, JudgeError):
        raise reply
    writes = isinstance(settings, EndpointJudgeSettings | VllmJudgeSettings)
    words = load_template(mode, row["language"]).render(request) if writes else QUESTION
    size = _request("two texts compared" if checks else mode, words, responses)
    size += f"; {reply.prompt_tokens:,} tokens in, {reply.completion_tokens:,} out" if writes else ""
    if isinstance(settings, LikelihoodCheckSettings):
        understood, right = _understood_check(reply)
    else:
        material = request.texts() if writes else ()
        verdicts = read_reply(reply, mode, len(responses), getattr(judge, "rubric", SIX_CRITERIA), material)
        understood, right = _understood(verdicts, mode)
    cost = _cost(settings, reply) if isinstance(settings, EndpointJudgeSettings) else None
    return Trial(size, words, reply.text, understood, right is not None, right, seconds, cost)


def _try_pair_judge(settings: PairJudgeSettings) -> Trial:
    """As `try_judge`, of a judge of contested pairs that writes no judgement. Raises as it does."""
    from dt2it_pipeline.judges.likelihood.model import LikelihoodError, LikelihoodModel

    settings = settings.model_copy(update={"model": str(model_path(settings.model))})
    with tempfile.TemporaryDirectory(prefix=owned_prefix("dt2it_trial")) as folder:
        rows = [_prompt(Path(folder), colour) for colour in _COLOURS]
        prompts = Prompts({row["prompt_id"]: row for row in rows}, Path(folder), seed=0)
        pair = records.make_pair(rows[0]["prompt_id"], RIGHT, WRONG, source="trial")
        heard: _Heard | None = None
        judge: PairJudge
        try:
            if settings.kind == "likelihood":
                how = (settings.model, settings.tokens_per_batch, settings.precision, settings.max_pixels)
                judge = LikelihoodJudge(settings, LikelihoodModel(*how), prompts)
            else:
                heard = engine = _Heard(_vllm(settings))
                judge = AnswerJudge(settings, lambda: engine, prompts, ReplyCache(None))
            started = time.monotonic()
            (verdict,) = judge.verdicts([pair])
        except (EngineError, LikelihoodError) as error:
            raise JudgeError(f"{settings.name}: {error}") from error
    seconds = time.monotonic() - started
    words = f"{QUESTION} {settings.prompt}".rstrip()
    size = _request(f"a pair by {settings.kind}", words, (RIGHT, WRONG))
    reply = heard.first if heard is not None else ""
    if isinstance(verdict, NoVerdict):
        return Trial(size, words, reply, f"no verdict: {verdict.reason} ({verdict.detail})", False, None, seconds)
    better = "a tie" if verdict.side == TIE else f"response {1 if verdict.side == CHOSEN else 2} is better"
    return Trial(size, words, reply, better, True, verdict.side == CHOSEN, seconds)


class _Heard:
    """An engine that keeps its first answer."""

    def __init__(self, engine: SamplingEngine) -> None:
        self._engine, self.first = engine, ""

    def sample(self, requests: Sequence[SampleRequest], decoding: Decoding) -> list[list[Sample] | EngineError]:
        """See SamplingEngine."""
        found = self._engine.sample(requests, decoding)
        answers = [one[0].text for one in found if not isinstance(one, EngineError)]
        self.first = self.first or next(iter(answers), "")
        return found


def _vllm(settings: PairJudgeSettings) -> SamplingEngine:
    from dt2it_pipeline.engines.vllm_engine import VllmEngine

    return VllmEngine(settings.model, settings.max_model_len, max_images=1, run=settings)


def _request(how: str, words: str, responses: Sequence[str]) -> str:
    """What was asked, in words."""
    shown = " / ".join(f"{number} {text!r}" for number, text in enumerate(responses, start=1))
    return f"{how}, {QUESTION!r} with {shown}, {len(words):,} characters and 1 image of {_SIDE} x {_SIDE} pixels"


def _cost(settings: EndpointJudgeSettings, reply: Reply) -> float | None:
    spent = reply.prompt_tokens * settings.input_price + reply.completion_tokens * settings.output_price
    return spent / 1e6 if settings.input_price or settings.output_price else None


def _understood_check(reply: Reply) -> tuple[str, bool | None]:
    """How a check of content decided; the two answers do not say the same."""
    found = json.loads(reply.text)
    same = bool(found["same"])
    return f"the two {'say the same' if same else 'differ'} ({found['difference']})", not same


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


def _prompt(folder: Path, colour: str = _COLOURS[0]) -> dict[str, Any]:
    """A prompts row about a square of a colour, whose image is drawn into `folder`."""
    image = Image.new("RGB", (_SIDE, _SIDE), "white")
    ImageDraw.Draw(image).rectangle((_SIDE // 4, _SIDE // 4, 3 * _SIDE // 4, 3 * _SIDE // 4), fill=colour)
    file = folder / f"{colour}.png"
    image.save(file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    turns = [{"role": "user", "text": f"<image>\n{QUESTION}"}]
    return {
        "prompt_id": content_ids.prompt_id("", turns, [sha256]),
        "source": "trial",
        "system": "",
        "turns": turns,
        "media": [{"kind": "image", "sha256": sha256, "path": file.name}],
        "reference": colour,
        "language": "en",
        "meta": "{}",
    }
