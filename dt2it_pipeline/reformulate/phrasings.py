"""Phrasings of the two-image question by language: configs/prompts/t2i.<language>.yaml, versioned by content."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import yaml

from dt2it_pipeline.config.paths import config_files, looked_in
from dt2it_pipeline.config.strict_yaml import load_yaml
from dt2it_pipeline.errors import UserError
from dt2it_pipeline.media.markers import IMAGE
from dt2it_pipeline.storage import content_ids

CAPTION = "{caption}"
FALLBACK_LANGUAGE = "en"
_KEYS = {"question", "first", "second"}


class PhrasingError(UserError, ValueError):
    """A file of phrasings cannot be read or does not hold what it should; the message names the file and the entry."""

    help_page: ClassVar[str] = "troubleshooting#phrasings"


@dataclass(frozen=True)
class Phrasing:
    """One way of asking: the question with {caption} and two <image>, and the verdicts that name image 1 or image 2."""

    question: str
    first: str
    second: str

    @property
    def hash(self) -> str:
        """Content hash of the words."""
        return content_ids.content_hash("t2i phrasing", self.question, self.first, self.second)


Phrasings = Mapping[str, tuple[Phrasing, ...]]  # by language


def load_phrasings(folder: Path | None = None, count: int | None = None) -> Phrasings:
    """Phrasings by language; English must be among them, since other languages fall back to it.

    Args:
        folder: of the files t2i.LANGUAGE.yaml; the project's and the package's when None.
        count: only the first so many of every language; all when None.

    Raises:
        PhrasingError: a file is malformed, or there is none in English.
    """
    files = tuple(config_files("prompts", "t2i.*.yaml", folder).values())
    stamps = tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    found = _load(files, stamps, str(folder or looked_in("prompts")))
    return {language: own[:count] for language, own in found.items()}


@functools.lru_cache(maxsize=8)
def _load(files: tuple[Path, ...], stamp: tuple[tuple[int, int], ...], folder: str) -> Phrasings:
    found = {file.name.split(".")[1]: _read(file) for file in files}
    if FALLBACK_LANGUAGE not in found:
        raise PhrasingError(f"there is no t2i.{FALLBACK_LANGUAGE}.yaml in {folder}")
    return found


def version(phrasings: Phrasings) -> str:
    """Hash that stands for all phrasings in the keys of stages."""
    return content_ids.content_hash("t2i phrasings", {name: [p.hash for p in own] for name, own in phrasings.items()})


def language_of(code: str, phrasings: Phrasings) -> str:
    """Language of the phrasings for a row's language code: `zh-CN` is asked in `zh`, an unknown one in English."""
    short = code.lower().replace("_", "-").split("-")[0]
    return short if short in phrasings else FALLBACK_LANGUAGE


def _read(file: Path) -> tuple[Phrasing, ...]:
    try:
        entries = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PhrasingError(f"cannot read {file}: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise PhrasingError(f"{file.name}: expected a list of phrasings")
    made = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or set(entry) != _KEYS or not all(isinstance(v, str) for v in entry.values()):
            raise PhrasingError(f"{file.name}, phrasing {number}: expected the texts {', '.join(sorted(_KEYS))}")
        for mark, count in ((CAPTION, 1), (IMAGE, 2), ("<video>", 0)):
            if entry["question"].count(mark) != count:
                raise PhrasingError(f"{file.name}, phrasing {number}: the question must hold {mark} {count} time(s)")
        if entry["first"] == entry["second"]:
            raise PhrasingError(f"{file.name}, phrasing {number}: both verdicts are the same")
        made.append(Phrasing(**entry))
    return tuple(made)
