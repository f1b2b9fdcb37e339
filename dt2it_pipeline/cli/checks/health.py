"""`dt2it doctor --health`: is this installation able to work, within seconds and without a call that costs money?

What belongs here: which things are looked at, in which order. What does not: what is in the sources, and whether
judges give usable replies (flight_check.py); whether every file is as it was written (doctor.py).
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from dt2it_pipeline.cli.checks.flight_check import installation_check
from dt2it_pipeline.cli.options import recipe_in_words
from dt2it_pipeline.config.recipe import Recipe, RecipeError, load_recipe
from dt2it_pipeline.config.sections.judging import EndpointJudgeSettings
from dt2it_pipeline.observe.health import HealthCheck, Status
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.atomic import StoreError
from dt2it_pipeline.storage.home.checkup import slots_of

_CONNECT_SECONDS = 3.0
_STATUS: dict[str, Status] = {"ok": "ok", "warning": "warning", "error": "failed"}
_REPORT = "round_report"


def health_checks(home: Path, most_hours: float | None = None) -> Iterator[HealthCheck]:
    """Look at the whole installation; nothing is written but an empty file, which is removed.

    Args:
        home: the artifact home.
        most_hours: the age of the last round from which on it is a failure; None: any age will do.
    """
    yield _writable(home)
    yield _artifacts(Store(home))
    yield _last_round(Store(home), most_hours)
    try:
        recipe, taken = load_recipe(), recipe_in_words(None)
    except RecipeError as error:
        yield HealthCheck("recipe", "failed", str(error), "correct the file; `dt2it settings KEY` describes a setting")
        return
    yield HealthCheck("recipe", "ok", f"{recipe.name}: every setting is valid; {taken}")
    for line in installation_check(recipe, home):
        name = "disk" if line.topic == "artifact home" else line.topic
        yield HealthCheck(name, _STATUS[line.level], line.text, line.advice)
    yield from _endpoints(recipe)
    from dt2it_pipeline.orchestrate.health import dagster_health

    yield from dagster_health()


def _writable(home: Path) -> HealthCheck:
    try:
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(b"0")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        advice = "set DT2IT_HOME to a folder that is there and can be written to"
        return HealthCheck("home", "failed", f"{home} cannot be written to: {error.strerror or error}", advice)
    return HealthCheck("home", "ok", f"{home} can be written to")


def _artifacts(store: Store) -> HealthCheck:
    """Whether the artifacts in force are there and their manifests whole; their files are `dt2it doctor`'s matter."""
    slots, faults = slots_of(store), []
    for slot in slots:
        try:
            if store.metadata(slot.name, slot.partition) is None:
                faults.append(f"{slot}: the version that `current` names is gone")
        except StoreError as error:
            faults.append(str(error).partition("\n")[0])
    if faults:
        advice = "run `dt2it doctor` for all faults; the next run makes damaged artifacts again"
        return HealthCheck("artifacts", "failed", f"{len(faults)} of {len(slots)} damaged; first: {faults[0]}", advice)
    return HealthCheck("artifacts", "ok", f"{len(slots)} artifacts in force have whole manifests")


def _last_round(store: Store, most_hours: float | None) -> HealthCheck:
    slot = store.home / "artifacts" / _REPORT
    ended = {name: (slot / name / "current").stat().st_mtime for name in store.partitions(_REPORT)}
    advice = "" if most_hours is None else "see the last runs in `dt2it ui`, or start one: dt2it run round --round K"
    if not ended:
        status: Status = "ok" if most_hours is None else "failed"
        return HealthCheck("last round", status, "no round has been finished yet", advice)
    latest = max(ended, key=lambda name: ended[name])
    hours = (time.time() - ended[latest]) / 3600
    detail = f"round {latest} was finished {hours:,.1f} hours ago"
    if most_hours is not None and hours > most_hours:
        return HealthCheck("last round", "failed", f"{detail}, more than {most_hours:g}", advice)
    return HealthCheck("last round", "ok", detail)


def _endpoints(recipe: Recipe) -> Iterator[HealthCheck]:
    """Whether something listens where judges are asked; nothing is sent, so that it costs nothing."""
    judges: list[object] = [*recipe.judging.judges, *recipe.annotation.judges]
    if recipe.pairing.restyle is not None:
        judges += [recipe.pairing.restyle.rewriter, recipe.pairing.restyle.check]
    urls = {judge.base_url: judge.name for judge in judges if isinstance(judge, EndpointJudgeSettings)}
    for url, name in urls.items():
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            advice = "start the server, or see to the network; `dt2it check --call-judges` asks it a question"
            detail = f"{parts.hostname}:{port} does not answer: {error.strerror or error}"
            yield HealthCheck(f"judge {name}", "failed", detail, advice)
        else:
            yield HealthCheck(f"judge {name}", "ok", f"{parts.hostname}:{port} takes connections; nothing was sent")
