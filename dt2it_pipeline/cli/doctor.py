"""The commands that look after an artifact home: `doctor` (is all of it as it was written?) and `gc` (what may go?)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dt2it_pipeline.cli.options import Home, Json, home_folder
from dt2it_pipeline.cli.project import PANEL
from dt2it_pipeline.cli.terminal import CommandError, show

if TYPE_CHECKING:
    from dt2it_pipeline.storage.artifacts import Store

_SHOWN = 20  # findings
_ARTIFACT = "the next run makes it again"
_CACHE = "whoever opens it next begins a new one"


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: where, what, and what mends it."""

    place: str
    fault: str
    mend: str


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=PANEL)(doctor)
    app.command(rich_help_panel=PANEL)(gc)


def doctor(
    home: Home = None,
    mend: Annotated[
        bool,
        typer.Option(
            "--mend",
            help="Remove damaged media, the artifacts that need them made again, damaged caches, and what killed "
            "processes left. Dagster's own databases are yours to move away.",
        ),
    ] = False,
    health: Annotated[
        bool,
        typer.Option("--health", help="Look at the whole installation instead, within seconds, for monitoring."),
    ] = False,
    most_hours: Annotated[
        float | None,
        typer.Option(metavar="HOURS", min=0, help="With --health: a last round that is older is a failure."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read everything that an artifact home keeps, and say what is damaged: artifacts, media, databases.

    Stages look at the files that they use anyway; this looks at all. Call it while no run is under way. The exit code
    is 1 where something is damaged and --mend was not given, or where a check of --health has failed.
    """
    if health:
        _health(home_folder(home), most_hours, mend, as_json)
        return
    if most_hours is not None:
        raise typer.BadParameter("--most-hours is for --health")
    from dt2it_pipeline.storage.artifacts import Store
    from dt2it_pipeline.storage.home.checkup import slots_of
    from dt2it_pipeline.storage.leftovers import clear, left_in, places_of

    folder = _home(home)
    store = Store(folder)
    artifacts = len(slots_of(store))
    media = sum(path.is_file() for path in store.media.glob("*/*"))
    damaged = [*_artifacts(store, mend), *_media(store, mend), *_databases(store, mend)]
    left = [path for path in left_in(places_of(store.home)) if store.home in path.parents]
    for path in left if mend else ():
        clear(path)
    lines = [f"{finding.place}: {finding.fault}\n  -> {finding.mend}" for finding in damaged[:_SHOWN]]
    if len(damaged) > _SHOWN:
        lines.append(f"... and {len(damaged) - _SHOWN:,} more; --json lists all")
    if left:
        done = "removed" if mend else "--mend removes them"
        lines.append(f"{len(left)} temporary files of killed processes, for example {left[0]}: {done}")
    looked = f"{folder}: {artifacts:,} artifacts and {media:,} media"
    lines.append(f"{looked}: {len(damaged)} damaged" if damaged else f"{looked} are as they were written")
    result = {
        "home": str(folder),
        "artifacts": artifacts,
        "media": media,
        "damaged": [asdict(finding) for finding in damaged],
        "leftovers": [str(path) for path in left],
        "mended": mend,
    }
    show(result, lines, as_json=as_json)
    if damaged and not mend:
        raise typer.Exit(1)


def _health(home: Path, most_hours: float | None, mend: bool, as_json: bool) -> None:
    from dt2it_pipeline.cli.checks.health import health_checks
    from dt2it_pipeline.cli.pipeline import use_home
    from dt2it_pipeline.observe.health import is_healthy

    if mend:
        raise typer.BadParameter("--health only looks; give --mend without it")
    use_home(home)
    checks = list(health_checks(home.absolute(), most_hours))
    lines = []
    for check in checks:
        lines.append(f"{check.status:<8} {check.name}: {check.detail}")
        lines += [f"  -> {check.advice}"] if check.status != "ok" and check.advice else []
    found = {"home": str(home), "healthy": is_healthy(checks), "checks": [asdict(check) for check in checks]}
    show(found, lines, as_json=as_json)
    if not is_healthy(checks):
        raise typer.Exit(1)


def gc(
    home: Home = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is listed; nothing goes without this.")] = False,
    as_json: Json = False,
) -> None:
    """List what nothing in an artifact home needs any more, with sizes: old versions and attempts, media, caches.

    Nothing that an artifact in force needs is listed, and nothing that has changed within a day. `--remove` is refused
    while a run is under way.
    """
    from dt2it_pipeline.media.index import MediaIndex
    from dt2it_pipeline.storage import leftovers
    from dt2it_pipeline.storage.artifacts import Store
    from dt2it_pipeline.storage.home.checkup import at_work, unneeded

    folder = _home(home)
    store = Store(folder)
    if remove and (stage := at_work(store)) is not None:
        raise CommandError(f"a run makes {stage} in {folder}; call this when it has ended")
    found = unneeded(store, MediaIndex(store.media).file)
    for each in found if remove else ():
        leftovers.remove(each.path)
    total = sum(each.bytes for each in found)
    result = {
        "home": str(folder),
        "bytes": total,
        "removed": remove,
        "unneeded": [{"path": str(each.path), "why": each.why, "bytes": each.bytes} for each in found],
    }
    largest = sorted(found, key=lambda each: -each.bytes)
    lines = [f"{_size(each.bytes):>10}  {each.path.relative_to(folder)}: {each.why}" for each in largest[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"... and {len(found) - _SHOWN:,} more; --json lists all")
    done = "removed" if remove else "--remove removes them"
    lines.append(f"{folder}: {len(found):,} not needed, {_size(total)}" + (f"; {done}" if found else ""))
    show(result, lines, as_json=as_json)


def _home(given: Path | None) -> Path:
    folder = home_folder(given)
    if not folder.is_dir():
        raise CommandError(f"there is no artifact home {folder}; name it with --home, or set DT2IT_HOME")
    return folder


def _size(count: int) -> str:
    """Bytes in words.

    >>> _size(3 << 20)
    '3.0 MiB'
    """
    units = ("B", "KiB", "MiB", "GiB")
    power = max(step for step in range(len(units)) if step == 0 or count >= 1 << 10 * step)
    return f"{count / (1 << 10 * power):.{1 if power else 0}f} {units[power]}"


def _artifacts(store: Store, mend: bool) -> Iterator[Finding]:
    from dt2it_pipeline.storage.home.checkup import damaged_artifacts, remove_artifact

    for slot, fault in list(damaged_artifacts(store)):
        yield Finding(str(slot), fault.rpartition("; ")[0], _ARTIFACT)
        # Files of a damaged version stay until the next run: a person may want what is whole of them.
        if mend and not any(path.is_dir() for path in slot.folder(store).iterdir()):
            remove_artifact(store, slot)


def _media(store: Store, mend: bool) -> Iterator[Finding]:
    """Damaged and missing media; mending removes them, and the artifacts of the sources that they came from."""
    from dt2it_pipeline.media.store import damaged_media
    from dt2it_pipeline.storage.home.checkup import media_named, remove_artifact
    from dt2it_pipeline.storage.leftovers import remove

    named = media_named(store)
    faults = {file.relative_to(store.media).as_posix(): fault for file, fault in damaged_media(store.media)}
    faults |= {path: "it is missing" for path in named if not (store.media / path).exists()}
    again = set()
    for path, fault in sorted(faults.items()):
        users = named.get(path) or named.get(Path(path).parent.as_posix(), [])  # a frame belongs to its folder
        sources = [slot for slot in users if slot.name.startswith(("raw_", "source."))]
        how = "--mend removes it, and the next run reads it from its source again"
        if not users:
            how = "nothing in force needs it; --mend removes it"
        yield Finding(f"media/{path}", fault, "removed; the next run reads it from its source again" if mend else how)
        if mend:
            frames = Path(path).parent.as_posix()
            remove(store.media / (frames if frames in named else path))
            again |= set(sources)
    for slot in again:
        remove_artifact(store, slot)


def _databases(store: Store, mend: bool) -> Iterator[Finding]:
    from dt2it_pipeline.storage.home.checkup import damaged_databases
    from dt2it_pipeline.storage.home.run_records import mend_of
    from dt2it_pipeline.storage.sqlite_cache import rename_damaged

    for file, fault in damaged_databases(store.home):
        inside = file.relative_to(store.home)
        if inside.parts[0] not in ("cache", "media", "work"):
            yield Finding(str(inside), fault, mend_of(file, store.home))
        elif mend:
            yield Finding(str(inside), fault, f"renamed to {rename_damaged(file).name}; {_CACHE}")
        else:
            yield Finding(str(inside), fault, _CACHE)
