"""Where torch.compile keeps what it compiled, so that a later start finds it.

PyTorch's own place is a folder in the machine's temporary folder, under a name that anybody can guess. Whoever makes
that folder first has others run code of theirs, and a restart loses it. Here it is a folder that only its owner can
enter, the first of these that can be had:

1. what the environment variable `TORCHINDUCTOR_CACHE_DIR` names, which is PyTorch's own; it is taken as it is;
2. `cache/compiled/` in the artifact home, where `DT2IT_HOME` is set;
3. `dt2it/compiled/` in `XDG_CACHE_HOME`, or in `~/.cache`.

In 2 and 3 each user and each kind of processor has a folder of its own: code for a CPU uses instructions that another
one may lack, and PyTorch finds it by its source alone. It finds code for a GPU by the name of the card, too.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import platform
import shutil
import stat
import tempfile
from pathlib import Path

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_FEATURES = ("model name", "flags", "Features")  # lines of /proc/cpuinfo


def use_private_cache() -> Path:
    """Have this process, and those that it starts, keep compiled code in a private folder; returns the folder.

    Where none can be had, it is a folder of this process alone, and one line says so: every start then compiles anew.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    given = os.environ.get(VARIABLE)
    if given and Path(given) != Path(default_cache_dir()):  # PyTorch sets the variable, too, once it has compiled
        return Path(given)
    faults = []
    for place in _places():
        folder = place / f"{_processor()}-{os.geteuid()}"
        try:
            _make_private(folder)
        except OSError as error:
            faults.append(str(error))
            continue
        break
    else:
        folder = Path(tempfile.mkdtemp(prefix="dt2it-compiled-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        logging.getLogger(__name__).warning(
            "no folder can keep what torch.compile makes, so that every start compiles anew (%s); set %s to a "
            "folder that nobody else may write to",
            "; ".join(faults) or "there is no home",
            VARIABLE,
        )
    os.environ[VARIABLE] = str(folder)
    return folder


def _places() -> list[Path]:
    home, cache = os.environ.get("DT2IT_HOME"), os.environ.get("XDG_CACHE_HOME")
    places = [Path(home).absolute() / "cache"] if home else []
    if cache and Path(cache).is_absolute():  # as the XDG specification has it, another path does not count
        places.append(Path(cache) / "dt2it")
    else:
        with contextlib.suppress(RuntimeError):  # a user without a home
            places.append(Path.home() / ".cache" / "dt2it")
    return [place / "compiled" for place in places]


def _make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter. Raises OSError where it cannot be made, or is somebody else's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{folder} is a link, or somebody else's")
    if stat.S_IMODE(found.st_mode) & 0o077:
        # Whoever could write there may have done so.
        raise PermissionError(f"others than its owner may enter {folder}: remove it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written to")


def _processor() -> str:
    """A short name of this kind of processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [f"model name: {platform.processor()}"]
    known = sorted({line for line in lines if line.startswith(_FEATURES)})
    return f"{platform.machine()}-{hashlib.sha256(' '.join(known).encode()).hexdigest()[:8]}"
