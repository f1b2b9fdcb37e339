"""Trains several jobs one after the other in the same ranks: two ranks take longer to start than a tiny model to train.

    python -m dt2it_pipeline.engines.launch.rank_starter PORT 2 dt2it_pipeline_tests.support.several jobs.json

jobs.json: a list of files of `TrainJob`s. Every rank leaves how a job ended beside its output,
as `OUTPUT.rank0.json`: {"summary": ...} or, where training stopped with an error of its own, {"error": its message}.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.training.job import TrainJob


def main(arguments: list[str] | None = None) -> None:
    """Train the jobs of the file that the command line names."""
    from dt2it_pipeline.reward.training.distributed import Group

    leave = Group.close
    Group.close = lambda self: None  # type: ignore[method-assign]  # DeepSpeed cannot be started twice in a process
    for file in json.loads(Path((arguments or sys.argv[1:])[0]).read_text(encoding="utf-8")):
        job = TrainJob.read(file)
        end: dict[str, Any]
        try:
            end = {"summary": job.run(lambda progress: None)}
        except TrainingError as error:
            end = {"error": str(error)}
        Path(f"{job.output}.rank{os.environ['RANK']}.json").write_text(json.dumps(end), encoding="utf-8")
        gc.collect()  # the engine of the job before, which refers to itself
    leave(Group())


if __name__ == "__main__":
    main()
