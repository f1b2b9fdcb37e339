"""Curated pairs in the formats in which others train on them: `export_pairs`, and `python -m dt2it_pipeline.export`."""

from dt2it_pipeline.export.write import DATASETS, FORMATS, Exported, ExportError, export_pairs

__all__ = ["DATASETS", "FORMATS", "ExportError", "Exported", "export_pairs"]
