"""Curation policies of recipes: `policy` says what one is, `paper` and `joint` are two, `choice` takes one by name."""
