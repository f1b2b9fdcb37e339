"""Builders of sets with real label noise, from published files: `python -m benchmarks.real_noise.rebuild`."""
