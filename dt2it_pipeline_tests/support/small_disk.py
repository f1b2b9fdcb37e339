"""A worker of jobs whose files cannot grow beyond SMALL_DISK_BYTES: every write beyond fails, as on a full disk.

python -m dt2it_pipeline_tests.support.small_disk job.json
"""

from __future__ import annotations

import os
import resource

from dt2it_pipeline.engines.launch import worker


def main(arguments: list[str] | None = None) -> None:
    """Run the job that the command line names."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["SMALL_DISK_BYTES"]), resource.RLIM_INFINITY))
    worker.main(arguments)


if __name__ == "__main__":
    main()
