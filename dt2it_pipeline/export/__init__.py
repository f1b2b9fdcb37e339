"""Curated pairs in the formats in which others train on them: `export_pairs`, and `dt2it export` for an asset."""

from dt2it_pipeline.export.assets import export_asset, export_undecided
from dt2it_pipeline.export.write import DATASETS, FORMATS, Exported, ExportError, export_pairs

__all__ = ["DATASETS", "FORMATS", "ExportError", "Exported", "export_asset", "export_pairs", "export_undecided"]
