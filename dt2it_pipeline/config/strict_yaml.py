"""YAML as recipes, manifests and benchmark entries are read: a key that stands twice in one mapping is an error.

PyYAML would take the last one without a word, so that an edit further up in the file does nothing.
"""

from __future__ import annotations

from typing import Any

import yaml


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
