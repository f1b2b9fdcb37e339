"""The rewriter of the demo's world: what it is taught, and that reading the instruction once changes no number."""

from __future__ import annotations

import random

import pytest

from dt2it_pipeline.construct import restyle
from dt2it_pipeline.demo import language
from dt2it_pipeline.demo.build_rewriter import STYLE, Pupil, draw, prompt_text
from dt2it_pipeline.engines.vllm_engine import Sample
from dt2it_pipeline.judges.llm import ModelJudge
from dt2it_pipeline.judges.protocol import JudgeRequest
from dt2it_pipeline_tests.support.construct_world import ScriptedEngine, prompt_row
from dt2it_pipeline_tests.support.threads import use_tested_threads
from dt2it_pipeline_tests.support.tolerance import logit_tolerance


def test_what_it_is_taught_agrees_with_the_answer() -> None:
    rng = random.Random(0)
    for question, text, sentence in (draw(rng) for _ in range(200)):
        assert language.read_answer(question, text) == language.read_answer(question, sentence) is not None


def test_it_is_taught_with_the_prompt_that_the_pipeline_sends(tmp_path) -> None:
    question, text, _ = draw(random.Random(1))
    row = prompt_row(tmp_path, "red", question, "circle") | {"reference": None}  # which is not shown, but in the mark
    engine = ScriptedEngine(lambda request: [Sample("{}", 1, True)])
    rewriter = ModelJudge(
        "r", engine, tmp_path, values={"style": STYLE}, schemas={restyle.RESTYLE: {}}, with_images=False
    )
    list(rewriter.judge([JudgeRequest(row, (text,), restyle.RESTYLE)]))
    (message,) = engine.requests[0].prompt.messages
    words = message["content"][0]["text"]
    assert prompt_text(question, text) == f"<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.numerics
def test_an_instruction_that_is_read_once_gives_the_numbers_of_the_whole_prompt() -> None:
    import torch

    use_tested_threads()
    pupil = Pupil(0)
    rng = random.Random(2)
    examples = [pupil._example(rng) for _ in range(2)]
    pupil.model.eval()
    with torch.inference_mode():
        together, wanted = pupil._forward(examples)
        alone = []
        for prompt, reply in examples:
            ids = torch.tensor([pupil._beginning + prompt + reply])
            logits = pupil.model(input_ids=ids).logits[0]
            alone.append(logits[-len(reply) - 1 : -1])
    assert wanted.tolist() == [token for _, reply in examples for token in reply]
    tokens = len(pupil._beginning) + max(len(prompt) + len(reply) for prompt, reply in examples)
    assert torch.allclose(together, torch.cat(alone), atol=logit_tolerance(pupil.model, tokens), rtol=0)
