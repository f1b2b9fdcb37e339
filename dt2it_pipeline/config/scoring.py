"""Section `scoring`: how every unique response is scored once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dt2it_pipeline.config.base import Settings


class ScoringSettings(Settings):
    """Scoring every unique response once, for the votes of iterative training (arXiv 2604.19544)."""

    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="who computes: our own model in shared-prefix batches, or vLLM's pooling engine"
    )
    processes: int = Field(2, ge=1, le=1024, description="data-parallel scorers on this machine")
    tokens_per_batch: int = Field(8192, ge=64, description="token budget of one forward pass")
    shard_responses: int = Field(
        4096, ge=1, description="responses per shard; a killed run loses at most one shard a process"
    )
    max_length: int = Field(512, ge=16, le=131_072, description="longer prompt + response: the response is quarantined")
    max_pixels: int = Field(1_310_720, ge=1024, description="images are scaled down to this many pixels")
