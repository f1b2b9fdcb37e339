"""The answering judge with a scripted engine; and with vLLM on the demo's base model (heavy)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.annotation import AnnotationSettings
from dt2it_pipeline.curate.annotation import annotate
from dt2it_pipeline.engines.vllm_engine import EngineError, Sample
from dt2it_pipeline.storage import atomic, records, schemas
from dt2it_pipeline_tests.support.construct_world import COLORS, ScriptedEngine, color_of, prompt_row

JUDGES = [
    {"name": "first", "kind": "answer", "baselines": 2},
    {"name": "second", "kind": "answer", "prompt": "Be exact.", "baselines": 2},
]


def says_the_color(request):
    return [Sample(f"The shape is {color_of(request)}.", 5, True)]


def run(tmp_path: Path, prompts: list[dict], sides: list[tuple[str, str]], engine: object, make_engine=None, **changes):
    """Votes, reasons by row and the pairs, with a scripted engine, an engine's maker, or vLLM where both are None."""
    make_engine = make_engine if engine is None else lambda judge, most_images: engine
    pairs = [
        records.make_pair(prompt["prompt_id"], *texts, source="test")
        for prompt, texts in zip(prompts, sides, strict=True)
    ]
    atomic.write_parquet(schemas.table(prompts, "prompts"), tmp_path / "prompts.parquet")
    atomic.write_parquet(schemas.table(pairs, "pairs"), tmp_path / "pairs.parquet")
    job = annotate.AnnotateJob(
        pairs=tmp_path / "pairs.parquet",
        prompts=tmp_path / "prompts.parquet",
        media_root=tmp_path,
        output=tmp_path / "votes.parquet",
        work=tmp_path / "work",
        settings=AnnotationSettings.model_validate({"judges": JUDGES, "batch_pairs": 4} | changes),
        seed=0,
        cache=tmp_path / "replies.sqlite",
    )
    summary = annotate.run(job, lambda progress: None, None, make_engine)
    votes = atomic.read_parquet(job.output, "votes").to_pylist()
    aside = atomic.read_parquet(tmp_path / "votes.quarantine.parquet", "quarantine").to_pylist()
    assert summary["calls"] + summary["cached"] <= summary["votes"]
    return votes, {row["row_id"]: row["reason"] for row in aside}, pairs


def test_it_votes_for_the_response_that_agrees_with_its_own_answer(tmp_path):
    engine = ScriptedEngine(says_the_color)
    prompts = [prompt_row(tmp_path, color) for color in COLORS]
    sides = [(f"**{color}**, I think", "The shape is pink.") for color in COLORS[:3]]
    sides += [("The shape is pink.", f"I see {color}.") for color in COLORS[3:5]] + [("The shape is pink.", "Gold.")]
    votes, aside, _ = run(tmp_path, prompts, sides, engine)
    for judge in ("first", "second"):
        verdicts = [vote["verdict"] for vote in votes if vote["judge"] == judge]
        assert verdicts == ["chosen"] * 3 + ["rejected"] * 2 + ["tie"]
    assert aside == {}
    words = [request.prompt.messages[-1]["content"][-1]["text"] for request in engine.requests]
    assert any(text.endswith("shape? Be exact.") for text in words)
    assert any(text.endswith("shape?") for text in words)
    assert all(request.n == 1 for request in engine.requests)


def test_equal_questions_are_asked_once_and_yes_or_no_needs_no_other_image(tmp_path):
    engine = ScriptedEngine(lambda request: [Sample(f"{'Yes' if color_of(request) == 'red' else 'No'}.", 2, True)])
    prompts = [prompt_row(tmp_path, color, "is it red?") for color in ("red", "blue", "red")]
    sides = [("Yes, it is.", "No."), ("Yes, it is.", "No."), ("Not at all.", "Yes.")]
    votes, _, _ = run(tmp_path, prompts, sides, engine)
    assert [vote["verdict"] for vote in votes[:3]] == ["chosen", "rejected", "rejected"]
    assert len(engine.requests) == 2 * len(JUDGES)


def test_a_pair_that_is_contested_again_is_judged_from_kept_answers_without_a_model(tmp_path):
    engine = ScriptedEngine(says_the_color)
    prompts = [prompt_row(tmp_path, color) for color in COLORS]
    sides = [(f"It is {color}.", "It is pink.") for color in COLORS]
    run(tmp_path, prompts, sides, engine)
    shutil.rmtree(tmp_path / "work")
    votes, aside, _ = run(tmp_path, prompts, [side[::-1] for side in sides], None, no_engine)
    assert [vote["verdict"] for vote in votes] == ["rejected"] * 2 * len(COLORS)
    assert aside == {}
    shutil.rmtree(tmp_path / "work")
    with pytest.raises(AssertionError, match="no model"):  # other words are another question
        run(tmp_path, prompts, sides, None, no_engine, judges=[JUDGES[0], JUDGES[1] | {"prompt": "Be vague."}])


def no_engine(judge, most_images):
    raise AssertionError("no model was to be loaded")


def test_what_it_cannot_answer_is_no_vote_with_a_reason(tmp_path):
    replies = {
        "red": lambda: EngineError("too long"),
        "blue": lambda: [Sample("The shape is", 3, False)],
        "green": lambda: [Sample("The shape is green.", 5, True)],
        "yellow": lambda: [Sample("", 0, True)],
    }
    engine = ScriptedEngine(lambda request: replies[color_of(request)]())
    prompts = [prompt_row(tmp_path, color) for color in replies]
    prompts.append(prompt_row(tmp_path, "teal"))
    (tmp_path / "teal.png").write_bytes(b"GIF89a")
    votes, aside, pairs = run(tmp_path, prompts, [("It is green.", "It is red.")] * 5, engine)
    assert [vote["verdict"] for vote in votes[:5]] == [None, None, "chosen", "tie", None]
    assert [vote["words"] for vote in votes[:5]] == [None, "The shape is", "The shape is green.", "", None]
    assert [aside.get(f"{pair['pair_id']}/first") for pair in pairs] == [
        "the judge could not answer",
        "the judge's answer was cut off",
        None,
        None,
        "unreadable image",
    ]


def test_a_prompt_that_no_other_image_can_stand_in_for_is_no_vote(tmp_path):
    prompts = [prompt_row(tmp_path, "red")]
    votes, aside, _ = run(tmp_path, prompts, [("It is red.", "It is blue.")], ScriptedEngine(says_the_color))
    assert [vote["verdict"] for vote in votes] == [None, None]
    assert set(aside.values()) == {"no other image to measure against"}


@pytest.mark.heavy
def test_the_demo_model_behind_vllm_prefers_right_answers_to_wrong_ones(tmp_path):
    from PIL import Image, ImageDraw

    prompts, sides = [], []
    for place, color in enumerate(("red", "blue", "green", "yellow")):
        row = prompt_row(tmp_path, color, "what color is the shape?")
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((18, 18, 46, 46), fill=color)
        image.save(tmp_path / f"{color}.png")
        prompts.append(row)
        wrong = ("blue", "green", "yellow", "red")[place]
        right = f"## Answer\n\n- **Color:** {color}\n- **Confidence:** high"
        sides.append((right, f"The color is {wrong}.") if place % 2 else (f"The color is {wrong}.", right))
    judges = [judge | {"model": model_path(DEMO_BASE_MODEL)} for judge in JUDGES]
    votes, aside, _ = run(tmp_path, prompts, sides, None, judges=judges)
    assert aside == {}
    assert [vote["verdict"] for vote in votes] == ["rejected", "chosen"] * 4
