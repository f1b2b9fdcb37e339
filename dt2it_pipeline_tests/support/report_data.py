"""Data of a report, with everything in it that a report shows."""

import io

import numpy as np
import pandas as pd
from PIL import Image

from dt2it_pipeline.evaluate.benchmarks.comparison import Change, Comparison
from dt2it_pipeline.evaluate.benchmarks.metrics import COLUMNS
from dt2it_pipeline.evaluate.grading import Grade
from dt2it_pipeline.evaluate.report.data import (
    Arm,
    Curve,
    Example,
    Funnel,
    LabelEstimate,
    Quality,
    ReportData,
    Round,
    StageCounts,
)
from dt2it_pipeline.evaluate.report.outcomes import Cost, SourceOutcomes, Suspect
from dt2it_pipeline.style.probe import StyleProbe


def image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def scores(*rows: tuple[str, str, int]) -> pd.DataFrame:
    return pd.DataFrame([(m, "b", g, 100, c, 2, 1, c / 100) for m, g, c in rows], columns=COLUMNS)


def full(text: str = "plain") -> ReportData:
    in_table = text.replace("\ud800", "")  # a table cannot hold a lone surrogate; other strings can
    grade = Grade(pairs=100, graded=90, without_truth=10, correct=70, accuracy=70 / 90, flips=9, flips_right=8)
    probe = StyleProbe(0.9, 0.88, 0.92, 100, ((text, 0.5), ("words", -0.2)))
    log = pd.DataFrame({"step": [10, 20, 30], "loss": [0.7, 0.5, np.nan], "accuracy": [0.5, 0.7, 0.8]})
    example = Example(
        text, text, text, "other", [image(), b"broken"], ("other", text), "chosen", text, 1.5, text, text, text, text
    )
    return ReportData(
        scores=scores(
            (in_table, "overall", 80), (in_table, in_table, 80), ("control", "overall", 50), ("control", in_table, 40)
        ),
        title=text,
        arms=[Arm(in_table, "round", text), Arm("control", "control", text)],
        rounds=[
            Round(
                0,
                [
                    Quality(text, 100, 0.9, grade, probe, 12),
                    Quality("few", 3, None, None, StyleProbe(None, None, None, 3)),
                ],
                [StageCounts(text, 10, {text: 7}, {text: 2}, text)],
                [Curve(text, log)],
                {text: np.array([-1.0, 2.0, np.inf, np.nan]), "constant": np.zeros(3), "none": np.array([])},
                [example],
                {text: 75.0, "quick": 0.01},
                Funnel(100, 20, 60, 40, 30, {text: 9}, {text: 61, "flipped": 29}, {text: 0.75}, 80, 81, 82),
                text,
                estimate=LabelEstimate(
                    (0.7123, 0.65, 0.78),
                    (0.9456, 0.9, 0.98),
                    False,
                    [text],
                    [
                        {
                            "annotator_accuracy": 0.8,
                            "label_accuracy": 0.7321,
                            "accuracy_after": 0.9,
                            "after_low": 0.75,
                            "after_high": 1.0,
                        }
                    ],
                    [{"kind": "audited", "pairs": 40, "claimed": 0.9, "observed": 0.925}],
                    text,
                    90,
                ),
                outcomes=[SourceOutcomes(text, 61, 29, {text: 10}, 40)],
                suspects=[Suspect(text, text, text, text, text, "other", 0.0123, "flipped", text)],
            )
        ],
        quality=[Quality("pool", 100, 1.0, grade, probe)],
        examples=[example],
        group_notes={text: text},
        policy_note=f"Policy {text}",
        strength_note=f"Strength {text}",
        strength_unit=text,
        comparisons=[Comparison(text, text, [Change(text, text, 10, 3, 1, 0.2, -0.1, 0.5, 0.6, False)])],
        seconds={text: {text: 25.0}},
        costs=[Cost(text, 12, 3_000, 400, 7200.0, 3600.0, 45)],
        metadata={text: text, "recipe": text},
    )
