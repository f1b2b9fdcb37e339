"""All that this project uses of Dagster's private modules: what its public interface has no way to ask for.

What belongs here: a thin function or class per private name, with the reason why it is needed. What does not: any
decision of this project's own. A test watches that no other module imports `dagster._...`; whoever updates Dagster
looks here first.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.metadata.source_code import CodeReferencesMetadataSet
from dagster._core.definitions.repository_definition.valid_definitions import SINGLETON_REPOSITORY_NAME
from dagster._core.execution.api import ExecuteRunWithPlanIterable
from dagster._core.execution.compute_logs import redirect_to_file
from dagster._core.execution.context_creation_job import PlanExecutionContextManager
from dagster._core.execution.plan.execute_plan import inner_plan_execution_iterator
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.in_process import InProcessExecutor
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._core.storage.root import LocalArtifactStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._core.storage.tags import CODE_LOCATION_TAG, HIDDEN_TAG_PREFIX, REPOSITORY_LABEL_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._utils import ensure_file

from dt2it_pipeline.orchestrate.console import print_mistakes_plainly

__all__ = [
    "HIDDEN_TAG_PREFIX",
    "FileComputeLogManager",
    "LocalArtifactStorage",
    "SqliteStorage",
    "StepsInThisProcess",
    "code_reference",
    "list_under_job",
    "output_folder",
    "print_with",
]


class SqliteStorage(DagsterSqliteStorage):
    """Dagster's SQLite storage, which dagster.yaml names: Dagster opens it before it imports any definitions."""

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Any) -> Any:
        """Open it; see `print_mistakes_plainly` for what is printed where it is damaged or locked."""
        print_mistakes_plainly()
        return super().from_config_value(inst_data, config_value)


class _Places(InstanceConcurrencyContext):
    """A run's places in pools, with a call at each look while it waits for one."""

    def __init__(self, instance: dg.DagsterInstance, run: dg.DagsterRun, on_wait: Callable[[str], None]) -> None:
        super().__init__(instance, run)
        self._on_wait = on_wait

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        """Take a place in a pool for a step; False where all are taken."""
        taken = super().claim(concurrency_key, step_key, step_priority)
        if not taken:
            self._on_wait(concurrency_key)
        return taken

    def interval_to_next_pending_claim_check(self) -> float:
        """Seconds until a place may be asked for again. Dagster's own is never above 0, which takes a whole core."""
        return max(0.0, min(self._pending_timeouts.values(), default=0.0) - time.time())


class StepsInThisProcess(InProcessExecutor):
    """Dagster's in-process executor with three hooks, for which the public one has no place.

    Args:
        before: called with the run's context before its first step.
        on_log: called with each log of the run; steps have a log of their own.
        on_wait: called with the run's context and a pool's name at each look while a step waits for a place there.
    """

    def __init__(
        self,
        before: Callable[[Any], None],
        on_log: Callable[[dg.DagsterLogManager], None],
        on_wait: Callable[[Any, str], None],
    ) -> None:
        super().__init__(retries=RetryMode.ENABLED)
        self._before, self._on_log, self._on_wait = before, on_log, on_wait

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        """Run the plan; yields its events."""
        self._on_log(plan_context.log)
        self._before(plan_context)

        def steps(job_context: Any, execution_plan: Any) -> Iterator[Any]:
            self._on_log(job_context.log)
            on_wait = functools.partial(self._on_wait, job_context)
            with _Places(job_context.instance, job_context.dagster_run, on_wait) as places:
                yield from inner_plan_execution_iterator(job_context, execution_plan, places)

        # As the parent does, which has no place to hand in another iterator.
        yield from ExecuteRunWithPlanIterable(
            execution_plan=plan_context.execution_plan,
            iterator=steps,
            execution_context_manager=PlanExecutionContextManager(
                job=plan_context.job,
                retry_mode=plan_context.retry_mode,
                execution_plan=plan_context.execution_plan,
                run_config=plan_context.run_config,
                dagster_run=plan_context.dagster_run,
                instance=plan_context.instance,
                raise_on_error=plan_context.raise_on_error,
                output_capture=plan_context.output_capture,
                step_dependency_config=self.step_dependency_config,
            ),
        )


class FileComputeLogManager(LocalComputeLogManager):
    """What steps and their processes print goes into files for the UI, and not to the terminal as well.

    Dagster's own mirrors it to the terminal, where notices of torch, vLLM and DeepSpeed would drown a run's story.
    """

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Any) -> FileComputeLogManager:
        """From dagster.yaml; the parent's makes one of its own class."""
        return cls(inst_data=inst_data, **config_value)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Iterator[CapturedLogContext]:
        """Capture what this process and its children print until the block ends."""
        files = []
        for kind in (ComputeIOType.STDOUT, ComputeIOType.STDERR):
            files.append(self.get_captured_local_path(log_key, IO_TYPE_EXTENSION[kind]))
            ensure_file(files[-1])
        with redirect_to_file(sys.stdout, files[0]), redirect_to_file(sys.stderr, files[1]):
            yield CapturedLogContext(log_key)
        Path(self.complete_artifact_path(log_key)).touch()


def output_folder(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """Folder of what a run's steps printed; None where it is kept elsewhere than in files here."""
    manager = instance.compute_log_manager
    if not isinstance(manager, LocalComputeLogManager):
        return None
    return str(Path(manager.get_captured_local_path([run_id, "compute_logs", "any"], "err")).parent)


def print_with(log: dg.DagsterLogManager, console: logging.Logger) -> None:
    """Put a logger in the place of Dagster's own, unless the run's configuration asks for others.

    Dagster takes a job's logger from the configuration of each run alone, which `dagster job execute` leaves empty.
    """
    handler = log._dagster_handler
    if [logger.name for logger in handler._loggers] == ["dagster"]:
        handler._loggers = [console]


def list_under_job(instance: dg.DagsterInstance, run_id: str) -> None:
    """Give a run that `dagster job execute -m MODULE` started the code location that it would have from the UI.

    Without one the UI lists it neither on a job's page (which asks for the tag `.dagster/repository`) nor on the
    landing page (which leaves runs without a repository out). A run of a file or a test, or one that has its code
    location, is left as it is.
    """
    run = instance.get_run_by_id(run_id)
    if run is None or run.remote_job_origin is not None or run.job_code_origin is None:
        return
    pointer = run.job_code_origin.repository_origin.code_pointer
    if not isinstance(pointer, ModuleCodePointer):
        return
    location = ManagedGrpcPythonEnvCodeLocationOrigin(
        LoadableTargetOrigin(module_name=pointer.module, working_directory=str(Path.cwd())),
        location_name=pointer.module,
    )
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME), run.job_name)
    label = origin.repository_origin.get_label()
    instance.add_run_tags(run_id, {REPOSITORY_LABEL_TAG: label, CODE_LOCATION_TAG: pointer.module})
    tagged = instance.get_run_by_id(run_id)
    assert tagged is not None
    instance.run_storage.replace_job_origin(tagged, origin)


def code_reference(file: str, line: int) -> dict[str, Any]:
    """Metadata of an asset that links it to its source.

    `dagster.with_source_code_references` would name the file of the decorator that wraps an asset's function.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # Dagster's, about these two classes
        place = dg.LocalFileCodeReference(file_path=file, line_number=line)
        value = dg.CodeReferencesMetadataValue(code_references=[place])
    return dict(CodeReferencesMetadataSet(code_references=value))
