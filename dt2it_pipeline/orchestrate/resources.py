"""What assets are handed: the store, and a way to run a job in a process of its own."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
from pydantic import Field, TypeAdapter

from dt2it_pipeline.config.sections.launcher import LauncherSettings
from dt2it_pipeline.engines.jobs import WORKER_ENVIRONMENT, Job, Summary
from dt2it_pipeline.engines.launch.clusters.launcher import ClusterLauncher
from dt2it_pipeline.engines.launch.job_forks import JobForks
from dt2it_pipeline.engines.launch.launcher import ONE_PROCESS, JobFailed, Launcher, Resources
from dt2it_pipeline.engines.launch.local_launcher import LocalLauncher
from dt2it_pipeline.orchestrate.gpu_time import note_gpu_seconds
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.leftovers import owned_prefix, places_of, sweep

_WORKER = "dt2it_pipeline.orchestrate.pipes_worker"
_FORKS = JobForks(WORKER_ENVIRONMENT)  # of all steps of a run: they share its process


class StoreResource(dg.ConfigurableResource):
    """The artifact store below one home folder."""

    home: str = Field(description="Folder of the artifacts (DT2IT_HOME).")

    def open(self) -> Store:
        """The store itself."""
        return Store(self.home)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Before a run's first step: remove what killed processes left in the home."""
        if (left := sweep(places_of(Path(self.home)))) and context.log is not None:
            context.log.info(f"{len(left)} temporary files of killed processes are removed, for example {left[0]}")


class ChildProcesses(dg.ConfigurableResource):
    """Launches the jobs of a step; they report their progress through Dagster Pipes."""

    launcher: str | None = Field(
        None, description="The recipe's section `launcher` as JSON; null: jobs run on this machine."
    )

    @classmethod
    def of(cls, settings: LauncherSettings | None) -> ChildProcesses:
        """For the recipe's section."""
        return cls(launcher=None if settings is None else settings.model_dump_json())

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
        sweep([work, *(path for path in work.rglob("*") if path.is_dir())])
        with contextlib.ExitStack() as stack:
            # Not in the system's folder for temporary files: what a killed run leaves goes with the stage's work.
            pipes = Path(tempfile.mkdtemp(prefix=owned_prefix("pipes"), dir=work))
            stack.callback(shutil.rmtree, pipes, ignore_errors=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", dg.PreviewWarning)  # Dagster's, about its own message reader
                session = stack.enter_context(
                    dg.open_pipes_session(
                        context=context,
                        context_injector=dg.PipesFileContextInjector(str(pipes / "context")),
                        message_reader=dg.PipesFileMessageReader(str(pipes / "messages")),
                    )
                )
            try:
                summary = self._launcher(session.get_bootstrap_env_vars()).launch(job, work=work, resources=resources)
                note_gpu_seconds(work, summary)
                return summary
            except JobFailed as error:
                failed = error
        raise dg.Failure(
            str(failed),
            metadata={"command": failed.command, "job": dg.MetadataValue.path(str(failed.job_file))},
            allow_retries=failed.was_killed,
        )

    def _launcher(self, environment: Mapping[str, str]) -> Launcher:
        if self.launcher is None:
            return LocalLauncher(_WORKER, environment, forks=_FORKS)
        settings: LauncherSettings = TypeAdapter(LauncherSettings).validate_json(self.launcher)
        return ClusterLauncher(settings, _WORKER, environment)
