"""The fuzzing itself: it finds what is wrong, names how to make it again, and every surface reads its sound input."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dt2it_pipeline.errors import UserError
from dt2it_pipeline_tests.fuzz import __main__ as fuzz
from dt2it_pipeline_tests.fuzz.surface import Surface

SOUND = b"a sound input of some length"


def ends(_: bytes) -> bool:
    os._exit(3)


def waits(_: bytes) -> bool:
    time.sleep(5)
    return True


def takes(_: bytes) -> bool:
    return len(b"x" * (200 << 20)) > 0


def raises(_: bytes) -> bool:
    raise KeyError("no such thing")


def refuses(_: bytes) -> bool:
    raise UserError("this is no input; give another")


@pytest.mark.parametrize(
    ("read", "code", "words"),
    [
        (ends, 1, "the process ended with 3"),
        (waits, 1, "took longer than 1 s"),
        (takes, 1, "MiB of memory"),
        (raises, 1, "KeyError: 'no such thing'"),
        (refuses, 0, ""),
    ],
)
def test_each_kind_of_fault_is_found_and_can_be_made_again(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    read: Callable[[bytes], bool],
    code: int,
    words: str,
) -> None:
    monkeypatch.setitem(
        fuzz.SURFACES, "own", lambda _: Surface([SOUND], lambda content: content == SOUND or read(content))
    )
    monkeypatch.setattr(fuzz, "_SLOW", 1)
    monkeypatch.setattr(fuzz, "_FAULTS", 1)
    monkeypatch.setattr(fuzz, "_MEMORY", 100 << 10)
    assert fuzz.main(["--surface", "own", "--seconds", "0.3", "--seed", "7"]) == code
    printed = capfd.readouterr().out
    assert printed.startswith("seed 7\n") and words in printed
    if code:
        again = printed.partition("again: python -m dt2it_pipeline_tests.fuzz ")[2].splitlines()[0].split()
        assert fuzz.main(again) == 1
        assert words in capfd.readouterr().out


@pytest.mark.parametrize("name", list(fuzz.SURFACES))
def test_every_surface_reads_what_is_sound_and_inputs_follow_from_the_seed(tmp_path: Path, name: str) -> None:
    surface = fuzz.SURFACES[name](tmp_path)
    assert any(surface.read(content) for content in surface.sound)
    inputs = [fuzz.made_again(name, 3, number, surface.sound) for number in range(20)]
    assert inputs == [fuzz.made_again(name, 3, number, surface.sound) for number in range(20)]
    assert len(set(inputs)) > 10
