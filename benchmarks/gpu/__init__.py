"""Training, scoring and sampling at the shapes of public models, on whatever card there is; see `__main__.py`."""
