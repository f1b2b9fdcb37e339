"""What starts runs by itself: the next round, what has landed, and a fresh round on it.

All are off until somebody switches them on in the UI or by `dagster sensor start`. They read small tables and files'
sizes, and compute nothing that takes time.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import dagster as dg

from dt2it_pipeline.config.sections.landing import LandingSettings
from dt2it_pipeline.curate.tables import to_frame
from dt2it_pipeline.evaluate.benchmarks.gains import Gain, gain, stalled
from dt2it_pipeline.ingest.landing import Landed, look
from dt2it_pipeline.orchestrate.jobs import Jobs
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.atomic import StoreError
from dt2it_pipeline.storage.content_ids import content_hash

LANDED = "dt2it/landed"  # tag of runs: number of the request, and hash of what lay in the landing folder then
_ASKED = "asked"  # in the landing sensor's cursor, beside the files' names: number of the last request
_ENDED_BADLY = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
_IN_FLIGHT = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


def build_sensors(
    rounds: int, patience: int | None, landing: LandingSettings, jobs: Jobs, home: Path
) -> list[dg.SensorDefinition]:
    """The round sensor and the landing sensor."""
    return [_round_sensor(rounds, patience, jobs, home), _landing_sensor(landing, jobs, home)]


def build_schedules(landing: LandingSettings, jobs: Jobs) -> list[dg.ScheduleDefinition]:
    """The schedule that asks for a fresh round where something has landed."""
    return [_fresh_round_schedule(landing.fresh_round_cron, jobs)]


def _round_sensor(rounds: int, patience: int | None, jobs: Jobs, home: Path) -> dg.SensorDefinition:
    @dg.run_status_sensor(
        name="round_sensor",
        description="When a round has succeeded, starts the next one, up to the recipe's number of rounds and while "
        "the benchmarks still gain (evaluation.patience).",
        run_status=dg.DagsterRunStatus.SUCCESS,
        monitored_jobs=[jobs.round],
        request_job=jobs.round,
    )
    def round_sensor(context: dg.RunStatusSensorContext) -> dg.RunRequest | dg.SkipReason:
        number = int(context.partition_key or 0) + 1
        if number >= rounds:
            return dg.SkipReason(f"the recipe ends after round {rounds - 1}")
        gains = [] if patience is None else round_gains(Store(home), number - 1, patience)
        if stalled(gains, patience):
            shown = ", ".join(f"{100 * g.value:+.1f} ({100 * g.low:+.1f} to {100 * g.high:+.1f})" for g in gains)
            return dg.SkipReason(
                f"the last {patience} rounds gained nothing beyond chance: {shown} points of benchmark accuracy; "
                "evaluation.patience says when to stop"
            )
        run = context.dagster_run
        tags = {LANDED: run.tags[LANDED]} if LANDED in run.tags else {}
        return dg.RunRequest(run_key=f"round-{number}-{run.run_id}", partition_key=str(number), tags=tags)

    return round_sensor


def round_gains(store: Store, last: int, most: int) -> list[Gain]:
    """Gains of the last `most` rounds up to round `last`, earliest first; rounds whose results are not there end it."""
    results = []
    for number in range(last, max(-1, last - most - 1), -1):
        try:
            results.append(to_frame(store.read("benchmark_scores", str(number))["benchmark_results"]))
        except StoreError:  # not there, or of an earlier version of this code
            break
    return [gain(before, after) for after, before in itertools.pairwise(results)][::-1]


def _landing_sensor(settings: LandingSettings, jobs: Jobs, home: Path) -> dg.SensorDefinition:
    @dg.sensor(
        name="landing_sensor",
        description=f"Watches the folder {settings.folder}/: when a manifest has landed whole or has changed, starts "
        "ingestion and construction.",
        job=jobs.construct,
        minimum_interval_seconds=settings.every_seconds,
    )
    def landing_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        before = json.loads(context.cursor) if context.cursor else {}
        now, faults = landing_state(look(home / settings.folder, settings.network), before)
        for name, fault in faults.items():
            context.log.error(f"landing/{name} is not read: {fault}")
        taken = {name: state["content"] for name, state in now.items() if state.get("content")}
        fresh = {name for name, content in taken.items() if before.get(name, {}).get("content") != content}
        # Dagster never starts a run key twice, so that one of the content alone would drop content that returns. Where
        # the cursor is lost, counting goes on from the clock: no number comes again.
        asked = (before.get(_ASKED) or int(time.time())) + bool(fresh)
        cursor = json.dumps(now | {_ASKED: asked}, sort_keys=True)
        if fresh:
            tag = f"{asked}-{content_hash('landing', taken)}"
            request = dg.RunRequest(run_key=f"landing-{tag}", tags={LANDED: tag})
            context.log.info(f"landed: {', '.join(sorted(fresh))}")
            return dg.SensorResult(run_requests=[request], cursor=cursor)
        waiting = sorted(name for name, state in now.items() if state["waits"])
        reasons = [f"not read: {name}: {fault}" for name, fault in faults.items()]
        reasons += [f"still changing: {', '.join(waiting)}"] if waiting else []
        return dg.SensorResult(skip_reason="; ".join(reasons) or "nothing new has landed", cursor=cursor)

    return landing_sensor


def landing_state(found: list[Landed], before: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """State of the landing folder after this look, by file name, and the faults that were not reported before.

    A state is `stamp`; `waits` while the stamp is not that of the look before; `content` once a manifest has been taken
    (kept while a newer version of it is on its way, but not through a fault: a run that looks then leaves it out, so
    that it is new once it is mended); `reported`, the stamp whose fault has been reported.
    """
    now: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for landed in found:
        name = landed.file.name
        old = before.get(name, {})
        settled = old.get("stamp") == landed.stamp
        state = {
            "stamp": landed.stamp,
            "waits": not settled,
            "content": old.get("content"),
            "reported": old.get("reported"),
        }
        if settled and landed.manifest is None:
            state["content"] = None
            if state["reported"] != landed.stamp:
                faults[name] = landed.fault
                state["reported"] = landed.stamp
        elif settled and (old.get("waits") or state["content"] is None):
            try:
                state["content"] = landed.content
            except OSError:  # moved away between the look and the reading
                state["waits"] = True
        now[name] = state
    return now, faults


def _fresh_round_schedule(cron: str, jobs: Jobs) -> dg.ScheduleDefinition:
    @dg.schedule(
        name="fresh_round_schedule",
        description="Starts round 0 anew when data has landed and been constructed since the last one; the round "
        "sensor starts the rounds after it.",
        job=jobs.round,
        cron_schedule=cron,
    )
    def fresh_round_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        landed = latest_landing(context.instance, jobs.construct.name)
        if landed is None:
            return dg.SkipReason("nothing has landed yet")
        runs = context.instance.get_runs(
            filters=dg.RunsFilter(job_name=jobs.round.name, tags={LANDED: landed}), limit=1
        )
        if runs:
            return dg.SkipReason(f"what landed last is in run {runs[0].run_id} already")
        busy = context.instance.get_runs(
            filters=dg.RunsFilter(job_name=jobs.round.name, statuses=list(_IN_FLIGHT)), limit=1
        )
        if busy:
            return dg.SkipReason(f"round run {busy[0].run_id} has not ended yet")
        return dg.RunRequest(run_key=f"fresh-round-{landed}", partition_key="0", tags={LANDED: landed})

    return fresh_round_schedule


def latest_landing(instance: dg.DagsterInstance, construct: str) -> str | None:
    """Tag of the last successful construction that the landing sensor has asked for; None where there is none.

    A construction that is still on its way counts too, in that nothing is asked for before it has ended.
    """
    for run in instance.get_runs(filters=dg.RunsFilter(job_name=construct), limit=50):
        if LANDED in run.tags and run.status not in _ENDED_BADLY:
            return run.tags[LANDED] if run.status == dg.DagsterRunStatus.SUCCESS else None
    return None
