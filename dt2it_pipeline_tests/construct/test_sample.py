"""Sampling: what is asked of the engine, what is kept, and what happens when things go wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.sampling import SamplingSettings
from dt2it_pipeline.construct import sample
from dt2it_pipeline.construct.sample import SampleJob
from dt2it_pipeline.demo.language import COLORS as DEMO_COLORS
from dt2it_pipeline.engines.vllm_engine import EngineError, Sample
from dt2it_pipeline.storage import atomic, content_ids, schemas
from dt2it_pipeline_tests.support.construct_world import COLORS, ScriptedEngine, color_of, prompt_row


def _job(tmp_path: Path, rows: list[dict], **settings: object) -> SampleJob:
    atomic.write_parquet(schemas.table(rows, "prompts"), tmp_path / "prompts.parquet")
    return SampleJob(
        model="somewhere/base_model",
        prompts=tmp_path / "prompts.parquet",
        media_root=tmp_path,
        output=tmp_path / "out" / "responses.parquet",
        work=tmp_path / "work",
        settings=SamplingSettings(**{"samples": 2, "mismatched_samples": 1, "shard_prompts": 2, **settings}),
        seed=0,
    )


def _honest(request):
    return [Sample(f" It is {color_of(request)}{'!' * i}.", 4, True) for i in range(request.n)]


def _run(job: SampleJob, engine: ScriptedEngine) -> dict:
    return sample.run(job, lambda progress: None, lambda most_images: engine)


def _tables(job: SampleJob) -> tuple[list[dict], list[dict]]:
    aside = atomic.read_parquet(job.output.with_name("responses.quarantine.parquet"), "quarantine")
    return atomic.read_parquet(job.output, "responses").to_pylist(), aside.to_pylist()


def test_answers_are_stripped_found_by_content_and_say_how_they_came_about(tmp_path):
    job = _job(tmp_path, [prompt_row(tmp_path, color) for color in COLORS])
    summary = _run(job, ScriptedEngine(_honest))
    responses, aside = _tables(job)
    own = [row for row in responses if row["generator"] == "base_model|t=1"]
    other = [row for row in responses if row["generator"] == "base_model|t=1|mismatched_image"]
    assert (len(own), len(other), aside) == (12, 6, [])
    assert all(row["response_id"] == content_ids.response_id(row["prompt_id"], row["text"]) for row in responses)
    assert all(row["text"] == row["text"].strip() for row in responses)
    assert (summary["rows_in"], summary["rows_out"], summary["rows_quarantined"]) == (6, 6, 0)
    assert summary["sampled"] == summary["kept"] == 18


def test_a_mismatched_image_is_never_the_prompts_own(tmp_path):
    rows = [prompt_row(tmp_path, color, q) for color in COLORS[:2] for q in ("what color?", "which color is it?")]
    job = _job(tmp_path, rows, samples=1, mismatched_samples=3)
    _run(job, ScriptedEngine(_honest))
    truth = {row["prompt_id"]: row["reference"] for row in rows}
    responses, _ = _tables(job)
    for row in responses:
        matches = truth[row["prompt_id"]] in row["text"]
        assert matches == ("mismatched" not in row["generator"])


def test_mismatched_samples_are_left_out_where_there_is_no_other_image(tmp_path):
    job = _job(tmp_path, [prompt_row(tmp_path, "red"), prompt_row(tmp_path, "red", "which color is it?")])
    assert _run(job, ScriptedEngine(_honest))["sampled"] == 4


def test_duplicates_are_counted_and_every_sample_is_accounted_for(tmp_path):
    answers = iter(
        [
            [Sample("Red.", 2, True), Sample(" Red. ", 2, True)],
            [Sample("", 1, True)],
            [Sample("on and on", 48, False), Sample("Blue.", 2, True)],
            EngineError("too long"),
        ]
    )
    job = _job(tmp_path, [prompt_row(tmp_path, "red"), prompt_row(tmp_path, "blue")])
    summary = _run(job, ScriptedEngine(lambda request: next(answers)))
    responses, aside = _tables(job)
    assert [row["text"] for row in responses] == ["Red.", "Blue."]
    assert summary["sampled"] == summary["kept"] + summary["duplicates"] + summary["answers_quarantined"] == 5
    assert sorted(row["reason"] for row in aside) == ["empty answer", "longer than 48 tokens", "refused by the engine"]


def test_unusable_prompts_are_quarantined_with_the_reason_and_counts_reconcile(tmp_path):
    rows = [prompt_row(tmp_path, color) for color in COLORS[:5]]
    (tmp_path / "red.png").write_bytes(b"\x89PNG not really")
    (tmp_path / "blue.png").unlink()
    rows[2]["media"][0]["path"] = "../outside.png"
    rows[3]["turns"][0]["text"] = "<image><image> what color?"
    engine = ScriptedEngine(lambda request: [Sample("", 1, True)] * request.n)
    job = _job(tmp_path, rows)
    summary = _run(job, engine)
    _, aside = _tables(job)
    reasons = {row["row_id"]: row["reason"] for row in aside}
    assert [reasons[row["prompt_id"]] for row in rows] == [
        "unreadable image",
        "missing image",
        "path outside the media root",
        "image markers do not match media",
        "no usable answer",
    ]
    assert (summary["rows_in"], summary["rows_out"], summary["rows_quarantined"]) == (5, 0, 5)


def test_a_killed_run_resumes_and_ends_in_the_same_bytes(tmp_path):
    rows = [prompt_row(tmp_path, color) for color in COLORS]
    job = _job(tmp_path, rows)
    _run(job, ScriptedEngine(_honest))
    whole = job.output.read_bytes()

    again = job.model_copy(update={"work": tmp_path / "work2", "output": tmp_path / "out2" / "responses.parquet"})
    calls = 0

    def dies_in_the_second_shard(request):
        nonlocal calls
        calls += 1
        if calls > 4:
            raise KeyboardInterrupt
        return _honest(request)

    with pytest.raises(KeyboardInterrupt):
        _run(again, ScriptedEngine(dies_in_the_second_shard))
    engine = ScriptedEngine(_honest)
    _run(again, engine)
    assert len(engine.requests) == 8  # the first shard's four requests are not repeated
    assert again.output.read_bytes() == whole
    untouched = ScriptedEngine(_honest)
    _run(again, untouched)
    assert untouched.requests == []


def test_seeds_depend_on_the_prompt_and_not_on_its_neighbours(tmp_path):
    rows = [prompt_row(tmp_path, color) for color in COLORS]
    together, alone = ScriptedEngine(_honest), ScriptedEngine(_honest)
    _run(_job(tmp_path, rows, mismatched_samples=0), together)
    _run(_job(tmp_path, rows[3:4], mismatched_samples=0).model_copy(update={"work": tmp_path / "w2"}), alone)
    assert together.requests[3].seed == alone.requests[0].seed
    assert len({request.seed for request in together.requests}) == 6


@pytest.mark.heavy
def test_vllm_answers_from_the_image_and_copies_of_the_model_that_share_the_shards_repeat_it(tmp_path):
    rows = [prompt_row(tmp_path, color, "what color is the shape?") for color in COLORS[:5]]
    rows[2]["turns"] = [{"role": "user", "text": "<image>\n" + "what color is the shape? " * 300}]
    settings = {"max_new_tokens": 24, "max_model_len": 512, "shard_prompts": 1}
    demo = {"model": model_path(DEMO_BASE_MODEL)}
    job = _job(tmp_path, rows, **settings).model_copy(update=demo)
    one = sample.run(job, lambda progress: None)
    responses, aside = _tables(job)
    assert one["rows_out"] == 4
    assert {row["row_id"]: row["reason"] for row in aside}[rows[2]["prompt_id"]] == "refused by the engine"
    assert any(color in row["text"].lower() for row in responses for color in DEMO_COLORS)
    alone = job.output.read_bytes()
    copies = _job(tmp_path, rows, **settings, data_parallel=2).model_copy(update={**demo, "work": tmp_path / "copies"})
    two = sample.run(copies, lambda progress: None)
    assert job.output.read_bytes() == alone
    assert {key: one[key] for key in ("sampled", "kept", "rows_out")} == {
        key: two[key] for key in ("sampled", "kept", "rows_out")
    }


def test_a_pool_shares_the_answers_out_and_every_way_of_drawing_occurs(tmp_path):
    rows = [prompt_row(tmp_path, color) for color in COLORS]
    pool = {
        "models": ["here/first", "there/second"],
        "instructions": ["", "Answer briefly."],
        "temperatures": [0.5, 1.0],
    }
    job = _job(tmp_path, rows, samples=8, mismatched_samples=0, **pool)
    parts, engines = [], []
    for place, model in enumerate(pool["models"]):
        output = tmp_path / f"{place}" / "responses.parquet"
        own = {"model": model, "place": place, "output": output, "work": tmp_path / f"work{place}"}
        mine = job.model_copy(update=own)
        engines.append(ScriptedEngine(_named(model)))
        summary = _run(mine, engines[-1])
        parts.append(
            (
                atomic.read_parquet(output),
                atomic.read_parquet(output.with_name("responses.quarantine.parquet")),
                summary,
            )
        )
    responses, aside, summary = sample.join(parts)
    ways = {row["generator"] for row in responses.to_pylist()}
    assert ways == {f"{m}|t={t}|i={i}" for m in ("first", "second") for t in ("0.5", "1") for i in (0, 1)}
    drawn = [(sum(r.n for r in e.requests), {r.temperature for r in e.requests}) for e in engines]
    assert drawn == [(24, {0.5, 1.0}), (24, {0.5, 1.0})]
    words = {
        r.prompt.messages[-1]["content"][-1]["text"].endswith("Answer briefly.") for e in engines for r in e.requests
    }
    assert words == {True, False}
    assert (summary["rows_in"], summary["rows_out"], summary["rows_quarantined"], aside.num_rows) == (6, 6, 0, 0)
    assert summary["sampled"] == summary["kept"] + summary["duplicates"] == 48


def _named(model):
    """Answers that say who gave them and at which seed, so that only true repetitions are equal."""
    return lambda request: [Sample(f"{model} {request.seed} {i}", 4, True) for i in range(request.n)]


def test_an_answer_that_two_models_give_is_kept_once_and_a_prompt_that_one_cannot_answer_is_not_lost(tmp_path):
    rows = [prompt_row(tmp_path, "red"), prompt_row(tmp_path, "blue")]
    job = _job(tmp_path, rows, samples=2, mismatched_samples=0, models=["a/one", "a/two"])

    def never_blue(request):
        return EngineError("too long") if color_of(request) == "blue" else [Sample("Red.", 2, True)] * request.n

    parts = []
    for place, answer in enumerate((never_blue, lambda request: [Sample("Red.", 2, True)] * request.n)):
        output = tmp_path / f"{place}" / "responses.parquet"
        mine = job.model_copy(update={"place": place, "output": output, "work": tmp_path / f"work{place}"})
        summary = _run(mine, ScriptedEngine(answer))
        parts.append(
            (
                atomic.read_parquet(output),
                atomic.read_parquet(output.with_name("responses.quarantine.parquet")),
                summary,
            )
        )
    responses, aside, summary = sample.join(parts)
    assert [row["text"] for row in responses.to_pylist()] == ["Red.", "Red."]
    assert len(set(responses["prompt_id"].to_pylist())) == 2 and aside.num_rows == 0
    assert (summary["rows_in"], summary["rows_out"], summary["kept"], summary["duplicates"]) == (2, 2, 2, 1)


def test_noised_images_are_the_prompts_own_under_noise(tmp_path):
    rows = [prompt_row(tmp_path, "red")]
    engine = ScriptedEngine(_named("m"))
    _run(_job(tmp_path, rows, samples=1, mismatched_samples=0, noised_samples=2, noise=0.5), engine)
    own, *noised = (request.prompt.images[0] for request in engine.requests)
    assert len(noised) == 2 and noised[0].tobytes() != noised[1].tobytes() != own.tobytes()
    red, green = (sum(channel.getdata()) / 4096 for channel in noised[0].split()[:2])
    assert red > green + 100  # 0.5 * 255 more, before clipping
    responses, _ = _tables(_job(tmp_path, rows))
    assert [row["generator"].split("|")[-1] for row in responses] == ["t=1", "noised_image", "noised_image"]


def test_images_are_scaled_down_and_short_answers_quarantined(tmp_path):
    engine = ScriptedEngine(lambda request: [Sample("Red.", 2, True), Sample("It is red.", 4, True)])
    job = _job(tmp_path, [prompt_row(tmp_path, "red")], mismatched_samples=0, max_pixels=1024, min_characters=5)
    _run(job, engine)
    assert engine.requests[0].prompt.images[0].size == (32, 32)
    responses, aside = _tables(job)
    assert [row["text"] for row in responses] == ["It is red."]
    assert [row["reason"] for row in aside] == ["shorter than 5 characters"]


def test_what_is_read_ahead_changes_nothing(tmp_path, monkeypatch):
    import torch  # noqa: F401  (a process that has not imported it reads nothing ahead)

    from dt2it_pipeline.engines import device

    rows = [prompt_row(tmp_path, color) for color in COLORS]
    file = tmp_path / f"{COLORS[1]}.png"
    file.write_bytes(file.read_bytes()[:-40])
    found = []
    for threads in (0, 3):
        monkeypatch.setattr(device, "threads_for", lambda device, threads=threads: threads)
        folder = tmp_path / str(threads)
        job = _job(tmp_path, rows, noised_samples=1, shard_prompts=4).model_copy(
            update={"work": folder / "work", "output": folder / "responses.parquet"}
        )
        engine = ScriptedEngine(
            lambda request: [
                Sample(f"{content_ids.content_hash(request.prompt.images[0].tobytes().hex())} {index}", 4, True)
                for index in range(request.n)
            ]
        )
        summary = _run(job, engine)
        asked = [
            (request.prompt.prompt_id, request.seed, request.prompt.images[0].tobytes()) for request in engine.requests
        ]
        found.append((asked, *_tables(job), summary["rows_out"]))
    assert found[0] == found[1]
    _, _, aside, kept = found[0]
    assert kept == len(COLORS) - 1
    assert [(row["row_id"], row["reason"]) for row in aside] == [(rows[1]["prompt_id"], "unreadable image")]
