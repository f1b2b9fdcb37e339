from __future__ import annotations

import subprocess
import sys

import pytest

import dt2it_pipeline.reward
from dt2it_pipeline.reward.modeling.model import RewardNetwork


def test_the_package_gives_the_model_and_loads_torch_only_then() -> None:
    code = (
        "import sys, dt2it_pipeline.reward as reward\n"
        "assert 'torch' not in sys.modules\n"
        "assert reward.RewardModel.__name__ == 'RewardModel' and 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert issubclass(dt2it_pipeline.reward.RewardModel, RewardNetwork)
    with pytest.raises(AttributeError, match="no attribute 'Reward'"):
        dt2it_pipeline.reward.Reward  # noqa: B018
