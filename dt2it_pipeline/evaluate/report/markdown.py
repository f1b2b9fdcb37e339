"""The report as Markdown: its tables and sentences by name, for report.md and for the pages of the web UI."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dt2it_pipeline.evaluate.benchmarks.comparison import Comparison
from dt2it_pipeline.evaluate.report import text
from dt2it_pipeline.evaluate.report.data import ReportData, headline
from dt2it_pipeline.evaluate.report.estimates import all_sentences, estimate_notes, last_sensitivity, truth_sentences
from dt2it_pipeline.evaluate.report.formatting import (
    brief,
    markdown_table,
    markdown_text,
    number,
    p_value,
    percent,
    points,
)
from dt2it_pipeline.evaluate.report.outcomes import cost_rows

NONE = "–"
_SUSPECTS = "suspicious pairs"  # name of the part
_CHANGES = "Rises and falls"
# Headings of report.md by part; parts without one belong to the heading before them.
_HEADINGS = {
    "accuracy": "Accuracy on benchmarks, %",
    "data quality": "Data quality",
    "label accuracy, estimated": "Estimated label accuracy",
    "outcomes": "Outcomes of pairs",
    _SUSPECTS: "The most suspicious pairs",
    "cost": "Cost",
    "curation": "Curated pairs from round to round",
}


def report_text(data: ReportData) -> str:
    """The report as one Markdown document: its title, and the parts of `report_markdown` under headings."""
    changes = {_change_name(made) for made in data.comparisons}
    pieces, last = [f"# {markdown_text(data.title)}"], ""
    for name, part in report_markdown(data).items():
        heading = _CHANGES if name in changes else _HEADINGS.get(name, last)
        if heading != last:
            pieces.append(f"## {heading}")
            last = heading
        pieces.append(part)
    return "\n\n".join(pieces) + "\n"


def report_markdown(data: ReportData) -> dict[str, str]:
    """Parts of the report as Markdown, by name; a part that has nothing to say is not there."""
    table = headline(data)
    several = len({benchmark for benchmark, _ in table.columns}) > 1
    guessing = text.guessing_notes(table)
    notes = [item.note for item in data.rounds if item.note]
    found = {
        "head": "\n".join(f"- {markdown_text(name)}: {markdown_text(value)}" for name, value in data.metadata.items()),
        "summary": markdown_text(" ".join(all_sentences(data, table))),
        "accuracy": headline_markdown(data) if table.rows else "",
        **({"guessing": "\n".join(f"- {markdown_text(note)}" for note in guessing)} if guessing else {}),
        **{_change_name(made): changes_markdown(made, several) for made in data.comparisons},
        **({"chance": f"- {text.CHANCE}"} if data.comparisons else {}),
        "data quality": quality_markdown(data),
        "label accuracy, estimated": estimates_markdown(data),
        "outcomes": outcomes_markdown(data),
        _SUSPECTS: suspects_markdown(data),
        "cost": costs_markdown(data),
        "curation": "\n".join(f"- {markdown_text(note)}" for note in notes),
    }
    return {name: part for name, part in found.items() if part}


def headline_markdown(data: ReportData) -> str:
    """The headline table as Markdown: one row per arm, one column per benchmark group, accuracy in percent."""
    table = headline(data)
    heads = ["model", *(f"{head[0]}: {head[1]}" if head[0] else head[1] for head in text.column_heads(table))]
    rows = [
        [arm.model, *("–" if cell is None or math.isnan(cell.accuracy) else percent(cell.accuracy) for cell in cells)]
        for arm, cells in table.rows
    ]
    return markdown_table(heads, rows)


def changes_markdown(made: Comparison, several: bool = False) -> str:
    """A paired comparison as Markdown, one row per group, with the name of its benchmark if there are `several`."""
    rows = [
        [
            text.change_label(change, several),
            points(change.difference),
            f"{points(change.low)} to {points(change.high)}",
            p_value(change.p),
            "no" if change.beyond_chance else "yes",
        ]
        for change in made.changes
    ]
    return markdown_table([_change_name(made), "points", "95% interval", "p", "within chance"], rows)


def quality_markdown(data: ReportData) -> str:
    """The data-quality table as Markdown, one row per set of pairs; columns without a value are left out."""
    groups = [("", data.quality), *((f"round {item.number}: ", item.quality) for item in data.rounds)]
    rows = []
    for group, quality in groups:
        for item in quality:
            accuracy = percent(item.grade.accuracy) if item.grade is not None and item.grade.graded else NONE
            probe = NONE if item.probe is None or item.probe.auc is None else f"{item.probe.auc:.3f}"
            kept = NONE if item.kept_share is None else percent(item.kept_share)
            calls = NONE if item.judge_calls is None else number(item.judge_calls)
            cached = number(item.cached_replies) if item.cached_replies else NONE
            rows.append([group + item.name, number(item.pairs), kept, accuracy, probe, calls, cached])
    heads = ["set of pairs", "pairs", "kept %", "label accuracy %", "style AUC", "judge calls", "cached replies"]
    return telling_table(heads, rows)


def estimates_markdown(data: ReportData) -> str:
    """Estimated label accuracy, one row per round, its notes, and how it moves where it is assumed; else empty."""
    rows = []
    for item in data.rounds:
        if (found := item.estimate) is not None:
            after = NONE if found.after is None else _interval(found.after)
            right = NONE if found.expected_right is None else number(found.expected_right)
            name = f"round {item.number}"
            rows.append([name, _interval(found.before), after, number(found.kept), right, found.rests_on])
    heads = ["round", "label accuracy before %", "after %", "pairs that stay", "right labels kept", "rests on"]
    table = telling_table(heads, rows)
    sentences = [*truth_sentences(data), *(f"{name.capitalize()}: {note}." for name, note in estimate_notes(data))]
    notes = "\n".join(f"- {markdown_text(sentence)}" for sentence in sentences)
    return "\n\n".join(part for part in (table, notes, _sensitivity(data)) if part)


def _sensitivity(data: ReportData) -> str:
    """What follows if voters and judges are better or worse than assumed; empty where nothing is assumed."""
    if (found := last_sensitivity(data)) is None:
        return ""
    name, assumed = found
    rows = [
        [
            *(percent(row[key]) for key in ("annotator_accuracy", "label_accuracy", "accuracy_after")),
            f"{percent(row['after_low'])} to {percent(row['after_high'])}",
        ]
        for row in assumed
    ]
    heads = ["if voters and judges are right in %", "labels right before %", f"after {name} %", "at least, at most %"]
    note = (
        "- If voters and judges are better or worse than assumed. To measure how often they are right, let a person "
        f"check fifty pairs: `dt2it review sample --{name} --output audit`."
    )
    return f"{note}\n\n{markdown_table(heads, rows)}"


def outcomes_markdown(data: ReportData) -> str:
    """What became of the pairs, one row per source and round; empty where that is not known."""
    rows = []
    for item in data.rounds:
        for one in item.outcomes:
            counts = [one.pairs, one.kept, one.flipped, sum(one.dropped.values()), one.contested]
            reasons = ", ".join(f"{number(count)} {reason}" for reason, count in one.dropped.items()) or NONE
            rows.append([one.source, str(item.number), *map(number, counts), reasons])
    heads = ["source", "round", "pairs", "kept", "flipped", "dropped", "contested", "dropped because"]
    return telling_table(heads, rows)


def suspects_markdown(data: ReportData) -> str:
    """The most suspicious pairs of the last round, the worst first; empty without."""
    suspects = data.rounds[-1].suspects if data.rounds else ()
    rows = [
        [
            one.row_id or one.pair_id,
            one.source,
            NONE if one.probability is None else percent(one.probability),
            one.outcome,
            one.why,
            *(brief(words, 60) for words in (one.question, one.chosen, one.rejected)),
        ]
        for one in suspects
    ]
    heads = ["suspicious pair", "source", "label right %", "outcome", "why", "question", "chosen", "rejected"]
    return telling_table(heads, rows)


def without_suspects(report: str) -> str:
    r"""A report in Markdown without its longest part, the most suspicious pairs, and without the heading of that part.

    >>> print(without_suspects("# Mine\n\n## The most suspicious pairs\n\n| suspicious pair |\n\n## Cost\n\n- none"))
    # Mine
    <BLANKLINE>
    ## Cost
    <BLANKLINE>
    - none
    """
    # Texts of data are single lines that begin with a mark of their own, so no heading is one of theirs.
    sections = report.split("\n\n## ")
    return "\n\n## ".join(part for part in sections if part.partition("\n")[0] != _HEADINGS[_SUSPECTS])


def costs_markdown(data: ReportData) -> str:
    """What every part of the run took, and the sum; empty where nothing is known."""
    rows = [
        [
            one.part,
            *(
                number(count) if count else NONE
                for count in (one.judge_calls, one.cached_replies, one.prompt_tokens, one.completion_tokens)
            ),
            f"{one.seconds / 3600:.2f}",
            f"{one.gpu_seconds / 3600:.2f}" if one.gpu_seconds else NONE,
        ]
        for one in cost_rows(data.costs)
    ]
    heads = ["part", "judge calls", "cached replies", "tokens read", "tokens written", "hours", "GPU hours"]
    return telling_table(heads, rows)


def telling_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table without the columns that have no value in any row; empty without rows.

    >>> print(telling_table(["set", "pairs", "kept"], [["a", "3", NONE], ["b", "4", NONE]]))
    | set | pairs |
    | --- | ----: |
    | a   |     3 |
    | b   |     4 |
    """
    telling = [place for place in range(len(heads)) if any(row[place] != NONE for row in rows)]
    if not telling:
        return ""
    return markdown_table([heads[place] for place in telling], [[row[place] for place in telling] for row in rows])


def _change_name(made: Comparison) -> str:
    return f"{made.before} to {made.after}"


def _interval(three: tuple[float, float, float]) -> str:
    return f"{percent(three[0])} ({percent(three[1])} to {percent(three[2])})"
