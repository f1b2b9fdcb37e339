"""Dagster and nothing else: assets, jobs, checks, sensors, resources, the console.

What belongs here: when a stage runs and what a person sees of it. What does not: what it computes.
"""
