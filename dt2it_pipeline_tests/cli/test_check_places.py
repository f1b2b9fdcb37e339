"""What `dt2it check` says of the object store and of the places where jobs run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dt2it_pipeline.cli.checks.lines import Line
from dt2it_pipeline.cli.checks.places import launcher_lines, object_store_lines
from dt2it_pipeline.config.recipe import Recipe, parse_recipe
from dt2it_pipeline.engines.launch.clusters import launcher as cluster
from dt2it_pipeline.storage.home.object_store import ObjectStore, ObjectStoreError
from dt2it_pipeline_tests.support.commands import invoke
from dt2it_pipeline_tests.support.fake_clusters import calls, install
from dt2it_pipeline_tests.support.processes import wait_until
from dt2it_pipeline_tests.support.s3_server import BUCKET, s3_server

RECIPE = "name: mine\ndatasets: [prompts]\nannotation: {judges: [{name: a}, {name: b}]}\n"
PODS = "kind: kubernetes, image: 'x:1', mount_path: /data"


def recipe(more: str = "") -> Recipe:
    return parse_recipe(RECIPE + more)


def launcher(settings: str, home: str = "/data/home") -> Line:
    (line,) = launcher_lines(recipe(f"launcher: {{{settings}}}\n"), Path(home))
    return line


def store_line(monkeypatch: pytest.MonkeyPatch, url: str) -> Line:
    monkeypatch.setenv("DT2IT_OBJECT_STORE", url)
    (line,) = object_store_lines()
    return line


# the object store


def test_without_an_object_store_there_is_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DT2IT_OBJECT_STORE", raising=False)
    assert not list(object_store_lines())


def test_an_s3_store_is_written_and_read_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{BUCKET}/project"
        line = store_line(monkeypatch, url)
        assert line.level == "ok" and f"{url}: a small object was written, read and removed" in line.text
        files = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
        assert files.find(f"{BUCKET}/project") == []  # other tests of this process have objects elsewhere in it
        line = store_line(monkeypatch, "s3://no-such-bucket/project")
    assert line.level == "error" and "no-such-bucket/project cannot be used" in line.text
    assert "bucket does not exist" in line.text and "unset DT2IT_OBJECT_STORE" in line.text


def test_a_store_that_never_answers_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        with pytest.raises(
            ObjectStoreError, match=r"s3://bucket does not answer within 1 s; .*unset DT2IT_OBJECT_STOR"
        ):
            ObjectStore("s3://bucket").try_out(1)


def test_a_folder_that_cannot_be_one_and_a_protocol_that_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    line = store_line(monkeypatch, (tmp_path / "file").as_uri())
    assert line.level == "error" and "cannot be used" in line.text
    assert store_line(monkeypatch, (tmp_path / "shared").as_uri()).level == "ok"
    assert not [path for path in (tmp_path / "shared").rglob("*") if path.is_file()]
    assert "Protocol not known: s4" in store_line(monkeypatch, "s4://bucket").text


@pytest.mark.parametrize("url", ["file://shared/project", "shared/project", "file:shared/project", "s3:bucket"])
def test_a_folder_that_would_depend_on_where_a_run_is_started_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    line = store_line(monkeypatch, url)
    assert line.level == "error" and f"{url}: its path is not absolute; write file:///FOLDER" in line.text
    assert not list(tmp_path.iterdir())


class Keeps(MemoryFileSystem):
    """Files that nobody may remove."""

    protocol = "keeps"

    def rm_file(self, path: str) -> None:
        raise PermissionError("removal is not allowed")


def test_a_store_that_lets_nothing_be_removed_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("keeps", Keeps, clobber=True)
    line = store_line(monkeypatch, "keeps://place")
    assert line.level == "warning" and "written and read, but" in line.text and "removal is not allowed" in line.text


class Hides(MemoryFileSystem):
    """Files that nobody may read."""

    protocol = "hides"

    def cat_file(self, path: str, *given: Any, **named: Any) -> bytes:
        raise PermissionError("reading is not allowed")


def test_an_object_that_cannot_be_read_is_removed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("hides", Hides, clobber=True)
    line = store_line(monkeypatch, "hides://hidden")
    assert line.level == "error" and "reading is not allowed" in line.text
    assert not [path for path in Hides().find("/") if "hidden" in path]


# launchers


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cluster whose programs come first on the path."""
    folder = tmp_path / "cluster"
    monkeypatch.setenv("PATH", f"{install(folder)}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_without_a_launcher_jobs_run_here() -> None:
    (line,) = launcher_lines(recipe(), Path("/data"))
    assert (line.level, line.text) == ("ok", "jobs are processes of this machine")


@pytest.mark.parametrize("settings", ["kind: slurm, partition: p, gpus: 2", f"{PODS}, volume_claim: home"])
def test_a_cluster_is_asked_and_no_job_started(settings: str, fakes: Path) -> None:
    line = launcher(settings)
    assert line.level == "ok" and "the cluster would take a job" in line.text
    asked = calls(fakes)
    assert asked and not list(fakes.glob("*.pid"))
    first = asked[0]
    assert ("--test-only" in first and "--gpus-per-node=2" in first) or "--dry-run=server" in first


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("kind: slurm, partition: none", "srun says that the cluster would not take a job (launcher.kind: slurm): "
         "srun: error: invalid partition specified: none; allocation failure"),
        (f"{PODS}, volume_claim: home, namespace: gone", 'namespaces "gone" not found'),
        (f"{PODS}, volume_claim: gone", 'persistentvolumeclaims "gone" not found'),
    ],
)  # fmt: skip
def test_what_a_cluster_refuses_is_said_in_its_words(settings: str, words: str, fakes: Path) -> None:
    line = launcher(settings)
    assert line.level == "error" and words in line.text and "docs/how-to/deploy.md" in line.advice
    assert not list(fakes.glob("*.pid"))


def test_what_the_account_may_not_see_is_no_fault(fakes: Path) -> None:
    assert launcher(f"{PODS}, volume_claim: home, secret: hidden").level == "ok"
    assert any("secret/hidden" in call for call in calls(fakes))


def test_an_artifact_home_that_pods_would_not_see(fakes: Path) -> None:
    line = launcher(f"{PODS}, volume_claim: home", "/home/me/data")
    assert line.level == "error" and "/home/me/data does not lie below launcher.mount_path (/data)" in line.text


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launcher("kind: slurm").text.startswith("srun and scancel not found on this machine")
    monkeypatch.setenv("PATH", str(install(tmp_path, "srun")))
    assert launcher("kind: slurm").text.startswith("scancel not found on this machine")
    (line,) = launcher_lines(recipe("training: {hostfile: hosts.txt, cache_vision: false}\n"), Path("/data"))
    assert line.level == "error" and "training.hostfile is set, and pdsh and ssh not found" in line.text


def test_a_program_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = install(tmp_path, "srun", "scancel")
    (place / "srun").write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setattr("dt2it_pipeline.engines.launch.clusters.job.CALL_SECONDS", 1)
    monkeypatch.setattr(cluster, "CALL_SECONDS", 1)
    assert "srun does not answer within 1 s" in launcher("kind: slurm").text


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_real_kubectl_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}]\n"
        "contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\n"
    )
    monkeypatch.setenv("KUBECONFIG", str(config))
    line = launcher(f"{PODS}, volume_claim: home")
    assert line.level == "error" and "refused" in line.text and len(line.text) < 700


@pytest.mark.skipif(shutil.which("srun") is None, reason="Slurm is not installed")
def test_the_real_slurm() -> None:
    """On a machine with a partition that takes small jobs."""
    assert launcher("kind: slurm, cpus: 1").level == "ok"
    line = launcher("kind: slurm, cpus: 1, partition: no_such_partition")
    assert line.level == "error" and "nvalid partition" in line.text


# Ray


def test_ray_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    *_, line = launcher_lines(recipe("ray: {address: '127.0.0.1:9'}\n"), Path("/data"))
    assert line.level == "error" and "no Ray cluster answers at ray.address 127.0.0.1:9" in line.text
    *_, line = launcher_lines(recipe("ray: {workers: 2}\n"), Path("/data"))
    assert (line.level, line.text) == ("ok", "each step starts Ray on this machine")
    *_, line = launcher_lines(recipe("ray: {gpus_per_worker: 64}\n"), Path("/data"))
    assert line.level == "error" and "ray.gpus_per_worker is 64, and this machine shows" in line.text


@pytest.mark.heavy
@pytest.mark.parametrize("access", ["RAY_AUTH_MODE=disabled", "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=the-tests-own-token"])
def test_a_ray_cluster_is_looked_at_and_nothing_started_on_it(tmp_path: Path, access: str) -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray = Path(sys.executable).with_name("ray")
    own = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        **dict(mode.split("=") for mode in access.split()),
        "RAY_TMPDIR": f"/tmp/ray{os.getpid()}",
    }
    command = [
        ray,
        "start",
        "--head",
        f"--port={port}",
        "--num-cpus=3",
        "--node-ip-address=127.0.0.1",
        "--include-dashboard=false",
        "--block",
    ]
    head = subprocess.Popen(
        command, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until(lambda: accepts(port), 180)
        wait_until(lambda: "answers" in dt2it_lines(f"127.0.0.1:{port}", 2, own), 180)  # its machine joins it last
        found = dt2it_lines(f"127.0.0.1:{port}", 2, own)
        assert "room for 1 of 2 workers" in found and "3 CPUs and 0 GPUs" in found
        assert dt2it_lines(f"127.0.0.1:{port}", 4, own).startswith("warning")
        if "token" in access:
            nobody = {**own, "HOME": str(tmp_path)}
            del nobody["RAY_AUTH_TOKEN"]
            for other in ({**own, "RAY_AUTH_TOKEN": "another-one"}, {**own, "RAY_AUTH_MODE": "disabled"}, nobody):
                started = time.monotonic()
                found = dt2it_lines(f"127.0.0.1:{port}", 2, other)
                assert found.startswith(f"error the Ray cluster at ray.address 127.0.0.1:{port} asks for a token, and")
                assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to" in found
                assert time.monotonic() - started < 9  # Ray's own tries take ten seconds
    finally:
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait(60)
        shutil.rmtree(own["RAY_TMPDIR"], ignore_errors=True)


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def dt2it_lines(address: str, cpus: int, own: dict[str, str]) -> str:
    """The line about Ray as a process of its own says it, which ends with its connection."""
    script = (
        "from pathlib import Path; from dt2it_pipeline.cli.checks.places import launcher_lines\n"
        "from dt2it_pipeline.config.recipe import parse_recipe\n"
        f"text = {RECIPE!r} + 'ray: {{address: \"{address}\", cpus_per_worker: {cpus}}}'\n"
        "*_, line = launcher_lines(parse_recipe(text), Path('/data')); print(line.level, line.text)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=own, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# the command


def test_the_command_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs/recipes").mkdir(parents=True)
    (tmp_path / "configs/recipes/mine.yaml").write_text(RECIPE + "launcher: {kind: slurm}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DT2IT_RECIPE", raising=False)  # `make test` sets it
    monkeypatch.setenv("DT2IT_OBJECT_STORE", (tmp_path / "shared").as_uri())
    monkeypatch.setenv("PATH", str(tmp_path))
    shown = invoke("check")
    text = " ".join(shown.stdout.split())
    assert shown.exit_code == 1 and "ERROR launcher: srun and scancel not found on this machine" in text
    assert "OK object store: file://" in text
