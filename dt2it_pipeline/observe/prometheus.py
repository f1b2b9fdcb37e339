"""Figures in the text format of Prometheus, as node_exporter's textfile collector reads them.

What belongs here: the format. What does not: which figures there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One figure of a metric.

    Attributes:
        metric: its name; letters, digits and `_`.
        labels: what tells it apart from the metric's other samples.
        value: the figure.
    """

    metric: str
    labels: Mapping[str, str]
    value: float


def metrics_text(samples: Iterable[Sample], descriptions: Mapping[str, str]) -> str:
    """All samples, each metric once with its description; all are gauges. What is no finite number is left out.

    Args:
        samples: in any order.
        descriptions: of every metric, by its name; the text keeps their order.

    Examples:
        >>> text = metrics_text([Sample("rows", {"asset": "d0"}, 3)], {"rows": "Rows of a stage."})
        >>> print(text, end="")
        # HELP rows Rows of a stage.
        # TYPE rows gauge
        rows{asset="d0"} 3
    """
    found: dict[str, list[Sample]] = {name: [] for name in descriptions}
    for sample in samples:
        if math.isfinite(sample.value):
            found[sample.metric].append(sample)
    lines = []
    for name, own in found.items():
        if own:
            lines += [f"# HELP {name} {_escaped(descriptions[name])}", f"# TYPE {name} gauge"]
            lines += [f"{name}{{{_labels(sample.labels)}}} {sample.value:.17g}" for sample in own]
    return "".join(f"{line}\n" for line in lines)


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in labels.items())


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
