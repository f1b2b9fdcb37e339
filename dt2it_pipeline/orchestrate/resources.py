"""What assets are handed: the store, and a way to run a job in a process of its own."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import dagster as dg
from pydantic import Field

from dt2it_pipeline.engines.jobs import Job, Summary
from dt2it_pipeline.engines.launch.launcher import ONE_PROCESS, JobFailed, Resources
from dt2it_pipeline.engines.launch.local_launcher import LocalLauncher
from dt2it_pipeline.storage.artifacts import Store

_WORKER = "dt2it_pipeline.orchestrate.pipes_worker"


class StoreResource(dg.ConfigurableResource):
    """The artifact store below one home folder."""

    home: str = Field(description="Folder of the artifacts (DT2IT_HOME).")

    def open(self) -> Store:
        """The store itself."""
        return Store(self.home)


class ChildProcesses(dg.ConfigurableResource):
    """Launches the jobs of a step; they report their progress through Dagster Pipes."""

    def run(
        self, context: dg.AssetExecutionContext, job: Job, work: Path, resources: Resources = ONE_PROCESS
    ) -> Summary:
        """Run a job and return its summary.

        Args:
            context: of the step, for its log.
            job: what to run; it is written to `work`/job.json.
            work: folder of the job file and of what comes of it.
            resources: what the job asks for.

        Raises:
            dagster.Failure: the job ended with an error, which the message names. Where a signal ended it, the step may
                be tried again: the work so far is kept.
        """
        with contextlib.ExitStack() as stack:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", dg.PreviewWarning)  # Dagster's, about its own message reader
                session = stack.enter_context(
                    dg.open_pipes_session(
                        context=context,
                        context_injector=dg.PipesTempFileContextInjector(),
                        message_reader=dg.PipesTempFileMessageReader(),
                    )
                )
            try:
                return LocalLauncher(_WORKER, session.get_bootstrap_env_vars()).launch(
                    job, work=work, resources=resources
                )
            except JobFailed as error:
                failed = error
        raise dg.Failure(
            str(failed),
            metadata={"command": failed.command, "job": dg.MetadataValue.path(str(failed.job_file))},
            allow_retries=failed.was_killed,
        )
