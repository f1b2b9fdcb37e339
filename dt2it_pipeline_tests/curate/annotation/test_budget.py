import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline.curate import CurationError
from dt2it_pipeline.curate.annotation.budget import within_budget

PAIRS = pd.DataFrame({"pair_id": list("fedcba"), "strength": [-0.5, 2.0, 0.1, 0.5, -3.0, 0.0]})


@pytest.mark.parametrize(
    ("calls", "reached"),
    [(None, "fedcba"), (0, ""), (1, ""), (2, "a"), (5, "da"), (6, "dca"), (8, "fdca"), (99, "fedcba")],
)
def test_the_least_sure_pairs_are_judged_first_and_every_pair_by_all_judges(calls: int | None, reached: str) -> None:
    asked, rest = within_budget(PAIRS, calls, 2)
    assert "".join(asked["pair_id"]) == reached
    assert sorted([*asked["pair_id"], *rest["pair_id"]]) == list("abcdef")
    assert (rest["reason"] == "judging budget spent").all()


def test_a_pair_without_strength_is_refused() -> None:
    with pytest.raises(CurationError, match="1 rows have no strength"):
        within_budget(PAIRS.assign(strength=[1.0, np.nan, 1, 1, 1, 1]), 4, 2)
