"""The reward model: architecture, packed batches, loss, training entry point, scoring.

What belongs here: everything that turns preference pairs into a checkpoint and a checkpoint into scores. What does not:
how a child process is started (engines/) and who asks for it (orchestrate/). Imports go one way: modeling, then data,
then scoring, then training; reward_model.py holds the public class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dt2it_pipeline.errors import naming_missing_engines

if TYPE_CHECKING:
    from dt2it_pipeline.reward.reward_model import RewardModel

__all__ = ["RewardModel"]


def __getattr__(name: str) -> Any:
    """Import RewardModel when it is first asked for; importing this package must not load torch."""
    if name == "RewardModel":
        with naming_missing_engines():
            from dt2it_pipeline.reward.reward_model import RewardModel

        return RewardModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
