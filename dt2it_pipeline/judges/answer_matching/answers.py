"""What a response asserts, read from its words: does it agree with a short reference answer?

Lexical and generic: the reference phrase is looked for in the response, and so are its rivals, the other answers that
the same kind of question received. Yes and no are read as polarity, because a response may answer without either word.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CORRECT, MIXED, NONE, WRONG = "correct", "mixed", "none", "wrong"
MAX_PHRASE_WORDS = 5  # a longer reference is prose: its words are compared, not the phrase

_YES = frozenset(["yes", "yeah", "yep", "correct", "true", "indeed", "是", "是的", "对", "对的", "有"])
_NO = frozenset(["no", "nope", "incorrect", "false", "否", "不", "不是", "不对", "没有"])
_NEGATIONS = frozenset(["no", "not", "never", "without", "none", "neither", "nor", "cannot", "不", "没"])
# "No circle is present" is a statement, "no there is a circle" an answer.
_PRONOUNS = frozenset(["there", "it", "this", "that", "these", "those", "i", "you", "he", "she", "they", "we"])
_ARTICLES = frozenset(["a", "an", "the"])
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBERS)}
_WORD = re.compile(r"[\u4e00-\u9fff]|\w+(?:'\w+)?")
_POINTS = ".,:/\u2044"  # between digits they make one number, time or fraction
_THOUSANDS = re.compile(rf"(?<![\d{_POINTS}])\d{{1,3}}(?:(?:,\d{{3}})+|(?: \d{{3}})+)(?![\d]|,\d)")
_POINT = re.compile(rf"(?<=\d)(?=[{_POINTS}]\d)")
_ABBREVIATION = re.compile(r"(?<!\w)(?:[^\W\d_]\.)+[^\W\d_](?!\w)")
# First words of the names of characters: scripts that put no spaces between words, or endings and particles to words.
_UNSPACED = frozenset(
    ["CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "BOPOMOFO", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"]
)
_OTHER_VALUE = ("<super>", "<sub>", "<fraction>")  # decompositions by which 10² would be 102
_CLAUSE = re.compile(r"[.,;:!?\n。，；：！？]+|\s+\b(?:but|however|although|or rather|actually)\b|但是?|不过")


def words(text: str) -> list[str]:
    """Lower-case words (single characters for Chinese) without articles and markup; number words become digits."""
    plain = text.lower().replace("’", "'").replace("n't", " not")
    found = [word.strip("_") for word in _WORD.findall(plain)]
    return [_DIGITS.get(word, word) for word in found if word and word not in _ARTICLES]


def holds(text: str, reference: str) -> bool:
    """Whether a text holds a reference by its characters, where `words` may not find it.

    The forms of characters, separators of thousands and the points of abbreviations do not count. Letters of scripts
    with spaces count as whole words, digits as whole numbers.

    >>> holds("りんごです。", "りんご"), holds("1,000 of them", "1000"), holds("a hundred", "red"), holds("3.5", "35")
    (True, True, False, False)
    """
    given, wanted, start = _bare(text), _bare(reference), -1
    while wanted and (start := given.find(wanted, start + 1)) >= 0:
        if not _joined(given, start) and not _joined(given, start + len(wanted)):
            return True
    return False


def _bare(text: str) -> str:
    """Characters in one form, without what separates thousands and abbreviations; other marks are spaces."""
    forms = (
        one if unicodedata.decomposition(one).startswith(_OTHER_VALUE) else unicodedata.normalize("NFKC", one)
        for one in unicodedata.normalize("NFC", text)
        if unicodedata.category(one) != "Cf"
    )
    plain = unicodedata.normalize("NFC", "".join(forms).casefold())
    plain = _THOUSANDS.sub(lambda number: re.sub("[, ]", "", number[0]), plain)
    plain = _ABBREVIATION.sub(lambda found: found[0].replace(".", ""), plain)
    inside = {found.end() for found in _POINT.finditer(plain)}
    kept = (one if _is_of_word(one) or n in inside else " " for n, one in enumerate(plain))
    return " ".join("".join(kept).split())


def _joined(text: str, place: int) -> bool:
    """Whether the characters before and behind a place belong to one word or number."""
    around = text[max(place - 1, 0) : place + 1]
    if not 0 < place < len(text) or " " in around:
        return False
    if unicodedata.category(around[1]).startswith("M") or any(one in _POINTS for one in around):
        return True
    return not any(_script(one) in _UNSPACED for one in around)


def _is_of_word(one: str) -> bool:
    """Whether a character is a letter, a number, or a sign that belongs to one, such as a vowel or a tone."""
    return unicodedata.category(one)[0] in "LNM"


def _script(one: str) -> str:
    return re.split("[ -]", unicodedata.name(one, ""))[0]


def rivals_by_reference(prompts: Iterable[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """Which other answers compete with each reference answer, learnt from a prompts table.

    Answers to the same question text (over different images) compete, and so do answers that share a competitor:
    "what colour is the circle?" ties red to blue, and thereby the colours of every question together.

    Returns:
        Normalised reference -> normalised rivals. Yes and no, and prose, are left out.
    """
    parent: dict[str, str] = {}

    def root(item: str) -> str:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    first_answer: dict[str, str] = {}
    for prompt in prompts:
        answer = words(prompt["reference"] or "")
        if not answer or len(answer) > MAX_PHRASE_WORDS or polarity_word(answer):
            continue
        phrase = " ".join(answer)
        parent.setdefault(phrase, phrase)
        question = " ".join(words(question_text(prompt)))
        other = first_answer.setdefault(question, phrase)
        parent[root(phrase)] = root(other)
    groups: dict[str, set[str]] = {}
    for phrase in parent:
        groups.setdefault(root(phrase), set()).add(phrase)
    return {phrase: frozenset(groups[root(phrase)] - {phrase}) for phrase in parent}


def question_text(prompt: Mapping[str, Any]) -> str:
    """Words of the last user turn, without media markers."""
    users = [turn["text"] for turn in prompt["turns"] if turn["role"] == "user"]
    return re.sub(r"<(?:image|video)>", " ", users[-1] if users else "").strip()


def assess(response: str, reference: str, question: str, rivals: Iterable[str]) -> str:
    """Whether a response asserts the reference answer (correct), another (wrong), several (mixed) or nothing (none)."""
    gold = words(reference)
    if polarity_word(gold):
        asserted_sides = polarity(response, question)
        if len(asserted_sides) != 1:
            return MIXED if asserted_sides else NONE
        return CORRECT if asserted_sides == {polarity_word(gold)} else WRONG
    asserted, denied = _assertions(words(response), {" ".join(gold), *rivals})
    if len(asserted) > 1:  # a rival that the question itself names may only be repeated
        asserted = {phrase for phrase in asserted if phrase == " ".join(gold) or not _contains(words(question), phrase)}
    if asserted == {" ".join(gold)}:
        return CORRECT
    if len(asserted) > 1:
        return MIXED
    return WRONG if asserted or " ".join(gold) in denied else NONE


def polarity_word(phrase: Sequence[str]) -> str:
    """`yes` or `no` if the phrase is nothing but such a word, else an empty string."""
    joined = "".join(phrase)
    return "yes" if joined in _YES else "no" if joined in _NO else ""


def polarity(response: str, question: str) -> set[str]:
    """Which of `yes` and `no` a response asserts: by the words that open its clauses, else by its negation.

    "There is no circle" answers "is there a circle?" with no, and "is there not a circle?" with yes. A response whose
    opening word and statement disagree asserts both.
    """
    opening: set[str] = set()
    stated: set[str] = set()
    asked_negatively = _negated(words(question))
    for clause in _CLAUSE.split(response):
        content = words(clause)
        if not content:
            continue
        if word := polarity_word(content):
            opening.add(word)
            continue
        if (word := polarity_word(content[:1])) and (word == "yes" or content[1] in _PRONOUNS):
            opening.add(word)
            content = content[1:]
        if len(content) >= 3:
            stated.add("yes" if _negated(content) == asked_negatively else "no")
    if not opening:
        return stated
    return opening | stated if len(stated) == 1 and stated != opening else opening


def overlap(response: str, reference: str) -> float:
    """F1 of the words that a response and a prose reference share, 0 to 1."""
    left, right = Counter(words(response)), Counter(words(reference))
    shared = sum((left & right).values())
    return 2 * shared / (left.total() + right.total()) if shared else 0.0


def _negated(content: Sequence[str]) -> bool:
    return sum(word in _NEGATIONS for word in content) % 2 == 1


def _assertions(content: Sequence[str], phrases: Iterable[str]) -> tuple[set[str], set[str]]:
    """Which phrases the words assert and which they deny; a phrase inside a longer one does not count."""
    free = list(content)
    asserted: set[str] = set()
    denied: set[str] = set()
    for phrase in sorted(phrases, key=lambda item: (-len(item.split()), item)):
        parts = phrase.split()
        for start in range(len(free) - len(parts) + 1):
            if free[start : start + len(parts)] == parts:
                before = content[max(0, start - 2) : start]
                (denied if any(word in _NEGATIONS for word in before) else asserted).add(phrase)
                free[start : start + len(parts)] = [""] * len(parts)
    return asserted, denied


def _contains(content: Sequence[str], phrase: str) -> bool:
    parts = phrase.split()
    return any(list(content[i : i + len(parts)]) == parts for i in range(len(content) - len(parts) + 1))
