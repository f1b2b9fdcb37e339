"""A real PostgreSQL server for a test: the machine's own programs, in a temporary folder, on a port of its own.

PostgreSQL refuses to run as root, so a test that root runs starts it as `postgres` or `nobody`.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.engines.launch.ranks import free_port
from dt2it_pipeline_tests.support.processes import wait_until

USER, PASSWORD, DATABASE = "dagster", "it's a p%40ss/word", "dagster"  # what a URL or a format string could break on


@dataclass(frozen=True)
class PostgresServer:
    """A server that runs: its port, and the environment that a project's dagster.yaml reads."""

    port: int
    programs: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables that name the server to Dagster."""
        return {
            "DT2IT_POSTGRES_HOST": "127.0.0.1",
            "DT2IT_POSTGRES_PORT": str(self.port),
            "DT2IT_POSTGRES_USER": USER,
            "DT2IT_POSTGRES_PASSWORD": PASSWORD,
            "DT2IT_POSTGRES_DATABASE": DATABASE,
        }

    def query(self, sql: str) -> str:
        """What psql prints of a query, without headers."""
        command = [str(self.programs / "psql"), "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", DATABASE]
        done = subprocess.run(
            [*command, "-Atc", sql], env=os.environ | {"PGPASSWORD": PASSWORD}, capture_output=True, text=True,
            check=True, timeout=60,
        )  # fmt: skip
        return done.stdout.strip()


def programs() -> Path:
    """The folder of `initdb`, `postgres` and `psql`; skips the test where this machine has none."""
    found = [Path(p).resolve().parent for name in ("initdb", "postgres") if (p := shutil.which(name))]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if all((folder / name).is_file() for name in ("initdb", "postgres", "psql")):
            return folder
    pytest.skip("this machine has no PostgreSQL server (Debian and Ubuntu: apt install postgresql)")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Start a server with one role, which needs its password, and one empty database; it ends with the block."""
    place, port = programs(), free_port()
    owner = _owner()
    folder = Path(tempfile.mkdtemp(prefix="dt2it_postgres_"))  # not below tmp_path, which only its owner may enter
    try:
        password = folder / "password"
        password.write_text(PASSWORD)
        if owner:
            for path in (folder, password):
                os.chown(path, owner["user"], owner["group"])
        given: dict[str, Any] = owner | {"cwd": folder}
        made = subprocess.run(
            [str(place / "initdb"), "-D", "data", "-U", USER, "-A", "scram-sha-256", "--pwfile", "password",
             "--no-sync", "-E", "UTF8", "--locale", "C"], capture_output=True, text=True, timeout=120, **given,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [str(place / "postgres"), "-D", "data", "-p", str(port), "-c", "listen_addresses=127.0.0.1",
                 "-c", "unix_socket_directories=", "-c", "fsync=off"], stdout=log, stderr=subprocess.STDOUT, **given,
            )  # fmt: skip
        try:
            ready = re.compile("database system is ready to accept connections")
            wait_until(lambda: bool(ready.search((folder / "log").read_text(errors="replace"))), 60)
            started = PostgresServer(port, place, folder)
            subprocess.run(
                [str(place / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", USER, DATABASE],
                env=os.environ | {"PGPASSWORD": PASSWORD}, check=True, timeout=60,
            )  # fmt: skip
            yield started
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _owner() -> dict[str, Any]:
    """Arguments of Popen that let another user run it, where this one is root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody")
