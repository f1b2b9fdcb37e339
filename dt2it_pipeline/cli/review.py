"""Commands on the pairs that people decide: `review export`, `review import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dt2it_pipeline.cli.curation import PANEL, show_export
from dt2it_pipeline.cli.options import FinishedRound, Home, Json, OutputFolder, home_folder, open_store
from dt2it_pipeline.cli.terminal import CommandError, note, show


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    review = typer.Typer(no_args_is_help=True, help="Let people decide the pairs that judges left undecided.")
    review.command("export")(export_tasks)
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

    show_export(export_undecided(open_store(home), str(number), output, format_name), as_json=as_json)


def import_answers(
    answers: Annotated[
        Path, typer.Argument(metavar="ANSWERS", help="Label Studio's export as JSON, or Argilla's records.json.")
    ],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Read what people decided and keep it, under pseudonyms, for the next run of the round."""
    from dt2it_pipeline.human_review.answers import keep_answers, read_answers, unknown_pairs, votes_file
    from dt2it_pipeline.storage.atomic import StoreError

    folder = home_folder(home)
    if not folder.is_dir():
        raise CommandError(f"there is no artifact home {folder}; name it with --home, or set DT2IT_HOME")
    found = read_answers(answers)
    total = keep_answers(folder, found.votes)
    people, pairs = ({row[name] for row in found.votes} for name in ("person", "pair_id"))
    lines = [
        f"{len(found.votes)} votes of {len(people)} people on {len(pairs)} pairs; {votes_file(folder)} holds {total}"
    ]
    lines += [f"no vote: {count} {what}" for what, count in found.unfinished.items()]
    lines += [f"no vote: {place}: {reason}" for place, reason in found.unusable]
    unknown: list[str] = []
    try:
        unknown = unknown_pairs(folder, found.votes)
    except StoreError as error:
        note(f"whether rounds have these pairs is not known: {error}")
    if unknown:
        lines.append(
            f"{len(unknown)} of the pairs voted on are in no round of {folder}, for example {unknown[0]}: their votes "
            "are kept, and decide nothing until a round has them. Is --home right?"
        )
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
    }
    show(result, lines, as_json=as_json)
