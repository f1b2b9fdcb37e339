"""Where torch.compile keeps what it compiled, so that a later start finds it.

PyTorch's own place is a folder in the machine's temporary folder, under a name that anybody can guess. Whoever makes
that folder first has others run code of theirs, and a restart loses it. Here it is a folder that only its owner can
enter, the first of these that can be had:

1. what the environment variable `TORCHINDUCTOR_CACHE_DIR` names, which is PyTorch's own; it is taken as it is;
2. `cache/compiled/` in the artifact home, where `DT2IT_HOME` is set;
3. `dt2it/compiled/` in `XDG_CACHE_HOME`, or in `~/.cache`.

In 2 and 3 each user and each kind of processor has a folder of its own: code for a CPU uses instructions that another
one may lack, and PyTorch finds it by its source alone. It finds code for a GPU by the name of the card, too. A place is
passed over where others may write to a folder above: they could put a folder of theirs there at any time. Old code in
it is removed at a start (storage/home/compiled_code.py).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import grp
import hashlib
import logging
import os
import platform
import pwd
import re
import shutil
import stat
import tempfile
from pathlib import Path

from dt2it_pipeline.storage.home import compiled_code

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_PLACE = "compiled"  # the folder that holds those of all users and processors
_FEATURES = ("model name", "flags", "Features")  # lines of /proc/cpuinfo
# Of a place that is full or may not be written to.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}
# PyTorch compiles in processes of its own, too, and quotes the traceback of an error there. The last line counts.
_NUMBERED = re.compile(r"^[\w.]+: \[Errno (\d+)\] .*\s*\Z", re.MULTILINE)
_FULL = re.compile("No space left on device|Disk quota exceeded")  # as a compiler that is a program words it
_logger = logging.getLogger(__name__)
_held: set[tuple[Path, int]] = set()  # folders, each with the process that holds it


def use_private_cache() -> Path:
    """Have this process, and those that it starts, keep compiled code in a private folder; returns the folder.

    Where none can be had, it is a folder of this process alone, and one line says so: every start then compiles anew.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    given = os.environ.get(VARIABLE)
    if given and Path(given) != Path(default_cache_dir()):  # PyTorch sets the variable, too, once it has compiled
        # Ours, as a process above this one has found it. Files of that name alone may be of anything else.
        ours = Path(given).name == _folder_name() and Path(given).parent.name == _PLACE
        if ours and (Path(given) / compiled_code.LOCK).exists():
            _hold(Path(given))
        return Path(given)
    faults = []
    for place in _places():
        try:
            folder = _private(place)
        except OSError as error:
            faults.append(str(error))
            continue
        _hold(folder)
        break
    else:
        folder = Path(tempfile.mkdtemp(prefix="dt2it-compiled-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _logger.warning(
            "no folder can keep what torch.compile makes, so that every start compiles anew (%s); set %s to a "
            "folder that nobody else may write to",
            "; ".join(faults) or "there is no home",
            VARIABLE,
        )
    os.environ[VARIABLE] = str(folder)
    return folder


def write_fault(error: BaseException) -> str | None:
    """Why what torch.compile makes cannot be written, and what to do; None for any other error.

    Args:
        error: of a forward or backward pass.

    Examples:
        >>> write_fault(OSError(errno.ENOSPC, "No space left on device"))  # not of torch.compile
    """
    if not of_compiler(error):
        return None
    for inner in reversed(inner_errors(error)):
        number = inner.errno if isinstance(inner, OSError) else None
        if number is None and (found := _NUMBERED.search(str(inner))):
            number = int(found[1])
        if number is None and _FULL.search(str(inner)):
            number = errno.ENOSPC
        if number in _UNWRITABLE:
            place = getattr(inner, "filename", None) or f"to {os.environ.get(VARIABLE)} or {tempfile.gettempdir()}"
            return (
                f"torch.compile cannot write {place}: {os.strerror(number)}; free space there or choose another folder "
                f"({VARIABLE}, TMPDIR), and start again"
            )
    return None


def of_compiler(error: BaseException) -> bool:
    """Whether an error was raised inside torch.compile's compiler, whatever stood in its way.

    Args:
        error: of a forward or backward pass.
    """
    # By name: torch._dynamo is not loaded for an error of another kind.
    return any(kind.__name__ == "BackendCompilerFailed" for kind in type(error).__mro__)


def inner_errors(error: BaseException) -> list[BaseException]:
    """An error and those that led to it, the first cause last.

    Args:
        error: of torch.compile's compiler, which names its cause in an attribute of its own, or any other.

    Examples:
        >>> inner_errors(ValueError(3))
        [ValueError(3)]
    """
    found: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in found:
        found.append(inner)
        inner = getattr(inner, "inner_exception", None) or inner.__cause__
    return found


def _hold(folder: Path) -> None:
    """Remove what is old or too much in a folder; no other process removes code from it until this one ends."""
    if (folder, os.getpid()) in _held:
        return
    _held.add((folder, os.getpid()))
    with contextlib.suppress(OSError):
        if removed := compiled_code.prune_and_hold(folder):
            _logger.info(
                "removed %.0f MiB of compiled code in %s: nothing had used it for %d days, or there was more than %.0f "
                "GiB",
                removed / 2**20,
                folder,
                compiled_code.DAYS,
                compiled_code.MOST_BYTES / 2**30,
            )


def _places() -> list[Path]:
    home, cache = os.environ.get("DT2IT_HOME"), os.environ.get("XDG_CACHE_HOME")
    places = [Path(home).absolute() / "cache"] if home else []
    if cache and Path(cache).is_absolute():  # as the XDG specification has it, another path does not count
        places.append(Path(cache) / "dt2it")
    else:
        with contextlib.suppress(RuntimeError):  # a user without a home
            places.append(Path.home() / ".cache" / "dt2it")
    return [place / _PLACE for place in places]


def _private(place: Path) -> Path:
    """The folder of this user and processor in a place, which its owner alone may enter; it is made if need be.

    Raises:
        OSError: it cannot be made, or is somebody else's, or others could put one of theirs there.
    """
    place.mkdir(parents=True, exist_ok=True)
    place = place.resolve()  # what is checked is what is used
    for above in (place, *place.parents):
        if _others_may_write(above.stat()):
            raise PermissionError(f"others may write to {above}, and could put code of theirs there")
    folder = place / _folder_name()
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{folder} is a link, or somebody else's")
    if stat.S_IMODE(found.st_mode) & 0o077:
        # Whoever could write there may have done so.
        raise PermissionError(f"others than its owner may enter {folder}: remove it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written to")
    return folder


def _others_may_write(found: os.stat_result) -> bool:
    """Whether somebody else than root may take away what lies in a folder and belongs to this user.

    The group that Linux makes for each user, of the same name, does not count as others where nobody else is in it.
    """
    if found.st_uid not in (os.geteuid(), 0):
        return True
    if found.st_mode & stat.S_ISVTX:  # as of /tmp: only who owns a file or the folder may take it away
        return False
    if found.st_mode & stat.S_IWOTH or not found.st_mode & stat.S_IWGRP:
        return bool(found.st_mode & stat.S_IWOTH)
    try:
        name, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(found.st_gid)
    except KeyError:  # a number without a name, as in many containers: who is in the group is not known
        return True
    return group.gr_name != name or not {name}.issuperset(group.gr_mem)


def _folder_name() -> str:
    """The name of the folder of this user and processor."""
    return f"{_processor()}-{os.geteuid()}"


def _processor() -> str:
    """A short name of this kind of processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [f"model name: {platform.processor()}"]
    known = sorted({line for line in lines if line.startswith(_FEATURES)})
    return f"{platform.machine()}-{hashlib.sha256(' '.join(known).encode()).hexdigest()[:8]}"
