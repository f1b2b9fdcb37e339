from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.engines import lean_processes
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline_tests.support.threads import tested_threads, use_tested_threads
from dt2it_pipeline_tests.support.tiny import make_images, make_tables, make_tiny
from dt2it_pipeline_tests.support.training_jobs import FORKS, small_job


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads here as the environment says, and no more in a training, which would take every core."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(tested_threads()))
    use_tested_threads()


@pytest.fixture(autouse=True, scope="module")
def _forks() -> Iterator[None]:
    """The process that forks for the trainings of a file, where it has such trainings, ends with the file."""
    yield
    FORKS.close()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a random tiny base model of a family, made once."""
    made: dict[str, Path] = {}

    def get(family: str = "qwen3_vl") -> Path:
        if family not in made:
            made[family] = make_tiny(tmp_path_factory.mktemp(family), family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """A media root with six images, and their rows."""
    root = tmp_path_factory.mktemp("media")
    return root, make_images(root, 6)


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of small tables; do not write there."""
    return make_tables(tmp_path_factory.mktemp("tables"), 24)


@pytest.fixture
def setup(base: Callable[[str], Path], media: tuple[Path, Any]) -> Callable[..., tuple[Any, Any, Any]]:
    """Model, prompt_encoder and registry of a family."""

    def get(family: str = "qwen3_vl") -> tuple[Any, Any, Any]:
        from dt2it_pipeline.reward.data.encoding import PromptEncoder, load_processor
        from dt2it_pipeline.reward.data.images import ImageRegistry
        from dt2it_pipeline.reward.reward_model import RewardModel

        folder = base(family)
        processor = load_processor(folder, "You judge.")
        registry = ImageRegistry(processor.image_processor, media[0], 65536, processor.video_processor)
        model = RewardModel.from_pretrained(folder, new_head_seed=0)
        return model, PromptEncoder(folder, registry, processor), registry

    return get


@pytest.fixture
def job(
    base: Callable[[str], Path], tables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainJob:
    """A small training job with folders of its own."""
    # Other tests of this process may need the packages that a training process hides.
    monkeypatch.setattr(lean_processes, "skip_unused", lambda: None)
    return small_job(base("qwen3_vl"), tables, tmp_path)
