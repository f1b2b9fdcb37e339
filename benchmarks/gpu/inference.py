"""Cases that score and sample."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu.case import Case
from benchmarks.gpu.data import encoded, prompt_rows, sizes
from benchmarks.gpu.figures import Result, flops

_ROUNDS = 3  # measured calls of a way of sampling
_PROMPTS, _ANSWERS, _BATCH = 64, 4, 32  # of sampling; prompts of a batch of `generate`


def score(case: Case) -> Result:
    """The scorer of this project, or vLLM, through its job; a rate for each shard."""
    from dt2it_pipeline.reward.scoring.job import ScoreJob

    place, data, settings = Path(case.place), case.data("scoring"), case.scoring_settings
    seen: list[tuple[float, int]] = []
    job = ScoreJob(
        checkpoint=str(case.checkpoint),
        prompts=data / "prompts.parquet",
        responses=data / "responses.parquet",
        media_root=data / "media",
        output=place / "scores.parquet",
        work=place / "work",
        voter="benchmark",
        settings=settings,
    )
    summary = job.run(lambda row: seen.append((time.time(), int(row["done"]))))
    if summary["quarantined"]:
        raise ValueError(f"{summary['quarantined']} of {summary['responses']} responses have no score")
    made = _scoring_result(case, shared=True)
    made.compilation = {name: value for name, value in summary.items() if name.startswith("compile_")}
    made.first = seen[0][0] - case.started
    steps = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(seen)]
    if not steps:
        raise ValueError("one shard holds all responses, so that none is left to measure: lower shard_responses")
    made.rates = steps[min(case.warmup, len(steps)) - 1 :]  # the first shard, which loads the model, is not there
    return made


def naive(case: Case) -> Result:
    """One response at a time without LM head, everything about it done anew: text, image, prompt."""
    import torch

    from benchmarks.gpu.loop import load_network, synchronise
    from dt2it_pipeline.reward.data.collation import PackedExample, collate, with_pixels
    from dt2it_pipeline.reward.data.encoding import PromptEncoder, load_processor
    from dt2it_pipeline.reward.data.images import ImageRegistry
    from dt2it_pipeline.storage import atomic

    data, settings = case.data("scoring"), case.scoring_settings
    network = load_network(case.checkpoint, settings, trains=False).eval().requires_grad_(False)
    device = network.head.weight.device
    processor = load_processor(case.checkpoint)
    rows = {row["prompt_id"]: row for row in prompt_rows(data)}
    responses = atomic.read_parquet(data / "responses.parquet", "responses").to_pylist()
    made = _scoring_result(case, shared=False)
    for number, response in enumerate(responses[: case.warmup + case.steps]):
        began = time.perf_counter()
        registry = ImageRegistry(processor.image_processor, data / "media", settings.pixel_limit)
        encoder = PromptEncoder(case.checkpoint, registry, processor)
        (prompt,) = encoder.prompts([rows[response["prompt_id"]]])
        assert not isinstance(prompt, Exception), prompt
        batch = with_pixels(collate([PackedExample(prompt, tuple(encoder.responses([response["text"]])))]), registry)
        with torch.inference_mode():
            float(network(batch.to(device)))
        synchronise(device)
        made.first = made.first or time.time() - case.started
        if number >= case.warmup:
            made.rates.append(1 / (time.perf_counter() - began))
    return made


def _scoring_result(case: Case, *, shared: bool) -> Result:
    """Tokens and FLOP of a response; with `shared`, prompt and image are computed once for all responses to them."""
    made, settings = case.result("responses"), case.scoring_settings
    max_pixels = settings.pixel_limit or case.part("scoring").max_pixels
    registry, _, prompts, responses = encoded(case.base, case.data("scoring"), max_pixels, case.settings.system_prompt)
    mean, among = sizes(registry, prompts, responses), len(responses[0]) if shared else 1
    made.tokens = mean.prompt / among + mean.response
    made.decoder, made.encoder = flops(case.parameters, 2, made.tokens, mean.patches / among, mean.image_tokens / among)
    return made


def sample_vllm(case: Case) -> Result:
    """The pipeline's engine."""
    from benchmarks.sampling import Vllm

    engine = Vllm(str(case.base), case.part("training").prompt * 3 + case.answer_tokens)
    return _sampled(case, engine.generate)


def sample_generate(case: Case) -> Result:
    """Batches of transformers' `generate`."""
    from benchmarks.sampling import Transformers

    way = Transformers(str(case.base))
    return _sampled(case, lambda asked, wanted, n: way.generate(asked, wanted, n, _BATCH))


def _sampled(case: Case, generate: Callable[..., int]) -> Result:
    """Tokens per second of answers to prompts with a photograph each, of uneven lengths (benchmarks/sampling.py)."""
    from benchmarks.sampling import lengths
    from dt2it_pipeline.engines.chat import chat_prompt

    data, most = case.data("training"), case.part("training").max_pixels
    asked = [chat_prompt(row, data / "media").fitted(most) for row in prompt_rows(data)][:_PROMPTS]
    wanted = lengths(len(asked), case.answer_tokens)
    made = case.result("tokens")
    generate(asked[:4], [4] * 4, _ANSWERS)
    made.first = time.time() - case.started
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        made.rates.append(generate(asked, wanted, _ANSWERS) / (time.perf_counter() - began))
    return made
