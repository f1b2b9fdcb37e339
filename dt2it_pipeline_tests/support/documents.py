"""Fenced blocks of the documentation, with what the page says about testing them.

A `bash` block stands behind a comment:

- `<!-- test: run -->`: a test runs it beside a file of pairs; if it names a checkpoint, beside a small one, in a test
  marked heavy. See finished_project.py.
- `<!-- test: finished -->`: a test marked heavy runs it in a project whose rounds 0 and 1 have run.
- `<!-- test: parse -->`: its commands and options are checked. It needs a GPU or the network, installs something, or
  serves until it is stopped (the tests of these commands do that with ports and models of their own).
- `<!-- test: make -->`: a target of the Makefile, which CI runs.

`<!-- test: run, exit 1 -->`: its last command ends with that exit code, as the page says. A `python` block that stands
behind no comment is compiled, and what it imports from the package must be there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<how>\w+)(?:, exit (?P<code>\d))? -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """One fenced block: its page, the line it begins at, its language, its text, how it is tested, its exit code."""

    page: Path
    line: int
    language: str
    text: str
    how: str | None
    code: int = 0

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """The words of every command, without variables before it and comments behind it."""
        for part in re.split(r"&&|;|\n", self.text.replace("\\\n", " ")):
            words = shlex.split(part, comments=True)
            while words and (re.fullmatch(r"[A-Z0-9_]+=\S*", words[0]) or words[0] == "export"):
                words.pop(0)
            if words:
                yield words


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start()) + 1,
            found["language"],
            found["text"],
            found["how"],
            int(found["code"] or 0),
        )
        for found in _BLOCK.finditer(text)
    ]


def all_blocks(language: str) -> list[Block]:
    """The blocks of one language on all pages."""
    return [block for page in PAGES for block in blocks(page) if block.language == language]
