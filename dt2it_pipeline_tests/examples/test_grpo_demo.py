"""`examples/grpo_demo.py`, from the world to the curve, with TRL itself and two steps of GRPO."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.demo import DemoSettings
from dt2it_pipeline.demo.world import write_world
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "grpo_demo.py"


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grpo_demo", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.heavy
def test_a_policy_is_trained_measured_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure_torchvision()
    import torch
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    from dt2it_pipeline.reward import RewardModel

    torch.set_num_threads(1)
    write_world(
        tmp_path / "world",
        DemoSettings(prompts=40, preferences=40, t2i=8, benchmark_per_group=6, corrupt_images=2),
    )
    (tmp_path / "checkpoint").mkdir()
    RewardModel.from_pretrained(model_path("demo"), new_head_seed=0).save_pretrained(tmp_path / "checkpoint")
    module = example()
    for name, value in (("HELD_OUT", 6), ("GENERATIONS", 4), ("LONGEST", 16)):
        monkeypatch.setattr(module, name, value)
    inner, places = Qwen3VLModel.get_rope_index, []

    def watched(self: Any, input_ids: Any, *, mm_token_type_ids: Any, **given: Any) -> Any:
        images = input_ids == self.config.image_token_id
        places.append((images.sum().item(), torch.equal(images, mm_token_type_ids == 1)))
        return inner(self, input_ids, mm_token_type_ids=mm_token_type_ids, **given)

    monkeypatch.setattr(Qwen3VLModel, "get_rope_index", watched)
    output = tmp_path / "grpo"
    given = f"grpo_demo new={tmp_path / 'checkpoint'} --world {tmp_path / 'world'}"
    given += f" --output {output} --steps 2 --questions 3 --warm-up 1 --eval-steps 2 --learning-rate 1e-2"
    monkeypatch.setattr(sys, "argv", given.split())
    module.main()

    # Positions of images are those of their tokens, in prompts of different length, too: see `train` of the example.
    assert places and all(count > 0 and equal for count, equal in places)
    found = json.loads((output / "figures.json").read_text())
    assert list(found) == ["new"]
    first = found["new"]
    assert [point["step"] for point in first["curve"]] == [0, 2]
    assert all(0 <= point["truth"] <= 1 and 0 <= point["verbose"] <= 1 for point in first["curve"])
    assert first["curve"][1]["reward"] != first["curve"][0]["reward"]  # the policy moved
    assert len(first["written"]) == 4 and len(set(first["written"].values())) == 4
    svg = (output / "curve.svg").read_text()
    assert svg.count("<svg") == 1 and "</svg>" in svg
    printed = capsys.readouterr().out
    assert "| reward of | plain, right | plain, wrong | verbose, right | verbose, wrong |" in printed
    assert printed.count("\n| new | ") == 3
