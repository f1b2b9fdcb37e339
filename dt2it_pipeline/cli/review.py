"""Commands on the pairs that people decide or check: `review serve`, `export`, `sample` and `import`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from dt2it_pipeline.cli.curation import PANEL, show_export
from dt2it_pipeline.cli.options import (
    ChosenColumn,
    FinishedRound,
    Home,
    Json,
    OutputFolder,
    RejectedColumn,
    home_folder,
    round_store,
)
from dt2it_pipeline.cli.review_page import serve
from dt2it_pipeline.cli.terminal import CommandError, Group, counted, note, show

_PLACES = 5  # of answers that are no votes, that are shown for one reason


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    review = typer.Typer(cls=Group, no_args_is_help=True, help="Let people decide undecided pairs, and check others.")
    review.command("serve")(serve)
    review.command("export")(export_tasks)
    review.command("sample")(sample)
    review.command("import")(import_answers)
    app.add_typer(review, name="review", rich_help_panel=PANEL)


def export_tasks(
    number: FinishedRound,
    output: OutputFolder,
    format_name: Annotated[
        Literal["label_studio", "argilla"], typer.Option("--format", help="Tool in which people decide.")
    ] = "label_studio",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write a round's contested pairs that nobody has decided, as tasks with their images.

    Which side is labelled chosen is not shown. README.md in the output folder says how to load the tasks.
    """
    from dt2it_pipeline.export import export_undecided

    show_export(
        export_undecided(round_store(home, number, "contested_pairs"), str(number), output, format_name),
        as_json=as_json,
    )


def sample(
    output: OutputFolder,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Pairs of your own (Parquet, CSV or JSON Lines, as `dt2it clean` takes them): the texts `chosen` and "
            "`rejected`, and where you have them pair_id, chosen_id and rejected_id, `prompt` (text), `source` and "
            "`probability`.",
        ),
    ] = None,
    chosen: ChosenColumn = None,
    rejected: RejectedColumn = None,
    cleaned: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Output of `dt2it clean` for --pairs: its probabilities spread the sample over sure and unsure pairs.",
        ),
    ] = None,
    number: Annotated[
        int | None, typer.Option("--round", metavar="K", min=0, help="A finished round, instead of --pairs.")
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Number of pairs to draw.")] = 50,
    format_name: Annotated[
        Literal["spreadsheet", "label_studio", "argilla"],
        typer.Option("--format", help="CSV for a spreadsheet program, or a tool in which people answer."),
    ] = "spreadsheet",
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**63 - 1, help="Another seed draws other pairs.")] = 0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Draw pairs at random for people to check, from a table (--pairs) or from a round (--round).

    The folder holds the pairs in the format, README.md for whoever checks them, and sample.parquet: how many pairs each
    one stands for. A round's pairs have their images, and the artifact home keeps which pairs were drawn.
    """
    from dt2it_pipeline.human_review.audit import export_round_audit, export_table_audit

    if (pairs is None) == (number is None):
        raise typer.BadParameter("give either --pairs or --round")
    if number is not None and cleaned is not None:
        raise typer.BadParameter("--cleaned is for --pairs; a round has probabilities of its own")
    if number is not None and (chosen or rejected):
        raise typer.BadParameter("--chosen and --rejected name columns of --pairs")
    if pairs is not None:
        if home is not None:
            raise typer.BadParameter("--home is for --round; a table of your own is in no artifact home")
        done = export_table_audit(pairs, output, count, format_name, seed, cleaned, chosen, rejected)
    else:
        assert number is not None  # checked above
        store = round_store(home, number, "voted_pairs")
        done = export_round_audit(store, str(number), output, count, format_name, seed)
    for row in done.quarantine.to_pylist():
        note(f"not shown: {row['row_id']}: {row['reason']} ({row['detail']})")
    drawn = done.sample.num_rows
    lines = [f"{output}: {drawn:,} of {done.population:,} pairs; README.md there says what to do"]
    result = {
        "output": str(output),
        "drawn": drawn,
        "population": done.population,
        "rows_quarantined": done.quarantine.num_rows,
    }
    show(result, lines, as_json=as_json)


def _no_votes(unusable: Sequence[tuple[str, str]]) -> list[str]:
    """Answers that are no votes, those of one reason together, with the first places."""
    by_reason: dict[str, list[str]] = {}
    for place, reason in unusable:
        by_reason.setdefault(reason, []).append(place)
    return [
        f"no vote: {places[0]}: {reason}"
        if len(places) == 1
        else f"no vote: {len(places)} answers: {reason} ({'; '.join(places[:_PLACES])}"
        + (f"; and {len(places) - _PLACES} more)" if len(places) > _PLACES else ")")
        for reason, places in by_reason.items()
    ]


def import_answers(
    answers: Annotated[
        Path,
        typer.Argument(
            metavar="ANSWERS",
            help="Label Studio's export as JSON, Argilla's records.json, or the filled spreadsheet of `review sample`.",
        ),
    ],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Read what people decided and keep it, under pseudonyms, for the next run of the round."""
    from dt2it_pipeline.human_review.answers import keep_answers, unknown_pairs, votes_file
    from dt2it_pipeline.human_review.audit import AuditError, read_votes, unanswered_of_home
    from dt2it_pipeline.storage.atomic import StoreError

    folder = home_folder(home)
    if not folder.is_dir():
        raise CommandError(f"there is no artifact home {folder}; name it with --home, or set DT2IT_HOME")
    found = read_votes(answers)
    total = keep_answers(folder, found.votes)
    people, pairs = ({row[name] for row in found.votes} for name in ("person", "pair_id"))
    lines = [
        f"{counted(len(found.votes), 'vote')} of {counted(len(people), 'person', 'people')} on "
        f"{counted(len(pairs), 'pair')}; {votes_file(folder)} holds {total:,}"
    ]
    lines += [f"no vote: {what}: {count}" for what, count in found.unfinished.items()]
    lines += _no_votes(found.unusable)
    unknown: list[str] = []
    try:
        unknown = unknown_pairs(folder, found.votes)
    except StoreError as error:
        note(f"whether rounds have these pairs is not known: {error}")
    if unknown:
        lines.append(
            f"pairs voted on that are in no round of {folder}: {len(unknown):,}, for example {unknown[0]}. Their votes "
            "are kept, and decide nothing until a round has them. Is --home right?"
        )
    drawn = unanswered = 0
    try:
        drawn, unanswered = unanswered_of_home(folder)
    except AuditError as error:
        note(f"which pairs were drawn at random is not known: {error}")
    if drawn:
        answered = drawn - unanswered
        has = "has" if answered == 1 else "have"
        lines.append(f"audit: {answered} of the {drawn} pairs that were drawn at random {has} an answer")
    if found.votes:
        lines.append(
            "Run the round again: what it has made already is used, and people's votes decide the pairs they are on."
        )
    result = {
        "votes": len(found.votes),
        "people": len(people),
        "pairs": len(pairs),
        "kept_votes": total,
        "unfinished": dict(found.unfinished),
        "unusable": [{"place": place, "reason": reason} for place, reason in found.unusable],
        "unknown_pairs": unknown,
        "audit": {"drawn": drawn, "answered": drawn - unanswered},
    }
    show(result, lines, as_json=as_json)
