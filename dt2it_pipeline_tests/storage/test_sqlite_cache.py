"""The SQLite file of a cache: transactions, many keys, damage. `judges/test_reply_cache.py` has several processes."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from dt2it_pipeline.storage.sqlite_cache import CacheError, CacheKind, SqliteCache

NUMBERS = CacheKind(
    name="the file of numbers",
    tables="CREATE TABLE IF NOT EXISTS numbers (key INTEGER PRIMARY KEY, value INTEGER NOT NULL);",
    probe="SELECT key, value FROM numbers LIMIT 0",
    if_lost="they are counted again",
    durable=False,
)
INSERT = "INSERT INTO numbers VALUES (?, ?)"
SELECT = "SELECT key FROM numbers WHERE key IN"


def test_more_keys_than_a_query_takes_are_found(tmp_path: Path) -> None:
    with SqliteCache(NUMBERS, tmp_path / "deep" / "numbers.sqlite") as cache:
        cache.write((INSERT, ((number, 0) for number in range(1200))))
    with SqliteCache(NUMBERS, tmp_path / "deep" / "numbers.sqlite") as cache:
        assert [key for (key,) in cache.select(SELECT, range(-5, 1500))] == list(range(1200))


def test_a_write_is_whole_or_not_at_all(tmp_path: Path) -> None:
    with SqliteCache(NUMBERS, tmp_path / "numbers.sqlite") as cache:
        with pytest.raises(CacheError, match=r"the file of numbers .* cannot be used: .*NOT NULL"):
            cache.write((INSERT, [(1, 1)]), (INSERT, [(2, None)]))
        assert cache.rows("SELECT * FROM numbers") == []
        cache.write((INSERT, [(1, 1)]))
        assert cache.rows("SELECT * FROM numbers") == [(1, 1)]


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_that_is_damaged_when_it_is_written_takes_the_whole_write(tmp_path: Path, durable: bool) -> None:
    kind = CacheKind(NUMBERS.name, NUMBERS.tables, NUMBERS.probe, NUMBERS.if_lost, durable)
    path = tmp_path / "numbers.sqlite"
    with SqliteCache(kind, path) as cache:
        cache.write((INSERT, ((number, 0) for number in range(5000))))
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))  # the header stands
    with SqliteCache(kind, path) as cache:
        cache.write((INSERT, [(1, 1)]), (INSERT, [(2, 2)]))
        assert cache.rows("SELECT * FROM numbers") == [(1, 1), (2, 2)]
    assert path.with_name("numbers.sqlite.damaged").exists()


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with SqliteCache(NUMBERS, None) as cache:
        cache.write((INSERT, [(1, 1)]))
        assert cache.rows("SELECT value FROM numbers") == [(1,)]
    assert not list(tmp_path.iterdir())


def test_only_a_durable_cache_writes_ahead(tmp_path: Path) -> None:
    for durable, mode in ((True, "wal"), (False, "delete")):
        path = tmp_path / f"{mode}.sqlite"
        SqliteCache(CacheKind("a file", NUMBERS.tables, NUMBERS.probe, "", durable), path).close()
        database = sqlite3.connect(path)
        assert database.execute("PRAGMA journal_mode").fetchone() == (mode,)
        database.close()


DURABLE = CacheKind("a file", NUMBERS.tables, NUMBERS.probe, "", durable=True)


def being_written(path: Path) -> sqlite3.Connection:
    """Another process's transaction on a file whose journal is not a write-ahead log yet."""
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.executescript(NUMBERS.tables)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute(INSERT, (1, 1))
    return writer


def test_a_new_file_that_another_process_writes_is_waited_for(tmp_path: Path) -> None:
    writer = being_written(tmp_path / "numbers.sqlite")
    threading.Timer(0.2, writer.execute, ["COMMIT"]).start()
    with SqliteCache(DURABLE, tmp_path / "numbers.sqlite") as cache:
        assert cache.rows("SELECT * FROM numbers") == [(1, 1)]
        assert cache.rows("PRAGMA journal_mode") == [("wal",)]
    writer.close()


def test_waiting_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dt2it_pipeline.storage.sqlite_cache._TIMEOUT", 0.05)
    writer = being_written(tmp_path / "numbers.sqlite")
    with pytest.raises(
        CacheError, match=r"a file .*another process has held it for 0\.05 seconds \(database is locked\)"
    ):
        SqliteCache(DURABLE, tmp_path / "numbers.sqlite")
    writer.close()
