from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline.evaluate.benchmarks.gains import Gain, gain, stalled


def results(right: np.ndarray, prompts: np.ndarray | None = None) -> pd.DataFrame:
    number = np.arange(len(right))
    return pd.DataFrame(
        {
            "benchmark": "b",
            "pair_id": [f"p{i}" for i in number],
            "prompt_id": [f"q{i}" for i in (number if prompts is None else prompts)],
            "outcome": np.where(right, "correct", "wrong"),
        }
    )


def test_a_gain_is_paired_and_its_interval_knows_which_pairs_stand_together() -> None:
    before = np.tile([True, False], 200)
    after = before.copy()
    after[1:81:2] = True  # 40 pairs gained, none lost
    found = gain(results(before), results(after))
    assert (found.value, found.pairs) == (pytest.approx(0.1), 400)
    assert found.beyond_chance
    same_prompts = np.arange(400) // 100
    together = gain(results(before, same_prompts), results(after, same_prompts))
    assert together.value == found.value
    assert together.high - together.low > 2 * (found.high - found.low)
    assert not gain(results(before), results(before)).beyond_chance
    assert gain(results(after), results(before)).value == pytest.approx(-0.1)


def test_only_pairs_that_both_rounds_have_count() -> None:
    before, after = results(np.array([True, False])), results(np.array([True, True, True]))
    assert gain(before, after).pairs == 2
    assert gain(before.iloc[:0], after).pairs == 0


def test_rounds_stall_when_the_last_ones_gained_nothing_beyond_chance() -> None:
    none, some, unknown = Gain(0.0, -0.1, 0.1, 50), Gain(0.2, 0.1, 0.3, 50), Gain(np.nan, np.nan, np.nan, 0)
    assert stalled([some, none, none], 2)
    assert not stalled([none, some], 2)
    assert not stalled([none], 2)
    assert not stalled([none, unknown], 2)
    assert stalled([none], 1)
    assert not stalled([none, none], None)
    assert stalled([Gain(-0.2, -0.3, -0.1, 50)], 1)  # a loss is no gain either
