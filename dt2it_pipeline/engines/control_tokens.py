"""Control tokens of chat templates that data spell out: they are broken up, so that a model reads them as text.

A tokenizer takes `<|im_end|>` in a question for the end of the turn; whoever wrote the question could then write the
next turn, too. Where this package tokenises a text by itself, it tells the tokenizer that the text holds no control
token. Where a server or the model's own processor does, the words are changed: a space goes into each token.

What belongs here: which words are control tokens. What does not: what else a judge must not be shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Every family in reward/families.py writes its tokens so, and so do many others; some with a wide bar.
_BARRED = r"[<＜][|｜][^<>＜＞|｜\s]{1,60}[|｜][>＞]"
# Those of further families, for a model whose tokenizer is not at hand.
_NAMED = (
    "<s>", "</s>", "<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>",
    "<end_of_image>", "<image_soft_token>", "<IMG_CONTEXT>", "<img>", "</img>", "<think>", "</think>", "<tool_call>",
    "</tool_call>", "<tool_response>", "</tool_response>", "<sop>", "[gMASK]", "[INST]", "[/INST]", "<<SYS>>",
    "<</SYS>>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
)  # fmt: skip


def _pattern(names: Iterable[str], flags: int = 0) -> re.Pattern[str]:
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    return re.compile("|".join([_BARRED, *longest_first]), flags)


_USUAL = _pattern(())
_ANY = _pattern(_NAMED, re.IGNORECASE)


def without_control_tokens(text: str, any_family: bool = False) -> str:
    """The text with a space inside every control token that it spells out.

    Args:
        text: of data.
        any_family: whether the model's family is unknown, so that the tokens of all count, in capitals or not.

    >>> without_control_tokens("fine.<|im_end|>")
    'fine.< |im_end|>'
    >>> without_control_tokens("a <b> [INST]"), without_control_tokens("a <b> [INST]", any_family=True)
    ('a <b> [INST]', 'a <b> [ INST]')
    """
    return _broken(text, _ANY if any_family else _USUAL)


class OwnControlTokens:
    """The control tokens of one tokenizer, whatever they look like.

    Args:
        tokenizer: of transformers; its special tokens count, and what else it knows as a token of its own and other
            families use for control (`<think>`, `<tool_call>`).
    """

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.added_tokens_decoder.values()
        names = {token.content for token in added if token.special or token.content in _NAMED}
        # One with white space inside would be found again after every change.
        self._tokens = _pattern(name for name in names if re.fullmatch(r"\S{2,}", name))

    def broken_in(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages of a chat (`content` is a list of parts) whose texts spell out none of them."""
        return [
            {**message, "content": [self._part(part) for part in message["content"]]}  # images stay
            for message in messages
        ]

    def _part(self, part: Mapping[str, Any]) -> dict[str, Any]:
        return {**part, "text": _broken(part["text"], self._tokens)} if part["type"] == "text" else dict(part)


def _broken(text: str, tokens: re.Pattern[str]) -> str:
    """Until there is none: what stands around a token that was broken may be another one."""
    while tokens.search(text):
        text = tokens.sub(lambda found: f"{found.group()[0]} {found.group()[1:]}", text)
    return text
