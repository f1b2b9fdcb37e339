"""What a checkpoint's own files say about its inputs: image size, system prompt and chat template.

Whoever loads a checkpoint reads these files: our scorers, and a plain `vllm serve`. So what the model was trained with
is written into them, and a score needs nothing else:

- the image processor's `size` holds the pixels per image of training;
- the chat template begins with a preamble (`reward_template`): the system prompt of training comes first, and a newline
  follows an image that a turn begins with. Where the training had no system turn, the one that the base model's
  template writes by itself is taken out again.

reward_model.json repeats both for people. It decides no score; its `calibration` says what scores mean.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

CARD = "reward_model.json"
_COPIED = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
)  # fmt: skip
OF_THE_TEMPLATE = ("system_prompt", "image_newlines", "system_default", "system_suppressed")  # entries of the card
_TEMPLATE = "chat_template.jinja"
_OLD_TEMPLATE = "chat_template.json"  # transformers prefers it where both are there, so only one is written

_LEAST_PIXELS = 56 * 56  # of an image, where a Qwen processor's file does not say

_VALUES = re.compile(
    r'namespace\(system=(?P<system>"(?:[^"\\]|\\.)*"), '
    r"newlines=(?P<newlines>true|false)(?:, default=(?P<default>true|false))?"
    r"(?:, suppressed=(?P<suppressed>true|false))?"
)
_BEGIN, _END = "{#- reward model: begin -#}\n", "{#- reward model: end -#}\n"
# Loops over messages and over their parts tell vLLM that the template takes parts; it would join images and texts with
# newlines otherwise. Other roles' parts become one text, as the base model's template is given in training.
_PREAMBLE = """\
{%- set trained = namespace(system=SYSTEM, newlines=NEWLINES, default=DEFAULT, suppressed=SUPPRESSED, messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is string -%}
{%- set trained.messages = trained.messages + [message] -%}
{%- elif message.role == 'user' -%}
{%- set trained.parts = [] -%}
{%- set trained.first = true -%}
{%- set trained.newline = false -%}
{%- for part in message.content -%}
{%- if 'text' in part -%}
{%- set trained.text = '\\n' if trained.newline and not part.text.startswith('\\n') else '' -%}
{%- set trained.parts = trained.parts + [dict(part, text=trained.text + part.text)] -%}
{%- set trained.first = trained.first and not part.text.strip('\\n') -%}
{%- set trained.newline = false -%}
{%- else -%}
{%- set trained.parts = trained.parts + ([{'type': 'text', 'text': '\\n'}] if trained.newline else []) + [part] -%}
{%- set trained.newline = trained.newlines and trained.first -%}
{%- endif -%}
{%- endfor -%}
{%- set trained.messages = trained.messages + [dict(message, content=trained.parts)] -%}
{%- else -%}
{%- set trained.text = '' -%}
{%- for part in message.content -%}
{%- set trained.text = trained.text + (part.text or '') -%}
{%- endfor -%}
{%- set trained.messages = trained.messages + [dict(message, content=trained.text)] -%}
{%- endif -%}
{%- endfor -%}
{%- if trained.system and (not trained.messages or trained.messages[0].role != 'system') -%}
{%- set trained.messages = [{'role': 'system', 'content': trained.system}] + trained.messages -%}
{%- elif trained.system and not trained.default -%}
{%- set trained.text = trained.messages[0].content -%}
{%- if trained.text != trained.system and not trained.text.startswith(trained.system + '\\n\\n') -%}
{%- set trained.text = trained.system + ('\\n\\n' + trained.text if trained.text else '') -%}
{%- set trained.messages = [dict(trained.messages[0], content=trained.text)] + trained.messages[1:] -%}
{%- endif -%}
{%- endif -%}
{%- set messages = trained.messages -%}
{%- if messages and messages[-1].role == 'assistant' -%}
{%- set add_generation_prompt = false -%}
{%- endif -%}
"""
# Around a base model's template that writes a system turn by itself (TURN), where the training had none.
_CAPTURE = "{%- set written -%}\n"
_AFTER = "{# reward model: after -#}\n"  # no dash before it: the base model's last line break counts
_WITHOUT_TURN = """\
{%- endset -%}
{%- if messages and messages[0].role != 'system' and written.startswith(TURN) -%}
{{- written[(TURN | length):] -}}
{%- else -%}
{{- written -}}
{%- endif -%}
"""


def reward_template(
    template: str,
    system_prompt: str,
    *,
    image_newlines: bool = True,
    system_default: bool = False,
    system_suppressed: bool = False,
) -> str:
    """A base model's chat template as that of a reward model with this system prompt.

    What the preamble does before the base model's template goes on:

    - `system_prompt` becomes the first system turn, followed by an empty line and the conversation's own, if any. A
      conversation that begins with it already is left as it is. Other trainers (`system_default`) give it to
      conversations without a system turn alone, so those with one are left as they are.
    - Without a `system_prompt`, the base model's template may write a system turn of its own, as that of Qwen2.5-VL
      does. It is left out of conversations that have none, where the training left it out (`system_suppressed`).
    - Images at the start of a user's turn are each followed by a newline, as in most training data, whether the text
      has it or, like a request with an image and a question, has not (`image_newlines`). Between words nothing changes.
    - No turn of the assistant is opened behind an answer, whatever was asked for: the score stands at the answer's end.

    Args:
        template: Jinja; a preamble of an earlier training is replaced.
        system_prompt: of the training; empty for none.
        image_newlines: whether the training had these newlines.
        system_default: whether `system_prompt` stands in for a missing system turn alone.
        system_suppressed: whether a conversation without a system turn has none, whatever `template` writes by itself.

    >>> print(reward_template("...", "You judge.")[:76])
    {#- reward model: begin -#}
    {%- set trained = namespace(system="You judge.",
    """
    if template.startswith(_BEGIN):
        template = template.partition(_END)[2].partition(_AFTER)[0]
    # A JSON string is one of Jinja as well, where no character above ASCII is escaped.
    values = {"NEWLINES": json.dumps(image_newlines), "DEFAULT": json.dumps(system_default)}
    values |= {"SUPPRESSED": json.dumps(system_suppressed)}
    values |= {"SYSTEM": json.dumps(system_prompt, ensure_ascii=False)}
    preamble = _PREAMBLE
    for name, value in values.items():  # the text of a person last
        preamble = preamble.replace(name, value, 1)
    turn = _own_system_turn(template) if system_suppressed and not system_prompt else ""
    if not turn:
        return _BEGIN + preamble + _END + template
    without = _WITHOUT_TURN.replace("TURN", json.dumps(turn, ensure_ascii=False))
    # Jinja drops a line break at the end of a template, and this one's end lies in the middle now.
    return _BEGIN + preamble + _CAPTURE + _END + template.removesuffix("\n") + _AFTER + without


def _own_system_turn(template: str) -> str:
    """The system turn that a chat template writes by itself before a conversation without one; empty for none."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    question, system = {"role": "user", "content": "x"}, "\ue000"

    def rendered(*messages: dict[str, str]) -> str:
        return str(render_jinja_template(conversations=[list(messages)], chat_template=template)[0][0])

    try:
        one, two = rendered(question), rendered(question, question)
        given = rendered({"role": "system", "content": system}, question)
    except (TemplateError, TypeError, ValueError):  # whoever scores with it sees the error itself
        return ""
    turn = two[len(one) :]  # a user's, which what comes before the first one is not part of
    begin, found, end = given.removesuffix(turn).partition(system)
    own = one.removesuffix(turn)
    is_turn = bool(turn) and bool(found) and own != one and len(own) >= len(begin + end)
    return own if is_turn and own.startswith(begin) and own.endswith(end) else ""


class Preamble(NamedTuple):
    """What the preamble of a chat template says of the training; see `reward_template`."""

    system_prompt: str
    image_newlines: bool
    system_default: bool
    system_suppressed: bool = False


def trained_with(template: str) -> Preamble | None:
    """What the preamble of a chat template says, None where it has none.

    >>> trained_with(reward_template("...", 'Say "yes".', image_newlines=False))
    Preamble(system_prompt='Say "yes".', image_newlines=False, system_default=False, system_suppressed=False)
    """
    if not template.startswith(_BEGIN):
        return None
    found = _VALUES.search(template)
    if found is None:
        return None
    flags = (found[name] == "true" for name in ("newlines", "default", "suppressed"))
    return Preamble(json.loads(found["system"]), *flags)


def has_preamble(source: Path) -> bool:
    """Whether a folder's chat template is that of a reward model of ours, with or without its card."""
    template = chat_template(source)
    return template is not None and trained_with(template) is not None


def sized(size: Mapping[str, int], max_pixels: int) -> dict[str, int]:
    """An image processor's `size` with another upper limit, in pixels; the lower one never exceeds it.

    >>> sized({"shortest_edge": 65536, "longest_edge": 16777216}, 268324)
    {'shortest_edge': 65536, 'longest_edge': 268324}
    >>> sized({"shortest_edge": 65536, "longest_edge": 16777216}, 1024)
    {'shortest_edge': 1024, 'longest_edge': 1024}
    """
    return {"shortest_edge": min(int(size["shortest_edge"]), max_pixels), "longest_edge": max_pixels}


def write_processor_files(source: Path, folder: Path, card: Mapping[str, Any]) -> None:
    """Write the processor's files of `source` into `folder`, with what the card says of the training.

    Args:
        source: folder of the model that was trained on.
        folder: of the checkpoint.
        card: `max_pixels`, with it perhaps `min_pixels`, and `OF_THE_TEMPLATE` of reward_model.json. What it lacks
            stays as the files of `source` have it, so that a model that is loaded and saved again has the same scores.
    """
    for name in _COPIED:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    if (template := chat_template(source)) is not None:
        text = carded_template(template, card)
        (folder / _TEMPLATE).write_text(text, encoding="utf-8")
        for name in ("tokenizer_config.json", "processor_config.json"):
            _change(folder / name, lambda found: found.pop("chat_template", None) is not None)
    if card.get("max_pixels"):
        _change(folder / "preprocessor_config.json", lambda found: _limit(found, card))
        _change(
            folder / "processor_config.json",
            lambda found: "image_processor" in found and _limit(found["image_processor"], card),
        )


def carded_template(template: str, card: Mapping[str, Any]) -> str:
    """A chat template with what a card says of the training; what the card lacks stays as the template has it."""
    if not set(OF_THE_TEMPLATE) & set(card):
        return template
    kept = trained_with(template) or Preamble("", False, False)
    return reward_template(
        template,
        str(card.get("system_prompt", kept.system_prompt) or ""),
        image_newlines=bool(card.get("image_newlines", kept.image_newlines)),
        system_default=bool(card.get("system_default", kept.system_default)),
        system_suppressed=bool(card.get("system_suppressed", kept.system_suppressed)),
    )


def follow_card(processor: Any, card: Mapping[str, Any]) -> None:
    """Make a loaded processor read inputs as the files would have it that `write_processor_files` writes."""
    processor.chat_template = carded_template(processor.chat_template, card)
    if limit := card.get("max_pixels"):
        images = processor.image_processor
        images.size = sized({"shortest_edge": card.get("min_pixels") or images.size["shortest_edge"]}, limit)


def pixel_limit(folder: str | Path) -> int | None:
    """Pixels to which a checkpoint's own files scale larger images down; None where they do not say.

    Of a folder that is no model, or whose files cannot be read, nothing is known either.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        try:
            found = json.loads((Path(folder) / name).read_text(encoding="utf-8"))
            found = found.get("image_processor") if name == "processor_config.json" else found
            limit = found.get("max_pixels") or found["size"]["longest_edge"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        return int(limit)
    return None


def read_card(folder: str | Path) -> dict[str, Any]:
    """reward_model.json of a folder; empty where it is not there, cannot be read, or is no JSON object."""
    try:
        found = json.loads((Path(folder) / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def trained_pixels(folder: str | Path) -> int | None:
    """Pixels per image at which a checkpoint was trained, by its reward_model.json; None where that is not known."""
    found = read_card(folder).get("max_pixels")
    return found if isinstance(found, int) else None


def default_template(found: Any, where: str | Path) -> str | None:
    """The chat template that counts: a text itself, or the one named `default` of several; None for another value.

    Args:
        found: a text, a list of {name, template} as tokenizer_config.json may have it, or the dictionary that
            transformers makes of such a list.
        where: the file or folder, for the error.

    Raises:
        CheckpointError: there are several, and none is named `default`.

    >>> default_template([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}], "")
    'a'
    """
    if isinstance(found, list):
        entries = [entry for entry in found if isinstance(entry, Mapping)]
        found = {str(entry.get("name")): entry.get("template") for entry in entries}
    if isinstance(found, Mapping) and found:
        if not isinstance(found.get("default"), str):
            from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError

            raise CheckpointError(
                f"{where} has the chat templates {', '.join(sorted(map(str, found)))}, and none is named `default`: "
                "name the one so that the model was trained with"
            )
        found = found["default"]
    return found if isinstance(found, str) else None


def chat_template(source: Path) -> str | None:
    """The chat template that transformers would take of a folder; None where it has none."""
    if (source / _OLD_TEMPLATE).exists():
        return _text_in(source / _OLD_TEMPLATE)
    if (source / _TEMPLATE).exists():
        return (source / _TEMPLATE).read_text(encoding="utf-8")
    return _text_in(source / "processor_config.json") or _text_in(source / "tokenizer_config.json")


def _text_in(path: Path) -> str | None:
    found = json.loads(path.read_text(encoding="utf-8")).get("chat_template") if path.exists() else None
    return default_template(found, path)


def _limit(settings: dict[str, Any], card: Mapping[str, Any]) -> bool:
    """Set the limits of a card in an image processor's settings, in their one form that every reader takes."""
    size = dict(settings.get("size") or {})
    shortest = settings.pop("min_pixels", None) or size.get("shortest_edge") or _LEAST_PIXELS
    settings.pop("max_pixels", None)
    settings["size"] = sized({"shortest_edge": card.get("min_pixels") or shortest}, card["max_pixels"])
    return True


def _change(path: Path, change: Any) -> None:
    """Rewrite a JSON file where `change` says that it changed what it holds."""
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if change(found):
            path.write_text(json.dumps(found, ensure_ascii=False, sort_keys=True, indent=2) + "\n", encoding="utf-8")
