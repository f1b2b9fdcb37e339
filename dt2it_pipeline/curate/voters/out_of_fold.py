"""Cross-fitting: models that judge feedback pairs of prompts that they were not trained on (Chernozhukov et al. 2018).

A round's reward model learned the labels of the feedback pairs, so it does not vote on them. With out-of-fold voters,
prompts are cut into folds, and per fold one more model is trained on everything but that fold's prompts: it may judge
them. All pairs of a prompt lie in one fold, so that no voter has seen another label of the question it is asked about.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.storage.content_ids import content_hash


def fold_of(prompt_ids: Collection[str], folds: int) -> np.ndarray:
    """Fold of each prompt, int [n] in 0..folds-1: a function of its id alone, the same in all rounds."""
    return np.array([int(content_hash("fold", name)[:12], 16) % folds for name in prompt_ids], dtype=np.int64)


def voter_name(round_number: int, fold: int) -> str:
    """Name under which the model of a fold votes."""
    return f"out_of_fold/{round_number}/{fold}"


def judged_by(pool: pa.Table, fold: int, folds: int) -> pa.Table:
    """Those of the noisy pairs (column prompt_id) that the model of a fold judges."""
    return pool.filter(pa.array(fold_of(pool["prompt_id"].to_pylist(), folds) == fold))


def learned_by(pairs: pa.Table, prompts: pa.Table, judged: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Training pairs, and their prompts, without the prompts of the pairs that the model is to judge."""
    learned = pairs.filter(pc.invert(pc.is_in(pairs["prompt_id"], value_set=judged["prompt_id"].combine_chunks())))
    used = prompts.filter(pc.is_in(prompts["prompt_id"], value_set=learned["prompt_id"].combine_chunks()))
    return learned, used
