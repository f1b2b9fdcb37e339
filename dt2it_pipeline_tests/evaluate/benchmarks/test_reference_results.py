from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline.evaluate.benchmarks.bootstrap import Measured, combine
from dt2it_pipeline.evaluate.benchmarks.reference_results import BOTH, comparison, comparison_markdown, load_published
from dt2it_pipeline.evaluate.benchmarks.spec import BenchmarkError


def figures(*rows: tuple[str, str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["model", "benchmark", "figure", "value"])


def test_our_models_stand_below_the_published_systems() -> None:
    three = [
        ("round 0", b, "overall", 0.5) for b in ("VL-RewardBench", "multimodal_rewardbench", "mm_rlhf_rewardbench")
    ]
    both = [("round 0", "all benchmarks", "pooled", 0.55), ("round 0", "all benchmarks", "mean", 0.56)]
    part = [("other", "vl_rewardbench", "overall", 0.7), ("other", "vl_rewardbench", "general", 0.9)]
    mixed = [("third", "vl_rewardbench", "overall", 0.7), ("third", "own", "overall", 0.1)]
    mixed += [("third", "all benchmarks", "pooled", 0.2)]
    table = comparison(figures(*three, *both, *part, *mixed)).set_index("system")
    assert table.index[:5].tolist() == ["GPT-5.2", "Skywork-VL Reward", "R1-Reward", "BaseReward", "DT2IT-MRM"]
    assert table.loc["DT2IT-MRM", "vl_rewardbench"] == 83.5
    assert table.loc["round 0", ["vl_rewardbench", "pooled", "mean"]].tolist() == pytest.approx([50, 55, 56])
    assert pd.isna(table.loc["other", "mm_rlhf_rewardbench"])
    assert pd.isna(table.loc["third", "pooled"])  # pooled with another set, it is no figure of these three
    text = comparison_markdown(table.reset_index())
    assert "| VL-RewardBench |" in text
    assert "| round 0 | 50.0 | 50.0 | 50.0 | 55.0 | 56.0 | measured here |" in text


def test_both_overalls_are_defined_as_the_published_ones() -> None:
    """From each system's three accuracies and the numbers of pairs that its authors had, rounded as they are."""
    pairs = {"vl_rewardbench": 1247, "multimodal_rewardbench": 4711, "mm_rlhf_rewardbench": 170}
    checked = []
    for system in load_published().systems:
        parts = [Measured({}, np.array([system.percent(n) * count]), np.array([count])) for n, count in pairs.items()]
        found = combine(parts)
        for overall in BOTH:
            if (published := system.percent(overall)) is not None:
                assert found[overall].value == pytest.approx(published, abs=0.11)
                checked.append((system.system, overall))
    assert {("BaseReward", "pooled"), ("DT2IT-MRM", "pooled"), ("DT2IT-MRM", "mean")} <= set(checked)


def test_nothing_to_compare_gives_an_empty_table() -> None:
    assert comparison(figures(("m", "demo", "overall", 0.5))).empty


def test_a_figure_of_an_unknown_benchmark_is_named(tmp_path) -> None:
    path = tmp_path / "published.yaml"
    path.write_text("source: s\nbenchmarks: {a: overall}\nsystems: [{system: x, a: 1.0, b: 2.0}]\n")
    with pytest.raises(BenchmarkError, match=r"x: unknown figures \['b'\]"):
        load_published(path)


def test_a_key_that_stands_twice_is_named(tmp_path) -> None:
    (tmp_path / "p.yaml").write_text("source: a\nsource: b\nbenchmarks: {}\nsystems: []\n")
    with pytest.raises(BenchmarkError, match="key 'source' stands twice, in lines 1 and 2"):
        load_published(tmp_path / "p.yaml")
