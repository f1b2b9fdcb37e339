"""Compiled code is kept where its owner alone can write."""

from __future__ import annotations

import grp
import logging
import os
import pwd
import shutil
import stat
from pathlib import Path

import pytest
import torch._inductor.runtime.cache_dir_utils as torch_place

from dt2it_pipeline.reward.modeling import compile_cache
from dt2it_pipeline.reward.modeling.compile_cache import VARIABLE, use_private_cache
from dt2it_pipeline.storage.home import compiled_code


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "")  # so that what the function sets goes with the test
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv("DT2IT_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))


def test_the_artifact_home_comes_before_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = use_private_cache()
    assert found.parent == tmp_path / "own" / "dt2it" / "compiled"
    assert os.environ[VARIABLE] == str(found) == torch_place.cache_dir()
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("DT2IT_HOME", str(tmp_path / "home"))
    assert use_private_cache().parent == tmp_path / "home" / "cache" / "compiled"
    assert use_private_cache().name == found.name  # of this user and this kind of processor


def test_what_the_user_names_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "named"))
    assert use_private_cache() == tmp_path / "named"
    assert os.environ[VARIABLE] == str(tmp_path / "named")
    # PyTorch names its own place there as soon as it has looked for it.
    monkeypatch.setenv(VARIABLE, torch_place.default_cache_dir())
    assert use_private_cache().is_relative_to(tmp_path / "own")


def test_a_folder_that_the_user_names_loses_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held: list[Path] = []
    ours = use_private_cache()
    shutil.copytree(ours, tmp_path / "named")  # with the lock's file, as another program may have one
    for folder in (ours, tmp_path / "named"):
        assert (folder / compiled_code.LOCK).exists()
        (folder / "old").write_text("x")
        os.utime(folder / "old", (1e9, 1e9))
    monkeypatch.setattr(compile_cache, "_held", set())
    monkeypatch.setenv(VARIABLE, str(tmp_path / "named"))
    assert use_private_cache() == tmp_path / "named"
    assert (tmp_path / "named" / "old").exists()
    monkeypatch.setattr(compile_cache, "_hold", held.append)  # as this process holds it, nothing would go
    monkeypatch.setenv(VARIABLE, str(ours))
    assert use_private_cache() == ours
    assert held == [ours]


def test_another_processor_has_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = use_private_cache()
    monkeypatch.setattr(compile_cache, "_FEATURES", ("nothing",))
    monkeypatch.delenv(VARIABLE)
    assert use_private_cache().name != found.name


@pytest.mark.parametrize("what", ["open to others", "a link", "a file", "somebody else's"])
def test_a_folder_that_others_could_fill_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    monkeypatch.setenv("DT2IT_HOME", str(tmp_path / "home"))
    folder = use_private_cache()
    if what == "open to others":
        folder.chmod(0o770)
    elif what == "somebody else's":
        # `os.chown` is for root alone: the process is somebody else instead, as far as it is asked.
        own, name = os.geteuid(), folder.name.rpartition("-")[0]
        folder = folder.rename(folder.with_name(f"{name}-{own + 1}"))
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    else:
        shutil.rmtree(folder)
        folder.symlink_to(tmp_path) if what == "a link" else folder.touch()
    monkeypatch.delenv(VARIABLE)
    if what == "somebody else's":
        with caplog.at_level(logging.WARNING):
            found = use_private_cache()  # the user's own cache belongs to the other one, too
        assert "is a link, or somebody else's" in caplog.text
    else:
        found = use_private_cache()
        assert found.is_relative_to(tmp_path / "own") and not caplog.records
    assert found != folder


@pytest.mark.parametrize(("mode", "group", "taken"), [
    (0o777, (), False), (0o1777, (), True), (0o755, (), True),
    (0o775, (), True), (0o775, ("somebody",), False), (0o775, None, False),
])  # fmt: skip
def test_a_folder_that_others_could_put_another_in_the_place_of_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int, group: tuple[str, ...] | None, taken: bool
) -> None:
    """`group`: who is in the group of the folders beside this user; None: nobody knows."""
    user = pwd.getpwuid(os.geteuid()).pw_name

    def group_of(number: int) -> grp.struct_group:
        if group is None:
            raise KeyError(number)
        return grp.struct_group((user, "x", number, [user, *group]))

    monkeypatch.setattr(grp, "getgrgid", group_of)
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    monkeypatch.setenv("DT2IT_HOME", str(home))
    assert use_private_cache().is_relative_to(home if taken else tmp_path / "own")


def test_a_link_above_the_folder_cannot_be_turned_elsewhere_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "real")
    monkeypatch.setenv("DT2IT_HOME", str(tmp_path / "home"))
    assert use_private_cache().is_relative_to(tmp_path / "real")


def test_without_a_place_every_start_compiles_anew_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own").touch()
    with caplog.at_level(logging.WARNING):
        found = use_private_cache()
    assert found.is_dir() and stat.S_IMODE(found.stat().st_mode) == 0o700
    assert "every start compiles anew" in caplog.text and f"set {VARIABLE} to a folder" in caplog.text
    found.rmdir()
