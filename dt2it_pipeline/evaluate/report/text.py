"""Sentences of the report, each computed from the numbers: the headline, and how rounds differ.

What belongs here: words. What does not: HTML (html.py) and the numbers themselves (data.py, comparison.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd
import pyarrow as pa

from dt2it_pipeline.evaluate.benchmarks.comparison import Change, Comparison
from dt2it_pipeline.evaluate.benchmarks.metrics import ALL, MACRO, OVERALL, wilson_interval
from dt2it_pipeline.evaluate.report.data import CallCurve, Headline, ReportData, Round
from dt2it_pipeline.evaluate.report.formatting import number, percent, points

CHANCE = (
    "p: how often chance alone would give a change this large. Within chance: p is not below 0.05 after Holm's "
    "correction for the number of groups. The intervals hold for all groups of a comparison together."
)
_NEGLIGIBLE = 0.01  # share of curated pairs; a round that changes fewer changes next to nothing


def summary_sentences(data: ReportData, table: Headline) -> list[str]:
    """The result in a few sentences, taken from the numbers."""
    sentences = []
    rounds = [(arm, cells) for arm, cells in table.rows if arm.kind == "round"]
    control = next(((arm, cells) for arm, cells in table.rows if arm.kind == "control"), None)
    whole = whole_column(table)
    if rounds and whole is not None and (last := rounds[-1][1][whole]) is not None:
        name = rounds[-1][0].model
        text = f"The reward model of {name} prefers the right answer in {percent(last.accuracy)}% of "
        text += f"{number(last.pairs)} held-out pairs"
        if len(rounds) > 1 and (first := rounds[0][1][whole]) is not None:
            if percent(first.accuracy) == percent(last.accuracy):
                text += f", as many as in {rounds[0][0].model}"
            else:
                text += f", against {percent(first.accuracy)}% in {rounds[0][0].model}"
                whole_change = _pooled(find(data.comparisons, rounds[0][0].model, name))
                if whole_change is not None and not whole_change.beyond_chance:
                    text += ", which is within chance"
        sentences.append(text + ".")
        if last.against_guessing != "better":
            low, high = wilson_interval(last.correct, last.pairs)
            level = "no better" if last.against_guessing == "same" else "worse"
            interval = f"95% interval {percent(low)}% to {percent(high)}%"
            sentences.append(f"{percent(last.accuracy)}% is {level} than guessing ({interval}).")
        if len(rounds) > 1 and (made := find(data.comparisons, rounds[-2][0].model, name)) is not None:
            sentences.append(round_sentence(made))
        if control is not None and (other := control[1][whole]) is not None:
            same = percent(other.accuracy) == percent(last.accuracy)
            sentence = f"Trained on the uncurated data instead (the control), it gets {percent(other.accuracy)}%"
            sentence += ", the same" if same else ""
            made = find(data.comparisons, control[0].model, name)
            sentences.append(sentence + ("." if made is None else _control_clause(made, curated=len(rounds) > 1)))
    graded = [item for item in data.quality if item.grade is not None and item.grade.graded and item.kept_share == 1]
    final = next((r.quality[-1] for r in reversed(data.rounds) if r.quality and r.quality[-1].grade is not None), None)
    if graded and final is not None and graded[0].grade is not None and final.grade is not None and final.grade.graded:
        kept = "" if final.kept_share is None else f", keeping {percent(final.kept_share)}% of the pairs"
        before, after = percent(graded[0].grade.accuracy), percent(final.grade.accuracy)
        if before == after:
            sentences.append(f"Label accuracy after curation is what it was before, {after}%{kept}.")
        else:
            verb = "raised" if final.grade.accuracy > graded[0].grade.accuracy else "lowered"
            sentences.append(f"Curation {verb} label accuracy from {before}% to {after}%{kept}.")
    return sentences


def round_sentence(made: Comparison) -> str:
    """What rose and what fell from one round to the next, and which of it chance explains."""
    groups = [change for change in made.changes if change.group != OVERALL] or list(made.changes)
    certain = [change for change in groups if change.beyond_chance]
    falls = [change for change in groups if change.difference < 0 and not change.beyond_chance]
    rises = [change for change in groups if change.difference > 0 and not change.beyond_chance]
    parts = [f"“{c.group}” {'rose' if c.difference > 0 else 'fell'} by {_by(c)}, beyond chance" for c in certain]
    parts += [f"“{c.group}” fell by {_by(c)}, within chance" for c in falls]
    if rises:
        named = " and ".join(f"“{c.group}” ({points(c.difference)})" for c in rises)
        parts.append(f"the rise of {named} is within chance" if len(rises) == 1 else f"{named} rose within chance")
    if not parts:
        return f"From {made.before} to {made.after} no group changed."
    return f"From {made.before} to {made.after}: {'; '.join(parts)}."


def _control_clause(made: Comparison, curated: bool) -> str:
    """The end of the control's sentence: where the round gains most, and every group where it loses beyond chance.

    Round 0 has learned from no curated pair (`curated` is False): it gains by leaving the noisy ones out.
    """
    who = "curation" if curated else "leaving the noisy pairs out"
    groups = [c for c in made.changes if c.group != OVERALL and c.beyond_chance]
    gains = sorted((c for c in groups if c.difference > 0), key=lambda c: -c.difference)
    losses = sorted((c for c in groups if c.difference < 0), key=lambda c: c.difference)
    parts = []
    if gains:
        parts.append(f"{who} gains most on “{gains[0].group}” ({points(gains[0].difference)} points)")
    if losses:
        named = " and ".join(f"“{c.group}” ({points(c.difference)})" for c in losses)
        parts.append(f"{who if not gains else 'it'} loses on {named}")
    if not parts:
        return "; no group differs beyond chance."
    return ": " + ", and ".join(parts) + ", beyond chance."


def curation_note(
    number_now: int, before: pd.DataFrame, now: pd.DataFrame, voted: pa.Table, trained_on: Collection[str] | None
) -> str:
    """How a round's curated pairs differ from those of the round before; where they do not, why; whether it mattered.

    Args:
        number_now: of the round.
        before: curated pairs of the round before: pair_id, chosen_id.
        now: those of this round.
        voted: this round's pairs table after the vote, with pair_id and `votes` (list of voter and margin).
        trained_on: ids of the pairs that this round's reward model was trained on; None under a policy that lets it
            vote on them all the same.
    """
    earlier, later = (part.set_index("pair_id")["chosen_id"] for part in (before, now))
    both = earlier.index.intersection(later.index)
    joined, left = len(later) - len(both), len(earlier) - len(both)
    turned = int((earlier.reindex(both).to_numpy(dtype=object) != later.reindex(both).to_numpy(dtype=object)).sum())
    if changed := joined + left + turned:
        share = changed / (len(earlier) + joined)
        text = (
            f"Against round {number_now - 1}: {_times(joined, 'pair')} joined the curated set, {number(left)} left it, "
            f"and of the others {_times(turned, 'label')} changed sides. That is {percent(share)}% of the pairs of "
            "either round"
        )
        return f"{text}." if share >= _NEGLIGIBLE else f"{text}: {_enough(number_now)}."
    text = f"Round {number_now} curates exactly as round {number_now - 1} did"
    text += f": the same {number(len(later))} pairs with the same labels"
    if trained_on is None:
        return f"{text}; the votes of its new reward model changed none: {_enough(number_now)}."
    trained = set(trained_on)
    known = sum(pair in trained for pair in voted["pair_id"].to_pylist())
    new = f"reward_model/{number_now}"
    asked = sum(any(vote["voter"] == new for vote in votes) for votes in voted["votes"].to_pylist())
    others = "none was left for it" if not asked else f"its votes on the other {number(asked)} changed none of them"
    return (
        f"{text}. This is no fault: a model does not vote on pairs that it was trained on, and the new one was "
        f"trained on {number(known)} of the {number(voted.num_rows)}; {others}. So "
        f"{_enough(number_now)}."
    )


def _enough(rounds: int) -> str:
    return "one round of curation is enough here" if rounds == 1 else f"{rounds} rounds of curation are enough here"


def call_sentence(rounds: Sequence[Round]) -> str:
    """What the judge calls of the last round with a curve changed, and which rounds have the same; empty without."""
    found = [item for item in rounds if item.call_curves and len(item.call_curves[0].calls) > 1]
    if not found:
        return ""
    last = found[-1]
    curve = last.call_curves[0]
    half = len(curve.calls) // 2
    text = f"Round {last.number} keeps {percent(curve.kept[0])}% of the pairs"
    text += f", label accuracy {percent(curve.right[0])}%," if curve.right is not None else ""
    text += f" without a call; {_reached(curve, half)} after {number(curve.calls[half])} calls; "
    text += f"{_reached(curve, -1)} after all {number(curve.calls[-1])}."
    flat = next((place for place, kept in enumerate(curve.kept) if kept != curve.kept[0]), 1) - 1
    if flat:
        text += (
            f" The first {number(curve.calls[flat])} add none: one verdict is too little for the least certain pairs."
        )
    same = [str(item.number) for item in found[:-1] if same_curves(item, last)]
    if same:
        text += f" Round {_listed(same)} has the same lines." if len(same) == 1 else f" So have rounds {_listed(same)}."
    if len(last.call_curves) > 1:
        text += " Dashed: if the judges' verdicts alone decided, without the voters."
    return text


def same_curves(one: Round, other: Round) -> bool:
    """Whether judge calls change the same in two rounds."""
    return list(one.call_curves) == list(other.call_curves)


def _reached(curve: CallCurve, place: int) -> str:
    kept = f"{percent(curve.kept[place])}%"
    return kept if curve.right is None else f"{kept} and {percent(curve.right[place])}%"


def style_sentence(data: ReportData) -> str:
    """Which style features predict the chosen side, in the first set where style does; empty where it does in none."""
    for item in (*data.quality, *(quality for one in data.rounds for quality in one.quality)):
        if item.probe is not None and (item.probe.ci_low or 0) > 0.55 and item.probe.features:
            signs = [f"{name} ({'more' if weight > 0 else 'less'})" for name, weight in item.probe.features[:3]]
            return f"In “{item.name}” these features predict the chosen side best: {', '.join(signs)}."
    return ""


def guessing_notes(table: Headline) -> list[str]:
    """Which models are no better, or worse, than chance (50%) and on what, after a line that explains it.

    Models with the same result share a line; empty where every model is better than chance everywhere.
    """
    names = [": ".join(part for part in head if part) for head in column_heads(table)]
    found: dict[str, list[str]] = {}
    for arm, cells in table.rows:
        levels: dict[str, list[str]] = {"worse": [], "same": []}
        for (_, group), name, cell in zip(table.columns, names, cells, strict=True):
            if cell is not None and cell.pairs and group != MACRO and cell.against_guessing != "better":
                levels[cell.against_guessing].append(f"“{name}”")
        notes = [f"worse than guessing on {_listed(levels['worse'])}"] if levels["worse"] else []
        notes += [f"no better than guessing on {_listed(levels['same'])}"] if levels["same"] else []
        if notes:
            found.setdefault("; ".join(notes), []).append(arm.model)
    if not found:
        return []
    return [
        "No better than guessing: the 95% interval includes 50%, which is chance. Worse than guessing: the whole "
        "interval lies below, so the model follows something that goes with the wrong answer, such as style.",
        *(f"{_listed(models)}: {note}." for note, models in found.items()),
    ]


def label_words(label: str) -> str:
    """A pair's label in the words of the table of outcomes."""
    return {
        "original": "label as it came (original)",
        "flipped": "chosen and rejected exchanged by the vote, no judge asked (flipped)",
        "annotated": "label decided by judges (annotated)",
    }.get(label, label)


def notes(table: Headline) -> list[str]:
    """One line per arm that tied or failed on pairs."""
    lines = []
    for arm, cells in table.rows:
        real = [
            cell
            for (b, group), cell in zip(table.columns, cells, strict=True)
            if cell and group == OVERALL and b != ALL
        ]
        ties, unscored = sum(cell.ties for cell in real), sum(cell.unscored for cell in real)
        if ties or unscored:
            lines.append(
                f"{arm.model}: {_times(ties, 'tie')} and {_times(unscored, 'pair')} without a score, all wrong."
            )
    return lines


def whole_column(table: Headline) -> int | None:
    """Column with the accuracy over everything: all benchmarks pooled, else the only benchmark's pooled accuracy."""
    if (ALL, OVERALL) in table.columns:
        return table.columns.index((ALL, OVERALL))
    overall = [i for i, (_, group) in enumerate(table.columns) if group == OVERALL]
    return overall[0] if len(overall) == 1 else None


def column_heads(table: Headline) -> list[tuple[str, str]]:
    """(benchmark, group) to print; the benchmark is left out where there is only one."""
    single = len({benchmark for benchmark, _ in table.columns}) == 1
    names = {OVERALL: "all pooled", MACRO: "mean of groups"}
    return [("" if single else benchmark, names.get(group, group)) for benchmark, group in table.columns]


def change_label(change: Change, several: bool) -> str:
    """Name of a compared group, with its benchmark where there are several."""
    group = "all pooled" if change.group == OVERALL else change.group
    return f"{change.benchmark}: {group}" if several else group


def find(comparisons: Sequence[Comparison], before: str, after: str) -> Comparison | None:
    """The comparison of two arms, None where it was not made."""
    return next((one for one in comparisons if (one.before, one.after) == (before, after)), None)


def _pooled(made: Comparison | None) -> Change | None:
    if made is None:
        return None
    return next((change for change in reversed(made.changes) if change.group == OVERALL), None)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _by(change: Change) -> str:
    """As in: 5.2 points (95% interval +1.0 to +9.3)."""
    return f"{100 * abs(change.difference):.1f} points (95% interval {points(change.low)} to {points(change.high)})"


def _times(count: int, what: str) -> str:
    return f"{number(count)} {what}{'' if count == 1 else 's'}"
