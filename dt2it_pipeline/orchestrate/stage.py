"""One stage of the graph: finds its result finished, or computes it, and tells Dagster what a person looks at."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel

from dt2it_pipeline.orchestrate.metadata import bundle_metadata
from dt2it_pipeline.records import content_hash
from dt2it_pipeline.store import Bundle, Store

CODE_VERSION = "1"  # raise it when a stage computes something else from the same inputs and settings

Settings = BaseModel | Mapping[str, Any] | str | int | float | None


def run_stage(
    context: dg.AssetExecutionContext,
    store: Store,
    compute: Callable[[Path], Bundle],
    *,
    inputs: Mapping[str, Bundle | str],
    settings: Mapping[str, Settings],
    name: str | None = None,
) -> Bundle:
    """The stage's bundle, from the store where the same inputs and settings gave it before, else computed and stored.

    Args:
        context: of the asset; its key and partition name the stage's place in the store.
        store: where results and work lie.
        compute: makes the bundle; it is handed a folder that keeps its content if the run is killed.
        inputs: what it depends on, by name; bundles count by their content.
        settings: the sections of the recipe that it depends on.
        name: the stage's name where one step has several.
    """
    name = name or context.asset_key.to_user_string()
    partition = context.partition_key if context.has_partition_key and _is_partitioned(context, name) else None
    key = stage_key(name, inputs, settings)
    if store.has(name, key, partition):
        context.log.info(f"{name}: inputs and settings are those of a finished version, which is used again")
        store.point(name, key, partition)
        return store.read(name, partition, key)
    started = time.monotonic()
    bundle = compute(store.work(name, key, partition))
    facts = dict(bundle.facts) | {"seconds": round(time.monotonic() - started, 1)}
    stored = store.write(name, replace(bundle, facts=facts), key, partition)
    store.finish_work(name, partition)
    return stored


def stage_key(name: str, inputs: Mapping[str, Bundle | str], settings: Mapping[str, Settings]) -> str:
    """Key of a stage's version: a hash of its name, code version, the content of its inputs and its settings."""
    return content_hash(
        name,
        CODE_VERSION,
        {key: value.digest if isinstance(value, Bundle) else value for key, value in inputs.items()},
        {
            key: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for key, value in settings.items()
        },
    )


def result(
    context: dg.AssetExecutionContext,
    store: Store,
    bundle: Bundle,
    *,
    name: str | None = None,
    checks: tuple[dg.AssetCheckResult, ...] = (),
    metadata: Mapping[str, Any] | None = None,
) -> dg.MaterializeResult:
    """A stored bundle as Dagster's result, with its content as data version and its facts and examples as metadata."""
    return dg.MaterializeResult(
        asset_key=name or context.asset_key,
        metadata={**bundle_metadata(bundle, store.media), **(metadata or {})},
        data_version=dg.DataVersion(bundle.digest),
        check_results=list(checks),
    )


def _is_partitioned(context: dg.AssetExecutionContext, name: str) -> bool:
    return context.assets_def.specs_by_key[dg.AssetKey(name)].partitions_def is not None
