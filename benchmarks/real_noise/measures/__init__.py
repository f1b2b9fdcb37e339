"""What is measured of a method's answer: label accuracy, harm, honesty, cost, and against simple methods."""

from benchmarks.real_noise.measures.answers import Measured, Stated, measure, utility
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
    "Calibration",
    "Drawn",
    "Interval",
    "Measured",
    "Stated",
    "benjamini_hochberg",
    "better_than",
    "calibration",
    "difference",
    "expected_calibration_error",
    "holm",
    "measure",
    "resample_counts",
    "same_share",
    "squared_calibration_error",
    "stated_level_spread",
    "utility",
]
