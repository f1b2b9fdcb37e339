"""Benchmarks, the style probe, grading against the demo's truth, and the report."""
