"""Who wrote the sides of pairs: from the tables of responses to the columns that `evaluate.style` understands."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import pyarrow as pa

from dt2it_pipeline.style.features import MODELS

Models = Mapping[str, str | None]  # response_id -> the model that wrote it; not known where it is not there, or None


def models_of(responses: pa.Table) -> dict[str, str | None]:
    """The model of each response of a table: the first part of `generator`.

    How an answer was drawn (temperature, image) does not count, nor that it was rewritten.
    """
    columns = (responses[name].to_pylist() for name in ("response_id", "generator"))
    return {key: (generator or "").split("|")[0] or None for key, generator in zip(*columns, strict=True)}


def with_models(pairs: pa.Table, models: Models) -> pd.DataFrame:
    """Texts and prompts of pairs, with the columns chosen_model and rejected_model, null where that is not known."""
    frame: pd.DataFrame = pairs.select(["prompt_id", "chosen", "rejected"]).to_pandas()
    for column, side in zip(MODELS, ("chosen_id", "rejected_id"), strict=True):
        frame[column] = pd.Series([models.get(key) for key in pairs[side].to_pylist()], dtype=object)
    return frame
