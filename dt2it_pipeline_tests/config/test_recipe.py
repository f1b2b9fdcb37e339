from pathlib import Path

import pytest

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.config.recipe import RecipeError, load_recipe, parse_recipe

MINIMAL = "name: x\nannotation: {judges: [{name: a}, {name: b}]}\n"


@pytest.mark.parametrize("path", sorted((project_root() / "configs/recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_in_the_repository_is_valid(path):
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rouds: 3\n", "rouds: unknown key; did you mean rounds\\?$"),
        ("training: {learning_rat: 1}\n", r"training.learning_rat: unknown key; did you mean learning_rate\?$"),
        ("traning: {epochs: 1}\n", r"traning: unknown key; did you mean training\?$"),
        ("training: {lora: {rnk: 1}}\n", r"training.lora.rnk: unknown key; did you mean rank\?"),
        ("zebra: 1\n", r"zebra: unknown key$"),
        ("training: {epochs: -1}\n", r"training.epochs: .*greater than 0.*found -1"),
        ("rounds: many\n", "rounds: .*integer.*found 'many'"),
        ("demo: {noise: 0.9}\n", "demo.noise: .*less than or equal to 0.5"),
        ("evaluation: {ceiling_arm: true}\n", "ceiling_arm needs the demo's true labels"),
        ("ray: {address: 'ray://head:10001'}\n", r"ray.address: .*match pattern.*auto.*found 'ray://head:10001'"),
        ("training: {base_model: ''}\n", "training.base_model: String should have at least 1 character"),
        ("judging: {judges: [{kind: vllm, name: v, model: ''}]}\n", "judging.judges.0.model: .*at least 1 character"),
        ("sampling: {models: [a, '']}\n", "sampling.models.1: .*at least 1 character"),
        ("ray: {address: head}\n", r"ray.address: .*match pattern.*found 'head'"),
        ("ray: {gpus_per_worker: 1.5}\n", r"ray.gpus_per_worker: .*whole GPUs, or a share of one.*found 1.5"),
        ("ray: {gpus_per_worker: 0.00001}\n", r"ray.gpus_per_worker: .*at least 0.0001"),
        ("ray: {cpus_per_worker: 0.00001}\n", r"ray.cpus_per_worker: .*greater than or equal to 0.0001"),
    ],
)
def test_a_wrong_setting_is_named(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(MINIMAL + text)


ENDPOINT = "{kind: endpoint, name: e, base_url: 'https://h/v1', model: m, concurrency: 0}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "annotation: {judges: [{name: a, kind: oracle}, {name: b}]}",
            "annotation.judges.0.kind: must be one of likelihood, answer, endpoint, vllm, found 'oracle'",
        ),
        (
            "judging: {judges: [{kind: answer, name: a}]}",
            "judging.judges.0.kind: must be one of reference, endpoint, vllm, likelihood, found 'answer'",
        ),
        (
            "judging: {judges: [{name: a}]}",
            "judging.judges.0.kind: must be one of reference, endpoint, vllm, likelihood, found None",
        ),
        (
            "pairing: {restyle: {rewriter: {kind: likelihood, name: a}}}",
            "pairing.restyle.rewriter.kind: must be one of endpoint, vllm, found 'likelihood'",
        ),
        (
            "pairing: {restyle: {rewriter: {kind: vllm, name: a}, check: {kind: [1], name: b}}}",
            "pairing.restyle.check.kind: must be one of endpoint, vllm, likelihood, words, found [1]",
        ),
        (
            "annotation: {judges: [{name: a, modell: m}, {name: b}]}",
            "annotation.judges.0.modell: unknown key; did you mean model?",
        ),
        (f"judging: {{judges: [{ENDPOINT}]}}", "judging.judges.0.concurrency: Input should be greater than or equal"),
        ("judging: {judges: [{kind: vllm}]}", "judging.judges.0.name: Field required"),
        ("judging: {judges: [{kind: vllm, name: v, vllm: m}]}", "judging.judges.0.vllm: unknown key"),
        ("annotation: {judges: [{name: a, likelihood: 1}, {name: b}]}", "annotation.judges.0.likelihood: unknown key"),
    ],
)
def test_a_wrong_kind_names_its_key_and_every_kind_of_its_place(text, expected):
    rest = "" if text.startswith("annotation") else "annotation: {judges: [{name: a}, {name: b}]}\n"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(f"name: x\n{rest}{text}\n")
    assert str(caught.value).startswith("recipe has 1 wrong setting(s):\n  " + expected)


def test_one_judge_is_enough_for_joint_alone():
    one = "name: x\nannotation: {judges: [{name: a}]}\n"
    assert len(parse_recipe(one + "curation: {policy: joint}\n").annotation.judges) == 1
    with pytest.raises(RecipeError, match="the policy `paper` asks two"):
        parse_recipe(one)


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL + "a: 1\nb: 2\nrounds: 0\n")
    assert all(name in str(caught.value) for name in ("3 wrong setting(s)", "a: ", "b: ", "rounds: "))


@pytest.mark.parametrize("text", ["[1, 2]", "name: [unclosed", ""])
def test_something_else_than_a_recipe_is_refused(text):
    with pytest.raises(RecipeError, match="recipe"):
        parse_recipe(text)


def test_a_missing_recipe_lists_those_that_exist(monkeypatch):
    monkeypatch.setenv("DT2IT_RECIPE", "configs/recipes/nowhere.yaml")
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: No such file.*recipes has: .*demo"):
        load_recipe()


def test_the_environment_chooses_the_recipe(monkeypatch, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(MINIMAL)
    monkeypatch.setenv("DT2IT_RECIPE", str(tmp_path / "mine.yaml"))
    assert load_recipe().name == "x"


def test_a_launchers_job_has_one_node_and_a_gpu_for_each_rank() -> None:
    alone = parse_recipe(MINIMAL + "launcher: {kind: slurm, gpus: 8}\ntraining: {processes: 8}\n")
    assert alone.launcher is not None and alone.launcher.kind == "slurm"
    with pytest.raises(RecipeError, match=r"launcher\.gpus \(2\) is below training\.processes \(8\)"):
        parse_recipe(MINIMAL + "launcher: {kind: slurm, gpus: 2}\ntraining: {processes: 8}\n")
    with pytest.raises(RecipeError, match=r"launcher and training\.hostfile cannot both be set"):
        parse_recipe(MINIMAL + "launcher: {kind: slurm}\ntraining: {hostfile: hosts, cache_vision: false}\n")
    with pytest.raises(RecipeError, match=r"launcher\.kind: must be one of slurm, kubernetes"):
        parse_recipe(MINIMAL + "launcher: {kind: pbs}\n")
