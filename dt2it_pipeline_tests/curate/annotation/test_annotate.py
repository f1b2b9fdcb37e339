"""Annotation: votes, faults, resuming; and likelihood against a plain computation on a tiny model."""

from __future__ import annotations

import math
import weakref
from pathlib import Path

import pytest

from dt2it_pipeline.config.sections.annotation import AnnotationSettings
from dt2it_pipeline.curate.annotation import annotate
from dt2it_pipeline.curate.annotation.annotate import AnnotateJob
from dt2it_pipeline.engines import device
from dt2it_pipeline.engines.chat import chat_prompt
from dt2it_pipeline.judges.likelihood.model import LikelihoodError, LikelihoodModel, Question, SequenceMemoryError
from dt2it_pipeline.judges.protocol import NoUsableReply
from dt2it_pipeline.storage import atomic, content_ids, records, schemas
from dt2it_pipeline_tests.support.construct_world import COLORS, prompt_row
from dt2it_pipeline_tests.support.fault_server import FaultServer, serving
from dt2it_pipeline_tests.support.threads import use_tested_threads
from dt2it_pipeline_tests.support.tiny import make_tiny
from dt2it_pipeline_tests.support.tolerance import log_likelihood_tolerance

JUDGES = [
    {"name": "first", "baseline": "blank"},
    {"name": "second", "baseline": "mismatched", "baselines": 2, "prompt": "Be exact."},
]


class Colorist:
    """Weighs a response by whether it names the colour of the true image; `None` texts have no likelihood."""

    def __init__(self) -> None:
        self.questions: list[Question] = []

    def evidence(self, questions):
        self.questions += questions
        return [[self._weigh(question, text) for text in question.responses] for question in questions]

    @staticmethod
    def _weigh(question: Question, text: str) -> float:
        if "unlikely" in text:
            return math.nan
        pixel = question.prompt.images[0].getpixel((0, 0))
        from PIL import ImageColor

        return 3.0 if any(color in text and ImageColor.getrgb(color) == pixel for color in COLORS) else -1.0


def _pair(prompt: dict, chosen: str, rejected: str) -> dict:
    return records.make_pair(prompt["prompt_id"], chosen, rejected, source="test")


def _job(tmp_path: Path, prompts: list[dict], pairs: list[dict], **changes: object) -> AnnotateJob:
    atomic.write_parquet(schemas.table(prompts, "prompts"), tmp_path / "prompts.parquet")
    atomic.write_parquet(schemas.table(pairs, "pairs"), tmp_path / "pairs.parquet")
    job = AnnotateJob(
        pairs=tmp_path / "pairs.parquet",
        prompts=tmp_path / "prompts.parquet",
        media_root=tmp_path,
        output=tmp_path / "votes.parquet",
        work=tmp_path / "work",
        settings=AnnotationSettings.model_validate({"judges": JUDGES, "batch_pairs": 2}),
        seed=0,
    )
    return job.model_copy(update=changes)


def _run(job: AnnotateJob, weigher: object) -> tuple[dict, list[dict], list[dict]]:
    summary = annotate.run(job, lambda progress: None, lambda judge: weigher)
    votes = atomic.read_parquet(job.output, "votes").to_pylist()
    aside = atomic.read_parquet(job.output.with_name("votes.quarantine.parquet"), "quarantine").to_pylist()
    return summary, votes, aside


def test_every_judge_votes_once_on_every_pair(tmp_path):
    prompts = [prompt_row(tmp_path, color) for color in COLORS]
    pairs = [_pair(p, f"It is {p['reference']}.", "It is pink.") for p in prompts[:3]]
    pairs += [_pair(p, "It is pink.", f"It is {p['reference']}.") for p in prompts[3:5]]
    pairs.append(_pair(prompts[5], "It is pink.", "It is grey."))
    summary, votes, aside = _run(_job(tmp_path, prompts, pairs), Colorist())
    for judge in ("first", "second"):
        mine = [vote for vote in votes if vote["judge"] == judge]
        assert [vote["verdict"] for vote in mine] == ["chosen"] * 3 + ["rejected"] * 2 + ["tie"]
        assert [vote["pair_id"] for vote in mine] == [pair["pair_id"] for pair in pairs]
        assert {(vote["order"], vote["words"], vote["fault"]) for vote in mine} == {("alone", None, None)}
    assert aside == []
    assert (summary["pairs"], summary["votes"], summary["unusable"]) == (6, 12, 0)


def test_the_second_judge_measures_against_other_images_and_words_the_question_in_its_way(tmp_path):
    prompts = [prompt_row(tmp_path, color) for color in COLORS]
    colorist = Colorist()
    _run(_job(tmp_path, prompts, [_pair(p, "a", "b") for p in prompts]), colorist)
    first, second = colorist.questions[:6], colorist.questions[6:]
    assert all(len(question.baselines) == 1 for question in first)
    for question in second:
        own = question.prompt.images[0].getpixel((0, 0))
        assert len(question.baselines) == 2
        assert all(images[0].getpixel((0, 0)) != own for images in question.baselines)
        assert question.prompt.messages[-1]["content"][-1]["text"].endswith("shape? Be exact.")


def test_a_shard_of_an_earlier_form_is_judged_again(tmp_path):
    prompts = [prompt_row(tmp_path, color) for color in COLORS[:2]]
    job = _job(tmp_path, prompts, [_pair(prompt, "It is red.", "It is blue.") for prompt in prompts])
    for judge in job.settings.judges:  # as one call in the place of counts by name, and a folder named without a form
        folder = job.work / content_ids.content_hash(judge.model_dump(mode="json"))[:12] / "000000000"
        folder.mkdir(parents=True)
        (folder / "calls.json").write_text("1")
    summary, votes, _ = _run(job, Colorist())
    assert (len(votes), summary["calls"], summary["cached"]) == (4, 4, 0)


def test_what_cannot_be_weighed_is_a_null_verdict_with_a_reason(tmp_path):
    prompts = [prompt_row(tmp_path, color) for color in COLORS[:4]]
    pairs = [_pair(prompt, "It is red.", "It is blue.") for prompt in prompts]
    pairs[3] = _pair(prompts[3], "unlikely", "It is blue.")
    (tmp_path / "blue.png").write_bytes(b"GIF89a")
    pairs.append(_pair(prompts[0] | {"prompt_id": "nowhere"}, "a", "b"))
    summary, votes, aside = _run(_job(tmp_path, prompts, pairs), Colorist())
    assert [vote["verdict"] for vote in votes[:5]] == ["chosen", None, "tie", None, None]
    reasons = {row["row_id"]: row["reason"] for row in aside}
    assert [vote["fault"] for vote in votes[:3]] == [None, "unreadable image", None]
    for judge in ("first", "second"):
        assert reasons[f"{pairs[1]['pair_id']}/{judge}"] == "unreadable image"
        assert reasons[f"{pairs[3]['pair_id']}/{judge}"] == "likelihood is not a number"
        assert reasons[f"{pairs[4]['pair_id']}/{judge}"] == "unknown prompt"
    assert summary["unusable"] == len(aside) == 6


class Chokes(Colorist):
    """Cannot compute some texts, whatever stands beside them in the batch."""

    def __init__(self, word: str, error: Exception | None = None) -> None:
        super().__init__()
        self._word, self._error = word, error or RuntimeError("a shape that no kernel takes")

    def evidence(self, questions):
        if any(self._word in text for question in questions for text in question.responses):
            raise self._error
        return super().evidence(questions)


@pytest.mark.parametrize(
    "error", [RuntimeError("a shape that no kernel takes"), SequenceMemoryError("does not suffice for one sequence")]
)
def test_a_pair_that_cannot_be_computed_costs_its_own_verdict(tmp_path, error):
    prompts = [prompt_row(tmp_path, color) for color in COLORS]
    pairs = [_pair(p, f"It is {p['reference']}.", "It is pink.") for p in prompts]
    pairs[2] = _pair(prompts[2], "It is odd.", "It is pink.")
    settings = AnnotationSettings.model_validate({"judges": JUDGES[:1], "batch_pairs": 6})
    _, votes, aside = _run(_job(tmp_path, prompts, pairs, settings=settings), Chokes("odd", error))
    assert [vote["verdict"] for vote in votes] == ["chosen", "chosen", None, "chosen", "chosen", "chosen"]
    (row,) = aside
    assert row["reason"] == "the judge could not weigh it"
    assert row["detail"] == f"{type(error).__name__}: {error}"


def test_a_model_that_fails_on_every_pair_ends_the_run(tmp_path):
    prompts = [prompt_row(tmp_path, color) for color in COLORS[:3]]
    settings = AnnotationSettings.model_validate({"judges": JUDGES[:1], "batch_pairs": 6})
    job = _job(tmp_path, prompts, [_pair(p, "a", "b") for p in prompts], settings=settings)
    with pytest.raises(LikelihoodError, match="the judge first fails on every pair; on one: RuntimeError: a shape"):
        _run(job, Chokes(""))


def test_a_killed_run_resumes_and_ends_in_the_same_bytes(tmp_path):
    prompts = [prompt_row(tmp_path, color) for color in COLORS]
    job = _job(tmp_path, prompts, [_pair(p, f"{p['reference']}", "pink") for p in prompts])
    _run(job, Colorist())
    whole = job.output.read_bytes()
    job = job.model_copy(update={"work": tmp_path / "work2", "output": tmp_path / "again" / "votes.parquet"})

    class Dies(Colorist):
        def evidence(self, questions):
            if len(self.questions) >= 8:
                raise KeyboardInterrupt
            return super().evidence(questions)

    with pytest.raises(KeyboardInterrupt):
        _run(job, Dies())
    colorist = Colorist()
    _run(job, colorist)
    assert len(colorist.questions) == 4
    assert job.output.read_bytes() == whole


def test_no_contested_pair_is_an_empty_table(tmp_path):
    summary, votes, aside = _run(_job(tmp_path, [prompt_row(tmp_path, "red")], []), Colorist())
    assert (votes, aside, summary["votes"]) == ([], [], 0)


def test_a_missing_model_is_one_clear_error(tmp_path):
    with pytest.raises(LikelihoodError, match="nowhere"):
        LikelihoodModel(str(tmp_path / "nowhere"), 4096)


def test_an_endpoint_votes_beside_another_judge_and_its_replies_are_kept(tmp_path):
    prompts = [prompt_row(tmp_path, color) for color in COLORS]
    pairs = [_pair(p, f"item-{n} worth-9", f"item-{n} worth-2 {p['reference']}") for n, p in enumerate(prompts)]
    with serving(FaultServer({"item-3": ("prose", 99)})) as server:
        remote = {"kind": "endpoint", "name": "remote", "base_url": server.url, "model": "m", "attempts": 2}
        settings = AnnotationSettings.model_validate(
            {"judges": [JUDGES[0], remote | {"input_price": 1e6}], "batch_pairs": 4}
        )
        job = _job(tmp_path, prompts, pairs, settings=settings, cache=tmp_path / "replies.sqlite")
        summary, votes, aside = _run(job, Colorist())
        asked = len(server.bodies)
        again = job.model_copy(update={"work": tmp_path / "work2", "output": tmp_path / "again" / "votes.parquet"})
        second, votes_again, _ = _run(again, Colorist())
        assert len(server.bodies) == asked + 2  # usable replies were kept, the unusable one was asked for again
    assert [v["verdict"] for v in votes if v["judge"] == "first"] == ["rejected"] * 6
    assert [v["verdict"] for v in votes if v["judge"] == "remote"] == ["chosen"] * 3 + [None] + ["chosen"] * 2
    assert {v["order"] for v in votes if v["judge"] == "remote"} == {"reversed"}
    words = [v["words"] for v in votes if v["judge"] == "remote"]
    assert words[3] == "I would rather not say." and all('"better"' in each for each in words[:3])
    assert [row["row_id"] for row in aside] == [f"{pairs[3]['pair_id']}/remote"]
    assert votes_again == votes
    assert (summary["calls"], second["calls"]) == (6 + 7, 6 + 2)  # one reply was asked for twice in each run
    assert (summary["cached"], second["cached"]) == (0, 7)  # the unusable ones among them; a likelihood judge has none
    assert (summary["asked"]["remote"]["calls"], summary["asked"]["remote"]["unusable"]) == (6, 1)
    assert summary["asked"]["remote"]["cost"] > second["asked"]["remote"]["cost"] > 0


def test_a_judge_without_a_usable_vote_ends_the_run_and_is_asked_again(tmp_path):
    prompts = [prompt_row(tmp_path, color) for color in COLORS]
    pairs = [_pair(p, f"item-{n} worth-9", f"item-{n} worth-2 {p['reference']}") for n, p in enumerate(prompts)]
    with serving(FaultServer({f"item-{n}": ("prose", 1) for n in range(6)})) as server:
        remote = {"kind": "endpoint", "name": "remote", "base_url": server.url, "model": "m", "attempts": 1}
        settings = AnnotationSettings.model_validate({"judges": [remote], "batch_pairs": 2})
        job = _job(tmp_path, prompts, pairs, settings=settings, cache=tmp_path / "replies.sqlite")
        with pytest.raises(
            NoUsableReply, match=r'judge remote gave no usable.*I would rather not say.*"better": 1 or 2'
        ):
            _run(job, Colorist())
        assert len(server.bodies) == 4  # after three pairs or more the judge is not paid for any further
        summary, votes, aside = _run(job, Colorist())
        assert len(server.bodies) == 4 + 4 + 2
    assert {v["verdict"] for v in votes} == {"chosen", None} and summary["unusable"] == len(aside) == 2
    few = _job(tmp_path, prompts, pairs[:2], settings=settings, work=tmp_path / "few")
    with serving(FaultServer({f"item-{n}": ("prose", 9) for n in range(2)})) as server:
        remote |= {"base_url": server.url}
        few = few.model_copy(update={"settings": AnnotationSettings.model_validate({"judges": [remote]})})
        assert _run(few, Colorist())[0]["unusable"] == 2  # two refusals may be right about their pairs


def test_a_model_is_let_go_before_the_next_one_is_loaded():
    class Model:
        pass

    held = annotate._Held()
    first = held.get("a", Model)
    assert held.get("a", Model) is first
    seen = weakref.ref(first)
    del first

    def load():
        assert seen() is None
        return Model()

    assert held.get("b", load) is held.get("b", Model)


TOKENS = 160  # more than any prompt with its answer has here


def test_a_reward_model_is_no_judge_of_likelihoods(tmp_path):
    from dt2it_pipeline.reward.reward_model import RewardModel

    (tmp_path / "base").mkdir()
    (tmp_path / "rm").mkdir()
    RewardModel.from_pretrained(make_tiny(tmp_path / "base"), new_head_seed=0).save_pretrained(tmp_path / "rm")
    with pytest.raises(LikelihoodError, match=r"lacks weights of a language model \(lm_head"):
        LikelihoodModel(str(tmp_path / "rm"), 4096)


def _tokens(model: LikelihoodModel, text: str) -> int:
    """Tokens of an answer, with the end of its turn."""
    return len(model._processor.tokenizer(text)["input_ids"]) + 1


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def tiny(request, tmp_path_factory) -> str:
    return str(make_tiny(tmp_path_factory.mktemp("model"), request.param))


@pytest.mark.numerics
def test_batched_likelihood_is_that_of_one_sequence_at_a_time(tiny, tmp_path, monkeypatch):
    import torch

    use_tested_threads()
    prompts = [
        chat_prompt(prompt_row(tmp_path, color, "what? " * n), tmp_path) for n, color in enumerate(COLORS[:3], 1)
    ]
    sequences = [(prompt, text) for prompt in prompts for text in ("red", "it is not a red <|im_end|> shape at all")]
    together = LikelihoodModel(tiny, 4096).log_likelihoods(sequences)
    alone = LikelihoodModel(tiny, 1)  # token: every sequence has a pass to itself
    apart = [alone.log_likelihoods([sequence])[0] for sequence in sequences]
    within = [log_likelihood_tolerance(alone._model, TOKENS, _tokens(alone, text)) for _, text in sequences]
    for one, other, limit in zip(together, apart, within, strict=True):
        assert one == pytest.approx(other, abs=limit, rel=0)
    assert all(value < 0 for value in together)
    # What is prepared ahead, as on a GPU, is the same.
    monkeypatch.setattr(device, "threads_for", lambda device: 2)
    assert LikelihoodModel(tiny, 300).log_likelihoods(sequences) == pytest.approx(apart, abs=max(within), rel=0)
    assert LikelihoodModel(tiny, 300).yes_probabilities(prompts) == pytest.approx(
        alone.yes_probabilities(prompts), abs=max(within), rel=0
    )

    # The same by transformers alone: tokens of prompt and response in one row, no batch, no remembered images.
    prompt, text = sequences[0]
    rendered = alone._processor.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
    inputs = alone._processor(text=[rendered], images=list(prompt.images), return_tensors="pt")
    answer = torch.tensor([[*alone._processor.tokenizer(text)["input_ids"], alone._processor.tokenizer.eos_token_id]])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
    for key in ("attention_mask", "mm_token_type_ids"):
        value = 1 if key == "attention_mask" else 0
        inputs[key] = torch.cat([inputs[key], torch.full_like(answer, value)], 1)
    alone._model.model.visual = alone._model.model.visual.vision_encoder
    with torch.inference_mode():
        logp = alone._model(**inputs).logits[0].log_softmax(-1)
    length = inputs["input_ids"].shape[1]
    start = length - answer.shape[1]
    expected = sum(logp[i - 1, inputs["input_ids"][0, i]].item() for i in range(start, length))
    assert together[0] == pytest.approx(expected, abs=within[0], rel=0)


@pytest.mark.numerics
def test_evidence_is_the_gain_over_the_baseline_images(tiny, tmp_path):
    use_tested_threads()
    model = LikelihoodModel(tiny, 1024)
    rows = [prompt_row(tmp_path, color) for color in COLORS[:3]]
    prompt, *others = (chat_prompt(row, tmp_path) for row in rows)
    question = Question(prompt, tuple(other.images for other in others), ("red", "blue"))
    ((first, second),) = model.evidence([question])
    values = model.log_likelihoods(
        [(prompt.with_images(p.images), text) for text in ("red", "blue") for p in (prompt, *others)]
    )
    within = 2 * log_likelihood_tolerance(model._model, TOKENS, _tokens(model, "blue"))  # of the answer and the mean
    assert first == pytest.approx(values[0] - sum(values[1:3]) / 2, abs=within, rel=0)
    assert second == pytest.approx(values[3] - sum(values[4:6]) / 2, abs=within, rel=0)
    ((nothing, _),) = model.evidence([Question(prompt, (prompt.images,), ("red", "blue"))])
    assert nothing == pytest.approx(0, abs=within)  # an image says nothing beyond itself
