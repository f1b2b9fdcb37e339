"""Is Dagster well: its storage answers, the code location loads, and the daemon lives where something waits for it.

Nothing is started and nothing is computed; runs are only counted.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator

import dagster as dg

from dt2it_pipeline.observe.health import HealthCheck

DEFINITIONS = "dt2it_pipeline.definitions"
SILENT_SECONDS = 300.0  # after the last heartbeat, which come every 30 s
_QUEUED = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])


def dagster_health() -> Iterator[HealthCheck]:
    """Check the instance that DAGSTER_HOME names, and the code location of DT2IT_RECIPE and DT2IT_HOME."""
    try:
        instance = dg.DagsterInstance.get()
    except Exception as error:  # whatever reading its settings and opening its databases raises
        yield _storage_fault(error)
    else:
        with instance:
            yield from instance_health(instance)
    try:
        importlib.import_module(DEFINITIONS)
    except Exception as error:  # whatever a recipe, a manifest or an installation can do to it
        advice = "run `dt2it check`, which says what is wrong with the recipe and its files"
        yield HealthCheck("code location", "failed", f"{DEFINITIONS} does not load: {_in_a_line(error)}", advice)
    else:
        yield HealthCheck("code location", "ok", f"{DEFINITIONS} loads")


def instance_health(instance: dg.DagsterInstance) -> Iterator[HealthCheck]:
    """Check an instance's storage and its daemon."""
    try:
        runs, queued = instance.get_runs_count(), instance.get_runs_count(_QUEUED)
        switched_on = sorted(state.instigator_name for state in instance.all_instigator_state() if state.is_running)
        beats = [beat.timestamp for beat in instance.get_daemon_heartbeats().values()]
    except Exception as error:
        yield _storage_fault(error)
        return
    yield HealthCheck("dagster storage", "ok", f"it answers; {runs:,} runs, {queued:,} of them queued")
    waiting = [*(["queued runs"] if queued else []), *switched_on]
    silent = time.time() - max(beats) if beats else None
    if silent is not None and silent <= SILENT_SECONDS:
        yield HealthCheck("daemon", "ok", f"its last heartbeat was {silent:.0f} s ago")
        return
    detail = "no daemon has run here" if silent is None else f"the daemon is silent since {silent / 60:,.0f} minutes"
    if waiting:
        advice = "start `dagster-daemon run` (or `dt2it ui`, which has one)"
        yield HealthCheck("daemon", "failed", f"{detail}, and {', '.join(waiting)} wait for it", advice)
    else:
        yield HealthCheck("daemon", "ok", f"{detail}; no sensor or schedule is on and no run is queued")


def _storage_fault(error: Exception) -> HealthCheck:
    advice = "see that DAGSTER_HOME names the folder of dagster.yaml, and that its storage (a database) is up"
    return HealthCheck("dagster storage", "failed", _in_a_line(error), advice)


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
