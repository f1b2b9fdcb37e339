"""Hook of mkdocs: fills the reference pages from the code, and turns formulas into MathML.

A page names what belongs in it by a comment, `<!-- generated: settings -->`; GENERATORS has a function per name. So a
reference cannot fall behind the code, and the site needs no script of a third party.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_MARKER = re.compile(r"<!-- generated: (\w+) -->")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every marker of a page by what its generator writes."""
    return _MARKER.sub(lambda found: "\n".join(GENERATORS[found[1]]()), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Replace formulas in TeX by MathML, which browsers draw by themselves."""
    from latex2mathml.converter import convert

    def drawn(found: re.Match[str]) -> str:
        return convert(html.unescape(found[3]), display="block" if found[2] == "[" else "inline")

    return _FORMULA.sub(drawn, content)


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """A Markdown table; vertical bars and line breaks in cells are escaped."""
    names = list(header)
    yield ""
    yield "| " + " | ".join(names) + " |"
    yield "|" + " --- |" * len(names)
    for row in rows:
        yield "| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in row) + " |"
    yield ""


def settings() -> Iterator[str]:
    """Every setting of a recipe, by section."""
    from dt2it_pipeline.config import Recipe
    from dt2it_pipeline.config.reference import section_descriptions

    yield from _model(Recipe, section_descriptions())


def manifest() -> Iterator[str]:
    """Every key of a manifest."""
    from dt2it_pipeline.ingest.manifest import Manifest

    yield from _model(Manifest)


def benchmark() -> Iterator[str]:
    """Every key of a benchmark spec."""
    from dt2it_pipeline.evaluate.benchmarks.spec import Entry

    yield from _model(Entry)


def _model(model: Any, descriptions: Mapping[str, str] | None = None) -> Iterator[str]:
    from dt2it_pipeline.config.reference import section_reference

    sections: dict[str, list[tuple[str, ...]]] = {}
    for found in section_reference(model):
        key = found.key.removeprefix(f"{found.section}.") if found.section else found.key
        kinds = f" Kinds: {', '.join(found.kinds)}." if found.kinds else ""
        limits = " ".join(part for part in (found.range, found.unit) if part)
        row = (f"`{key}`", found.type, limits, f"`{found.default}`", found.description + kinds)
        sections.setdefault(found.section, []).append(row)
    for name, rows in sections.items():
        yield from ([f"### `{name}`", "", (descriptions or {}).get(name, "")] if name else [])
        yield from table(("key", "type", "range and unit", "default", "meaning"), rows)


def adapters() -> Iterator[str]:
    """Every adapter with its kinds and columns."""
    from dt2it_pipeline.ingest.adapters import ADAPTERS

    yield from table(
        ("adapter", "kinds", "columns"),
        ((f"`{name}`", ", ".join(each.kinds), ", ".join(each.columns)) for name, each in sorted(ADAPTERS.items())),
    )


def benchmarks() -> Iterator[str]:
    """The benchmarks that come with the package."""
    from dt2it_pipeline.evaluate.benchmarks.spec import load_entries

    entries = [entry for _, entry in sorted(load_entries().items())]
    yield from table(
        ("name", "title", "pairs", "groups"),
        ((f"`{e.name}`", e.title, e.pairs or "", ", ".join(rule.group for rule in e.groups)) for e in entries),
    )


def tables() -> Iterator[str]:
    """Every table kind with its columns."""
    from dt2it_pipeline.storage.schemas import COLUMNS, DESCRIPTIONS, SCHEMAS

    for kind, schema in SCHEMAS.items():
        yield f"## `{kind}`"
        yield ""
        yield DESCRIPTIONS[kind]
        yield from table(
            ("column", "type", "null", "meaning"),
            (
                (f"`{field.name}`", f"`{field.type}`", "yes" if field.nullable else "", COLUMNS[kind][field.name])
                for field in schema
            ),
        )


def cli() -> Iterator[str]:
    """Every command with its arguments and options."""
    import typer

    from dt2it_pipeline.cli import app

    yield from _command(typer.main.get_command(app), "dt2it")


def _command(command: Any, name: str) -> Iterator[str]:
    children = getattr(command, "commands", {})
    if not children:
        yield f"## `{name}`"
        yield ""
        yield (command.help or "").strip()
        yield from table(
            ("argument or option", "default", "meaning"),
            (
                (
                    "`" + " ".join([*each.opts, *each.secondary_opts]) + "`"
                    if each.param_type_name == "option"
                    else f"`{each.metavar or each.name.upper()}`",
                    "" if each.default is None or callable(each.default) else f"`{each.default}`",
                    getattr(each, "help", "") or "",
                )
                for each in command.params
            ),
        )
    for key, child in children.items():
        yield from _command(child, f"{name} {key}")


def assets() -> Iterator[str]:
    """What the code location of the demo holds."""
    os.environ.setdefault("DT2IT_HOME", str(Path(__file__).parent / "unused"))
    from dt2it_pipeline.definitions import defs

    graph = defs.resolve_asset_graph()
    yield "## Assets"
    yield from table(
        ("asset", "group", "made from", "what it is"),
        (
            (
                f"`{node.key.to_user_string()}`",
                node.group_name,
                ", ".join(sorted(f"`{parent.to_user_string()}`" for parent in node.parent_keys)),
                (node.description or "").split("\n\n")[0],
            )
            for node in sorted(graph.asset_nodes, key=lambda each: (each.group_name or "", each.key.to_user_string()))
        ),
    )
    yield "## Checks"
    yield from table(
        ("asset", "check", "ends the run", "what it asks"),
        (
            (
                f"`{key.asset_key.to_user_string()}`",
                f"`{key.name}`",
                "yes" if check.blocking else "",
                check.description or "",
            )
            for key in sorted(graph.asset_check_keys, key=str)
            for check in [graph.get(key)]
        ),
    )
    for title, found in (
        ("Jobs", [job for job in defs.jobs or [] if not job.name.startswith("__")]),
        ("Sensors", defs.sensors or []),
        ("Schedules", defs.schedules or []),
    ):
        yield f"## {title}"
        yield from table(("name", "what it does"), ((f"`{each.name}`", each.description or "") for each in found))


GENERATORS: dict[str, Callable[[], Iterator[str]]] = {
    "settings": settings,
    "manifest": manifest,
    "benchmark": benchmark,
    "adapters": adapters,
    "benchmarks": benchmarks,
    "tables": tables,
    "cli": cli,
    "assets": assets,
}
