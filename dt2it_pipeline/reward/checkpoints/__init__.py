"""Folders of reward models, ours and other trainers': weights, heads, adapters, processor files, card; no network."""
