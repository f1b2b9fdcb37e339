"""Prompt templates of judges that are models: found by mode and language, versioned by content."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from dt2it_pipeline.config.paths import config_files, looked_in
from dt2it_pipeline.judges import material
from dt2it_pipeline.judges.answer_matching.answers import question_text
from dt2it_pipeline.judges.protocol import LISTWISE, PAIRWISE, POINTWISE, JudgeError, JudgeRequest
from dt2it_pipeline.media.markers import without_markers
from dt2it_pipeline.storage import content_ids

FALLBACK_LANGUAGE = "en"
IS_RIGHT, IS_SAME = "is_right", "is_same"  # templates of questions that yes or no answers: one text, two texts


@dataclass(frozen=True)
class Template:
    """One template: its words, and their hash, which a judgement records.

    The words know `question`, `reference`, `responses`, how many `images` there are, and `mark`, which belongs on every
    line that stands between instructions and data (see `material`).
    """

    text: str

    @property
    def hash(self) -> str:
        """Content hash of the template's words, and of the form in which data are put into them."""
        return content_ids.content_hash("template", material.VERSION, self.text)

    def render(self, request: JudgeRequest, values: Mapping[str, str] | None = None) -> str:
        """The judge's prompt for one request, without media markers; `values` are further words for the template.

        Raises:
            JudgeError: the template is malformed, or uses a name that it is not given.
        """
        reference = request.prompt["reference"] or ""
        turns = [[turn["role"], without_markers(turn["text"]).strip()] for turn in request.prompt["turns"]]
        mark = material.mark(self.text, turns, reference, request.responses, dict(values or {}))
        try:
            return _compiled(self.text).render(
                mark=mark,
                question=_conversation(request, mark),
                reference=material.shown(reference),
                responses=[material.shown(text) for text in request.responses],
                images=len(request.prompt["media"]),
                **(values or {}),
            )
        except jinja2.TemplateError as error:
            raise JudgeError(f"a prompt template cannot be used: {error}") from error


@functools.lru_cache(maxsize=64)
def _compiled(text: str) -> jinja2.Template:
    """A template ready to be filled in. To compile one takes more time than all else about a prompt."""
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["one_line"] = material.one_line
    return environment.from_string(text)


def load_template(mode: str, language: str, folder: Path | None = None) -> Template:
    """The template `judge_<mode>.<language>.jinja`, in English where there is none in that language.

    A mode that does not judge has its name alone: `<mode>.<language>.jinja`.

    Raises:
        JudgeError: there is none in English either.
    """
    files = config_files("prompts", f"{_stem(mode)}.*.jinja", folder)
    for name in (f"{_stem(mode)}.{language}.jinja", f"{_stem(mode)}.{FALLBACK_LANGUAGE}.jinja"):
        if name in files:
            return Template(files[name].read_text(encoding="utf-8"))
    raise JudgeError(f"there is no judge template {name} in {folder or looked_in('prompts')}")


def question_row(prompt: Mapping[str, Any], words: str, with_images: bool = True) -> dict[str, Any]:
    """A prompts row that has a judge's words in the place of the conversation, with the prompt's media or without."""
    media = prompt["media"] if with_images else []
    markers = "".join(f"<{medium['kind']}>" for medium in media)
    return dict(prompt) | {"media": media, "system": "", "turns": [{"role": "user", "text": f"{markers}{words}"}]}


def version(modes: Iterable[str], folder: Path | None = None) -> str:
    """Content hash of the templates of some modes in every language that there is."""
    files: dict[str, Path] = {}
    for mode in modes:
        files |= config_files("prompts", f"{_stem(mode)}.*.jinja", folder)
    return content_ids.content_hash(*((name, files[name].read_text(encoding="utf-8")) for name in sorted(files)))


def _stem(mode: str) -> str:
    return f"judge_{mode}" if mode in (LISTWISE, POINTWISE, PAIRWISE) else mode


def _conversation(request: JudgeRequest, mark: str) -> str:
    """The question; with the turns before it where there are any."""
    turns = request.prompt["turns"]
    if len(turns) == 1:
        return material.shown(question_text(request.prompt))
    # A turn's text could hold a line "[user] ...", but not the mark.
    return "\n".join(f"[{mark} {turn['role']}] {material.shown(without_markers(turn['text']))}" for turn in turns)
