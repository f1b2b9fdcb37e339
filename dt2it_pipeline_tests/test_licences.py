"""scripts/licences.py: licences that are on the list, and the faults that it reports of others."""

from __future__ import annotations

import doctest
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "licences.py"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("licences", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def component(name: str, *licences: str) -> dict[str, Any]:
    given = [{"license": {"name": each}} if "::" in each else {"expression": each} for each in licences]
    return {"name": name, "version": "1", "licenses": given}


@pytest.mark.parametrize(
    ("licences", "fault"),
    [
        (["MIT"], ""),
        (["(MIT OR GPL-3.0-only) AND Apache-2.0 WITH LLVM-exception"], ""),
        (["License :: OSI Approved :: BSD License", "BSD-3-Clause"], ""),
        (["License :: OSI Approved", "ISC"], ""),
        (["MIT AND AGPL-3.0-only"], "MIT AND AGPL-3.0-only"),
        (["MIT AND"], "MIT AND"),
        (["License :: OSI Approved :: GNU General Public License v3 (GPLv3)"], "License :: OSI Approved :: GNU General "
         "Public License v3 (GPLv3)"),
        (["License :: OSI Approved"], "names no licence"),
        ([], "names no licence"),
    ],
)  # fmt: skip
def test_a_licence_is_on_the_list_or_named(licences: list[str], fault: str) -> None:
    assert script().fault(component("some", *licences)) == fault


def test_a_package_that_is_known_may_name_none_but_not_another() -> None:
    known = script()
    assert known.fault(component("ray")) == ""
    assert known.fault(component("ray", "AGPL-3.0-only")) == "AGPL-3.0-only"


def test_the_command_fails_where_one_is_not(tmp_path: Path) -> None:
    for packages, code, words in (
        ([component("good", "MIT")], 0, "1 packages, 0 with"),
        ([component("good", "MIT"), component("bad", "SSPL-1.0")], 1, "bad 1: SSPL-1.0\n2 packages, 1 with"),
    ):
        (tmp_path / "sbom.json").write_text(json.dumps({"components": packages}))
        done = subprocess.run(
            [sys.executable, SCRIPT, tmp_path / "sbom.json"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code and done.stdout.startswith(words)


def test_without_a_list_the_command_says_how_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "cut.json").write_text("{")
    for arguments, words in (
        ([], "usage: python scripts/licences.py SBOM.JSON"),
        (["a", "b"], "usage:"),
        *(
            ([str(tmp_path / name)], f"{tmp_path / name} is no SBOM")
            for name in ("none.json", "other.json", "cut.json")
        ),
    ):
        done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and done.stderr.startswith(words) and "Traceback" not in done.stderr


def test_the_examples_are_right() -> None:
    assert doctest.testmod(script()) == (0, 1)
