"""Prints records of `duel.run`: a table per set and size, where the project's methods lose, and who does harm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.real_noise.measures import (
    ClaimErrors,
    benjamini_hochberg,
    errors_of_audited_level,
    errors_of_known_level,
    holm,
)
from benchmarks.real_noise.measures.comparison import RESAMPLES

Record = Mapping[str, Any]
Key = tuple[str, ...]


def grouped(records: Iterable[Record], *names: str) -> dict[Key, list[Record]]:
    """Records by their values of `names`, in the order in which these come first."""
    made: dict[Key, list[Record]] = {}
    for record in records:
        made.setdefault(tuple(str(record[name]) for name in names), []).append(record)
    return made


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    usable = [value for value in values if not math.isnan(value)]
    return float(np.mean(usable)) if usable else math.nan


def harmed(record: Record) -> bool:
    """The interval of the harm lies wholly below 0."""
    return bool(record["harm"]["high"] < 0)


def worse(record: Record) -> bool:
    """Significantly worse than the best simple baseline at the same share kept."""
    return bool(record["advantage"]["high"] < 0)


def cell(records: Sequence[Record]) -> str:
    """Draws of one scenario and method: label accuracy and share kept in percent, and the marks.

    `!`: the harm's interval lies wholly below 0; `<`: significantly worse than the best simple baseline at the same
    share kept; `+`: the harm's interval lies wholly above 0. Each mark stands for at least half of the draws; `(!)` for
    fewer.
    """
    if not records:
        return ""
    text = f"{_percent(mean(r['accuracy'] for r in records))} of {_percent(mean(r['kept'] for r in records), 0)}"
    marks = ""
    for mark, count in (
        ("+", sum(r["harm"]["low"] > 0 for r in records)),
        ("!", sum(map(harmed, records))),
        ("<", sum(map(worse, records))),
    ):
        if 2 * count >= len(records):
            marks += mark
        elif count and mark == "!":
            marks += "(!)"
    return f"{text} {marks}".rstrip()


def tables(records: Sequence[Record]) -> str:
    """One Markdown table per set and size: a row per method, a column per scenario, then means over the scenarios."""
    parts = []
    for (name, size), rows in grouped(records, "set", "size").items():
        names = list(grouped(rows, "scenario"))
        before = _percent(mean(r["before"] for r in rows))
        draws = max(int(r["repeat"]) for r in rows) + 1
        lines = [
            f"### {name}, {size} pairs ({before}% of labels right; draws: {draws})",
            "",
            f"| method | {' | '.join(key[0] for key in names)} | gain | against the best simple | overclaim "
            "| calibration error | by chance | calls per pair | utility |",
            "|---|" + "---|" * (len(names) + 7),
        ]
        for (method,), theirs in grouped(rows, "method").items():
            cells = [cell([r for r in theirs if r["scenario"] == key[0]]) for key in names]
            lines.append(f"| {method} | {' | '.join(cells)} | {' | '.join(_means(theirs))} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _means(records: Sequence[Record]) -> list[str]:
    return [
        _signed(mean(r["harm"]["estimate"] for r in records)),
        _signed(mean(r["advantage"]["estimate"] for r in records)),
        _signed(mean(r["overclaim"] for r in records)),
        _percent(mean(r["calibration"]["error"] for r in records)),
        _percent(mean(r["calibration"]["chance"]["median"] for r in records)),
        _number(mean(r["calls"] for r in records)),
        _number(mean(r["utility"] for r in records)),
    ]


def losses(records: Sequence[Record], ours: Iterable[str]) -> str:
    """Where a method of the project does harm or is significantly worse than the best simple baseline: a list."""
    chosen = set(ours)
    lines = []
    for key, rows in grouped(records, "method", "set", "size", "scenario").items():
        if key[0] not in chosen:
            continue
        harms, loses = [r for r in rows if harmed(r)], [r for r in rows if worse(r)]
        said = []
        if harms:
            said.append(f"harm {_interval(harms[0]['harm'])} in {len(harms)} of {len(rows)} draws")
        if loses:
            rival = loses[0]["rival"]
            said.append(f"{_interval(loses[0]['advantage'])} against `{rival}` in {len(loses)} of {len(rows)} draws")
        if said:
            method, name, size, scenario = key
            lines.append(f"- {method}; {name}, {size} pairs; {scenario}: {'; '.join(said)}")
    return "\n".join(lines) or "- nowhere"


def harm_summary(records: Sequence[Record]) -> str:
    """Per method: draws with harm, significantly worse draws, means, whether stated ranges held; most harm first."""
    lines = [
        "| method | draws | harm | greatest harm | worse than the best simple | gain, mean "
        "| against the best simple, mean | overclaim, mean | utility, mean | stated range holds the observed |",
        "|---" * 10 + "|",
    ]
    groups = sorted(grouped(records, "method").items(), key=lambda item: -np.mean([harmed(r) for r in item[1]]))
    for (method,), rows in groups:
        stated = [r["held"] for r in rows if r["held"] is not None]
        least = min((r["harm"]["estimate"] for r in rows if harmed(r)), default=math.nan)
        gain, advantage, overclaim, _, _, _, useful = _means(rows)
        cells = [
            method,
            str(len(rows)),
            str(sum(map(harmed, rows))),
            _signed(least),
            str(sum(map(worse, rows))),
            gain,
            advantage,
            overclaim,
            useful,
            f"{sum(stated)} of {len(stated)}" if stated else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def claims_summary(records: Sequence[Record], scenarios: Mapping[str, bool]) -> str:
    """Per method, with an audit and without: calibration errors, and what chance and the stated range explain.

    Args:
        records: of `duel.run`; those without claims are left out.
        scenarios: whether there is an audit, by name of the scenario.
    """
    lines = [
        "| method | audit | draws | calibration error | by chance: median | above 95% "
        "| by chance and stated range: mean | above 95% | without chance |",
        "|---" * 9 + "|",
    ]
    claiming = [r for r in records if not math.isnan(r["calibration"]["error"])]
    for method, of_method in grouped(claiming, "method").items():
        for audit in (True, False):
            rows = [r["calibration"] for r in of_method if scenarios[r["scenario"]] is audit]
            if not rows:
                continue
            stated = [row for row in rows if not math.isnan(row["stated"]["mean"])]
            squared = mean(row["squared"] for row in rows)
            cells = [
                method[0],
                "yes" if audit else "no",
                str(len(rows)),
                _percent(mean(row["error"] for row in rows)),
                _percent(mean(row["chance"]["median"] for row in rows)),
                str(sum(row["error"] > row["chance"]["high"] for row in rows)),
                _percent(mean(row["stated"]["mean"] for row in stated)),
                str(sum(row["error"] > row["stated"]["high"] for row in stated)) if stated else "",
                _percent(math.sqrt(max(squared, 0.0))),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def beaten(records: Sequence[Record], ours: Iterable[str], level: float = 0.05) -> str:
    """Which simple baselines are better than a method of the project, beyond what many baselines and draws explain.

    Of every draw, the least probability over its baselines is adjusted for the number of the method's draws, by Holm
    and by Benjamini and Hochberg. Draws where the latter is below `level` are listed by set and scenario, with all
    baselines whose own probability is no greater than the greatest of these draws.
    """
    chosen, lines = set(ours), []
    for (method,), rows in grouped(records, "method").items():
        tested = [r for r in rows if r["beaten_by"]]
        if method not in chosen or not tested:
            continue
        least = [min(r["beaten_by"].values()) for r in tested]
        by_holm, by_rate = holm(least), benjamini_hochberg(least)
        named = max((p for p, q in zip(least, by_rate, strict=True) if q < level), default=0.0)
        lines.append(
            f"- {method}: {len(tested)} draws. A baseline that was named before is significantly better in "
            f"{sum(map(worse, tested))}; allowing for the number of baselines, some one is in "
            f"{sum(p < level for p in least)}; for that of draws too, in {int((by_holm < level).sum())} (Holm) or "
            f"{int((by_rate < level).sum())} (Benjamini and Hochberg)"
        )
        adjusted = [r | {"holm": p, "rate": q} for r, p, q in zip(tested, by_holm, by_rate, strict=True)]
        for (name, size, scenario), draws in grouped(adjusted, "set", "size", "scenario").items():
            lost = [r for r in draws if r["rate"] < level]
            if not lost:
                continue
            names = dict.fromkeys(f"`{rival}`" for r in lost for rival, p in r["beaten_by"].items() if p <= named)
            lines.append(
                f"    - {name}, {size} pairs; {scenario}: {', '.join(names)}; {_interval(lost[0]['advantage'])} "
                f"against `{lost[0]['rival']}`, in {len(lost)} of {len(draws)} draws; least adjusted "
                f"{min(r['holm'] for r in lost):.3f} (Holm), {min(r['rate'] for r in lost):.3f}"
            )
    return "\n".join(lines) or "- nothing was compared"


def lost_by_chance(records: Sequence[Record], scenarios: Mapping[str, bool]) -> str:
    """Per method: in how many draws it is significantly worse, and in how many one as good as the best would be.

    Of the number by chance stand the mean and the 95% quantile. Draws of one set share pairs, so they are drawn anew
    together; sets are independent.

    Args:
        records: of `duel.run`; those without `against` are left out.
        scenarios: whether there is an audit, by name of the scenario.
    """
    lines = [
        "| method | simple ones | audit | draws | against the best, mean | significantly worse | by chance: mean "
        "| 95% quantile | if all simple ones are alike: mean | 95% quantile |",
        "|---" * 10 + "|",
    ]
    for (method,), of_method in grouped([r for r in records if "against" in r], "method").items():
        for kind in dict.fromkeys(kind for r in of_method for kind in r["against"]):
            for audit in (True, False):
                rows = [r for r in of_method if scenarios[r["scenario"]] is audit and kind in r["against"]]
                if not rows:
                    continue
                found = [r["against"][kind] for r in rows]
                cells = [method, kind, "yes" if audit else "no", str(len(rows))]
                cells += [_signed(mean(each["advantage"]["estimate"] for each in found))]
                cells += [str(sum(map(worse, found)))]
                for key in ("by_chance", "if_alike"):
                    numbers = _numbers_lost([r["set"] for r in rows], [each[key] for each in found])
                    cells += [f"{numbers.mean():.1f}", f"{np.quantile(numbers, 0.95):.0f}"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _numbers_lost(sets: Sequence[str], lost: Sequence[Sequence[int]]) -> np.ndarray:
    """How many draws are lost by chance, int [resamples], where draws of different sets are independent."""
    rng, total = np.random.default_rng(0), np.zeros(RESAMPLES, dtype=int)
    for name in dict.fromkeys(sets):
        of_set = [np.asarray(each, dtype=int) for given, each in zip(sets, lost, strict=True) if given == name]
        total += rng.permutation(np.bincount(np.concatenate(of_set), minlength=RESAMPLES))
    return total


def assumed_claims(records: Sequence[Record], scenarios: Mapping[str, bool]) -> str:
    """Per method without an audit: claims that are too high, and whether the ranges that it states hold the observed.

    Args:
        records: of `duel.run`; those without claims are left out.
        scenarios: whether there is an audit, by name of the scenario.
    """
    lines = [
        "| method | draws | claims too high, mean | more than 5 points too high | greatest | range of 95% holds "
        "| its mean width | bounds over all assumptions hold | their mean width |",
        "|---" * 9 + "|",
    ]
    claiming = [r for r in records if not math.isnan(r["overclaim"]) and not scenarios[r["scenario"]]]
    for (method,), rows in grouped(claiming, "method").items():
        over = np.array([r["overclaim"] for r in rows])
        stated, bounded = [r for r in rows if r["held"] is not None], [r for r in rows if "bounds" in r]
        hold = sum(r["bounds"][0] <= r["accuracy"] <= r["bounds"][1] for r in bounded)
        cells = [
            method,
            str(len(rows)),
            _signed(over.mean()),
            str(int((over > 0.05).sum())),
            _signed(over.max()),
            f"{sum(r['held'] for r in stated)} of {len(stated)}" if stated else "",
            _percent(mean(r["after"][2] - r["after"][1] for r in stated), 0),
            f"{hold} of {len(bounded)}" if bounded else "",
            _percent(mean(r["bounds"][1] - r["bounds"][0] for r in bounded), 0),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def claims_under_assumptions(records: Sequence[Record]) -> str:
    """Per method: what its claims without an anchor assume, and how many are more than 5 points too high if it holds.

    Args:
        records: of `duel.run`; those without `assumed` are left out.
    """
    lines = [
        "| method | draws | annotators right: assumed, observed | off by, absolute | labels right where they err: "
        "assumed, observed | off by, absolute | claims more than 5 points too high | where the first holds "
        "| where both hold | by the nearest row of the table | if both were as observed | greatest |",
        "|---" * 12 + "|",
    ]
    for (method,), rows in grouped([r for r in records if "assumed" in r], "method").items():
        found = [r["assumed"] for r in rows]
        cells = [method, str(len(rows))]
        for share in ("accuracy", "beside"):
            cells.append(", ".join(_percent(mean(each[share][k] for each in found)) for k in (0, 1)))
            cells.append(_percent(mean(abs(each[share][0] - each[share][1]) for each in found)))
        first = [r for r in rows if r["assumed"]["first_holds"]]
        both = [r for r in first if r["assumed"]["second_holds"]]
        for part in (rows, first, both):
            cells.append(f"{sum(r['overclaim'] > 0.05 for r in part)} of {len(part)}")
        cells.append(f"{sum(each['nearest'] > 0.05 for each in found)} of {len(found)}")
        corrected = [each["corrected"] for each in found]
        cells += [f"{sum(each > 0.05 for each in corrected)} of {len(found)}", _signed(max(corrected))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_claims(records: Sequence[Record], scenarios: Mapping[str, bool], audited: int, within: float = 0.02) -> str:
    """Per method, with an audit and without: errors of the mean claim, and of one that knows all but chance.

    Args:
        records: of `duel.run`; those without claims are left out.
        scenarios: whether there is an audit, by name of the scenario.
        audited: pairs of an audit.
        within: greatest error that counts as small.
    """
    lines = [
        "| method | audit | claims | draws | mean error | absolute | root mean square "
        f"| within {100 * within:.0f} points |",
        "|---" * 8 + "|",
    ]
    claiming = [r for r in records if not math.isnan(r["overclaim"])]
    for (method,), of_method in grouped(claiming, "method").items():
        for audit in (True, False):
            rows = [r for r in of_method if scenarios[r["scenario"]] is audit]
            if not rows:
                continue
            errors = np.array([r["overclaim"] for r in rows])
            own = errors.mean(), np.abs(errors).mean(), np.square(errors).mean(), np.mean(np.abs(errors) <= within)
            drawn: dict[str, tuple[float, ...]] = {"its own": own}
            right, kept = [r["accuracy"] for r in rows], [max(round(r["kept"] * r["pairs"]), 1) for r in rows]
            perfect = [errors_of_known_level(p, n, within) for p, n in zip(right, kept, strict=True)]
            drawn["probabilities known"] = _expected(perfect)
            if audit:
                among = [max(round(audited * r["kept"]), 1) for r in rows]
                by_audit = zip(right, kept, among, strict=True)
                level = [errors_of_audited_level(p, n, m, within) for p, n, m in by_audit]
                drawn["share right in the audit"] = _expected(level)
            yes = "yes" if audit else "no"
            for name, (signed, absolute, squared, near) in drawn.items():
                figures = [_signed(signed), _percent(absolute), _percent(math.sqrt(squared)), f"{near:.0%}"]
                lines.append(f"| {method} | {yes} | {name} | {len(rows)} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _expected(errors: Sequence[ClaimErrors]) -> tuple[float, float, float, float]:
    """Mean error, absolute, squared, and the share that is small: means over draws of claims without a bias."""
    absolute, squared, near = np.mean([[e.absolute, e.squared, e.within] for e in errors], axis=0).tolist()
    return 0.0, absolute, squared, near


def _interval(value: Mapping[str, float]) -> str:
    return f"{_signed(value['estimate'])} ({_signed(value['low'])} to {_signed(value['high'])})"


def _percent(value: float, digits: int = 1) -> str:
    return "" if math.isnan(value) else f"{100 * value:.{digits}f}"


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:+.1f}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"
