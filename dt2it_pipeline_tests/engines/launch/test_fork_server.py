"""A process of a pool dies at a bad moment: the work ends with an error and does not wait for ever."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import pytest

from dt2it_pipeline.engines.launch import fork_server
from dt2it_pipeline.errors import WorkerError


def dies_while_it_answers(piece: int) -> bytes:
    """Be killed when the half of what was made is sent."""

    def send_half(connection: Connection, buffer: memoryview) -> None:
        os.write(connection.fileno(), bytes(buffer)[: len(buffer) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    if piece == 0:
        Connection._send = send_half  # type: ignore[attr-defined]
    return bytes(1000)


def dies_beside_one_that_ignores_sigterm(piece: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1)
    if piece == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("work", [dies_while_it_answers, dies_beside_one_that_ignores_sigterm])
def test_a_death_ends_the_work_of_all(work: Callable[[int], object]) -> None:
    pool = fork_server.Pool(2, lambda: fork_server.context(fork_server.__name__), "one of two is lost")
    with pool, pytest.raises(WorkerError, match="one of two is lost"):
        list(pool.map(work, range(4)))


@pytest.mark.timeout(60)
def test_a_pool_that_is_shut_down_while_its_end_is_seen_closes_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def close_slowly(connection: Connection) -> None:
        os.close(connection.fileno())
        if threading.current_thread().daemon:
            time.sleep(1)

    monkeypatch.setattr(Connection, "_close", close_slowly)
    pool = fork_server.Pool(2, lambda: fork_server.context(fork_server.__name__), "one of two is lost")
    with pool, pytest.raises(WorkerError, match="one of two is lost"):
        list(pool.map(dies_while_it_answers, range(4)))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("code", "status"), [(3, "3"), (None, "0"), ("no memory", "1: no memory")])
def test_work_that_exits_is_an_error_that_names_the_place(code: int | str | None, status: str, processes: int) -> None:
    pool = fork_server.Pool(processes, lambda: fork_server.context(fork_server.__name__), "memory ran out")
    words = rf"^sys\.exit in {__file__}, line \d+, ended the work \(exit status {status}\); that code should raise"
    with pool, pytest.raises(WorkerError, match=words):
        list(pool.map(partial(exits, code), range(4)))


def exits(code: int | str | None, piece: int) -> None:
    if piece == 1:
        sys.exit(code)


def test_a_signal_whose_handler_exits_ends_the_program() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: sys.exit(5))
    try:
        pool = fork_server.Pool(1, lambda: fork_server.context(fork_server.__name__), "lost")
        with pool, pytest.raises(SystemExit):
            list(pool.map(signal.raise_signal, [signal.SIGUSR1]))
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.timeout(60)
def test_an_interrupt_waits_for_no_piece() -> None:
    pool = fork_server.Pool(2, lambda: fork_server.context(fork_server.__name__), "one of two is lost")
    with pytest.raises(KeyboardInterrupt), pool:
        for _ in pool.map(sleeps_behind_the_first, range(4)):
            raise KeyboardInterrupt


def sleeps_behind_the_first(piece: int) -> None:
    if piece:
        time.sleep(3600)
