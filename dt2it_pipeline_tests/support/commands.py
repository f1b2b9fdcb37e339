"""The command `dt2it` in tests: run in this process, with what it printed."""

from __future__ import annotations

import os

from typer.testing import CliRunner, Result

from dt2it_pipeline.cli import app


def dt2it(*arguments: object) -> str:
    """Run a command that must succeed; what it printed on standard output."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def failing(*arguments: object, code: int = 1) -> str:
    """Run a command that must end with an exit code; its one message, without `error: `."""
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.split("error: ")
    assert len(lines) == 2 and "Traceback" not in result.output, result.output
    return lines[1].partition("\nMore: docs/")[0].rstrip("\n")


def invoke(*arguments: object) -> Result:
    """Run a command to whatever end it comes."""
    given = [os.fspath(each) if isinstance(each, os.PathLike) else str(each) for each in arguments]
    return CliRunner().invoke(app, given, prog_name="dt2it")
