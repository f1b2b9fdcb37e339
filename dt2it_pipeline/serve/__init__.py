"""A trained checkpoint in use: behind vLLM's server (vllm_server.py), and as the reward of RL libraries (client.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dt2it_pipeline.serve.client import RewardClient

__all__ = ["RewardClient"]


def __getattr__(name: str) -> Any:
    """Import RewardClient when it is first asked for; the server's process does not need it."""
    if name == "RewardClient":
        from dt2it_pipeline.serve.client import RewardClient

        return RewardClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
