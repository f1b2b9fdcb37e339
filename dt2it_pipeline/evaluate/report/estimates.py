"""Sentences about labels, outcomes and style that need no hidden truth.

What belongs here: words about what curation did and how right the labels are by its own estimate. What does not:
benchmarks and hidden truth (`text`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dt2it_pipeline.evaluate.report.data import HELD_OUT, Headline, LabelEstimate, Quality, ReportData, Round
from dt2it_pipeline.evaluate.report.formatting import number, percent
from dt2it_pipeline.evaluate.report.text import summary_sentences
from dt2it_pipeline.reward.few_pairs import few_pairs


def estimate_words(three: tuple[float, float, float]) -> str:
    """An estimate (0 to 1) with its 95% interval.

    >>> estimate_words((0.7, 0.625, 0.775))
    '70.0% (95% interval 62.5% to 77.5%)'
    """
    return f"{percent(three[0])}% (95% interval {percent(three[1])}% to {percent(three[2])}%)"


def all_sentences(data: ReportData, table: Headline) -> list[str]:
    """The whole summary: benchmarks and truth, then what is known without them, then what a length limit left out."""
    return [*summary_sentences(data, table), *outcome_sentences(data), *data.left_out]


def outcome_sentences(data: ReportData) -> list[str]:
    """The result of the last round as far as it is known without hidden truth: labels, outcomes, style and cost."""
    last = data.rounds[-1] if data.rounds else None
    if last is None:
        return []
    sentences = _few_pairs(data.rounds)
    if last.estimate is not None and not _graded(data.quality):
        sentences.append(_labels(last.estimate))
    if last.outcomes:
        sentences.append(_outcomes(last, expected=not _graded(data.quality)))
    if style := _style(data.quality, last):
        sentences.append(style)
    return sentences


def truth_sentences(data: ReportData) -> list[str]:
    """A sentence for each estimate whose 95% interval does not hold the known truth; none where no truth is known."""
    sentences = []
    for item in data.rounds:
        if item.estimate is None:
            continue
        compared = [
            ("before", data.quality[:1], item.estimate.before),
            ("after", item.quality[-1:], item.estimate.after),
        ]
        for when, sets, three in compared:
            grade = sets[0].grade if sets else None
            # Where some pairs have no truth, that of the others is not what was estimated.
            if three is None or grade is None or not grade.graded or grade.without_truth:
                continue
            if not three[1] <= grade.accuracy <= three[2]:
                side = "above" if grade.accuracy > three[2] else "below"
                sentences.append(
                    f"Round {item.number}: the known truth, {percent(grade.accuracy)}% of the labels right {when} "
                    f"curation, lies {side} the interval of the estimate, {percent(three[1])}% to {percent(three[2])}%."
                )
    return sentences


def estimate_notes(data: ReportData) -> list[tuple[str, str]]:
    """(rounds, note): what readers must know of the estimates; a note that several rounds have is there once."""
    rounds: dict[str, list[str]] = {}
    for item in data.rounds:
        for note in item.estimate.notes if item.estimate is not None else ():
            rounds.setdefault(note, []).append(f"round {item.number}")
    return [(" and ".join(names), note) for note, names in rounds.items()]


def last_sensitivity(data: ReportData) -> tuple[str, Sequence[Mapping[str, float]]] | None:
    """(round, rows of `LabelEstimate.sensitivity`) of the last round that has such rows; None where none has.

    Of one round alone: what rounds leave open differs, so their rows have no assumption in common.
    """
    for item in reversed(data.rounds):
        if item.estimate is not None and item.estimate.sensitivity:
            return f"round {item.number}", item.estimate.sensitivity
    return None


def _labels(estimate: LabelEstimate) -> str:
    text = f"An estimated {estimate_words(estimate.before)} of the labels are right as they came"
    if estimate.after is not None:
        text += f", and {estimate_words(estimate.after)} after curation"
    return f"{text}. The estimate rests on {estimate.rests_on}."


def _outcomes(last: Round, expected: bool) -> str:
    """What became of the pairs; if `expected`, also how many labels are expected to be right.

    Beside a known truth, which the summary has, that would be a second figure for the same thing.
    """
    kept, flipped = (sum(getattr(one, name) for one in last.outcomes) for name in ("kept", "flipped"))
    dropped = sum(sum(one.dropped.values()) for one in last.outcomes)
    text = f"Of {number(kept + flipped + dropped)} pairs, round {last.number} keeps {number(kept)} as they came, "
    text += f"flips {number(flipped)} and drops {number(dropped)}"
    if expected and last.estimate is not None and last.estimate.expected_right is not None:
        right = last.estimate.expected_right
        text += f"; of the {number(kept + flipped)} that stay, about {number(right)} labels are expected to be right"
    return text + "."


def _style(before: Sequence[Quality], last: Round) -> str:
    probes = [
        (item.probe.auc, item.probe.ci_low, item.probe.ci_high)
        for item in (*before[:1], *last.quality[-1:])
        if item.probe is not None and item.probe.auc is not None
    ]
    if len(probes) < 2:
        return ""
    (first, _, highest), (second, lowest, _) = probes
    text = (
        f"Style alone tells the chosen side with an AUC of {first:.2f} before curation and {second:.2f} after "
        "(0.50: not at all, 1.00: always)."
    )
    if highest is not None and lowest is not None and lowest > max(highest, 0.5):
        text += (
            " Curation raised the style bias by more than chance: a reward model that is trained on these pairs may "
            "learn the style of the chosen sides."
        )
    return text


def _few_pairs(rounds: Sequence[Round]) -> list[str]:
    """A sentence for each round that trains on too few pairs."""
    counts = {
        item.number: sum(count for label, count in stage.rows_out.items() if label != HELD_OUT)
        for item in rounds
        for stage in item.stages
        if stage.stage == "training_pairs"
    }
    return [sentence for number, pairs in counts.items() if (sentence := few_pairs(number, pairs))]


def _graded(quality: Sequence[Quality]) -> bool:
    return any(item.grade is not None and item.grade.graded for item in quality)
