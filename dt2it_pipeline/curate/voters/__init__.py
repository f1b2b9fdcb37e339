"""Voters and their margins: scores joined to pairs, ensembles, out-of-fold models."""
