"""Style of answers: its features, and the probe that measures how far style alone tells chosen from rejected."""

from dt2it_pipeline.style.features import style_features
from dt2it_pipeline.style.probe import StyleProbe, all_probes, style_probe

__all__ = ["StyleProbe", "all_probes", "style_features", "style_probe"]
