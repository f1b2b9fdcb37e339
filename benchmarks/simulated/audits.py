"""What an audit changes: labels cleaned with it and without it, in simulated worlds.

    python -m benchmarks.simulated.audits

Each world's voters, accuracies, margins and label errors are drawn from lists. The pairs are cleaned without an audit,
pairs are drawn as `dt2it review sample` draws them, an auditor answers, and the pairs are cleaned again. Audits of one
world are drawn with one seed, and a better auditor is right wherever a worse one is, so that differences are within
worlds.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.real_noise.duel import one_thread
from benchmarks.simulated.worlds import ERRORS, SHAPES, World, answers

SIZES, AUDITORS = (5, 10, 15, 25, 50, 100), (1.0, 0.98, 0.9, 0.8)
VOTERS, LABELS, VOTER = (1, 2, 3, 4), (0.7, 0.8, 0.9, 0.98), (0.6, 0.7, 0.8, 0.9)
COST = 4.0  # right labels that a wrong one costs: the default of clean_preferences
_RESAMPLES = 2_000


def drawn_world(pairs: int, seed: int, voters: Sequence[int] = VOTERS) -> World:
    """A world of this seed, with one of these numbers of voters."""
    rng = np.random.default_rng([seed, 2])
    count, label, voter = (float(rng.choice(each)) for each in (voters, LABELS, VOTER))
    shape, errors = (str(rng.choice(each)) for each in (SHAPES, ERRORS))
    return World(pairs, int(count), label, voter, shape, errors, seed)


def compared(
    world: World, sizes: Iterable[int] = SIZES, auditors: Iterable[float] = AUDITORS
) -> Iterator[dict[str, object]]:
    """Rows of a world: what each audit changes."""
    from dt2it_pipeline import clean_preferences
    from dt2it_pipeline.human_review.audit_sample import draw_audit

    table, right = world.made()
    scores = [f"v{place}" for place in range(world.voters)]
    others = ["other"] * len(scores)

    def cleaned(audit: pd.DataFrame | None) -> tuple[pd.DataFrame, bool]:
        found = clean_preferences(table, audit=audit, chosen_scores=scores, rejected_scores=others)
        return found.pairs, any(note.startswith("the audit says") for note in found.notes)

    alone, _ = cleaned(None)
    for size, auditor in itertools.product(sizes, auditors):
        drawn = draw_audit(table[["pair_id"]], size, world.seed, alone["probability"])["pair_id"]
        found, doubted = cleaned(answers(drawn, right, auditor, world.seed))
        unchecked = ~table["pair_id"].isin(drawn).to_numpy()
        row = vars(world) | {"audited": size, "auditor": auditor, "doubted": doubted}
        row["flipped"] = float((found["outcome"] == "flipped")[unchecked].mean())
        for name, places in (("all", np.ones(len(table), dtype=bool)), ("others", unchecked)):
            for way, result in (("with", found), ("without", alone)):
                stays = (result["outcome"] != "dropped").to_numpy() & places
                good = right ^ (result["outcome"] == "flipped").to_numpy()
                row[f"{name} {way}: kept"] = float(stays.sum() / places.sum())
                row[f"{name} {way}: right"] = float(good[stays].mean()) if stays.any() else float("nan")
                row[f"{name} {way}: utility"] = float((good[stays] - COST * ~good[stays]).sum() / places.sum())
            row[f"{name} nothing: right"] = float(right[places].mean())
            row[f"{name} nothing: kept"] = 1.0
            row[f"{name} nothing: utility"] = float((right - COST * ~right)[places].mean())
        yield row


def difference(rows: pd.DataFrame, name: str, figure: str, than: str = "without") -> str:
    """Mean difference of worlds in points, `with` minus another, with its 95% bootstrap interval over worlds."""
    values = (rows[f"{name} with: {figure}"] - rows[f"{name} {than}: {figure}"]).dropna().to_numpy() * 100
    if not len(values):
        return ""
    places = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[places].mean(axis=1), (0.025, 0.975))
    mark = "!" if high < 0 else "+" if low > 0 else ""
    return f"{values.mean():+.1f} ({low:+.1f} to {high:+.1f}){mark}"


def print_table(rows: pd.DataFrame, by: list[str]) -> None:
    """Differences as Markdown."""
    print(
        f"\n| {' | '.join(by)} | worlds | accuracy | kept | utility | others: accuracy | others: utility "
        "| utility against doing nothing | flipped | doubted |"
    )
    print("|---" * (len(by) + 9) + "|")
    for key, part in rows.groupby(by, sort=True):
        cells = [difference(part, "all", figure) for figure in ("right", "kept", "utility")]
        cells += [difference(part, "others", figure) for figure in ("right", "utility")]
        cells += [difference(part, "all", "utility", "nothing")]
        cells += [f"{100 * part['flipped'].mean():.1f}", f"{100 * part['doubted'].mean():.0f}"]
        print(f"| {' | '.join(map(str, key))} | {len(part)} | {' | '.join(cells)} |")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulated.audits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--worlds", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="seed of the first world")
    parser.add_argument("--pairs", type=int, default=300, help="of each world")
    parser.add_argument("--voters", type=int, nargs="+", default=list(VOTERS), help="numbers of voters to draw from")
    parser.add_argument("--audits", type=int, nargs="+", default=list(SIZES), help="numbers of audited pairs")
    parser.add_argument("--auditors", type=float, nargs="+", default=list(AUDITORS), help="shares of right answers")
    parser.add_argument("--output", type=Path, help="JSON Lines of all rows to write")
    given = parser.parse_args(arguments)
    one_thread()
    seeds = range(given.first, given.first + given.worlds)
    made = [compared(drawn_world(given.pairs, seed, given.voters), given.audits, given.auditors) for seed in seeds]
    rows = pd.DataFrame(itertools.chain.from_iterable(made))
    if given.output:
        given.output.write_text("".join(json.dumps(row) + "\n" for row in rows.to_dict("records")), encoding="utf-8")
    print_table(rows, ["audited", "auditor"])
    for name in ("voters", "label", "voter", "errors", "shape"):
        print_table(rows[rows["auditor"] == rows["auditor"].max()], ["audited", name])


if __name__ == "__main__":
    main()
