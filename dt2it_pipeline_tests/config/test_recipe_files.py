import json
import shutil

import pytest

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.config.recipe import RecipeError, parse_recipe
from dt2it_pipeline.config.recipe_files import hostfile_path, read_deepspeed_config, require_files
from dt2it_pipeline.definitions import build_defs

MINIMAL = "name: x\nannotation: {judges: [{name: a}, {name: b, model: %s}]}\n"


def recipe(text="", judge="demo"):
    return parse_recipe(MINIMAL % judge + text)


@pytest.fixture
def project(tmp_path, monkeypatch):
    shutil.copytree(project_root() / "configs", tmp_path / "configs")
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    return tmp_path


def test_hub_ids_the_demo_model_and_model_folders_pass(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    require_files(recipe(f"sampling: {{model: Qwen/Qwen3-VL-8B-Instruct}}\ntraining: {{base_model: {tmp_path}}}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "training: {deepspeed_config: zero9}",
            r"training\.deepspeed_config: .*zero9\.json; .*configs/deepspeed has: .*zero2_cpu",
        ),
        ("training: {base_model: /nowhere/m}", r"training\.base_model: there is no model folder /nowhere/m"),
        ("training: {base_model: ./models/m}", r"training\.base_model: there is no model folder \./models/m"),
        ("sampling: {model: a/b/c}", r"sampling\.model: there is no model folder a/b/c"),
        ("sampling: {model: checkpoint}", r"sampling\.model: there is no model folder checkpoint"),
        (
            "training: {hostfile: hosts, cache_vision: false}",
            r"training\.hostfile: cannot read .*hosts: No such file",
        ),
    ],
)
def test_a_file_that_is_not_there_is_named_with_its_key_before_any_work(text, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        build_defs(recipe(text + "\ndatasets: [demo_t2i]\n"), tmp_path)


def test_every_wrong_file_is_named_at_once_with_what_lies_beside_it(tmp_path):
    (tmp_path / "right").mkdir()
    wrong = recipe(f"training: {{base_model: {tmp_path}/wrong, deepspeed_config: none}}\n", judge=tmp_path / "right")
    with pytest.raises(RecipeError) as caught:
        require_files(wrong)
    text = str(caught.value)
    assert "names 3 file(s) wrongly" in text
    assert "there are: right;" in text
    assert f"annotation.judges.1.model: the folder {tmp_path / 'right'} holds no model" in text


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_damaged_deepspeed_config_is_named(project, content):
    (project / "configs/deepspeed/mine.json").write_text(content)
    with pytest.raises(RecipeError, match=r"training\.deepspeed_config: cannot read .*mine\.json"):
        read_deepspeed_config("mine")


@pytest.mark.parametrize(("content", "message"), [("one slots=8\ntwo\n", "line 2.*'two'"), ("# none\n", "no machine")])
def test_a_hostfile_that_names_no_machines_is_refused(project, content, message):
    (project / "hosts").write_text(content)
    training = recipe("training: {hostfile: hosts, cache_vision: false}\n").training
    with pytest.raises(RecipeError, match=message):
        hostfile_path(training)
    (project / "hosts").write_text("# ours\n\none slots=8\ntwo slots=4  # half\n")
    assert hostfile_path(training) == project / "hosts"


def test_the_content_of_the_deepspeed_config_is_what_counts(project):
    before = read_deepspeed_config("zero2_cpu")
    path = project / "configs/deepspeed/zero2_cpu.json"
    path.write_text(json.dumps(before | {"gradient_predivide_factor": 2.0}))
    assert read_deepspeed_config("zero2_cpu") != before
