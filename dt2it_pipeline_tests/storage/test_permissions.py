"""Who may read what is private."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from dt2it_pipeline.human_review.review_page.kept_answers import Notes
from dt2it_pipeline.judges.protocol import Reply
from dt2it_pipeline.judges.reply_cache import ReplyCache
from dt2it_pipeline.storage.permissions import make_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("folder", "expected"), [(0o755, 0o600), (0o700, 0o600), (0o2775, 0o660)])
def test_kept_replies_and_notes_are_for_those_who_may_write_their_folder(tmp_path, folder, expected):
    before = os.umask(0o002)
    try:
        home = tmp_path / "home"
        home.mkdir()
        home.chmod(folder)
        cache = ReplyCache(home / "replies.sqlite")
        cache.put("key", Reply("what the judge said"))
        Notes(home / "notes.jsonl").add("pair", "Ann", "skip")
        modes = {file.name: mode(file) for file in home.iterdir()}
        cache.close()
    finally:
        os.umask(before)
    assert {"replies.sqlite", "replies.sqlite-wal", "replies.sqlite.lock", "notes.jsonl"} <= modes.keys()
    assert set(modes.values()) == {expected}


def test_a_second_user_of_a_shared_home_finds_the_replies_of_the_first():
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    before = os.umask(0o002)
    within = Path(tempfile.mkdtemp())  # pytest's own folders are for their owner alone
    try:
        within.chmod(0o755)
        home = within / "home"
        home.mkdir()
        os.chown(home, 0, 54321)
        home.chmod(0o2775)
        first = ReplyCache(home / "replies.sqlite")
        first.put("key", Reply("kept"))
        first.close()
        seen = {54321: _as_user(12345, 54321, home), 54322: _as_user(12346, 54322, home)}
    finally:
        os.umask(before)
        shutil.rmtree(within)
    assert seen == {54321: "kept", 54322: "refused"}


def _as_user(user: int, group: int, home: Path) -> str:
    """What a user of a group reads; in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            cache = ReplyCache(home / "replies.sqlite")
            cache.put("another", Reply("written by the second"))
            os.write(writing, cache.get(["key"])["key"].text.encode())
        except Exception:
            os.write(writing, b"refused")
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as stream:
        return stream.read()


def test_a_file_that_is_there_stays_as_it_is(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    file.chmod(0o640)
    make_private(file)
    assert (file.read_text(), mode(file)) == ("kept", 0o640)
