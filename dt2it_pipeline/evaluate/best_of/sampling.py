"""Answers to choose from, sampled by a generator model: N independent ones per prompt, equal ones included.

The pipeline's own sampling (construct/sample.py) keeps different answers only and adds wrong ones on purpose; what
choosing is worth is measured on plain draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dt2it_pipeline.engines.chat import ChatError, chat_prompt
from dt2it_pipeline.engines.vllm_engine import (
    Decoding,
    EngineError,
    Sample,
    SampleRequest,
    SamplingEngine,
    VllmEngine,
)
from dt2it_pipeline.reward.scoring.response_files import read_response_file
from dt2it_pipeline.storage import content_ids

_LONGEST = 8192  # tokens of prompt and answer together

EngineFactory = Callable[[int], SamplingEngine]  # from the most images in one prompt


@dataclass(frozen=True)
class SampledAnswers:
    """Rows with sampled `responses`.

    Attributes:
        rows: the rows as given, each with `responses`; rows without a usable answer are left out.
        sampled: answers that were drawn.
        cut: answers that are left out because they reached the length limit.
        empty: answers that are left out because they are empty.
        faults: name, reason and detail of the rows that are left out.
    """

    rows: list[dict[str, Any]]
    sampled: int
    cut: int
    empty: int
    faults: list[tuple[str, str, str]]


def sample_answers(
    generator: str,
    prompts: Path,
    media: Path,
    store: Path,
    answers: int,
    *,
    decoding: Decoding,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    make_engine: EngineFactory | None = None,
) -> SampledAnswers:
    """Draw answers to the prompts of a file with vLLM.

    Args:
        generator: model folder or Hub id.
        prompts: JSON Lines as for responses (response_files.FORM); `responses` need not be there and are replaced.
        media: folder from which paths of images count.
        store: media store into which images are imported.
        answers: per prompt.
        decoding: temperature, nucleus and most tokens of an answer.
        seed: a prompt's answers depend on it and on the prompt alone.
        columns: field -> the key that holds it, where rows name it otherwise.
        make_engine: builds the engine from the most images in one prompt; vLLM where None.

    Raises:
        ResponseFileError: the file cannot be read, or no row of it can be used.
        EngineError: the model cannot be loaded, or refuses every prompt.
    """
    file = read_response_file(prompts, media, store, with_responses=False, columns=columns)
    faults = [(file.names[number], *why) for number, why in file.faults.items()]
    requests: dict[str, SampleRequest] = {}
    refused: dict[str, tuple[str, str]] = {}
    for row in file.prompts.to_pylist():
        try:
            prompt = chat_prompt(row, store)
        except ChatError as error:
            refused[row["prompt_id"]] = (error.reason, error.detail)
            continue
        draw = int(content_ids.content_hash(seed, row["prompt_id"], "best-of")[:7], 16)
        requests[row["prompt_id"]] = SampleRequest(prompt, answers, draw)
    drawn: dict[str, list[Sample]] = {}
    if requests:
        most_images = max(1, *(len(request.prompt.images) for request in requests.values()))
        make = make_engine or _vllm(generator, seed)
        engine = make(most_images)
        for key, found in zip(requests, engine.sample(list(requests.values()), decoding), strict=True):
            if isinstance(found, EngineError):
                refused[key] = ("refused by the engine", str(found))
            else:
                drawn[key] = found
    usable = {key: [s.text.strip() for s in found if s.finished and s.text.strip()] for key, found in drawn.items()}
    rows = []
    for number, (name, row, key) in enumerate(zip(file.names, file.rows, file.prompt_ids, strict=True)):
        if number in file.faults:
            continue
        if usable.get(key):
            rows.append({**row, "responses": usable[key]})
        else:
            faults.append((name, *refused.get(key, ("no usable answer", "all are empty or reach the length limit"))))
    if not rows:
        raise EngineError(f"{generator} gave no usable answer; {faults[0][0]}: {faults[0][1]} ({faults[0][2]})")
    every = [sample for found in drawn.values() for sample in found]
    return SampledAnswers(
        rows,
        len(every),
        sum(not sample.finished for sample in every),
        sum(sample.finished and not sample.text.strip() for sample in every),
        faults,
    )


def _vllm(generator: str, seed: int) -> EngineFactory:
    """An engine with the context of the model, at most _LONGEST: a longer one takes memory that answers do not need."""
    from dt2it_pipeline.reward.checkpoints.checkpoint import read_json, resolve_folder

    config = read_json(resolve_folder(generator) / "config.json")
    text = config.get("text_config") or config
    length = min(_LONGEST, int(text.get("max_position_embeddings") or _LONGEST))
    return lambda most_images: VllmEngine(generator, length, most_images, seed)
