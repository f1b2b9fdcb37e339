"""Commands on preference data: `clean` (own tables), `outcomes` and `export` (of an artifact home)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dt2it_pipeline.cli.options import FinishedRound, Home, Json, OutputFolder, open_store
from dt2it_pipeline.cli.terminal import CommandError, note, show

PANEL = "Preference data"
_FLIP_FRACTION = 0.5  # of the published policy
# Fitted values that a person reads; --json has all that was fitted.
_FITTED = {
    "estimated_label_accuracy": "estimated label accuracy by source",
    "voter_weights": "weight of each voter (log-odds per standardised margin; 0: not counted)",
    "estimated_verdict_accuracy": "estimated accuracy of the judges' verdicts",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=PANEL)(clean)
    app.command(rich_help_panel=PANEL)(outcomes)
    app.command(rich_help_panel=PANEL)(export)


def clean(
    pairs: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Pairs (Parquet): pair_id, chosen_id, rejected_id, and any other columns, which are kept. `source` "
            "tells data sources apart; the texts `chosen` and `rejected` let length bias be allowed for.",
        ),
    ],
    scores: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help="Scores (Parquet): response_id, voter, score, of reward models that were not trained on these pairs. "
            "May be repeated.",
        ),
    ],
    output: OutputFolder,
    votes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Votes (Parquet): pair_id, judge, verdict (chosen, rejected, tie or null), on the sides as --pairs "
            "has them. Without them, contested pairs are dropped.",
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Judge whose votes count; one or two, two under `paper`. May be repeated.",
            show_default="all",
        ),
    ] = None,
    policy: Annotated[
        Literal["posterior", "paper"],
        typer.Option(help="By the probability that a label is right, or the published vote, flip and verify."),
    ] = "posterior",
    verifier_scores: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="paper: scores by a model that was trained on the voted pairs. Without them pairs are voted and "
            "flipped, and none is contested. May be repeated.",
        ),
    ] = None,
    flip_fraction: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="paper: share of the negatively voted pairs to flip.")
    ] = _FLIP_FRACTION,
    keep_probability: Annotated[
        float,
        typer.Option(
            metavar="P",
            min=0.5,
            max=0.999999,
            help="posterior: a label that is right with less than this is contested.",
        ),
    ] = 0.8,
    keep_judged_probability: Annotated[
        float,
        typer.Option(
            metavar="P",
            min=0.5,
            max=0.999999,
            help="posterior: a judged pair whose better side is right with less than this is dropped.",
        ),
    ] = 0.8,
    out_of_core: Annotated[
        bool,
        typer.Option(
            "--out-of-core",
            help="paper: for tables that do not fit in memory; texts pass through in batches (about 250 bytes of "
            "memory a pair). --pairs must then be a table of kind `pairs`.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Clean the labels of your own pairs: keep, flip or drop each by the scores of voters and the votes of judges.

    Writes pairs.parquet (the kept and the flipped pairs) and outcomes.parquet (what became of every pair, and why).
    """
    from dt2it_pipeline.config.sections.curation import CurationSettings
    from dt2it_pipeline.curate.cleaning import DROPPED, FLIPPED, KEPT, clean_files

    if out_of_core and policy != "paper":
        raise typer.BadParameter("--out-of-core is for --policy paper")
    if verifier_scores and policy != "paper":
        raise typer.BadParameter("--verifier-scores are for --policy paper; `posterior` has no verifier")
    if flip_fraction != _FLIP_FRACTION and policy != "paper":
        raise typer.BadParameter("--flip-fraction is for --policy paper; `posterior` has no fixed share")
    if judge and votes is None:
        raise typer.BadParameter("--judge chooses among the judges of --votes, which is not given")
    settings = CurationSettings(
        policy=policy,
        flip_fraction=flip_fraction,
        keep_probability=keep_probability,
        keep_judged_probability=keep_judged_probability,
    )
    summary = clean_files(
        pairs, scores, output, votes, verifier_scores or (), settings, judge or (), out_of_core=out_of_core
    )
    ended = ", ".join(f"{summary[name]:,} {name}" for name in (KEPT, FLIPPED, DROPPED))
    lines = [f"{output}: {summary['pairs']:,} pairs: {ended}"]
    fitted = {name: text for name, text in _FITTED.items() if name in summary}
    if votes is None:  # nothing was fitted to verdicts
        fitted.pop("estimated_verdict_accuracy", None)
    lines += [f"{text}: {_listed(summary[name])}" for name, text in fitted.items()]
    weights = summary.get("voter_weights")
    if weights is not None and not any(weights.values()):
        note(
            "no voter agrees with the labels clearly more often than in half of the pairs (50% plus three standard "
            "errors), so no label was changed by the vote, and every pair is contested"
        )
    if policy == "paper" and not verifier_scores:
        note("no --verifier-scores were given: pairs were voted and flipped, and none was verified")
    show({"output": str(output), **summary}, lines, as_json=as_json)


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name or '(all)'} {share:.3g}" for name, share in value.items())
    return f"{value:.3g}"


def outcomes(
    number: FinishedRound,
    output: Annotated[Path, typer.Option(metavar="FILE", help="File to write: .parquet or .csv.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write of every row of the preference sources whether a round kept, flipped, dropped or quarantined it."""
    from dt2it_pipeline.curate.outcomes import outcomes_of_round
    from dt2it_pipeline.storage.atomic import write_parquet

    if output.suffix not in (".parquet", ".csv"):
        raise CommandError(f"--output {output}: name a file that ends in .parquet or .csv")
    table = outcomes_of_round(open_store(home), str(number))
    if output.suffix == ".csv":
        output.parent.mkdir(parents=True, exist_ok=True)
        table.to_pandas().to_csv(output, index=False)
    else:
        write_parquet(table, output)
    columns = (table[name].to_pylist() for name in ("source", "outcome", "reason"))
    counts = sorted(Counter(zip(*columns, strict=True)).items())
    lines = [f"{source}: {rows:,} {outcome} ({reason})" for (source, outcome, reason), rows in counts]
    listed = [
        {"source": source, "outcome": outcome, "reason": reason, "rows": rows}
        for (source, outcome, reason), rows in counts
    ]
    show({"output": str(output), "outcomes": listed}, lines, as_json=as_json)


def export(
    output: OutputFolder,
    number: Annotated[
        int | None,
        typer.Option(
            "--round",
            metavar="K",
            min=0,
            help="Round of the pairs, for an asset that is made for each round, as curated_pairs is.",
        ),
    ] = None,
    asset: Annotated[str, typer.Option(metavar="NAME", help="Asset that holds the pairs.")] = "curated_pairs",
    format_name: Annotated[
        Literal["huggingface", "llamafactory", "trl", "label_studio", "argilla"],
        typer.Option("--format", help="Format; label_studio and argilla are tasks for people."),
    ] = "huggingface",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write an asset's pairs as a dataset, with their images and a card of licences, counts and lineage."""
    from dt2it_pipeline.export import export_asset

    done = export_asset(open_store(home), asset, None if number is None else str(number), output, format_name)
    show_export(done, as_json=as_json)


def show_export(done: Any, *, as_json: bool) -> None:
    """Print what an export wrote, and what it could not."""
    for row in done.quarantine.to_pylist():
        note(f"not exported: {row['row_id']}: {row['reason']} ({row['detail']})")
    counts = {"output": str(done.folder), "pairs": done.pairs, "rows_quarantined": done.quarantine.num_rows}
    show(counts, [f"{done.folder}: {done.pairs} pairs"], as_json=as_json)
