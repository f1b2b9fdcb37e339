"""A trained checkpoint in use: behind vLLM's server (vllm_server.py)."""
