"""The file of judges' replies: what is kept, what becomes of a damaged file, and several processes at once."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from dt2it_pipeline.judges.protocol import Reply
from dt2it_pipeline.judges.reply_cache import ReplyCache
from dt2it_pipeline.storage.sqlite_cache import CacheError

REPLY = Reply("x", True, 1, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "replies.sqlite"


def filled(path: Path, count: int = 200) -> None:
    cache = ReplyCache(path)
    for number in range(count):
        cache.put(f"key {number}", Reply("y" * 500, True, 1, 1))
    cache.close()


def garbage(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no database at all. " * 500)


def overwritten_header(path: Path) -> None:
    filled(path)
    path.write_bytes(b"\x00" * 100 + path.read_bytes()[100:])


def cut(path: Path) -> None:
    filled(path)
    path.write_bytes(path.read_bytes()[:20_000])


def damaged_pages(path: Path) -> None:
    """The header and the schema stand: only what is looked up shows the damage."""
    filled(path)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


@pytest.mark.parametrize("damage", [garbage, overwritten_header, cut, damaged_pages])
def test_a_damaged_file_is_renamed_with_a_warning_and_a_new_one_is_begun(path, damage, caplog):
    damage(path)
    before = path.read_bytes()
    cache = ReplyCache(path)
    assert cache.get([f"key {number}" for number in range(200)]) == {}
    cache.put("new", REPLY)
    cache.close()
    assert path.with_name("replies.sqlite.damaged").read_bytes() == before
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "replies.sqlite is damaged" in warning and "renamed to replies.sqlite.damaged" in warning
    again = ReplyCache(path)
    assert again.get(["new"]) == {"new": REPLY}
    again.close()
    assert len(caplog.records) == 1


def test_a_damaged_row_costs_that_row_and_is_reported_once(path, caplog):
    with contextlib.closing(ReplyCache(path)) as cache:
        for key in "abcd":
            cache.put(key, Reply(f"score {key}", True, 3, 4))
    changes = {"a": '["score', "b": '["score x", true, 3, 4, "0"]', "c": None}
    with contextlib.closing(sqlite3.connect(path)) as database:
        for key, content in changes.items():
            whole = database.execute("SELECT reply FROM replies WHERE key = ?", key).fetchone()[0]
            content = whole.replace("score", "scorf") if content is None else content  # one bit
            database.execute("UPDATE replies SET reply = ? WHERE key = ?", (content, key))
        database.commit()
    with contextlib.closing(ReplyCache(path)) as cache:
        for _ in range(2):
            assert cache.get(list("abcd")) == {"d": Reply("score d", True, 3, 4)}
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(path) in line and "damaged rows" in line


def test_a_file_that_is_damaged_when_it_is_written_keeps_the_new_reply(path):
    damaged_pages(path)
    cache = ReplyCache(path)
    cache.put("new", REPLY)
    assert cache.get(["new"]) == {"new": REPLY}


def test_no_renamed_file_is_overwritten(path):
    for _ in range(3):
        garbage(path)
        ReplyCache(path).close()
    assert sorted(file.name for file in path.parent.glob("*.damaged*")) == [
        "replies.sqlite.damaged", "replies.sqlite.damaged-2", "replies.sqlite.damaged-3"
    ]  # fmt: skip


def test_a_damaged_file_that_another_process_uses_is_left_where_it_is(path, monkeypatch):
    monkeypatch.setattr("dt2it_pipeline.storage.sqlite_cache._WAIT", 0.001)
    damaged_pages(path)
    other = ReplyCache(path)
    with pytest.raises(CacheError, match=r"replies\.sqlite is damaged .* another process uses it; run this again"):
        ReplyCache(path).get(["key 1"])
    assert path.exists() and not list(path.parent.glob("*.damaged*"))
    other.close()
    assert ReplyCache(path).get(["key 1"]) == {}


WRITER = """
import sys
from pathlib import Path
from dt2it_pipeline.judges.reply_cache import ReplyCache
from dt2it_pipeline.judges.protocol import Reply
sys.stdin.readline()  # all begin at once
cache = ReplyCache(Path(sys.argv[1]))
for number in range(100):
    cache.put(f"{sys.argv[2]} {number}", Reply("x", True, 1, 1))
    assert cache.get([f"{sys.argv[2]} {number}"])
cache.close()
"""


def test_a_cache_in_memory_knows_the_rows_of_a_file_and_hands_on_what_is_new(path):
    file = ReplyCache(path)
    file.put("a", Reply("one", prompt_tokens=3))
    far = ReplyCache.holding(file.rows())
    assert far.get(["a", "b"]) == {"a": Reply("one", prompt_tokens=3)} and not far.put_here
    far.put("b", Reply("two"))
    assert far.new() == {"b": Reply("two")}
    assert far.new() == {}
    assert far.put_here == {"b"} and file.get(["b"]) == {}


def test_processes_that_meet_a_damaged_file_at_once_rename_it_once_and_lose_no_reply(path):
    garbage(path)
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, text=True) for n in range(4)]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    assert [file.name for file in path.parent.glob("*.damaged*")] == ["replies.sqlite.damaged"]
    assert len(ReplyCache(path).get([f"{n} {number}" for n in range(4) for number in range(100)])) == 400


def test_a_full_disk_is_one_sentence_and_what_was_kept_stays(path):
    filled(path, 10)
    cache = ReplyCache(path)
    (pages,) = cache.file._database.execute("PRAGMA page_count").fetchone()
    cache.file._database.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(CacheError, match=r"replies\.sqlite cannot be used: the disk is full; make room") as raised:
        for number in range(10, 100):
            cache.put(f"key {number}", Reply("y" * 500, True, 1, 1))
    assert "\n" not in str(raised.value)
    cache.close()
    assert len(ReplyCache(path).get([f"key {number}" for number in range(10)])) == 10


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "replies.sqlite", tmp_path / "folder"):
        with pytest.raises(CacheError, match=r"cannot be used: .*; make room or mend the permissions"):
            ReplyCache(place)


def test_a_damaged_row_is_unknown_and_the_others_are_found(path):
    filled(path, 30)
    content = bytearray(path.read_bytes())
    content[content.find(b"y" * 500)] ^= 0x80  # no text any more
    path.write_bytes(content)
    keys = [f"key {number}" for number in range(30)]
    cache = ReplyCache(path)
    assert len(cache.get(keys)) == 29
    for number, values in enumerate(("[null, true, 1, 2]", "[1, 2, 3, 4]", "{}", "7")):
        cache.file.rows("INSERT OR REPLACE INTO replies VALUES (?, ?)", (f"odd {number}", values))
    assert cache.get([f"odd {number}" for number in range(4)]) == {}


def test_a_database_of_another_kind_is_renamed(path):
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE replies (a TEXT)")
    database.close()
    cache = ReplyCache(path)
    cache.put("new", REPLY)
    assert cache.get(["new"]) == {"new": REPLY}
    assert path.with_name("replies.sqlite.damaged").exists()
