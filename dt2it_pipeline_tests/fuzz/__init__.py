"""Damaged and hostile input by the thousand; `python -m dt2it_pipeline_tests.fuzz` is how to run it."""
