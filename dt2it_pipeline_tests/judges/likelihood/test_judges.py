"""Judges by likelihood: their numbers against transformers alone, and the shipped model as a judge."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from PIL import Image

from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.judging import JudgingSettings, LikelihoodJudgeSettings
from dt2it_pipeline.config.sections.pairing import RestyleSettings
from dt2it_pipeline.construct import judge, restyle
from dt2it_pipeline.demo import language
from dt2it_pipeline.demo.rendering import draw
from dt2it_pipeline.engines.chat import chat_prompt
from dt2it_pipeline.judges.factory import likelihood_judge
from dt2it_pipeline.judges.likelihood.judges import LikelihoodSameness, LikelihoodScores
from dt2it_pipeline.judges.likelihood.model import NO, YES, LikelihoodModel
from dt2it_pipeline.judges.protocol import LISTWISE, PAIRWISE, POINTWISE, JudgeError, JudgeRequest
from dt2it_pipeline.judges.rubric import OK
from dt2it_pipeline.storage import atomic, records, schemas
from dt2it_pipeline_tests.support.construct_world import judging_job, prompt_row, response_rows
from dt2it_pipeline_tests.support.fault_server import FaultServer, serving
from dt2it_pipeline_tests.support.threads import use_tested_threads
from dt2it_pipeline_tests.support.tolerance import log_likelihood_tolerance

pytestmark = pytest.mark.numerics

MODES = [LISTWISE, POINTWISE, PAIRWISE]
QUESTION = "what shape is in the image?"
# Of shapes in plain words the shipped model always knows whether an answer is right; verbose answers it cannot judge.
LOOKS = [("red", "circle"), ("blue", "triangle"), ("green", "rectangle"), ("teal", "circle"), ("black", "triangle")]


@pytest.fixture(scope="module")
def model() -> LikelihoodModel:
    """The model that ships with the package, which sees and can be asked whether an answer is correct."""
    use_tested_threads()
    return LikelihoodModel(model_path(DEMO_BASE_MODEL), 2048)


@pytest.fixture
def prompts(tmp_path) -> list[dict]:
    """A question about a drawn shape, for each of LOOKS."""
    for color, shape in LOOKS:
        Image.fromarray(draw(color, shape, random.Random(0))).save(tmp_path / f"{color}.png")
    return [prompt_row(tmp_path, color, QUESTION, shape) for color, shape in LOOKS]


def _sides() -> list[tuple[str, str]]:
    """The right shape of each prompt, and a wrong one."""
    return [(shape, "circle" if shape == "triangle" else "triangle") for _, shape in LOOKS]


def test_larger_images_are_scaled_down_where_that_is_set(model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    row = prompt_row(tmp_path, "large", QUESTION, "circle")
    large = chat_prompt(row, tmp_path)
    smaller = LikelihoodModel(model_path(DEMO_BASE_MODEL), 2048, max_pixels=1024)
    asked = [(large, "a circle"), (large, "a triangle")]
    by_hand = model.log_likelihoods([(prompt.fitted(1024), text) for prompt, text in asked])
    assert smaller.log_likelihoods(asked) == by_hand != model.log_likelihoods(asked)
    assert smaller.yes_probabilities([large]) == model.yes_probabilities([large.fitted(1024)])
    request = JudgeRequest(row, ("a circle", "a triangle"), POINTWISE)
    judges = [
        likelihood_judge(LikelihoodJudgeSettings(name="l", measure="yes", max_pixels=pixels), tmp_path)
        for pixels in (1024, None)
    ]
    assert judges[0].fingerprint() != judges[1].fingerprint()  # replies of the one are not taken for the other's
    assert len({reply.text for judge in judges for _, reply in judge.judge([request])}) == 2


def test_both_numbers_are_those_of_transformers_alone(model, prompts, tmp_path):
    import torch

    prompt = chat_prompt(prompts[0], tmp_path)
    text = "It is a circle."
    rendered = model._processor.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
    inputs = model._processor(text=[rendered], images=list(prompt.images), return_tensors="pt")
    with torch.inference_mode():
        probabilities = model._model(**inputs).logits[0, -1].softmax(-1)
    yes, no = (
        sum(probabilities[token].item() for token in {model._tokens(word)[0] for word in words}) for words in (YES, NO)
    )
    several = [prompt, chat_prompt(prompts[1] | {"system": "Look closely."}, tmp_path)]
    # A probability moves by a quarter of its log-odds at most, and these by the likelihoods of two words.
    within = log_likelihood_tolerance(model._model, inputs["input_ids"].shape[1], answer=1) / 2
    assert model.yes_probabilities(several)[0] == pytest.approx(yes / (yes + no), abs=within, rel=0)
    tokens = len(model._processor.tokenizer(text)["input_ids"]) + 1  # and the end of the turn
    (mean,) = model.mean_log_likelihoods([(prompt, text)])
    assert mean == pytest.approx(model.log_likelihoods([(prompt, text)])[0] / tokens)
    scores = LikelihoodScores("l", "m", model, tmp_path, "mean_log_likelihood")
    ((_, reply),) = scores.judge([JudgeRequest(prompts[0], (text,), POINTWISE)])
    (entry,) = json.loads(reply.text)["responses"]
    assert entry["criteria"]["Likelihood"]["score"] == pytest.approx(10 * math.exp(mean), abs=1e-3)


def test_positions_are_made_before_the_model_is_called(model, prompts, tmp_path, monkeypatch):
    """The model itself would make them on the device, and wait for it."""

    def fails(*given, **named):
        raise AssertionError("positions were made in the forward pass")

    several = [chat_prompt(prompt, tmp_path) for prompt in prompts[:2]]
    texts = ["It is a circle.", "no"]
    monkeypatch.setattr(model._model.model, "compute_3d_position_ids", fails)
    assert all(map(math.isfinite, model.log_likelihoods(list(zip(several, texts, strict=True)))))
    assert all(map(math.isfinite, model.yes_probabilities(several)))


@pytest.mark.parametrize("measure", ["mean_log_likelihood", "yes"])
def test_a_likelihood_judges_responses_in_every_mode_through_the_recipe(prompts, tmp_path, measure):
    """Right answers score above wrong ones; a list is judged like its members, in whatever order it is shown."""
    responses = [
        row
        for prompt, (shape, other) in zip(prompts, _sides(), strict=True)
        for row in response_rows(prompt, f"It is a {shape}.", f"It is a {other}.", f"This is a {shape}.")
    ]
    likely = {"kind": "likelihood", "name": "likely", "measure": measure}
    settings = JudgingSettings.model_validate({"judges": [likely], "modes": MODES, "orders": 2})
    job = judging_job(tmp_path, prompts, responses, settings)
    metadata = judge.run(job, lambda progress: None)
    again = judge.run(job, lambda progress: None)
    assert (metadata["rows_in"], metadata["rows_out"], metadata["rows_quarantined"]) == (15, 15, 0)
    figures = metadata["judges"]["likely"]
    assert figures["calls"] == figures["judged"] == 5 * (2 + 3 + 3 * 2)
    assert (figures["position_consistency"], figures["list_point_agreement"]) == (1.0, 1.0)
    assert again["judges"]["likely"]["cache_hit_rate"] == 1.0
    judgements = atomic.read_parquet(tmp_path / "judged/judgements.parquet", "judgements").to_pylist()
    assert {row["status"] for row in judgements} == {OK}
    points = {row["response_id"]: row["score"] for row in judgements if row["mode"] == POINTWISE}
    assert all(0 <= score <= 10 for score in points.values())
    for right, wrong, _ in zip(*[iter(responses)] * 3, strict=True):
        assert points[right["response_id"]] > points[wrong["response_id"]] + 1


def test_what_cannot_be_weighed_is_an_error_of_its_own(model, prompts, tmp_path):
    (tmp_path / "blue.png").unlink()
    requests = [JudgeRequest(row, ("It is a circle.", "It is a triangle."), PAIRWISE) for row in prompts[:2]]
    found = dict(LikelihoodScores("l", "m", model, tmp_path, "yes").judge(requests))
    assert json.loads(found[0].text) == {"better": 1}
    assert isinstance(found[1], JudgeError) and "missing image" in str(found[1])


def test_texts_that_mean_the_same_are_found_by_whether_both_are_right(model, prompts, tmp_path):
    check = LikelihoodSameness("l", "m", model, tmp_path, "right", 0.5)
    found: dict[bool, list[bool]] = {True: [], False: []}
    for prompt, (shape, other) in zip(prompts, _sides(), strict=True):
        for named, changed in ((shape, other), (other, shape)):  # a wrong answer must stay wrong, a right one right
            for kept, now in ((True, named), (False, changed)):
                request = JudgeRequest(prompt, (f"It is a {named}.", f"The image shows a {now}."), restyle.SAME)
                ((_, reply),) = check.judge([request])
                found[kept].append(json.loads(reply.text)["same"])
    assert found == {True: [True] * 10, False: [False] * 10}


def test_asked_whether_two_texts_mean_the_same_it_sees_both_and_no_image(prompts, tmp_path):
    asked = []

    class Answers:
        def yes_probabilities(self, questions):
            asked.extend(questions)
            return [0.7 for _ in questions]

    for threshold, same in ((0.6, True), (0.8, False)):
        check = LikelihoodSameness("l", "m", Answers(), tmp_path, "same_content", threshold)
        ((_, reply),) = check.judge([JudgeRequest(prompts[0], ("It is round.", "A circle."), restyle.SAME)])
        assert json.loads(reply.text) == {"difference": "probability of the same 0.7000", "same": same}
    words = asked[0].messages[0]["content"][0]["text"]
    assert asked[0].images == () and "It is round." in words and "A circle." in words and "yes or no" in words


def _restyling(tmp_path, prompts, server, check: dict) -> restyle.RestyleJob:
    """A job over one pair per prompt, of which the reference says nothing: words alone do not find what changed."""
    prompts = [row | {"reference": None} for row in prompts]
    pairs, responses = [], []
    for prompt, words in zip(prompts, _sides(), strict=True):
        sides = [f"It is a {word}." for word in words]
        pairs.append(records.make_pair(prompt["prompt_id"], *sides, source="s", strength=2.0, label="constructed"))
        responses += response_rows(prompt, *sides)
    for name, rows in (("pairs", pairs), ("prompts", prompts), ("responses", responses)):
        atomic.write_parquet(schemas.table(rows, name), tmp_path / f"{name}.parquet")
    rewriter = {"kind": "endpoint", "name": "rewriter", "base_url": server.url, "model": "m", "attempts": 1}
    settings = RestyleSettings.model_validate({"rewriter": rewriter, "style": "one sentence", "check": check})
    return restyle.RestyleJob(
        **{name: tmp_path / f"{name}.parquet" for name in ("pairs", "prompts", "responses")},
        media_root=tmp_path,
        output=tmp_path / "restyled",
        cache=tmp_path / "replies.sqlite",
        near_identical=0.95,
        settings=settings,
    )


def _blocks(words: str) -> list[str]:
    return [block.split("\n", 1)[1].strip() for block in words.split("=== ") if block.startswith(("ANSWER", "TEXT"))]


def _shape(text: str) -> str:
    return next((shape for shape in language.SHAPES if shape in text), "")


def _rewrite(words: str, _: list[str]) -> str:
    """Makes a rectangle of every triangle."""
    shape = _shape(_blocks(words)[0])
    return json.dumps({"text": f"The shape is a {'rectangle' if shape == 'triangle' else shape}."})


def test_the_recipe_names_who_checks_that_rewriting_kept_the_content_an_endpoint(prompts, tmp_path):
    def compare(words: str, _: list[str]) -> str:
        first, second = map(_shape, _blocks(words))
        return json.dumps({"difference": "", "same": first == second})

    with serving(FaultServer({}, _rewrite)) as rewriter, serving(FaultServer({}, compare)) as checker:
        check = {"kind": "endpoint", "name": "check", "base_url": checker.url, "model": "c", "input_price": 1.0}
        metadata = restyle.run(_restyling(tmp_path, prompts, rewriter, check), lambda progress: None)
        assert (len(rewriter.bodies), len(checker.bodies)) == (10, 10)
        assert {body["model"] for body in checker.bodies} == {"c"}
    aside = atomic.read_parquet(tmp_path / "restyled/quarantine.parquet", "quarantine").to_pylist()
    assert [row["reason"] for row in aside] == [restyle.DRIFTED] * 5  # there is a triangle in every pair
    assert (metadata["rows_in"], metadata["rows_out"], metadata["rows_quarantined"]) == (5, 0, 5)
    assert metadata["same_content"]["cost"] > 0 == metadata["restyle"]["cost"]


def test_the_recipe_names_who_checks_that_rewriting_kept_the_content_a_likelihood(prompts, tmp_path):
    """The model that ships with the package sees which answers are not right any more, or right all of a sudden."""
    with serving(FaultServer({}, _rewrite)) as rewriter:
        job = _restyling(tmp_path, prompts, rewriter, {"kind": "likelihood", "name": "check", "asks": "right"})
        metadata = restyle.run(job, lambda progress: None)
        again = restyle.run(job, lambda progress: None)
        assert len(rewriter.bodies) == 10
    kept = atomic.read_parquet(tmp_path / "restyled/pairs.parquet", "pairs").to_pylist()
    aside = atomic.read_parquet(tmp_path / "restyled/quarantine.parquet", "quarantine").to_pylist()
    # of a circle, to say rectangle is as wrong as to say triangle; so the order of such a pair is what it was
    assert [(row["chosen"], row["rejected"]) for row in kept] == [
        ("The shape is a circle.", "The shape is a rectangle.")
    ] * 2
    assert [row["reason"] for row in aside] == [restyle.DRIFTED] * 3
    assert (metadata["rows_in"], metadata["rows_out"], metadata["rows_quarantined"]) == (5, 2, 3)
    assert metadata["same_content"]["calls"] == metadata["same_content"]["judged"] == 10
    assert again["same_content"]["cache_hit_rate"] == 1.0
