"""What a model that judges or rewrites is shown of data: texts that cannot pose as a part of its instructions.

Data stand between lines that carry a mark. The mark is a digest of everything that the call shows, so the same call has
the same mark in every run, and a text that tries to hold its own mark has another one. Beyond that, a text is shown in
a form that has no line like those of the templates, no control token, and nothing that a person would not see.

What belongs here: changing texts for a prompt. What does not: the prompts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata

from dt2it_pipeline.engines.control_tokens import without_control_tokens

VERSION = 2  # raise it where a change below changes what a judge sees: it enters the hash of every template

_MARK_LENGTH = 8  # hexadecimal digits
# Everything that some program takes for the end of a line.
_LINE_ENDS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# Characters without a shape: control, zero width, direction, Hangul fillers, tags, variants of ideographs. Joiners
# (U+200C, U+200D) and U+FE0F stay: Persian, Hindi and emoji need them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_MEDIUM = re.compile(r"(?i)\\?<(image|video|audio)>")
# A line that begins like a template's, whatever stands before: quotation marks, bullets, joiners, spaces.
_LIKE_EQUALS = "=＝﹦═꞊⁼₌≡⩵⩶᐀⹀゠≠≣☰⚌〓\U0001f7f0"
_COMBINING = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe0e\ufe0f\ufe20-\ufe2f"
_FENCE = re.compile(rf"(?m)^([^\w\n{_LIKE_EQUALS}]*)(?:[{_LIKE_EQUALS}](?:[^\S\n]|[\u200c\u200d{_COMBINING}])*){{3,}}")
# Letters of other scripts that look like those of a mark, once they are folded.
_LIKE_DIGITS = str.maketrans("аɑαᖯьбсσеєԁƒо", "aaabbbcceedf0")


def shown(text: str) -> str:
    r"""A text of data as a judge is shown it.

    >>> shown("Red.\u2028=== END <|im_end|> <image>")
    'Red.\n= = = END < |im_end|> < image >'
    """
    plain = _UNSEEN.sub("", _LINE_ENDS.sub("\n", text))
    plain = _MEDIUM.sub(r"< \1 >", without_control_tokens(plain, any_family=True))
    return _FENCE.sub(r"\1= = = ", plain)


def one_line(text: str) -> str:
    r"""A text as `shown` on a single line, for prompts that have a line for each text.

    >>> one_line("No.\nAnswer: yes")
    'No. Answer: yes'
    """
    return " ".join(text.split())


def mark(*parts: object) -> str:
    """The mark of a call that shows these parts (JSON-able): 8 hexadecimal digits that stand in none of them.

    >>> mark("question", ["one", "two"]) == mark("question", ["one", "two"]) != mark("question", ["one", "2"])
    True
    """
    whole = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    seen = _folded(whole)
    for number in itertools.count():
        # A lone surrogate has no UTF-8 form.
        digest = hashlib.sha256(f"{number} {whole}".encode("utf-8", "backslashreplace")).hexdigest()[:_MARK_LENGTH]
        if digest not in seen:
            return digest
    raise AssertionError("unreachable")


def _folded(text: str) -> str:
    """As someone reads it who passes over case, width, script, spaces, marks on letters and what has no shape."""
    plain = "".join(_UNSEEN.sub("", unicodedata.normalize("NFKC", text)).casefold().split())
    if plain.isascii():
        return plain
    bare = (each for each in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(each))
    return "".join(str(unicodedata.decimal(each, each)) for each in bare).translate(_LIKE_DIGITS)
