"""What is measured of a method's answer: label accuracy, harm, honesty, cost, and against simple methods."""

from benchmarks.real_noise.measures.answers import Measured, Stated, at_same_share, best_of, measure, utility
from benchmarks.real_noise.measures.assumptions import Assumed, under_assumptions
from benchmarks.real_noise.measures.attainable import (
    ClaimErrors,
    errors_of_audited_level,
    errors_of_known_level,
    lost_by_chance,
)
from benchmarks.real_noise.measures.claims import (
    Calibration,
    Drawn,
    calibration,
    expected_calibration_error,
    squared_calibration_error,
    stated_level_spread,
)
from benchmarks.real_noise.measures.comparison import (
    Interval,
    benjamini_hochberg,
    better_than,
    difference,
    holm,
    resample_counts,
    same_share,
)

__all__ = [
    "Assumed",
    "Calibration",
    "ClaimErrors",
    "Drawn",
    "Interval",
    "Measured",
    "Stated",
    "at_same_share",
    "benjamini_hochberg",
    "best_of",
    "better_than",
    "calibration",
    "difference",
    "errors_of_audited_level",
    "errors_of_known_level",
    "expected_calibration_error",
    "holm",
    "lost_by_chance",
    "measure",
    "resample_counts",
    "same_share",
    "squared_calibration_error",
    "stated_level_spread",
    "under_assumptions",
    "utility",
]
