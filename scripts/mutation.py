"""Mutation testing of the curation core: changes its code in small ways and sees whether the fast tests notice.

    .venv/bin/python scripts/mutation.py [--mutants N] [--minutes M] [--seed S] [--modules NAME ...] [--output FILE]

cosmic-ray finds the mutants of MODULES; a seeded sample of them is tried one by one on a copy of the sources, until
the time is over. What no test notices survives, and is printed with its change. cosmic-ray lives in an environment of
its own (.mutation/), which sees the packages of the one that runs this script.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COSMIC_RAY = "cosmic-ray==8.7.0"
MODULES = sorted(
    file.relative_to(ROOT).as_posix()
    for file in (ROOT / "dt2it_pipeline" / "curate" / "joint").glob("*.py")
    if file.name != "__init__.py"
)
_SLOW = "dt2it_pipeline_tests/curate/joint/test_model.py::test_probabilities_are_those_of_brute_force[0]"
TESTS = [
    "dt2it_pipeline_tests/curate/joint",
    "dt2it_pipeline_tests/curate/policies/test_joint.py",
    f"--deselect={_SLOW}",
]
COPIED = ("dt2it_pipeline", "dt2it_pipeline_tests", "configs", "pyproject.toml")
TIMES_SLOWER = 3.0  # than without a mutant: a test run that computes longer hangs, which counts as noticed
_BUSY = 10  # times as long as it computes may a run take, where other programs have the processor
_BOUNDED = """
import os, resource, sys
seconds = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[2:]])
"""  # a program that runs the tests and ends when they have computed for so long


def environment() -> Path:
    """Python of the environment that holds cosmic-ray; made where it is not there."""
    place = ROOT / ".mutation"
    python = place / "bin" / "python"
    marker = place / COSMIC_RAY
    if not marker.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", COSMIC_RAY], check=True)
        own = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        Path(own, "project.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        marker.touch()
    return python


def test_command(python: Path, program: Path, seconds: int) -> str:
    """What is run for every mutant; it ends at the first test that fails, or after so many seconds of a processor."""
    return f"{python} {program} {seconds} -x -q -p no:cacheprovider {' '.join(TESTS)}"


def sample(session: Path, count: int, seed: int) -> int:
    """Keep a seeded sample of the session's mutants; returns how many there were."""
    with closing(sqlite3.connect(session)) as database, database:
        rows = database.execute(
            "SELECT job_id, module_path, operator_name, occurrence FROM mutation_specs "
            "ORDER BY module_path, operator_name, occurrence, start_pos_row, start_pos_col"
        ).fetchall()
        kept = {row[0] for row in random.Random(seed).sample(rows, min(count, len(rows)))}
        gone = [(row[0],) for row in rows if row[0] not in kept]
        for table in ("mutation_specs", "work_items"):
            database.executemany(f"DELETE FROM {table} WHERE job_id = ?", gone)
    return len(rows)


def results(session: Path) -> list[dict[str, str]]:
    """What became of the mutants that were tried: outcome, module, line and change."""
    with closing(sqlite3.connect(session)) as database:
        rows = database.execute(
            "SELECT test_outcome, worker_outcome, module_path, start_pos_row, operator_name, diff FROM work_results "
            "JOIN mutation_specs USING (job_id) ORDER BY module_path, start_pos_row, operator_name"
        ).fetchall()
    names = ("test", "worker", "module", "line", "operator", "diff")
    return [dict(zip(names, map(str, row), strict=True)) for row in rows]


def _computed() -> float:
    """Seconds of a processor that ended child processes have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def wilson(share: float, count: int) -> tuple[float, float]:
    """95% confidence interval of a share."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half


def main() -> None:
    """Try a sample of mutants and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=200, help="how many are drawn")
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no further one is tried")
    parser.add_argument("--seed", type=int, default=0)
    names = {Path(module).stem: module for module in MODULES}
    parser.add_argument("--modules", nargs="+", choices=names, default=list(names), help="that are changed")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    given = parser.parse_args()
    python = environment()
    with tempfile.TemporaryDirectory(prefix="mutation") as folder:
        place = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, place / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, place / name)
        variables = os.environ | {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        program = place / "bounded.py"
        program.write_text(_BOUNDED, encoding="utf-8")
        before = _computed()
        first = subprocess.run(test_command(python, program, 3600).split(), cwd=place, env=variables)
        spent = _computed() - before
        if first.returncode:
            raise SystemExit("error: the tests fail without a mutant; mend them first")
        bound = math.ceil(TIMES_SLOWER * spent + 10)
        settings = {
            "module-path": [names[name] for name in given.modules],
            "timeout": _BUSY * bound,
            "excluded-modules": [],
            "test-command": test_command(python, program, bound),
        }
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
        config, session = place / "cosmic-ray.toml", place / "session.sqlite"
        config.write_text(f'[cosmic-ray]\n{"".join(lines)}[cosmic-ray.distributor]\nname = "local"\n', encoding="utf-8")
        command = [str(python), "-c", "from cosmic_ray.cli import main; main()"]
        subprocess.run([*command, "init", config.name, session.name], cwd=place, env=variables, check=True)
        there = sample(session, given.mutants, given.seed)
        print(f"{there} mutants, of which {given.mutants} are drawn; the tests compute for {spent:.0f} s", flush=True)
        with suppress(subprocess.TimeoutExpired):  # what has been tried by then counts
            subprocess.run(
                [*command, "exec", config.name, session.name],
                cwd=place, env=variables, check=True, timeout=60 * given.minutes,
            )  # fmt: skip
        found = results(session)
    report(found, there)
    if given.output is not None:
        given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def report(found: list[dict[str, str]], there: int) -> None:
    """Print the score and the mutants that survived."""
    outcomes = Counter(row["test"].rpartition(".")[2].lower() for row in found)
    tried = outcomes["killed"] + outcomes["survived"]
    for row in found:
        if row["test"].lower().endswith("survived"):
            print(f"\nsurvived: {row['module']}:{row['line']} {row['operator']}\n{row['diff']}")
    if not tried:
        raise SystemExit("error: no mutant was tried; give more --minutes")
    share = outcomes["killed"] / tried
    low, high = wilson(share, tried)
    print(
        f"\n{tried} of {there} mutants tried, {outcomes['killed']} noticed: {share:.0%} "
        f"({low:.0%} to {high:.0%}); {outcomes['incompetent']} did not run"
    )


if __name__ == "__main__":
    main()
