"""`benchmarks.real_noise.assumed`: worlds in which all that the joint model assumes holds."""

import numpy as np
import pytest

from benchmarks.real_noise.assumed import claims_in, main, world


def test_observed_is_in_the_direction_of_the_label_and_answers_are_true() -> None:
    observed, right = world(500, 60, 3)
    again, _ = world(500, 60, 3)
    np.testing.assert_array_equal(observed.margins, again.margins)
    assert np.count_nonzero(observed.checked) == 60
    np.testing.assert_array_equal(observed.checked[observed.checked != 0] > 0, right[observed.checked != 0])


def test_where_everything_assumed_holds_claims_do(capsys: pytest.CaptureFixture[str]) -> None:
    found = [one for one in (claims_in(200, 60, seed) for seed in range(12)) if one is not None]
    assert len(found) >= 8
    over, held, of = zip(*found, strict=True)
    assert abs(np.mean(over)) < 0.04 and np.mean(held) > 0.7
    assert np.mean([each.error > each.stated.high for each in of]) < 0.3
    main(["--worlds", "3", "--pairs", "120", "--audits", "0", "20", "40"])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| 0", "| 20", "| 40"] and all("of" in row for row in rows[2:])
