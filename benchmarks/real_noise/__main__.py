"""Curation methods compared on sets with real label noise, real judges and real scores.

    python -m benchmarks.real_noise --sets DIR

Every folder in DIR is a set: pairs.parquet, scores.parquet, votes.parquet, truth.parquet (`sets.py` has the columns).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.real_noise.duel import METHODS, OURS, Plan, one_thread, run
from benchmarks.real_noise.report import (
    assumed_claims,
    beaten,
    claims_summary,
    claims_under_assumptions,
    harm_summary,
    losses,
    lost_by_chance,
    mean_claims,
    tables,
)
from benchmarks.real_noise.sets import AUDITED, SetError, load_sets, scenarios


def sizes(text: str) -> list[int | None]:
    """`25,400,all` as numbers of pairs, None for all.

    Raises:
        argparse.ArgumentTypeError: a part is neither `all` nor a number from 10 on.
    """
    made: list[int | None] = []
    for part in text.split(","):
        if part != "all" and not (part.isdecimal() and int(part) >= 10):
            raise argparse.ArgumentTypeError(f"{part!r} is neither `all` nor a number of pairs from 10 on")
        made.append(None if part == "all" else int(part))
    return made


def methods(text: str) -> list[str]:
    """`a,b;c` as names: names may hold a comma, so they are separated by `;`.

    Raises:
        argparse.ArgumentTypeError: there is no such method.
    """
    names = text.split(";")
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"no method {unknown}; there are: {'; '.join(METHODS)}")
    return names


def as_json(value: Any) -> Any:
    """NaN and infinities as null, which JSON has."""
    if isinstance(value, dict):
        return {key: as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_noise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sets", type=Path, required=True, help="folder of set folders")
    parser.add_argument("--only", nargs="*", default=(), metavar="SET", help="names of sets (default: all)")
    parser.add_argument("--sizes", type=sizes, default="25,60,100,400,all", help="numbers of pairs, or all")
    parser.add_argument("--repeats", type=int, default=5, help="draws of pairs and audits per size")
    parser.add_argument("--audited", type=int, default=AUDITED, help="pairs of an audit (default: %(default)s)")
    parser.add_argument("--methods", type=methods, default=list(METHODS), help="names, separated by `;` (default: all)")
    parser.add_argument("--cost", type=float, default=3.0, help="of a wrong label kept, in right labels kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for all records")
    given = parser.parse_args(arguments)
    if given.audited < 1:
        parser.error(f"--audited {given.audited}: give 1 pair at least")
    one_thread()
    try:
        sets = load_sets(given.sets, given.only)
    except SetError as error:
        parser.error(str(error))
    plan = Plan(given.sizes, given.repeats, given.cost, given.seed, given.methods, given.audited)
    records, remarks = run(sets, plan)
    if given.output:
        given.output.write_text(json.dumps(as_json(records), indent=1) + "\n", encoding="utf-8")
    print(
        "Percent. A cell is the label accuracy of the kept pairs, and the share kept. `+`: better than before, the 95% "
        "interval wholly above 0; `!`: harm, the interval wholly below 0; `<`: significantly worse than the best "
        "simple baseline at the same share kept, as if that one had been named before; each in at least half of the "
        "draws, `(!)` in fewer. The last section allows for the number of baselines and draws.\n"
    )
    print(tables(records))
    print(f"\n### Where this project's methods lose\n\n{losses(records, OURS)}")
    print(f"\n### Harm\n\n{harm_summary(records)}")
    audits = {each.name: each.audit for given_set in sets for each in scenarios(given_set)}
    print(f"\n### Claims\n\n{claims_summary(records, audits)}")
    print(f"\n### Claims without an audit\n\n{assumed_claims(records, audits)}")
    print(f"\n### Claims without an anchor, and what they assume\n\n{claims_under_assumptions(records)}")
    print(f"\n### Mean claim, beside right claims\n\n{mean_claims(records, audits, plan.audited)}")
    print(f"\n### Lost to simple ones, by chance\n\n{lost_by_chance(records, audits)}")
    print(f"\n### Beaten by a simple baseline, beyond chance\n\n{beaten(records, OURS)}")
    for remark in remarks:
        print(f"\n{remark}")


if __name__ == "__main__":
    main()
