"""Curation methods compared on preference sets with real label noise.

`sets` reads the sets and makes the scenarios, `evidence` is what a method sees, `measures` what is measured. Methods:
`baselines` (simple ones), `prefcleanbench` (arXiv 2509.23564), `crowds` (crowd-kit and cleanlab) and `policies` (this
project's own). `duel` runs them, `report` prints. `rebuild` makes sets from published files.
"""
