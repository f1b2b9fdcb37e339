"""Decontamination: no pair that is trained on shows a benchmark's picture or asks its text-only question."""

from __future__ import annotations

import pyarrow as pa

from dt2it_pipeline import records


def contaminated_prompts(prompts: pa.Table, benchmark_prompts: pa.Table) -> dict[str, str]:
    """Prompt ids of `prompts` that the benchmarks hold too, each with the reason.

    A prompt with media is contaminated when one of its media has the content hash of a benchmark's medium; a text-only
    prompt when its normalised question is a benchmark's. Both are `prompts` tables.
    """
    pictures: set[str] = set()
    questions: set[str] = set()
    for row in benchmark_prompts.select(["media", "turns"]).to_pylist():
        media, turns = row["media"], row["turns"]
        pictures.update(medium["sha256"] for medium in media)
        if not media:
            questions.add(_normalised(turns))
    found: dict[str, str] = {}
    for key, media, turns in zip(*(prompts[name].to_pylist() for name in ("prompt_id", "media", "turns")), strict=True):
        if any(medium["sha256"] in pictures for medium in media):
            found[key] = "picture is in a benchmark"
        elif not media and _normalised(turns) in questions:
            found[key] = "question is in a benchmark"
    return found


def decontaminate(pairs: pa.Table, prompts: pa.Table, benchmark_prompts: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Split a pairs table into the pairs that may be trained on and a `set_aside` table of the others."""
    found = contaminated_prompts(prompts, benchmark_prompts)
    clean = pa.array([key not in found for key in pairs["prompt_id"].to_pylist()], pa.bool_())
    stage = "decontamination"
    removed = [
        records.set_aside_row(row["pair_id"], stage, found[row["prompt_id"]], row["prompt_id"], row["source"])
        for row in pairs.select(["pair_id", "prompt_id", "source"]).to_pylist()
        if row["prompt_id"] in found
    ]
    return pairs.filter(clean).combine_chunks(), records.table(removed, "set_aside")


def _normalised(turns: list[dict[str, str]]) -> str:
    return " ".join(" ".join(turn["text"].casefold().split()) for turn in turns)
