"""Benchmarks: specs, published rows, scores, figures with intervals, comparisons."""
