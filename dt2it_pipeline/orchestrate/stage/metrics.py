"""`metrics.prom` in the artifact home: figures of the stages' artifacts in force, for Prometheus.

Every stage writes the file anew when it has succeeded, from the artifacts themselves: nothing has to be kept or added
up, whatever process makes them, and a file that is lost comes again with the next stage.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from dt2it_pipeline.observe.prometheus import Sample, metrics_text
from dt2it_pipeline.orchestrate.stage.checks import ROW_COUNTS
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.atomic import StoreError, replace_text
from dt2it_pipeline.storage.home.checkup import Slot, slots_of

FILE = "metrics.prom"
METRICS = {
    "dt2it_stage_last_success_timestamp_seconds": "When the stage last succeeded, be it by using what was there.",
    "dt2it_stage_seconds": "Seconds that the stage took to make its artifact in force.",
    "dt2it_stage_rows": "Rows of the artifact in force by outcome: in, out, quarantined, dropped, contested, held_out.",
    "dt2it_judge_calls": "Calls to a judge for the artifact in force.",
    "dt2it_judge_replies": "What became of the calls: asked, looked_up (kept replies), no_reply, unusable.",
    "dt2it_judge_tokens": "Tokens of a judge by kind: prompt, completion.",
    "dt2it_judge_cost": "Cost of a judge's calls, in the currency of its prices.",
    "dt2it_judge_requests": "HTTP requests to a judge by outcome: requests, retries, timeout, connection, http CODE.",
    "dt2it_label_accuracy": "Estimated share of right labels: estimate, and low and high of its interval.",
}
_PROMPT, _COMPLETION = "prompt_tokens", "completion_tokens"


def note_success(store: Store, name: str, partition: str | None, on_fault: Callable[[str], None]) -> None:
    """Note that a stage has succeeded, and write the file anew; what goes wrong costs no stage.

    The time of the file `current` of a stage's slot is when it last succeeded.
    """
    try:
        slot = store.home / "artifacts" / name
        os.utime((slot if partition is None else slot / partition) / "current")
        write_metrics(store)
    except OSError as error:
        on_fault(f"{store.home / FILE} cannot be written ({error.strerror or error}); the stage's result is complete")


def write_metrics(store: Store) -> Path:
    """Write the file, whole or not at all; returns its path."""
    path = store.home / FILE
    replace_text(path, metrics_text(samples_of(store), METRICS))
    return path


def samples_of(store: Store) -> Iterator[Sample]:
    """The figures of all artifacts in force; those of a damaged one are left out."""
    for slot in slots_of(store):
        labels = {"asset": slot.name, "round": slot.partition or ""}
        try:
            metadata = store.metadata(slot.name, slot.partition)
            succeeded = _current(store, slot).stat().st_mtime
        except (StoreError, OSError):
            continue
        if metadata is not None:
            yield Sample("dt2it_stage_last_success_timestamp_seconds", labels, succeeded)
            yield from _of_stage(metadata, labels)


def _current(store: Store, slot: Slot) -> Path:
    folder = store.home / "artifacts" / slot.name
    return (folder if slot.partition is None else folder / slot.partition) / "current"


def _of_stage(metadata: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[Sample]:
    if _is_number(seconds := metadata.get("seconds")):
        yield Sample("dt2it_stage_seconds", labels, seconds)
    for key in ("rows_in", *ROW_COUNTS):
        if _is_number(count := metadata.get(key)):
            yield Sample("dt2it_stage_rows", {**labels, "outcome": key.removeprefix("rows_")}, count)
    for judge, tally in _tallies(metadata):
        yield from _of_judge(tally, {**labels, "judge": judge})
    for when in ("before", "after"):
        found = metadata.get(f"label_accuracy_{when}")
        if isinstance(found, list) and len(found) == 3:
            for bound, value in zip(("estimate", "low", "high"), found, strict=True):
                if _is_number(value):
                    yield Sample("dt2it_label_accuracy", {**labels, "when": when, "bound": bound}, value)
    if _is_number(estimate := metadata.get("estimated_label_accuracy")):
        yield Sample("dt2it_label_accuracy", {**labels, "when": "before", "bound": "estimate"}, estimate)


def _tallies(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What asking came to, per judge: of judged responses, and of contested pairs, which are judged in several goes."""
    judges = metadata.get("judges")
    if isinstance(judges, dict):
        yield from ((name, tally) for name, tally in judges.items() if isinstance(tally, dict))
    joined: dict[str, dict[str, float]] = {}
    judging = metadata.get("judging")
    for go in judging if isinstance(judging, list) else ():
        for name, tally in go.get("asked", {}).items():
            sums = joined.setdefault(name, {})
            for key, value in tally.items():
                if _is_number(value):
                    sums[key] = sums.get(key, 0) + value
    yield from joined.items()


def _of_judge(tally: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[Sample]:
    for metric, key in (("dt2it_judge_calls", "calls"), ("dt2it_judge_cost", "cost")):
        if _is_number(tally.get(key)):
            yield Sample(metric, labels, tally[key])
    for key in ("asked", "looked_up", "no_reply", "unusable"):
        if _is_number(tally.get(key)):
            yield Sample("dt2it_judge_replies", {**labels, "outcome": key}, tally[key])
    for key in (_PROMPT, _COMPLETION):
        if _is_number(tally.get(key)):
            yield Sample("dt2it_judge_tokens", {**labels, "kind": key.removesuffix("_tokens")}, tally[key])
    line = tally.get("line")
    for outcome, count in line.items() if isinstance(line, dict) else ():
        if _is_number(count):
            yield Sample("dt2it_judge_requests", {**labels, "outcome": outcome}, count)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
