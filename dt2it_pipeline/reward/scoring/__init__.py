"""Scores: the scorer, vLLM's, the sharded job, plain Python inputs."""
