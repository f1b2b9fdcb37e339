"""Readers of files: formats of rows, shards with images, and what the library `datasets` loads."""
