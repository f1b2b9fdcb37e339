"""Every error of the package has its place below Dt2itError and survives the way between processes."""

from __future__ import annotations

import importlib
import pickle
import re
from pathlib import Path

import pytest

import dt2it_pipeline
from dt2it_pipeline.errors import Dt2itError, RowError, UserError, WorkerError

PACKAGE = Path(dt2it_pipeline.__file__).parent


def modules_with_exceptions() -> list[str]:
    """Modules of the package in which a class is defined whose bases look like errors; read, not imported."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        bases = re.findall(r"^\s*class \w+(?:\[.*\])?\(([^)]*)\)", file.read_text(), re.MULTILINE)
        if any(re.search(r"(Error|Exception|Fault|Stopped|Warning)\b", base) for base in bases):
            found.append(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts))
    return found


def exceptions() -> list[type[BaseException]]:
    found: set[type[BaseException]] = set()
    for name in modules_with_exceptions():
        for value in vars(importlib.import_module(name)).values():
            if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == name:
                found.add(value)
    return sorted(found, key=lambda each: (each.__module__, each.__name__))


EXCEPTIONS = exceptions()
MORE = {"JobFailed": (-9, "python -m job", Path("job.json"))}  # what an error holds beside its message


def test_there_are_errors_to_look_at() -> None:
    assert len(EXCEPTIONS) > 25


@pytest.mark.parametrize("kind", EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_an_error_derives_from_ours_and_its_message_survives_pickling(kind: type[BaseException]) -> None:
    assert issubclass(kind, Dt2itError)
    assert kind is Dt2itError or issubclass(kind, UserError | RowError | WorkerError)
    more = ("where",) if issubclass(kind, RowError) else MORE.get(kind.__name__, ())
    error = kind("what happened", *more)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error) == ("what happened: where" if issubclass(kind, RowError) else "what happened")


def test_a_row_error_carries_reason_and_detail() -> None:
    again = pickle.loads(pickle.dumps(RowError("image missing", "a.png")))
    assert (again.reason, again.detail) == ("image missing", "a.png")
    assert str(RowError("image missing")) == "image missing"


def test_help_pages_are_anchors_of_one_page() -> None:
    pages = [kind.help_page for kind in EXCEPTIONS if issubclass(kind, UserError)]
    assert all(re.fullmatch(r"(troubleshooting#[a-z-]+)?", page) for page in pages)
    assert sum(bool(page) for page in pages) > 20
    explained = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert all(f"{{ #{page.partition('#')[2]} }}" in explained for page in pages if page)
