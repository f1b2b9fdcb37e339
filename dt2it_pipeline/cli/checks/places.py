"""Lines of the check about other places: the object store that artifacts are shared through, and where jobs run.

What belongs here: what was found, in lines. What does not: reaching these places (storage/home/object_store.py,
engines/launch/).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from dt2it_pipeline.cli.checks.lines import Line
from dt2it_pipeline.config.paths import object_store_url
from dt2it_pipeline.config.recipe import Recipe
from dt2it_pipeline.config.sections.ray import RaySettings

_HOSTS_NEED = ("pdsh", "ssh")  # DeepSpeed starts ranks on other machines through these


def object_store_lines() -> Iterator[Line]:
    """Whether the object store can be reached, written and read; nothing where none is named."""
    from dt2it_pipeline.storage.home.object_store import ObjectStore, ObjectStoreError

    url, topic = object_store_url(), "object store"
    if url is None:
        return
    started = time.monotonic()
    try:
        fault = ObjectStore(url).try_out()
    except ObjectStoreError as error:
        yield Line("error", topic, str(error), "docs/how-to/object-store.md names the variables", {"url": url})
        return
    details = {"url": url, "seconds": round(time.monotonic() - started, 3)}
    if fault:
        advice = "allow removal below the store's folder: a damaged version is removed before it is made again"
        yield Line("warning", topic, f"{url}: written and read, but {fault}", advice, details)
        return
    text = f"{url}: a small object was written, read and removed in {details['seconds']:.1f} s"
    yield Line("ok", topic, text, details=details)


def launcher_lines(recipe: Recipe, home: Path) -> Iterator[Line]:
    """Whether jobs can be started where the recipe says; none is."""
    from dt2it_pipeline.engines.launch.clusters.launcher import require_cluster
    from dt2it_pipeline.engines.launch.launcher import LauncherError

    topic = "launcher"
    if recipe.launcher is not None:
        try:
            yield Line("ok", topic, require_cluster(recipe.launcher, home))
        except LauncherError as error:
            advice = "mend the recipe's `launcher`, or what the message names; docs/how-to/deploy.md"
            yield Line("error", topic, str(error), advice)
    elif recipe.training.hostfile is not None:
        yield _hosts(topic)
    else:
        yield Line("ok", topic, "jobs are processes of this machine")
    if recipe.ray is not None:
        yield _ray(recipe.ray, elsewhere=recipe.launcher is not None)


def _hosts(topic: str) -> Line:
    missing = [name for name in _HOSTS_NEED if shutil.which(name) is None]
    if missing:
        text = f"training.hostfile is set, and {' and '.join(missing)} not found on this machine"
        return Line("error", topic, text, "install pdsh and OpenSSH's client, or unset training.hostfile")
    text = "jobs are processes of this machine; training starts ranks on others through pdsh and ssh"
    return Line("ok", topic, f"{text}, which were not contacted")


def _ray(settings: RaySettings, elsewhere: bool) -> Line:
    """What is known of Ray; `elsewhere`: jobs reach it from a cluster's nodes."""
    from dt2it_pipeline.engines.launch.local_shards import visible_gpus
    from dt2it_pipeline.engines.launch.ray_shards import RayShardsError, RayTokenError, require_ray

    topic = "ray"
    if elsewhere:
        return Line("ok", topic, "not looked at: jobs of the launcher reach Ray, or start it, on their nodes")
    if settings.address is None:
        try:
            seen = len(visible_gpus())
        except ImportError:  # the line `engines` reports it
            seen = 0
        if settings.gpus_per_worker > seen:
            text = f"ray.gpus_per_worker is {settings.gpus_per_worker:g}, and this machine shows {seen} GPU(s)"
            return Line("error", topic, text, "lower it, or name a cluster in ray.address")
        return Line("ok", topic, "each step starts Ray on this machine")
    try:
        has, room = require_ray(settings)
    except RayTokenError as error:
        return Line("error", topic, str(error), "`ray get-auth-token` on a machine of the cluster prints it")
    except RayShardsError as error:
        return Line("error", topic, str(error), "start the cluster (`ray start`), or correct ray.address")
    text = f"the cluster at {settings.address} answers: {has}, room for {room} of {settings.workers} workers"
    details = {"address": settings.address, "room": room, "workers": settings.workers}
    if not room:
        advice = "ask for less per worker, or add machines; a run waits ray.wait_seconds for the first worker"
        return Line("warning", topic, text, advice, details)
    return Line("ok", topic, text, details=details)
