"""Options that several commands share, each with one name and one text."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from dt2it_pipeline.cli.terminal import CommandError

if TYPE_CHECKING:
    from dt2it_pipeline.config.sections.scoring import MaxPixels
    from dt2it_pipeline.storage.artifacts import Store

Home: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Artifact home: folder of tables, checkpoints and media.",
        show_default="DT2IT_HOME, else data/ in the project",
    ),
]
RecipeFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Recipe (YAML).",
        show_default="DT2IT_RECIPE, else the project's only one, else the demo's",
    ),
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")
]
OutputFolder: TypeAlias = Annotated[
    Path,
    typer.Option(metavar="FOLDER", help="Folder to make. An earlier output of this command is replaced, nothing else."),
]
MediaRoot: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Folder from which paths of images and videos count, and which they may not leave."
    ),
]
ChosenColumn: TypeAlias = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column of --pairs with the texts of the chosen sides.")
]
RejectedColumn: TypeAlias = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column of --pairs with the texts of the rejected sides.")
]
Columns: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FIELD=COLUMN",
        help="Which column of the file holds a field, where looking does not find it. May be given several times.",
        show_default="by looking",
    ),
]
AnswerColumns: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FIELD=COLUMN",
        help="Which key of JSON Lines holds a field, such as prompt=question. May be given several times.",
        show_default="the field's own name",
    ),
]
VerdictValues: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--verdict",
        metavar="VALUE=SIDE",
        help="What a value of the verdict column means: first, second or tie. May be given several times.",
        show_default="by its words",
    ),
]
MaxLength: TypeAlias = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        min=16,
        max=1_048_576,
        help="A longer prompt with response is not scored; set it where memory needs a limit.",
        show_default="the context of the model",
    ),
]
MaxPixelsOption: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="PIXELS",
        help="Larger images are scaled down to this: a number, `trained` (the size of the model's training, which any "
        "server takes too), or `paper` (1,310,720).",
    ),
]
Models: TypeAlias = Annotated[
    list[str],
    typer.Option(
        "--model",
        metavar="[NAME=]MODEL",
        help="Checkpoint folder of ours or of another trainer, Hub id, or URL of a pooling server, with a name for "
        "tables. May be repeated.",
    ),
]
CHOOSE_RECIPE = (
    "Go into your project (cd), or choose a recipe: --recipe FILE or DT2IT_RECIPE=FILE. `dt2it demo` runs the demo"
)
FinishedRound: TypeAlias = Annotated[int, typer.Option("--round", metavar="K", min=0, help="A finished round.")]


ARTIFACTS = "artifacts"  # folder of all artifacts in a home
_VERSION = re.compile("[0-9a-f]{32}|[0-9a-f]{40}")  # of an artifact, of a repository of the Hub
_NAMED = re.compile(r"([^=/\\:]+)=(.+)")


def named_models(given: list[str], taken: tuple[str, ...] = ()) -> dict[str, str]:
    """Values of `Models` by name: what stands before `=`, else the last part of the folder, id or URL.

    Where that is a hash, of a version of an artifact or of a snapshot of the Hub, the name is that of what it is of. A
    second version of one thing has the first characters of its hash, too.

    Raises:
        typer.BadParameter: a name comes twice, or is among `taken`.
    """
    models: dict[str, str] = {}
    for text in given:
        match = None if Path(text).exists() else _NAMED.fullmatch(text)
        name, source = (match[1], match[2]) if match else (_name_of(text), text)
        version = text.rstrip("/").rpartition("/")[2]
        if not match and name in models and _VERSION.fullmatch(version):
            name = f"{name} {version[:8]}"
        if name in models or name in taken:
            raise typer.BadParameter(f"--model {text}: the name {name!r} is taken; give another as NAME=MODEL")
        models[name] = source
    return models


def _name_of(model: str) -> str:
    """A model's name.

    >>> _name_of("data/artifacts/reward_model/1/" + 32 * "a"), _name_of("models--org--small/snapshots/" + 40 * "b")
    ('reward_model/1', 'small')
    >>> _name_of("org/small"), _name_of("http://localhost:8000/")
    ('small', 'localhost:8000')
    """
    parts = (str(Path(model).absolute()) if Path(model).exists() else model.rstrip("/")).split("/")
    if len(parts) < 3 or not _VERSION.fullmatch(parts[-1]):
        return parts[-1] or model
    if parts[-2] == "snapshots":
        return parts[-3].rpartition("--")[2]
    above = parts[-4:-1] if ARTIFACTS in parts[-4:-1] else parts[-2:-1]
    return "/".join(above[above.index(ARTIFACTS) + 1 :] if ARTIFACTS in above else above) or parts[-1]


def assignments(given: list[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE options as a mapping. Raises typer.BadParameter where one has no `=`."""
    pairs = [text.partition("=") for text in given or ()]
    if wrong := [name for name, sign, value in pairs if not (name and sign and value)]:
        raise typer.BadParameter(f"{option} {wrong[0]!r}: two parts with = between them are expected")
    return {name: value for name, _, value in pairs}


def answer_columns(given: list[str] | None, *, table: bool, sampled: bool = False) -> dict[str, str]:
    """The values of `AnswerColumns` as a mapping.

    Args:
        given: as they stand on the command line.
        table: whether the answers are a table, whose columns have fixed names.
        sampled: whether answers are sampled, so that the file's own are not read.

    Raises:
        typer.BadParameter: one is no FIELD=COLUMN, or of no field that is read.
    """
    from dt2it_pipeline.reward.scoring.response_files import ANSWERS, FIELDS

    columns = assignments(given, "--column")
    if columns and table:
        raise typer.BadParameter("--column is for JSON Lines; the columns of a table have fixed names")
    known = [field for field in FIELDS if not (sampled and field in ANSWERS)]
    if wrong := [field for field in columns if field not in known]:
        raise typer.BadParameter(f"--column {wrong[0]}: there is no such field; the fields are {', '.join(known)}")
    return columns


def verdict_values(given: list[str] | None) -> dict[str, str]:
    """The values of `VerdictValues` as a mapping. Raises typer.BadParameter where one is no VALUE=SIDE."""
    values = assignments(given, "--verdict")
    for value, side in values.items():
        if side not in ("first", "second", "tie"):
            raise typer.BadParameter(f"--verdict {value}={side}: {side!r} is none of first, second, tie")
    return values


def as_max_pixels(given: str) -> MaxPixels:
    """The value of `MaxPixelsOption` as the setting `scoring.max_pixels`.

    Raises:
        typer.BadParameter: it is none.
    """
    from dt2it_pipeline.config.sections.scoring import LEAST_PIXELS

    if given.isascii() and given.isdigit() and int(given) >= LEAST_PIXELS:
        return int(given)
    if given in ("trained", "paper"):
        return given  # type: ignore[return-value]  # mypy does not narrow a str to the literals
    raise typer.BadParameter(
        f"--max-pixels {given}: give a number of pixels of at least {LEAST_PIXELS:,}, `trained` or `paper`"
    )


def home_folder(home: Path | None) -> Path:
    """The artifact home that a command was given, else the usual one."""
    from dt2it_pipeline.config.paths import artifact_home

    return artifact_home() if home is None else home


def no_project() -> str:
    """Why no project chooses a recipe, for a message."""
    if given := os.environ.get("DT2IT_PROJECT"):
        return f"DT2IT_PROJECT names {Path(given).absolute()}, which has no folder `configs`"
    return f"neither {Path.cwd()} nor a folder above it is a project"


def recipe_in_words(recipe: Path | None) -> str:
    """Which recipe a command takes, and that it is the demo's where nobody chose one.

    Raises:
        RecipeError: the project has several.
    """
    from dt2it_pipeline.config.recipe import chosen_recipe, is_chosen, recipe_path

    chosen = f"recipe {recipe_path(chosen_recipe(recipe))}"
    return chosen if is_chosen(recipe) else f"{chosen} (the demo's: {no_project()})"


def open_store(home: Path | None) -> Store:
    """The store of the artifact home that a command was given, else of the usual one."""
    from dt2it_pipeline.storage.artifacts import Store

    return Store(home_folder(home))


def round_store(home: Path | None, number: int, asset: str = "curated_pairs") -> Store:
    """The same store, which must hold an asset of a round.

    Raises:
        CommandError: the round has not made it; the message has the command that does.
    """
    store = open_store(home)
    if store.current(asset, str(number)) is None:
        there = ", ".join(store.partitions(asset)) or "none"
        raise CommandError(
            f"{asset} of round {number} has not been materialised in {store.home}; rounds that have it: {there}. Run "
            f"it first: `dt2it run round --round {number}`, or name another artifact home with --home"
        )
    return store


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a port that is taken is reported before anything else takes time.

    Raises:
        CommandError: the address or the port cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CommandError(f"--host {host}: {error.strerror or error}") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as error:
        made.close()
        raise CommandError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; name another one with --port"
        ) from error
    return made
