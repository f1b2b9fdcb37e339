"""The command `review serve`: a page on which people look at pairs and answer."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path
from typing import Annotated

import typer

from dt2it_pipeline.cli.options import (
    ChosenColumn,
    Home,
    MediaRoot,
    RejectedColumn,
    home_folder,
    listening_socket,
    round_store,
)
from dt2it_pipeline.cli.terminal import CommandError, note


def serve(
    number: Annotated[
        int | None, typer.Option("--round", metavar="K", min=0, help="A round of the artifact home; it may be running.")
    ] = None,
    home: Home = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Instead of a round: pairs of your own, with the texts, as `review sample` takes them."
        ),
    ] = None,
    cleaned: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Output of `dt2it clean` for --pairs: outcomes and reasons.")
    ] = None,
    chosen: ChosenColumn = None,
    rejected: RejectedColumn = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of --pairs with paths of images below --media.",
            show_default="`images` or `image`, where there is one",
        ),
    ] = None,
    video: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of --pairs with paths of videos below --media: files, or folders of frames.",
            show_default="`videos` or `video`, where there is one",
        ),
    ] = None,
    media: MediaRoot = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for the answers about --pairs: audit.jsonl is for `dt2it clean --audit`, votes.jsonl for "
            "`--votes`.",
            show_default="FILE.review",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--audit-count", metavar="N", min=1, help="Number of pairs of the blind audit.")
    ] = 50,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=2**63 - 1, help="Another seed draws other pairs for the audit.")
    ] = 0,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. Any but this machine's own makes the page ask for a token."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8765,
    token_env: Annotated[
        str | None,
        typer.Option(
            metavar="VARIABLE",
            help="Environment variable with the token. Without it, one is made for each start and printed.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Further name by which browsers may ask for the page. May be repeated."),
    ] = None,
) -> None:
    """Serve a page on which people look at pairs, see what curation made of them, and answer.

    Answers are kept at once, and decide their pairs in the next run of the round. Ctrl+C stops it.
    """
    import uvicorn

    from dt2it_pipeline.config.credentials import is_loopback
    from dt2it_pipeline.human_review.review_page import OwnTable, review_app, round_subject, table_subject
    from dt2it_pipeline.human_review.review_page.guard import LOOPBACK

    if (pairs is None) == (number is None):
        raise typer.BadParameter("give either --pairs or --round")
    of_pairs = {
        "--cleaned": cleaned, "--chosen": chosen, "--rejected": rejected, "--image": image, "--video": video,
        "--media": media, "--answers": answers,
    }  # fmt: skip
    if number is not None and (named := [name for name, value in of_pairs.items() if value is not None]):
        raise typer.BadParameter(f"{', '.join(named)}: for --pairs")
    if pairs is not None and home is not None:
        raise typer.BadParameter("--home is for --round; a table of your own is in no artifact home")
    token = _token(token_env, needed=not is_loopback(host))
    listening = listening_socket(host, port)
    with contextlib.closing(listening):
        if pairs is not None:
            note(f"reading {pairs}")
            table = OwnTable(pairs, cleaned, chosen, rejected, image, video, media)
            subject = table_subject(table, answers, count, seed)
        else:
            folder = home_folder(home)
            if not folder.is_dir():
                raise CommandError(f"there is no artifact home {folder}; name it with --home, or set DT2IT_HOME")
            round_store(folder, number or 0, "voted_pairs")
            note(f"reading round {number} of {folder}")
            subject = round_subject(folder, number or 0, count, seed)
        names = [*LOOPBACK, host, *(allow_host or ())]
        if not is_loopback(host):
            names.append(socket.gethostname())
        app = review_app(subject, token, names)
        shown = f"[{host}]" if ":" in host else host
        if host in ("0.0.0.0", "::"):
            shown = socket.gethostname()
        secret = f"?token={token}" if token else ""
        typer.echo(f"http://{shown}:{listening.getsockname()[1]}/{secret}")
        note("open this address in a browser; Ctrl+C stops the server")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False))
        server.run(sockets=[listening])


def _token(variable: str | None, *, needed: bool) -> str | None:
    """The token of a variable, else a new one where one is needed."""
    if variable is None:
        return secrets.token_urlsafe(24) if needed else None
    token = os.environ.get(variable, "")
    if len(token) < 16 or not all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in token):
        raise CommandError(
            f"the variable {variable} holds no token; give at least 16 letters, digits, - or _, such as "
            '`python -c "import secrets; print(secrets.token_urlsafe(24))"` prints'
        )
    return token
