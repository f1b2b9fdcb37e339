"""Multimodal reward models from noisy preference data: DT2IT-MRM as a Dagster pipeline (arXiv 2604.19544)."""
