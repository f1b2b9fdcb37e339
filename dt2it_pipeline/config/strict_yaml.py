"""YAML and JSON as people write them: a key that stands twice in one mapping is an error.

PyYAML and json would take the last one without a word, so that an edit further up in the file does nothing. Aliases of
YAML may not stand for more than a person could have written: a few lines of them can stand for billions of values.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

_MOST_VALUES = 100_000  # of a document, every alias counted as what it stands for


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As PyYAML does, with a look at the keys."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and first.setdefault((key.tag, key.value), key) is not key:
                lines = [at.start_mark.line + 1 for at in (first[key.tag, key.value], key)]
                where = f"line {lines[0]}" if lines[0] == lines[1] else f"lines {lines[0]} and {lines[1]}"
                raise yaml.YAMLError(f"key {key.value!r} stands twice, in {where}; keep one of them")
        return node

    def get_single_node(self) -> yaml.Node | None:
        """As PyYAML does, with a look at how much the aliases stand for."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _values(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MOST_VALUES:,} values; write them out")
        return node


# A copy: lm-format-enforcer, which vLLM imports, changes PyYAML's own so that dates become texts.
_Loader.yaml_constructors = dict(yaml.SafeLoader.yaml_constructors)


def _values(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node stands for. Raises yaml.YAMLError where it holds itself."""
    if id(node) not in known:
        known[id(node)] = None
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    found = known[id(node)]
    if found is None:
        raise yaml.YAMLError(f"an alias in line {node.start_mark.line + 1} stands within what it stands for")
    return found


def load_json(text: str) -> Any:
    """The value of a JSON document. Raises ValueError where it is malformed or an object has a key twice.

    >>> load_json('{"a": 1}')
    {'a': 1}
    """

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        try:
            return distinct_keys(pairs)
        except ValueError as error:
            key = re.compile(rf"{re.escape(json.dumps(_repeated(pairs), ensure_ascii=False))}\s*:")
            lines = [str(text.count("\n", 0, at.start()) + 1) for at in key.finditer(text)]
            raise ValueError(f"{error} (it is in line {', '.join(lines)}); keep one of them") from None

    try:
        return json.loads(text, object_pairs_hook=checked)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `object_pairs_hook` of a decoder. Raises ValueError where it has a key twice.

    >>> json.loads('{"a": 1, "b": 2}', object_pairs_hook=distinct_keys)
    {'a': 1, 'b': 2}
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"key {_repeated(pairs)!r} stands twice")
    return found


def _repeated(pairs: list[tuple[str, Any]]) -> str:
    """The first key that stands twice."""
    names = [name for name, _ in pairs]
    return next(name for name in names if names.count(name) > 1)


def load_yaml(text: str) -> Any:
    """The value of a YAML document. Raises yaml.YAMLError where it is malformed or a mapping has a key twice.

    PyYAML lets other errors out: of a date like 2024-13-45, of a text under the tag !!int, of brackets nested too deep.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        for mark in (error.context_mark, error.problem_mark):
            if mark is not None:
                mark.name = "the file"  # PyYAML's "<unicode string>" tells nobody anything
        raise
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise yaml.YAMLError(f"a value cannot be read: {error}; put quotes around it if it is text") from error
