"""What a team copies from deploy/: files that agree with the package and with each other, and scripts that run.

There is no container runtime here, so no image is built. What the image would run is run from the files that it copies.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from dt2it_pipeline_tests.support.commands import dt2it
from dt2it_pipeline_tests.support.documents import ROOT

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, in order; comments and continued lines are gone."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def load(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text(encoding="utf-8"))


# the image


def test_the_image_stands_on_a_pinned_base_and_runs_as_no_root() -> None:
    found = instructions()
    base = dict(pair.split("=", 1) for kind, pair in found if kind == "ARG" and "=" in pair)["PYTHON_IMAGE"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base), base
    kinds = [kind for kind, _ in found]
    user = kinds.index("USER")
    assert found[user][1] == "dt2it" and "USER" not in kinds[user + 1 :]
    installs = [n for n, (kind, text) in enumerate(found) if kind == "RUN" and "install.py" in text]
    assert installs and all(n > user for n in installs)


def test_the_image_installs_as_make_does_with_extras_that_there_are() -> None:
    (command,) = [text for kind, text in instructions() if kind == "RUN" and "install.py" in text]
    python, script, venv, engines, *extras = shlex.split(command)
    assert re.search(rf"\$\(PYTHON\) {script} \$\(VENV\) \$\(ENGINES\)", (ROOT / "Makefile").read_text())
    assert (python, engines) == ("python3", "${ENGINES}")
    assert set(extras) | {"cpu", "gpu"} <= set(PROJECT["optional-dependencies"])
    path = next(text for kind, text in instructions() if kind == "ENV")
    assert f"PATH=/opt/dt2it/{venv}/bin:" in path


def copied(folder: Path) -> Path:
    """A folder with the files that the image copies, at their places there, without what .dockerignore leaves out."""
    kept = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    for kind, text in instructions():
        if kind == "COPY":
            *sources, target = [word for word in text.split() if not word.startswith("--")]
            for source in sources:
                assert any(source == each or source.startswith(f"{each}/") for each in kept), f"{source} is left out"
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, folder / target, symlinks=True)
                else:
                    shutil.copy(ROOT / source, folder / target)
    return folder


def test_what_the_image_copies_is_enough(tmp_path: Path) -> None:
    """Definitions load from it, for the recipe that the Helm values name, with nothing of this checkout in sight."""
    place = copied(tmp_path)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("DT2IT_", "DAGSTER_"))}
    own |= {"PYTHONPATH": str(place), "DT2IT_PROJECT": str(place), "DT2IT_HOME": str(place / "home")}
    check = (
        "import dt2it_pipeline.definitions as d; from dt2it_pipeline import load_recipe; "
        "print(d.__file__, len(d.defs.assets), load_recipe('qwen3_vl_8b').name)"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=place, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, assets, recipe = done.stdout.split()
    assert file.startswith(str(place)) and int(assets) > 15 and recipe == "qwen3_vl_8b"


def test_dagsters_settings_are_those_of_a_teams_project(tmp_path: Path) -> None:
    dt2it("init", tmp_path / "ours", "--postgres")
    assert load("dagster.yaml") == yaml.safe_load((tmp_path / "ours/dagster.yaml").read_text())


# compose


def test_compose_has_no_password_and_runs_programs_that_there_are() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    services = load("compose.yaml")["services"]
    assert set(services) == {"webserver", "daemon", "postgres", "objects", "bucket"}
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if "PASSWORD" in variable or "SECRET" in variable:
                assert re.fullmatch(r"\$\{\w+:\?.+\}", value), f"{name}: {variable} has a value"
        if "build" not in service:
            assert re.search(r":[\w.-]*\d[\w.-]*$", service["image"]), f"{service['image']} is not pinned"
    asked = set(re.findall(r"\$\{(\w+)", text))
    offered = set(re.findall(r"^#? ?(\w+)=", (DEPLOY / "example.env").read_text(), re.M))
    assert asked - {"DT2IT_TAG"} == offered
    variables = set(services["daemon"]["environment"])
    stored = load("dagster.yaml")["storage"]["postgres"]["postgres_db"]
    assert {each["env"] for each in stored.values() if isinstance(each, dict)} <= variables
    (command,) = [text for kind, text in instructions() if kind == "CMD"]
    for program, *options in (yaml.safe_load(command), services["daemon"]["command"]):
        assert (Path(sys.executable).parent / program).is_file(), program
        assert options[-2:] == ["--workspace", "workspace.yaml"]
    for build in (service["build"] for service in services.values() if "build" in service):
        assert (ROOT / build["dockerfile"]).is_file() and set(build["args"]) <= set(
            re.findall(r"ARG (\w+)", DOCKERFILE)
        )


# Kubernetes


def documents(file: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(file.read_text(encoding="utf-8")) if each]


def valid(manifest: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    validate.validate(manifest, "1.31", strict=True)


def as_pod(template: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_manifests_are_ones_that_kubernetes_takes(file: Path) -> None:
    for manifest in documents(file):
        if manifest["apiVersion"].startswith("ray.io/"):  # the operator's own kinds; their pods are Kubernetes'
            cluster = manifest["spec"]["rayClusterSpec"]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                assert all(isinstance(value, str) for value in group["rayStartParams"].values())
                valid(as_pod(group["template"]))
        else:
            valid(manifest)


def test_the_ray_jobs_command_is_one_of_ours_and_its_ray_the_extras() -> None:
    (job,) = documents(DEPLOY / "kubernetes/ray.yaml")
    assert shlex.split(job["spec"]["entrypoint"])[:3] == ["dt2it", "run", "round"]
    (wanted,) = PROJECT["optional-dependencies"]["ray"]
    assert job["spec"]["rayClusterSpec"]["rayVersion"].startswith(wanted.partition(">=")[2].partition(",")[0])


def test_helm_values_agree_with_dagsters_settings_and_their_pods_are_valid() -> None:
    values, settings = load("helm/values.yaml"), load("dagster.yaml")
    scheme = settings["storage"]["postgres"]["postgres_db"]["scheme"]
    assert values["postgresql"]["postgresqlScheme"] == scheme
    more = values["additionalInstanceConfig"]
    assert more["concurrency"] == settings["concurrency"] and more["nux"] == settings["nux"]
    logs = values["computeLogManager"]["config"]["customComputeLogManager"]
    for ours, theirs in ((more["local_artifact_storage"], "local_artifact_storage"), (logs, "compute_logs")):
        assert {key: ours[key] for key in ("module", "class")} == {
            key: settings[theirs][key] for key in ("module", "class")
        }
    (code,) = values["dagster-user-deployments"]["deployments"]
    assert code["dagsterApiGrpcArgs"] == ["--module-name", "dt2it_pipeline.definitions"]
    home = {each["name"]: each["value"] for each in code["env"]}["DT2IT_HOME"]
    assert home == logs["config"]["base_dir"] == more["local_artifact_storage"]["config"]["base_dir"]
    (claim,) = documents(DEPLOY / "kubernetes/home.yaml")
    assert code["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    raw = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    container = {"name": "run", "image": "x", **raw["containerConfig"]}
    valid(as_pod({"spec": {**raw["podSpecConfig"], "containers": [container]}}))
    chart = re.search(r"--version (\S+)", (DEPLOY / "helm/values.yaml").read_text())
    (dagster,) = [each for each in PROJECT["dependencies"] if each.startswith("dagster>")]
    assert chart is not None and dagster.startswith(f"dagster>={chart[1]},")


# Slurm


def test_the_batch_script_writes_a_hostfile_with_its_own_node_first(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    (tmp_path / ".venv/bin").mkdir(parents=True)
    programs.mkdir()
    for path, text in (
        (programs / "hostname", "echo node2"),
        (programs / "scontrol", '[ "$*" = "show hostnames node[1-3]" ] && printf "node1\\nnode2\\nnode3\\n"'),
        (tmp_path / ".venv/bin/dt2it", 'echo "$@"'),
    ):
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    own = {
        "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_NODELIST": "node[1-3]", "DT2IT_HOME": "/shared",
    }  # fmt: skip
    command = ["bash", str(DEPLOY / "slurm/round.sbatch")]
    done = subprocess.run([*command, "1"], env=own, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "run round --round 1\n"), done.stderr
    assert (tmp_path / "hosts.txt").read_text() == "node2 slots=4\nnode1 slots=4\nnode3 slots=4\n"
    alone = subprocess.run(command, env=own, cwd=tmp_path, capture_output=True, text=True)
    assert alone.returncode != 0 and "usage: sbatch" in alone.stderr
