"""A tiny reward model in several forms, and published rows for it, for tests of the command `benchmark`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from dt2it_pipeline.storage import atomic
from dt2it_pipeline_tests.support.tiny import make_images, make_tiny
from dt2it_pipeline_tests.support.trainer_layouts import ms_swift

ANSWERS = ("it looks red", "a green circle", "blue", "the square", "no", "yes it is the triangle")


def make_world(root: Path, family: str = "qwen3_vl", hidden: int = 32) -> dict[str, Any]:
    """A tiny reward model as we, LLaMA-Factory (`theirs`) and ms-swift leave it, its base model, and eight rows.

    The rows are as VL-RewardBench has them.
    """
    import torch
    from safetensors.torch import save_file

    from dt2it_pipeline.reward.reward_model import RewardModel

    torch.manual_seed(0)
    (root / "base").mkdir()
    base = make_tiny(root / "base", family, hidden=hidden)
    model = RewardModel.from_pretrained(base, new_head_seed=0)
    model.head.weight.data *= 30
    model.card |= {"system_prompt": "You judge.", "max_pixels": 1024}
    with atomic.atomic_directory(root / "ours") as folder:
        model.save_pretrained(folder)
    shutil.copytree(base, root / "theirs")
    head = {"v_head.summary.weight": model.head.weight.data.clone(), "v_head.summary.bias": torch.tensor([7.0])}
    save_file(head, root / "theirs" / "value_head.safetensors")
    ms_swift(base, root / "ms_swift", model.head.weight.data.clone())
    media = make_images(root / "images", 3)
    rows = [
        {
            "id": ("RLAIF-V-1", "mathverse_2", "mmmu_3", "wildvision-4")[i % 4],
            "query": f"what colour is the shape {'in the image' * (i % 2)}",
            "image": media[i % 3]["path"],
            "response": [ANSWERS[i % 6], ANSWERS[(i + 1) % 6]],
            "human_ranking": [0, 1] if i % 3 else [1, 0],
        }
        for i in range(8)
    ]
    (root / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {"root": root, "rows": rows}


def arguments(
    root: Path, model: str, output: Path, rows: str = "rows.jsonl", *, max_pixels: str | None = "1024"
) -> list[str]:
    given = {"benchmark": "VL-RewardBench", "rows": str(root / rows), "media": str(root / "images"),
             "output": str(output), "max-length": "512"}  # fmt: skip
    given |= {} if max_pixels is None else {"max-pixels": max_pixels}
    return ["benchmark", model, *(part for name, value in given.items() for part in (f"--{name}", value))]
