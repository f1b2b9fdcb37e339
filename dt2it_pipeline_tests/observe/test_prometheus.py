"""The text format, read back by Prometheus' own parser."""

import doctest

from prometheus_client.parser import text_string_to_metric_families

from dt2it_pipeline.observe import prometheus
from dt2it_pipeline.observe.prometheus import Sample, metrics_text


def test_the_examples_are_right():
    assert doctest.testmod(prometheus).failed == 0


def test_what_is_written_is_what_prometheus_reads():
    label = 'a "judge"\\of\nmine'
    text = metrics_text(
        [
            Sample("b", {"judge": label}, 0.1),
            Sample("a", {"asset": "x", "round": ""}, 1_795_810_926.9722247),
            Sample("b", {"judge": "plain"}, 2),
            Sample("a", {"asset": "y", "round": ""}, float("nan")),
        ],
        {"a": "First\nof two.", "b": "Second.", "none": "No sample."},
    )
    read = {family.name: family for family in text_string_to_metric_families(text)}
    assert [(family.name, family.type) for family in read.values()] == [("a", "gauge"), ("b", "gauge")]
    assert [(sample.labels, sample.value) for sample in read["b"].samples] == [
        ({"judge": label}, 0.1), ({"judge": "plain"}, 2.0)
    ]  # fmt: skip
    assert [sample.value for sample in read["a"].samples] == [1_795_810_926.9722247]
    assert read["a"].documentation == "First\nof two."
