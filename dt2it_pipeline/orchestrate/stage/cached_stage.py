"""One stage of the graph: finds its result finished, or computes and stores it, and logs it in one line.

A stage's result is found by its name, its inputs, its settings and the `code_version` of its asset. Whoever changes
what a stage computes raises that asset's `code_version`; whoever changes how it is written leaves it as it is, and
nothing is computed again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from dt2it_pipeline.config.paths import object_store_url
from dt2it_pipeline.media.opening import shared_media
from dt2it_pipeline.observe.logs import MOST_ROW_IDS, log_context
from dt2it_pipeline.observe.progress import Report, in_words, now_and_then
from dt2it_pipeline.orchestrate.gpu_time import gpu_seconds
from dt2it_pipeline.orchestrate.pipes_worker import PROGRESS
from dt2it_pipeline.orchestrate.stage.checks import ROW_COUNTS
from dt2it_pipeline.orchestrate.stage.metrics import note_success
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline.storage.atomic import StoreError
from dt2it_pipeline.storage.content_ids import content_hash
from dt2it_pipeline.storage.home.object_store import ObjectStore, ObjectStoreError

_logger = logging.getLogger(__name__)
_REASONS = 3  # why rows are quarantined or dropped, that a stage's line names
_LOGGED_REASONS = 20  # that have a line of their own, with ids of their rows
Settings = BaseModel | Mapping[str, Any] | str | int | float | None


def run_stage(
    context: dg.AssetExecutionContext,
    store: Store,
    compute: Callable[[Path], Artifact],
    *,
    inputs: Mapping[str, Artifact | str],
    settings: Mapping[str, Settings],
    name: str | None = None,
) -> Artifact:
    """The stage's artifact, from the store where the same inputs and settings gave it before, else computed and stored.

    Where another process is making it, this one waits and then finds it finished. A damaged version is made again.
    Where an object store is named (`DT2IT_OBJECT_STORE`), what another machine has finished is fetched from there, and
    what is finished here is copied to it; where that fails, the run goes on and the next one tries again.

    Args:
        context: of the asset; its key and partition name the stage's place in the store.
        store: where results and work lie.
        compute: makes the artifact; it is handed a folder that keeps its content if the run is killed.
        inputs: what it depends on, by name; artifacts count by their content.
        settings: the sections of the recipe that it depends on.
        name: the stage's name where one step has several.
    """
    name = name or context.asset_key.to_user_string()
    partitioned = _spec(context, name).partitions_def is not None
    partition = context.partition_key if context.has_partition_key and partitioned else None
    key = stage_key(name, _spec(context, name).code_version or "", inputs, settings)
    with log_place_of(context, name), store.locked(name, partition, context.log.warning):
        url = object_store_url()
        shared = None if url is None else ObjectStore(url)
        found = store.find(name, key, partition, context.log.warning)
        if found is not None:
            note_success(store, name, partition, context.log.warning)
            context.log.info(_line(name, found, "reused, inputs and settings unchanged"))
            _share(context, shared, store, name, key, partition)
            return found
        if shared is not None:
            found = shared.fetch(store, name, key, partition, context.log.warning, shared_media(store.media))
            if found is not None:
                note_success(store, name, partition, context.log.warning)
                context.log.info(_line(name, found, f"fetched from {shared.url}"))
                return found
        started = time.monotonic()
        work = store.work(name, key, partition)
        artifact = compute(work)
        metadata = dict(artifact.metadata) | {"seconds": round(time.monotonic() - started, 1)}
        metadata.pop("gpu_seconds", None)  # of one job; a stage may have several
        if gpus := gpu_seconds(work):
            metadata["gpu_seconds"] = gpus
        stored = store.write(name, replace(artifact, metadata=metadata), key, partition)
        store.finish_work(name, partition)
        note_success(store, name, partition, context.log.warning)
        context.log.info(_line(name, stored, f"{metadata['seconds']:.1f} s"))
        _log_quarantined(name, artifact.tables.get("quarantine"))
        _share(context, shared, store, name, key, partition)
        return stored


def _log_quarantined(name: str, quarantine: pa.Table | None) -> None:
    """Log for each reason how many rows were not used, with the ids of the first ones: for whoever collects lines."""
    if quarantine is None:
        return
    counts = pc.value_counts(quarantine["reason"]).to_pylist()
    for each in sorted(counts, key=lambda each: -each["counts"])[:_LOGGED_REASONS]:
        rows = quarantine.filter(pc.equal(quarantine["reason"], each["values"])).slice(0, MOST_ROW_IDS)
        row_ids = rows["row_id"].to_pylist()
        _logger.info("%s: %s not used, %s", name, f"{each['counts']:,}", each["values"], extra={"row_ids": row_ids})


def log_place_of(context: dg.AssetExecutionContext, stage: str) -> contextlib.AbstractContextManager[None]:
    """Let log lines of this process and of its children name run, job, round and stage while the block runs."""
    partition = context.partition_key if context.has_partition_key else None
    return log_context(run_id=context.run_id, job=context.job_name, round=partition, stage=stage)


def step_reporter(context: dg.AssetExecutionContext) -> Report:
    """A reporter that writes to the step's log, for what runs in the step itself."""
    return now_and_then(lambda state: context.log.info(PROGRESS + in_words(state)))


def _share(
    context: dg.AssetExecutionContext,
    shared: ObjectStore | None,
    store: Store,
    name: str,
    key: str,
    partition: str | None,
) -> None:
    """Copy a finished version to the object store unless it is there; the run goes on where that fails."""
    try:
        if shared is not None and not shared.has(name, key, partition):
            copied = shared.store(store, name, key, partition, shared_media(store.media))
            context.log.info(f"{name}: {copied:,} files copied to {shared.url}")
    except (ObjectStoreError, StoreError) as error:
        context.log.warning(f"{name} is finished here, but other machines cannot fetch it: {error}")


def stage_key(
    name: str, code_version: str, inputs: Mapping[str, Artifact | str], settings: Mapping[str, Settings]
) -> str:
    """Key of a stage's version: a hash of its name, code version, the content of its inputs and its settings."""
    return content_hash(
        name,
        code_version,
        {key: value.digest if isinstance(value, Artifact) else value for key, value in inputs.items()},
        {
            key: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for key, value in settings.items()
        },
    )


def _line(name: str, artifact: Artifact, made: str) -> str:
    """A finished stage in one line: its rows, and how it was come by; or why there was nothing to do."""
    metadata = artifact.metadata
    if "not_trained" in metadata:
        return f"{name}: not trained, {metadata['not_trained']}"
    words = {"rows_in": "in", **ROW_COUNTS, "pairs": "pairs"}
    for key in ("rows_quarantined", "rows_dropped"):
        words[key] += _reasons(artifact, metadata.get(key))
    shown = [f"{metadata[key]:,} {word}" for key, word in words.items() if isinstance(metadata.get(key), int)]
    return f"{name}: " + ", ".join([*shown, made])


def _reasons(artifact: Artifact, counted: int | None) -> str:
    """The commonest reasons of an artifact's quarantine rows in brackets, where its table holds as many as counted."""
    table = artifact.tables.get("quarantine")
    if table is None:
        return ""
    reasons = Counter(table["reason"].to_pylist())
    del reasons["contested"]
    if not counted or reasons.total() != counted:
        return ""
    found = reasons.most_common()
    others = sum(count for _, count in found[_REASONS:])
    shown = [*found[:_REASONS], *([("other", others)] if others else [])]
    return f" ({', '.join(f'{reason}: {count:,}' for reason, count in shown)})"


def _spec(context: dg.AssetExecutionContext, name: str) -> dg.AssetSpec:
    return context.assets_def.specs_by_key[dg.AssetKey(name)]
