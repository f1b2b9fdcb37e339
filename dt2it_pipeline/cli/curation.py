"""Commands on preference data: `clean` (own tables), `outcomes` and `export` (of an artifact home)."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dt2it_pipeline.cli.options import FinishedRound, Home, Json, OutputFolder, open_store, round_store
from dt2it_pipeline.cli.terminal import CommandError, note, show

if TYPE_CHECKING:
    from dt2it_pipeline.curate.joint.sensitivity import Assumption
    from dt2it_pipeline.curate.joint.sums import Estimate

PANEL = "Preference data"
_FLIP_FRACTION = 0.5  # of the published policy
_KEEP_PROBABILITY = 0.8


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=PANEL)(clean)
    app.command(rich_help_panel=PANEL)(outcomes)
    app.command(rich_help_panel=PANEL)(export)


def clean(
    pairs: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Pairs (Parquet, CSV or JSON Lines; Parquet alone under `paper`): pair_id, "
            "chosen_id, rejected_id, and any other columns, which are kept. `source` tells data sources apart; the "
            "texts `chosen` and `rejected` let length bias be allowed for. Under `joint` all of these are optional.",
        ),
    ],
    output: OutputFolder,
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Scores: response_id, voter, score, of reward models that were not trained on these pairs. May be "
            "repeated.",
        ),
    ] = None,
    chosen_score: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="joint: column of FILE with a voter's scores of the chosen sides."),
    ] = None,
    rejected_score: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="joint: the same voter's scores of the rejected sides, in turn."),
    ] = None,
    chosen: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="joint: column with the texts of the chosen sides.")
    ] = None,
    rejected: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="joint: column with the texts of the rejected sides.")
    ] = None,
    votes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Votes: pair_id, judge, verdict (chosen, rejected, tie or null), on the sides as FILE has them, or "
            "under `joint` better_id.",
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Judge whose votes count; two under `paper`. May be repeated.",
            show_default="all",
        ),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="joint: pairs drawn at random and checked by a person: pair_id and better_id, or the filled-in file "
            "of `dt2it review sample`. With 15 or more, labels can be flipped.",
        ),
    ] = None,
    trusted: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="joint: other pairs whose label is right, which voters did not learn."),
    ] = None,
    label_accuracy: Annotated[
        float | None,
        typer.Option(
            metavar="P", min=0, max=1, help="joint: accuracy of the given labels, where it is known from elsewhere."
        ),
    ] = None,
    wrong_label_cost: Annotated[
        float | None,
        typer.Option(
            metavar="C",
            min=1,
            help="joint: how many right labels a wrong one that is kept costs. Sets the bound in place of "
            "--keep-probability, at C / (1 + C).",
        ),
    ] = None,
    call_cost: Annotated[
        float, typer.Option(metavar="C", min=0, help="joint: price of one judge call, in right labels.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(metavar="N", help="joint: of what is drawn at random.")] = 0,
    policy: Annotated[
        Literal["joint", "paper"],
        typer.Option(
            help="joint: labels, voters, judges and checked pairs in one model; without checked pairs nothing is "
            "flipped. paper: the published vote, flip and verify."
        ),
    ] = "joint",
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
            help="joint: least probability of a label that is kept, unless dropping the others would not help.",
        ),
    ] = _KEEP_PROBABILITY,
    out_of_core: Annotated[
        bool,
        typer.Option(
            "--out-of-core",
            help="paper: for tables that do not fit in memory; texts pass through in batches (about 250 bytes of "
            "memory a pair). FILE must then be a table of kind `pairs`.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Clean the labels of your own pairs: keep, flip or drop each by what voters, judges and checked pairs say.

    Writes pairs.parquet (the kept and the flipped pairs), outcomes.parquet (what became of every pair, and why) and
    cleaning_evidence.parquet (margins and verdicts of every pair, for `dt2it review serve --cleaned`), and under
    `joint` wanted.parquet (pairs that are worth a judge call).
    """
    if judge and votes is None:
        raise typer.BadParameter("--judge chooses among the judges of --votes, which is not given")
    if policy == "joint":
        for name, value in (("--out-of-core", out_of_core), ("--verifier-scores", verifier_scores)):
            if value:
                raise typer.BadParameter(f"{name} {'is' if value is True else 'are'} for --policy paper")
        if flip_fraction != _FLIP_FRACTION:
            raise typer.BadParameter("--flip-fraction is for --policy paper; `joint` has no fixed share")
        if wrong_label_cost is not None and keep_probability != _KEEP_PROBABILITY:
            raise typer.BadParameter("--wrong-label-cost and --keep-probability set the same bound; give one of them")
        settings: dict[str, Any] = {"keep_probability": keep_probability}
        if wrong_label_cost is not None:
            settings = {"wrong_label_cost": wrong_label_cost}
        settings |= {"label_accuracy": label_accuracy, "call_cost": call_cost, "seed": seed}
        settings |= {"chosen": chosen, "rejected": rejected}
        settings |= {"chosen_scores": chosen_score or (), "rejected_scores": rejected_score or ()}
        _clean_jointly(pairs, output, scores or (), votes, audit, trusted, judge or (), settings, as_json=as_json)
        return
    own = {
        "--audit": audit, "--trusted": trusted, "--label-accuracy": label_accuracy, "--chosen": chosen,
        "--rejected": rejected, "--chosen-score": chosen_score, "--rejected-score": rejected_score,
        "--wrong-label-cost": wrong_label_cost,
        "--keep-probability": keep_probability != _KEEP_PROBABILITY,
    }  # fmt: skip
    if named := [name for name, value in own.items() if value]:
        raise typer.BadParameter(f"{', '.join(named)}: for --policy joint")
    if not scores:
        raise typer.BadParameter("--policy paper needs --scores")
    _clean_as_published(
        pairs,
        output,
        scores,
        votes,
        judge or (),
        verifier_scores or (),
        flip_fraction,
        out_of_core=out_of_core,
        as_json=as_json,
    )


def _clean_jointly(
    pairs: Path,
    output: Path,
    scores: Sequence[Path],
    votes: Path | None,
    audit: Path | None,
    trusted: Path | None,
    judges: Sequence[str],
    settings: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """The policy `joint`."""
    from dt2it_pipeline.curate.preference_files import clean_preference_files

    cleaned = clean_preference_files(pairs, output, scores, votes, audit, trusted, judges, **settings)
    ended = cleaned.pairs["outcome"].value_counts()
    counts = {name: int(ended.get(name, 0)) for name in ("kept", "flipped", "dropped")}
    before, after = cleaned.label_accuracy.before, cleaned.label_accuracy.after
    estimated = before.estimate == before.estimate  # else it is no number
    undecided = ""
    if not (scores or settings["chosen_scores"] or votes or audit):
        undecided = (
            "no scores, votes or answers of an audit were given. Name some with --scores (or --chosen-score and "
            "--rejected-score), --votes or --audit"
        )
    elif not estimated:
        undecided = "no score and no verdict can be used"
    warnings = [f"NOTHING WAS DECIDED, and every label stays as it was: {undecided}"] if undecided else []
    lines = [
        *warnings,
        f"{output}: {len(cleaned.pairs):,} pairs: {', '.join(f'{count:,} {name}' for name, count in counts.items())}",
        f"estimated label accuracy: {before} before, {after} of the pairs that stay (in brackets: 95% intervals of "
        "the joint model; they hold if its assumptions do)"
        if estimated
        else "label accuracy: not estimated",
        f"pairs that are worth a judge call: {len(cleaned.wanted):,}",
    ]
    if len(cleaned.sensitivity):
        lines.append("too little is known to be true, so this is assumed. What follows from other assumptions:")
        lines += [
            f"  voters and judges right in {row.annotator_accuracy:.0%}: labels right in {row.label_accuracy:.0%} "
            f"before, {row.accuracy_after:.0%} after (between {row.after_low:.0%} and {row.after_high:.0%})"
            for row in cleaned.sensitivity.itertuples()
        ]
    summary = {
        "output": str(output),
        "policy": "joint",
        "pairs": len(cleaned.pairs),
        **counts,
        "label_accuracy": {"before": _numbers(before), "after": _numbers(after)},
        "wanted": len(cleaned.wanted),
        "assumption": _assumed(cleaned.assumption),
        "sensitivity": cleaned.sensitivity.to_dict(orient="records"),
        "notes": [*warnings, *cleaned.notes],
    }
    show(summary, lines, as_json=as_json)
    for sentence in cleaned.notes:  # behind the result, which on a terminal begins with whether anything was decided
        note(sentence)


def _assumed(assumption: Assumption | None) -> dict[str, float] | None:
    """The two shares of an assumption."""
    if assumption is None:
        return None
    return {name: getattr(assumption, name) for name in ("annotator_accuracy", "right_where_they_err")}


def _numbers(estimate: Estimate) -> dict[str, float | None]:
    """An estimate for JSON, which has no number that is none."""
    return {name: None if value != value else value for name, value in vars(estimate).items()}


def _clean_as_published(
    pairs: Path,
    output: Path,
    scores: Sequence[Path],
    votes: Path | None,
    judges: Sequence[str],
    verifier_scores: Sequence[Path],
    flip_fraction: float,
    *,
    out_of_core: bool,
    as_json: bool,
) -> None:
    """The policy `paper`."""
    from dt2it_pipeline.curate.cleaning import DROPPED, FLIPPED, KEPT, clean_files

    summary = clean_files(pairs, scores, output, votes, verifier_scores, flip_fraction, judges, out_of_core=out_of_core)
    ended = ", ".join(f"{summary[name]:,} {name}" for name in (KEPT, FLIPPED, DROPPED))
    lines = [f"{output}: {summary['pairs']:,} pairs: {ended}"]
    if not verifier_scores:
        note("no --verifier-scores were given: pairs were voted and flipped, and none was verified")
    show({"output": str(output), **summary}, lines, as_json=as_json)


def outcomes(
    number: FinishedRound,
    output: Annotated[Path, typer.Option(metavar="FILE", help="File to write: .parquet or .csv.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write of every row of the preference sources whether a round kept, flipped, dropped or quarantined it."""
    from dt2it_pipeline.curate.outcomes import outcomes_of_round
    from dt2it_pipeline.human_review.spreadsheet import text_cell
    from dt2it_pipeline.storage.atomic import write_parquet

    if output.suffix not in (".parquet", ".csv"):
        raise CommandError(f"--output {output}: name a file that ends in .parquet or .csv")
    table = outcomes_of_round(round_store(home, number), str(number))
    if output.suffix == ".csv":
        output.parent.mkdir(parents=True, exist_ok=True)
        cells = table.to_pandas().map(lambda cell: text_cell(cell) if isinstance(cell, str) else cell)
        # Texts in quotation marks: without them a lone carriage return would end the row.
        cells.to_csv(output, index=False, quoting=csv.QUOTE_NONNUMERIC)
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

    store = round_store(home, number) if number is not None and asset == "curated_pairs" else open_store(home)
    done = export_asset(store, asset, None if number is None else str(number), output, format_name)
    show_export(done, as_json=as_json)


def show_export(done: Any, *, as_json: bool) -> None:
    """Print what an export wrote, and what it could not."""
    for row in done.quarantine.to_pylist():
        note(f"not exported: {row['row_id']}: {row['reason']} ({row['detail']})")
    counts = {"output": str(done.folder), "pairs": done.pairs, "rows_quarantined": done.quarantine.num_rows}
    show(counts, [f"{done.folder}: {done.pairs} pairs"], as_json=as_json)
