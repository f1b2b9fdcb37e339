"""The process that forks for the jobs of a run; job_forks.py starts it, with the number of an open connection."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import NoReturn

from dt2it_pipeline.engines.jobs import load_function
from dt2it_pipeline.engines.launch.rank_starter import run_ranks
from dt2it_pipeline.engines.lean_processes import leave, quick_imports
from dt2it_pipeline.observe.logs import CONTEXT, configure_logs

UNFIT = -1  # answered in the place of a process id: nothing can be forked here


@dataclass(frozen=True)
class Request:
    """A job that a process is to be forked for.

    Attributes:
        imports: "package.module:function" that imports what it needs; see `Job.imports`.
        worker: module whose `main(arguments)` the process runs.
        arguments: of the worker.
        environment: of the process.
        folder: that it works in.
        files: how many open files follow.
        ranks: how many such processes one starts that waits for them; 0: it is the only one.
        port: where ranks meet.
    """

    imports: str
    worker: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    folder: str
    files: int
    ranks: int = 0
    port: int = 0


def serve(connection: Connection) -> Request:
    """Fork for every request that comes, until the other side is gone: then the process ends.

    Returns:
        In a forked process alone: what it is to run.
    """
    imported: set[str] = set()
    while True:
        try:
            request: Request = connection.recv()
            files = [recv_handle(connection) for _ in range(request.files)]
        except (EOFError, OSError):
            leave()
        answer: int | None = None
        if _can_import(request, imported, files):
            if connection.poll():  # nothing is due now: whoever asked is gone
                leave()
            if _has_device():
                answer = UNFIT
            else:
                ready, begun = os.pipe()
                answer = os.fork()
                if answer == 0:
                    connection.close()
                    os.close(ready)
                    _begin(request, files, begun)
                    return request
                os.close(begun)
                os.read(ready, 1)  # it leads its own group now, by which it can be ended
                os.close(ready)
        for file in files:
            os.close(file)
        try:
            connection.send(answer)
            if answer is not None and answer > 0:
                connection.send(os.waitstatus_to_exitcode(os.waitpid(answer, 0)[1]))
        except OSError:  # nobody hears it any more
            leave()


def _can_import(request: Request, imported: set[str], files: Sequence[int]) -> bool:
    """Import what jobs of a kind need, once; a failure is shown by the fresh process that then runs the job."""
    if request.imports not in imported:
        os.environ[CONTEXT] = request.environment.get(CONTEXT, "")
        try:
            with _prints_to(files[:2]):
                configure_logs()
                with quick_imports():
                    load_function(request.imports)()
                gc.freeze()  # a search in a fork would copy what it shares
        except Exception:
            return False
        imported.add(request.imports)
    return True


@contextlib.contextmanager
def _prints_to(output: Sequence[int]) -> Iterator[None]:
    """Let what imports print come where the job prints, at once: each fork would print what is left in a buffer."""
    own = [os.dup(place) for place in (1, 2)]
    try:
        for file, place in zip(output, (1, 2), strict=True):
            os.dup2(file, place)
        yield
    finally:
        for stream, file, place in zip((sys.stdout, sys.stderr), own, (1, 2), strict=True):
            with contextlib.suppress(OSError):
                stream.flush()
            os.dup2(file, place)
            os.close(file)


def _has_device() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.accelerator.is_available()


def _begin(request: Request, files: Sequence[int], begun: int) -> None:
    """Become what a fresh process would be: its session, files, folder, environment and command line."""
    os.setsid()
    os.write(begun, b".")
    os.close(begun)
    for file, place in zip(files, (1, 2), strict=False):  # the others stay open as they are
        os.dup2(file, place)
        os.close(file)
    os.chdir(request.folder)
    _take_environment(request.environment)
    _show(request)


def _take_environment(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch = sys.modules.get("torch")
    if torch is not None and (threads := environment.get("OMP_NUM_THREADS", "").split(",")[0]).isdigit():
        torch.set_num_threads(int(threads))  # OpenMP has read the variable when it was loaded
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _show(request: Request) -> None:
    """Have the list of processes show the job, and not the server; vLLM brings the library that can."""
    title = sys.modules.get("setproctitle")
    if title is not None:
        title.setproctitle(" ".join([sys.executable, "-m", request.worker, *request.arguments]))


def _work(request: Request) -> NoReturn:
    """Run the worker, and end as a process of its own does."""
    status: object = 1
    try:
        worker = importlib.import_module(request.worker)
        sys.argv = [str(worker.__file__), *request.arguments]
        worker.main(list(request.arguments))
        leave()
    except SystemExit as end:
        status = end.code
        if not (status is None or isinstance(status, int)):
            print(status, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:  # never back to where it was forked: that belongs to its parent
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(0 if status is None else status if isinstance(status, int) else 1)


def _start_rank(request: Request, environment: Mapping[str, str]) -> int:
    """Start a rank as `run_ranks` asks for it."""
    process = os.fork()
    if process == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _take_environment(environment)
        _work(request)
    return process


def main(connection: int) -> None:
    """Serve; in a forked process: run its worker, or start its ranks and wait for them."""
    with contextlib.suppress(ImportError):
        os.environ["SPT_NOENV"] = "1"  # else it would write over what the list of processes shows of the environment
        title = importlib.import_module("setproctitle")
        title.getproctitle()  # it finds the command line by the environment, which a forked process replaces
    request = serve(Connection(connection))
    if request.ranks:
        sys.exit(run_ranks(request.ranks, request.port, partial(_start_rank, request)))
    _work(request)


if __name__ == "__main__":
    # By its name: requests are of the class of that module, not of that of `__main__`.
    importlib.import_module("dt2it_pipeline.engines.launch.job_fork_server").main(int(sys.argv[1]))
