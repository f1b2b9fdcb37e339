from __future__ import annotations

import math

import pandas as pd
import pytest

from dt2it_pipeline.evaluate.benchmarks.metrics import BenchmarkError
from dt2it_pipeline.evaluate.grading import grade_labels

TRUTH = pd.DataFrame({"pair_id": list("abcdef"), "chosen_id": [f"{x}+" for x in "abcdef"]})
BEFORE = pd.DataFrame({"pair_id": list("abcdeg"), "chosen_id": ["a+", "b-", "c-", "d+", "e-", "g+"]})


def after() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "pair_id": list("abcdeg"),
            #             right  repaired still wrong, broken, repaired by judges, no truth
            "chosen_id": ["a+", "b+", "c-", "d-", "e+", "g-"],
            "label": ["original", "flipped", "original", "flipped", "annotated", "flipped"],
        }
    )


def test_grades_and_flips_by_comparison_with_before() -> None:
    grade = grade_labels(after(), TRUTH, BEFORE)
    assert (grade.pairs, grade.graded, grade.without_truth, grade.correct) == (6, 5, 1, 3)
    assert grade.accuracy == 3 / 5
    assert grade.by_label == {"annotated": (1, 1), "flipped": (2, 1), "original": (2, 1)}
    assert (grade.flips, grade.flips_right, grade.wrong_before) == (3, 2, 3)
    assert grade.flip_precision == grade.flip_recall == 2 / 3


def test_without_before_the_label_marks_what_was_flipped() -> None:
    grade = grade_labels(after(), TRUTH)
    assert (grade.flips, grade.flips_right, grade.wrong_before) == (2, 1, 2)


def test_no_truth_no_pairs_and_bad_tables() -> None:
    empty = grade_labels(after().iloc[:0], TRUTH)
    assert empty.pairs == 0 and math.isnan(empty.accuracy) and math.isnan(empty.flip_precision)
    assert grade_labels(after(), TRUTH.iloc[:0]).without_truth == 6
    with pytest.raises(BenchmarkError, match="truth: 1 rows repeat"):
        grade_labels(after(), pd.concat([TRUTH, TRUTH.iloc[:1]]))
    with pytest.raises(BenchmarkError, match="pairs: missing columns"):
        grade_labels(after().drop(columns="chosen_id"), TRUTH)
