"""Throughput and memory of pairing on made-up judgements: `python -m benchmarks.construction` (see README.md).

What belongs here: the parts of construction that no model computes, from judged responses to pairs that are balanced in
style. What does not: sampling (sampling.py) and judging, which take the time of their models.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.ingest import Step, compare_steps
from dt2it_pipeline.config.sections.pairing import PairingSettings
from dt2it_pipeline.construct.debias import debias
from dt2it_pipeline.construct.pairs import form_pairs_with_spares
from dt2it_pipeline.storage import content_ids, schemas
from dt2it_pipeline.storage.atomic import read_parquet, write_parquet

_RESPONSES, _ORDERS = 6, 2  # of a prompt; listwise presentations
_STYLES = ("{}.", "The image shows {}.", "## Answer\n\n- **It is**: {}!", "I think it may be {}, because of the image.")
_WORDS = [f"{a}{b}" for a in ("ba", "ne", "to", "ri", "sul", "mor") for b in ("ka", "do", "fin", "las", "tu", "wer")]


def write_judged(folder: Path, prompts: int) -> None:
    """Prompts, six responses of 20 to 80 words in four styles to each, and their listwise and pointwise scores."""
    random = np.random.default_rng(0)
    asked: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    judged: list[dict[str, Any]] = []
    for number in range(prompts):
        turns = [{"role": "user", "text": f"What is seen in {number}?"}]
        key = content_ids.prompt_id("", turns, [])
        asked.append({"prompt_id": key, "source": "made_up", "system": "", "turns": turns, "media": [],
                      "reference": None, "language": "en", "meta": "{}"})  # fmt: skip
        ids = []
        for place in range(_RESPONSES):
            words = " ".join(_WORDS[n] for n in random.integers(0, len(_WORDS), random.integers(20, 80)))
            text = _STYLES[place % len(_STYLES)].format(words)
            ids.append(content_ids.response_id(key, text))
            answers.append({"response_id": ids[-1], "prompt_id": key, "text": text, "generator": "made_up|t=1"})
        ways = [("listwise", list(random.permutation(_RESPONSES))) for _ in range(_ORDERS)] + [("pointwise", [])]
        quality = random.uniform(2, 9, _RESPONSES) + 0.7 * (np.arange(_RESPONSES) % len(_STYLES) == 2)
        for mode, order in ways:
            for place, response in enumerate(ids):
                score = float(np.clip(quality[place] + random.normal(0, 0.7), 0, 10))
                judged.append({"prompt_id": key, "judge": "made_up", "mode": mode, "order": [int(n) for n in order],
                               "template_hash": "-", "response_id": response, "score": score, "criteria": "{}",
                               "status": "ok"})  # fmt: skip
    for kind, rows in (("prompts", asked), ("responses", answers), ("judgements", judged)):
        write_parquet(schemas.table(rows, kind), folder / f"{kind}.parquet")


def _read(folder: Path, kind: str) -> pa.Table:
    return read_parquet(folder / f"{kind}.parquet", kind)


def form(folder: Path, processes: int) -> Step:
    """Pairs on which all judgements agree, and the rows of those that are not taken."""
    prompts, responses, judgements = (_read(folder, kind) for kind in ("prompts", "responses", "judgements"))
    more: dict[str, Any] = {"processes": processes} if processes > 1 else {}

    def run() -> None:
        pairs, spares, _ = form_pairs_with_spares(prompts, responses, judgements, PairingSettings(), 0, **more)
        write_parquet(pairs, folder / "pairs.parquet")
        write_parquet(spares, folder / "spares.parquet")

    return Step(prompts.num_rows * _RESPONSES * (_RESPONSES - 1) // 2, "candidate pairs", run)


def balance(folder: Path, processes: int) -> Step:
    """Pairs in whose style nothing predicts the chosen side."""
    pairs, spares = (read_parquet(folder / f"{kind}.parquet", "pairs") for kind in ("pairs", "spares"))
    more: dict[str, Any] = {"processes": processes} if processes > 1 else {}
    settings = PairingSettings()

    def run() -> None:
        made = debias(pairs, spares, settings.style_probe_bound, settings.max_pairs_per_prompt, **more)
        write_parquet(made.pairs, folder / "balanced.parquet")

    return Step(pairs.num_rows, "pairs", run)


STEPS = {"form pairs": form, "balance style": balance}


def main() -> None:
    """Make judgements, run each step in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=20_000)
    compare_steps(parser, "benchmarks.construction", STEPS, _written)


def _written(folder: Path, given: argparse.Namespace) -> str:
    folder.mkdir(parents=True)
    write_judged(folder, given.prompts)
    return f"{given.prompts} prompts with {_RESPONSES} responses each"


if __name__ == "__main__":
    main()
