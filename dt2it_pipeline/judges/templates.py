"""Prompt templates of judges that are models: found by mode and language, versioned by content."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.judges.answers import question_text
from dt2it_pipeline.judges.protocol import LISTWISE, PAIRWISE, POINTWISE, JudgeError, JudgeRequest
from dt2it_pipeline.storage import content_ids

FALLBACK_LANGUAGE = "en"
IS_RIGHT, IS_SAME = "is_right", "is_same"  # templates of questions that yes or no answers: one text, two texts
_FENCE = re.compile(r"(?m)^\s*={3,}")


@dataclass(frozen=True)
class Template:
    """One template: its words, and their hash, which a judgement records."""

    text: str

    @property
    def hash(self) -> str:
        """Content hash of the template's words."""
        return content_ids.content_hash("template", self.text)

    def render(self, request: JudgeRequest, values: Mapping[str, str] | None = None) -> str:
        """The judge's prompt for one request, without media markers; `values` are further words for the template."""
        environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(self.text).render(
            question=_conversation(request),
            reference=request.prompt["reference"] or "",
            responses=[_fenced(text) for text in request.responses],
            pictures=len(request.prompt["media"]),  # as the templates name it
            **(values or {}),
        )


def load_template(mode: str, language: str, folder: Path | None = None) -> Template:
    """The template `judge_<mode>.<language>.jinja`, in English where there is none in that language.

    A mode that does not judge has its name alone: `<mode>.<language>.jinja`.

    Raises:
        JudgeError: there is none in English either.
    """
    folder = folder or project_root() / "configs" / "prompts"
    for name in (f"{_stem(mode)}.{language}.jinja", f"{_stem(mode)}.{FALLBACK_LANGUAGE}.jinja"):
        if (folder / name).is_file():
            return Template((folder / name).read_text(encoding="utf-8"))
    raise JudgeError(f"there is no judge template {name} in {folder}")


def question_row(prompt: Mapping[str, Any], words: str, with_images: bool = True) -> dict[str, Any]:
    """A prompts row that has a judge's words in the place of the conversation, with the prompt's media or without."""
    media = prompt["media"] if with_images else []
    markers = "".join(f"<{medium['kind']}>" for medium in media)
    return dict(prompt) | {"media": media, "system": "", "turns": [{"role": "user", "text": f"{markers}{words}"}]}


def version(modes: Iterable[str], folder: Path | None = None) -> str:
    """Content hash of the templates of some modes in every language that there is."""
    folder = folder or project_root() / "configs" / "prompts"
    files = {file for mode in modes for file in folder.glob(f"{_stem(mode)}.*.jinja")}
    return content_ids.content_hash(*((file.name, file.read_text(encoding="utf-8")) for file in sorted(files)))


def _stem(mode: str) -> str:
    return f"judge_{mode}" if mode in (LISTWISE, POINTWISE, PAIRWISE) else mode


def _conversation(request: JudgeRequest) -> str:
    """The question; with the turns before it where there are any."""
    turns = request.prompt["turns"]
    if len(turns) == 1:
        return _fenced(question_text(request.prompt))
    lines = [f"[{turn['role']}] {turn['text']}" for turn in turns]
    return _fenced("\n".join(lines).replace("<image>", "").replace("<video>", ""))


def _fenced(text: str) -> str:
    """Text that cannot be taken for one of the template's === lines, nor for an image's marker."""
    cleaned = text.replace("<image>", "< image >").replace("<video>", "< video >")
    return _FENCE.sub("= = =", cleaned)
