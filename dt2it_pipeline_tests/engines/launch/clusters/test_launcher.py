"""Jobs through Slurm and Kubernetes: the programs are fakes, the jobs they start are real processes."""

from __future__ import annotations

import doctest
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dt2it_pipeline.config.sections.launcher import KubernetesSettings, LauncherSettings, SlurmSettings
from dt2it_pipeline.engines.launch.clusters import kubernetes, slurm
from dt2it_pipeline.engines.launch.clusters.launcher import ClusterLauncher
from dt2it_pipeline.engines.launch.launcher import JobFailed, LauncherError, Resources
from dt2it_pipeline.engines.launch.worker import PARENT_PID
from dt2it_pipeline_tests.support.child_jobs import Crash, Echo, Killed, Rank
from dt2it_pipeline_tests.support.fake_clusters import calls, install
from dt2it_pipeline_tests.support.processes import alive, wait_until

SLURM = SlurmSettings(kind="slurm", gpus=2, cpus=3, memory="8G", partition="p", options=("--qos=high",))
KUBERNETES = KubernetesSettings(
    kind="kubernetes", image="registry.example/dt2it:1", namespace="team", volume_claim="home", mount_path="/data",
    secret="keys", gpus=2, cpus=3, memory="8G", node_selector={"gpu": "h100"},
)  # fmt: skip
BOTH = pytest.mark.parametrize("settings", [SLURM, KUBERNETES], ids=["slurm", "kubernetes"])


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cluster whose programs come first on the path."""
    folder = tmp_path / "cluster"
    monkeypatch.setenv("PATH", f"{install(folder)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("DT2IT_HOME", "/data/home")
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@BOTH
def test_a_job_runs_and_its_summary_comes_back(settings: LauncherSettings, cluster: Path, work: Path) -> None:
    summary = ClusterLauncher(settings).launch(Echo(value=21), work=work, resources=Resources(1, gpus=1))
    assert summary["doubled"] == 42
    assert summary["pid"] not in (os.getpid(), None)


@BOTH
def test_an_error_comes_back_with_its_words(settings: LauncherSettings, cluster: Path, work: Path) -> None:
    with pytest.raises(JobFailed, match=r"crash ended with code 1: ValueError: the job's own words$") as caught:
        ClusterLauncher(settings).launch(Crash(attempts=work / "attempts"), work=work)
    assert not caught.value.was_killed
    assert ClusterLauncher(settings).launch(Echo(value=1), work=work)["doubled"] == 2


def test_a_job_that_is_killed_there_may_be_tried_again(cluster: Path, work: Path) -> None:
    with pytest.raises(JobFailed, match="signal SIGKILL") as caught:
        ClusterLauncher(SLURM).launch(Killed(attempts=work / "attempts"), work=work)
    assert caught.value.was_killed


def test_srun_is_asked_for_what_the_settings_say(cluster: Path, work: Path) -> None:
    ClusterLauncher(SLURM).launch(Echo(value=1), work=work)
    ((program, *options),) = calls(cluster)
    assert program == "srun" and options[-4:-1] == [
        sys.executable, "-m", "dt2it_pipeline.engines.launch.worker"
    ]  # fmt: skip
    assert {"--gpus-per-node=2", "--cpus-per-task=3", "--mem=8G", "--partition=p", "--qos=high"} <= set(options)


def test_a_partition_that_is_not_there_is_named(cluster: Path, work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobFailed, match="its output in this step's log may say why"):
        ClusterLauncher(SLURM.model_copy(update={"partition": "none"})).launch(Echo(value=1), work=work)
    assert "invalid partition" in capfd.readouterr().err


def test_the_jobs_manifest_is_one_that_kubernetes_takes(cluster: Path, work: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    ClusterLauncher(KUBERNETES).launch(Echo(value=1), work=work)
    manifest = json.loads((cluster / "manifest.json").read_text())
    validate.validate(manifest, "1.31", strict=True)
    pod: dict[str, Any] = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "8G", "nvidia.com/gpu": "2"}
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables["DT2IT_HOME"] == "/data/home" and variables["OMP_NUM_THREADS"] == "3"
    assert "secret" not in json.dumps(variables) and PARENT_PID not in variables
    # It is removed in the end, and its name is no other job's.
    assert ["kubectl", "--namespace=team", "delete", f"job/{manifest['metadata']['name']}"] == calls(cluster)[-1][:4]
    ClusterLauncher(KUBERNETES).launch(Echo(value=1), work=work)
    assert json.loads((cluster / "manifest.json").read_text())["metadata"]["name"] != manifest["metadata"]["name"]


@BOTH
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_job_outlives_the_process_that_launched_it(
    settings: LauncherSettings, how: signal.Signals, cluster: Path, work: Path
) -> None:
    script = (
        "import json, sys\nfrom pathlib import Path\nfrom pydantic import TypeAdapter\n"
        "from dt2it_pipeline.config.sections.launcher import LauncherSettings\n"
        "from dt2it_pipeline.engines.launch.clusters.launcher import ClusterLauncher\n"
        "from dt2it_pipeline_tests.support.child_jobs import Hang\n"
        f"settings = TypeAdapter(LauncherSettings).validate_python(json.loads({settings.model_dump_json()!r}))\n"
        f"work = Path({str(work)!r})\n"
        "ClusterLauncher(settings).launch(Hang(pids=work / 'pids'), work=work)\n"
    )
    step = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    wait_until(lambda: (work / "pids").exists() and (work / "pids").read_text(), 120)
    pids = [int(pid) for pid in (work / "pids").read_text().split()]
    assert all(alive(pid) for pid in pids)
    os.kill(step.pid, how)
    step.wait(60)
    wait_until(lambda: not any(alive(pid) for pid in pids), 60)


def test_without_the_program_the_message_names_it(
    work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(work))
    with pytest.raises(JobFailed, match="ended with code 127"):
        ClusterLauncher(SLURM).launch(Echo(value=1), work=work)
    assert "there is no srun on this machine, which launcher.kind: slurm needs" in capfd.readouterr().out


def test_what_a_launcher_cannot_give_is_refused_before_anything_starts(cluster: Path, work: Path) -> None:
    with pytest.raises(LauncherError, match=r"launcher\.gpus is 2, and training\.processes asks for 4"):
        ClusterLauncher(SLURM).launch(
            Rank(folder=work), work=work, resources=Resources(4, gpus=1, settings="training.processes")
        )
    with pytest.raises(LauncherError, match=r"training\.hostfile and launcher cannot both be set"):
        ClusterLauncher(SLURM).launch(Echo(value=1), work=work, resources=Resources(hostfile=work / "hosts"))
    assert not calls(cluster)


@pytest.mark.parametrize(
    "wrong", [{"partition": "p; rm -rf /"}, {"memory": "8 GB"}, {"time_limit": "a day"}, {"gpus": -1}, {"image": "x"}]
)
def test_settings_that_are_no_such_thing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SlurmSettings.model_validate({"kind": "slurm", **wrong})


@pytest.mark.parametrize("module", [slurm, kubernetes])
def test_examples_are_right(module: Any) -> None:
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)
