"""Programs in the place of `srun`, `scancel` and `kubectl` that really run a job's command, here and in a session of
its own, as a node would. They write down what they were asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

_START = """\
#!{python}
import json, os, signal, subprocess, sys, time
from pathlib import Path
folder = Path({folder!r})
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
options = [each for each in sys.argv[1:] if each.startswith("-")]
rest = [each for each in sys.argv[1:] if not each.startswith("-")]
def option(name):
    return next((each.partition("=")[2] for each in options if each.startswith(name + "=")), None)
def end(name):
    file = folder / (name + ".pid")
    if file.exists():
        try:
            os.killpg(int(file.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
"""

_SRUN = """\
name = option("--job-name")
if option("--partition") == "none":
    sys.exit("srun: error: invalid partition specified: none\\nallocation failure: Invalid partition name specified")
if "--test-only" in options:
    print("srun: Job 6 to start at 2026-11-28T08:03:16 using 1 processors on nodes n1 in partition p", file=sys.stderr)
    sys.exit(0)
command = sys.argv[next(n for n, each in enumerate(sys.argv) if n and not each.startswith("-")):]
process = subprocess.Popen(command, start_new_session=True)
(folder / (name + ".pid")).write_text(str(process.pid))
code = process.wait()
sys.exit(128 - code if code < 0 else code)
"""

_SCANCEL = """\
end(option("--name"))
"""

_KUBECTL = """\
name = next((each.partition("/")[2] for each in rest if each.startswith("job/")), None)
if rest[0] == "create":
    manifest = json.load(sys.stdin)
    if option("--namespace") == "gone":
        sys.exit('Error from server (NotFound): error when creating "STDIN": namespaces "gone" not found')
    if option("--dry-run") == "server":
        sys.exit(0)
    name = manifest["metadata"]["name"]
    (folder / (name + ".json")).write_text(json.dumps(manifest))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    own = {each["name"]: each["value"] for each in container["env"]}
    own |= {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}  # the image's
    with (folder / (name + ".log")).open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", '"$@"; echo $? > ' + str(folder / (name + ".code")), "bash", *container["command"]], env=own,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )
    (folder / (name + ".pid")).write_text(str(process.pid))
elif rest[0] == "logs":
    while not (folder / (name + ".code")).exists():
        time.sleep(0.1)
    print((folder / (name + ".log")).read_text())
elif rest[0] == "get" and rest[1] == "persistentvolumeclaim/gone":
    sys.exit('Error from server (NotFound): persistentvolumeclaims "gone" not found')
elif rest[0] == "get" and rest[1] == "secret/hidden":
    sys.exit('Error from server (Forbidden): secrets "hidden" is forbidden')
elif rest[0] == "get" and name:
    code = folder / (name + ".code")
    found = {} if not code.exists() else {"succeeded": 1} if code.read_text().strip() == "0" else {"failed": 1}
    print(json.dumps({"status": found}))
elif rest[0] == "delete":
    end(name)
"""


def install(folder: Path, *names: str) -> Path:
    """Put the programs into `folder`/bin and return it; what they are asked for is in `folder`/calls."""
    programs = {"srun": _SRUN, "scancel": _SCANCEL, "kubectl": _KUBECTL}
    place = folder / "bin"
    place.mkdir(parents=True, exist_ok=True)
    for name in names or programs:
        file = place / name
        file.write_text(_START.format(python=sys.executable, folder=str(folder), name=name) + programs[name])
        file.chmod(0o755)
    return place


def calls(folder: Path) -> list[list[str]]:
    """The programs that were called, each with its arguments."""
    file = folder / "calls"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
