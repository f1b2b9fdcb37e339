"""The names that `dt2it_pipeline` exports: there when asked for, loaded no sooner, with an example that is right."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import dt2it_pipeline
from dt2it_pipeline_tests.support.small_install import run_without_engines


def test_importing_the_package_loads_no_stage() -> None:
    check = (
        "import sys, dt2it_pipeline\n"
        "heavy = {'torch', 'transformers', 'vllm', 'dagster', 'pandas', 'numpy', 'pyarrow', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from dt2it_pipeline import load_recipe\n"
        "assert callable(load_recipe) and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_every_public_name_is_listed_and_others_are_not_there() -> None:
    assert set(dt2it_pipeline.__all__) == {
        "RewardEnsemble",
        "RewardModel",
        "best_of",
        "best_of_curve",
        "clean_preferences",
        "export_pairs",
        "load_recipe",
        "read_preferences",
        "score_benchmark",
        "style_probe",
    }
    assert set(dt2it_pipeline.__all__) <= set(dir(dt2it_pipeline))
    with pytest.raises(AttributeError, match="no attribute 'load_recipes'"):
        dt2it_pipeline.load_recipes  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "from dt2it_pipeline import RewardModel",
        "from dt2it_pipeline.reward import RewardModel",
        "from dt2it_pipeline import RewardEnsemble; RewardEnsemble.from_pretrained(['one', 'two'])",
    ],
)
def test_a_name_whose_engine_is_not_installed_says_what_installs_it(code: str, tmp_path: Path) -> None:
    done = run_without_engines(code, tmp_path)
    last = (
        "dt2it_pipeline.errors.NotInstalledError: not installed: torch -> pip install 'dt2it-pipeline[gpu]' (or [cpu])"
    )
    assert done.stderr.splitlines()[-1] == last


@pytest.mark.parametrize("name", dt2it_pipeline.__all__)
def test_the_example_in_its_docstring_is_right(name: str) -> None:
    public = getattr(dt2it_pipeline, name)
    module = sys.modules[public.__module__]
    tests = [test for test in doctest.DocTestFinder().find(public, name, module=module) if test.examples]
    assert tests, f"{name} has no example"
    for test in tests:
        result = doctest.DocTestRunner().run(test)
        assert (result.failed, result.attempted > 0) == (0, True)
        # Elsewhere the documentation would read it as text: quotations, links and references that lead nowhere.
        assert "Examples:\n" in (test.docstring or ""), f"the example of {test.name} is in no section `Examples:`"
