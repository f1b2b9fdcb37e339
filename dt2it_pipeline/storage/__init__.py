"""Artifacts, Arrow schemas and content ids, locks, atomic files and folders, the SQLite cache.

What belongs here: how tables and files lie on disk. What does not: what stages put into them.
"""
