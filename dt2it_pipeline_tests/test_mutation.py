"""scripts/mutation.py: a seeded sample, and a score of what was tried; trying itself is `make mutation`."""

import importlib.util
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "mutation.py"
spec = importlib.util.spec_from_file_location("mutation", SCRIPT)
mutation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutation)


def session(folder, count=50):
    """A session as cosmic-ray 8.7 begins one: a row in two tables per mutant, none tried."""
    file = folder / "session.sqlite"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE work_items (job_id TEXT PRIMARY KEY)")
        database.execute(
            "CREATE TABLE mutation_specs (job_id TEXT, module_path TEXT, operator_name TEXT, occurrence INTEGER, "
            "start_pos_row INTEGER, start_pos_col INTEGER)"
        )
        database.execute(
            "CREATE TABLE work_results (job_id TEXT, test_outcome TEXT, worker_outcome TEXT, diff TEXT, output TEXT)"
        )
        for number in range(count):
            key = f"job-{(number * 37) % 101}-{folder.name}"  # of every session others
            database.execute("INSERT INTO work_items VALUES (?)", (key,))
            database.execute("INSERT INTO mutation_specs VALUES (?, 'm.py', 'op', ?, ?, 0)", (key, number, number))
    return file


def rows(file, what="SELECT occurrence FROM mutation_specs JOIN work_items USING (job_id) ORDER BY 1"):
    with closing(sqlite3.connect(file)) as database:
        return database.execute(what).fetchall()


def test_a_sample_is_the_same_for_a_seed_whatever_the_mutants_are_called(tmp_path):
    drawn = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        file = session(tmp_path / name)
        assert mutation.sample(file, 10, seed) == 50
        drawn[name] = rows(file)
        assert rows(file, "SELECT count(*) FROM work_items") == [(10,)]
    assert drawn["a"] == drawn["b"] != drawn["c"]
    assert len(drawn["a"]) == 10


def test_survivors_are_printed_with_their_change_and_the_score_has_an_interval(tmp_path, capsys):
    file = session(tmp_path)
    with closing(sqlite3.connect(file)) as database, database:
        keys = [key for (key,) in database.execute("SELECT job_id FROM mutation_specs ORDER BY occurrence LIMIT 4")]
        outcomes = ("KILLED", "KILLED", "SURVIVED", "INCOMPETENT")
        for key, outcome in zip(keys, outcomes, strict=True):
            database.execute("INSERT INTO work_results VALUES (?, ?, 'NORMAL', '- a\n+ b', '')", (key, outcome))
    mutation.report(mutation.results(file), there=50)
    shown = capsys.readouterr().out
    assert "survived: m.py:2 op\n- a\n+ b" in shown
    assert shown.splitlines()[-1] == "3 of 50 mutants tried, 2 noticed: 67% (21% to 94%); 1 did not run"
    with pytest.raises(SystemExit, match="no mutant was tried"):
        mutation.report([], there=50)


def test_what_is_changed_and_what_is_run_is_there():
    root = SCRIPT.parents[1]
    paths = [name.removeprefix("--deselect=").partition("::")[0] for name in (*mutation.MODULES, *mutation.TESTS)]
    assert all((root / path).exists() for path in (*paths, *mutation.COPIED))
