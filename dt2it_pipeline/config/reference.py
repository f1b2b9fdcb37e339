"""The reference of all settings: one row per setting of a recipe, and the JSON schema that editors check recipes with.

Both are made from the sections themselves, so nothing is written down twice. `dt2it settings` prints the rows; the
generated page of the documentation shows them too.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator
from pydantic.fields import FieldInfo

from dt2it_pipeline.config.base import Settings
from dt2it_pipeline.config.recipe import Recipe
from dt2it_pipeline.errors import UserError

_TYPES = {int: "integer", float: "number", str: "text", bool: "true or false", NoneType: "null"}
_SCHEMA = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe.

    Attributes:
        key: from the recipe's root, with dots; `[]` stands for an item of a list.
        type: in words, for instance `integer or null`, or the values that there are: `last | best`.
        unit: of its number; empty where it has none.
        range: values that are allowed; empty where every value of the type is.
        default: as YAML would have it, or `required`.
        description: what it does.
        kinds: kinds of the section that have it, where the section has several kinds (judges); else empty.
        section: key of the section that it belongs to; empty at the recipe's root.
    """

    key: str
    type: str
    unit: str
    range: str
    default: str
    description: str
    kinds: tuple[str, ...] = ()
    section: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {**vars(self), "kinds": list(self.kinds)}


class UnknownSettingError(UserError, ValueError):
    """There is no setting of that name; the message names the nearest ones."""


def settings_reference(key: str | None = None) -> list[Setting]:
    """All settings of a recipe in the order of its sections, or those at and below one key.

    Args:
        key: such as `training`, `training.lora.rank` or `annotation.judges.0.model`; all settings when None.

    Raises:
        UnknownSettingError: nothing has that key.
    """
    rows = section_reference(Recipe)
    if key is None:
        return rows
    wanted = _plain(key)
    found = [row for row in rows if f"{_plain(row.key)}.".startswith(f"{wanted}.")]
    if not found:
        raise UnknownSettingError(f"there is no setting {key!r}{_nearest(wanted, rows)}")
    return found


def section_reference(section: type[Settings]) -> list[Setting]:
    """All settings of any model of settings (a manifest, a benchmark spec), in its order."""
    return list(_rows(section, "", ""))


def section_descriptions() -> dict[str, str]:
    """What every section is for, by its key (`training.lora`; the recipe itself has the key ``), in order."""
    return dict(_sections_of(Recipe, ""))


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file (draft 2020-12), with units and the descriptions of all settings."""
    made = Recipe.model_json_schema()
    for section in made["$defs"].values():
        kind = section.get("properties", {}).get("kind")
        # A judge is of one kind: what the others require cannot be left out. `likelihood` is annotation's default.
        if kind is not None and "const" in kind:
            section["required"] = sorted({*section.get("required", []), "kind"})
    _without_titles(made)
    return {"$schema": _SCHEMA, "title": "Recipe of dt2it_pipeline", **{k: v for k, v in made.items() if k != "title"}}


def _plain(key: str) -> str:
    """A key without the places of list items: `judges.0.model` and `judges[].model` are `judges.model`."""
    return ".".join(part for part in re.sub(r"\[\d*\]", "", key).split(".") if part and not part.isdigit())


def _nearest(wanted: str, rows: list[Setting]) -> str:
    """A hint at keys that somebody may have meant: of a similar last part, or similar as a whole."""
    known = {_plain(row.key): row.key for row in rows}
    last = wanted.rsplit(".", 1)[-1]
    close = [key for key in known if key.rsplit(".", 1)[-1] == last]
    close += difflib.get_close_matches(wanted, list(known), n=3, cutoff=0.6)
    ends = difflib.get_close_matches(last, [key.rsplit(".", 1)[-1] for key in known], n=1, cutoff=0.75)
    close += [key for key in known if key.rsplit(".", 1)[-1] in ends]
    named = list(dict.fromkeys(known[key] for key in close))[:3]
    return f"; did you mean {' or '.join(named)}?" if named else "; `dt2it settings` lists them all"


def _rows(section: type[Settings], prefix: str, own: str) -> Iterator[Setting]:
    """Rows of a section; `own` is its key and `prefix` what its settings' keys begin with."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        inner = _inner_sections(field.annotation)
        if not inner or _is_choice(field):
            yield _row(key, field, own)
        if not inner:
            continue
        below = f"{key}[]" if _is_list(field.annotation) else key
        if len(inner) == 1:
            yield from _rows(inner[0], f"{below}.", below)
        else:
            yield from _rows_of_kinds(inner, below, _default_kind(field))


def _rows_of_kinds(kinds: list[type[Settings]], section: str, default: str) -> Iterator[Setting]:
    """Rows of a section that is of one of several kinds: first `kind`, then every setting once for all that have it."""
    names = tuple(dict.fromkeys(name for one in kinds for name in _kinds(one)))
    descriptions = [one.model_fields["kind"].description or "" for one in kinds]
    yield Setting(f"{section}.kind", " | ".join(names), "", "", default, max(descriptions, key=len), names, section)
    merged: dict[Setting, tuple[str, ...]] = {}
    for one in kinds:
        for row in _rows(one, f"{section}.", section):
            if row.key != f"{section}.kind":
                merged[row] = (*merged.get(row, ()), *_kinds(one))
    yield from (replace(row, kinds=having) for row, having in merged.items())


def _default_kind(field: FieldInfo) -> str:
    """The kind of a section where the recipe gives none, or `required`."""
    found = [field.discriminator, *(_discriminators(field.annotation))]
    chosen = [one.discriminator({}) for one in found if isinstance(one, Discriminator) and callable(one.discriminator)]
    return next((str(kind) for kind in chosen if kind), "required")


def _discriminators(annotation: Any) -> list[Any]:
    own = list(annotation.__metadata__) if get_origin(annotation) is Annotated else []
    return own + [found for part in get_args(annotation) for found in _discriminators(part)]


def _row(key: str, field: FieldInfo, section: str) -> Setting:
    extra = field.json_schema_extra
    found = extra.get("unit", "") if isinstance(extra, dict) else ""
    return Setting(
        key, _type(field.annotation), str(found), _range(field), _default(field), field.description or "", (), section
    )


def _sections_of(section: type[Settings], key: str) -> Iterator[tuple[str, str]]:
    yield key, inspect.cleandoc(section.__doc__ or "")
    for name, field in section.model_fields.items():
        inner = _inner_sections(field.annotation)
        below = f"{key}.{name}".lstrip(".") + ("[]" if _is_list(field.annotation) else "")
        if len(inner) == 1:
            yield from _sections_of(inner[0], below)
        elif inner:
            lines = [
                f"{', '.join(_kinds(one))}: {inspect.cleandoc(one.__doc__ or '').splitlines()[0]}" for one in inner
            ]
            yield below, "\n".join(lines)


def _is_choice(field: FieldInfo) -> bool:
    """Whether a field that holds sections is a setting itself: it may be null, a list, or must be given."""
    return _is_list(field.annotation) or field.is_required() or NoneType in get_args(field.annotation)


def _inner_sections(annotation: Any) -> list[type[Settings]]:
    """The sections that a field may hold, in lists and unions too; each once."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    inner = [section for part in get_args(annotation) for section in _inner_sections(part)]
    return list(dict.fromkeys(inner))


def _kinds(section: type[Settings]) -> tuple[str, ...]:
    field = section.model_fields.get("kind")
    return tuple(map(str, get_args(field.annotation))) if field is not None else ()


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


def _type(annotation: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (tuple, list):
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"mapping of {_type(parts[0])} to {_type(parts[1])}"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in parts))
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "section"
    return _TYPES[annotation]


def _range(field: FieldInfo) -> str:
    """The values that a field takes, from its constraints."""
    least, most, pattern = "", "", ""
    lengths: dict[str, int] = {}
    for each in [*field.metadata, *_constraints(field.annotation)]:
        least = f"{each.ge:,}" if hasattr(each, "ge") else f"above {each.gt:,}" if hasattr(each, "gt") else least
        most = f"{each.le:,}" if hasattr(each, "le") else f"below {each.lt:,}" if hasattr(each, "lt") else most
        lengths |= {name: getattr(each, name) for name in ("min_length", "max_length") if hasattr(each, name)}
        pattern = getattr(each, "pattern", None) or pattern
    if least or most:
        text = f"{least} to {most}" if least and most else (f"at least {least}" if least[:1] != "a" else least)
        return text if least else f"at most {most}"
    if pattern:
        return f"matches `{pattern}`"
    what = "items" if _is_list(field.annotation) else "characters"
    low, high = lengths.get("min_length"), lengths.get("max_length")
    if low == 1 and high is None:
        return "not empty"
    return f"{low or 0} to {high} {what}" if high is not None else ""


def _constraints(annotation: Any) -> list[Any]:
    """Constraints of the number among the values of a setting that takes a number or names."""
    if get_origin(annotation) is Annotated:
        given = [each for each in annotation.__metadata__ if isinstance(each, FieldInfo)]
        return [constraint for each in given for constraint in each.metadata]
    if get_origin(annotation) in (Union, UnionType):
        return [found for part in get_args(annotation) for found in _constraints(part)]
    return []


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    plain = [_dumped(item) for item in value] if isinstance(value, tuple) else _dumped(value)
    return plain if isinstance(plain, str) and plain else json.dumps(plain, ensure_ascii=False)


def _dumped(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _without_titles(schema: Any) -> None:
    """Take out the titles that pydantic makes of the keys: they repeat them."""
    if isinstance(schema, dict):
        if isinstance(schema.get("title"), str):
            del schema["title"]
        for value in schema.values():
            _without_titles(value)
    elif isinstance(schema, list):
        for value in schema:
            _without_titles(value)
