"""Where configuration is found: the project's files win over the package's, one by one, and errors name both places."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from dt2it_pipeline.config import RecipeError, load_recipe, parse_recipe, paths, require_files
from dt2it_pipeline.config.paths import (
    KINDS,
    ConfigFileError,
    artifact_home,
    config_files,
    config_folders,
    find_config,
    is_hub_id,
    model_path,
    named_file,
    project_root,
    shipped_configs,
)
from dt2it_pipeline.curate.voters.ensemble import checkpoint_voters
from dt2it_pipeline.evaluate.benchmarks.spec import BenchmarkError, get_entry, load_entries
from dt2it_pipeline.ingest.manifest import ManifestError, load_catalogue
from dt2it_pipeline.judges import templates
from dt2it_pipeline.reformulate.phrasings import load_phrasings

MINIMAL = "name: {}\nannotation: {{judges: [{{name: a}}, {{name: b}}]}}\n"
MANIFEST = "name: {}\nkind: prompts\npath: x.jsonl\nlicence: {}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with an empty configs/, in which one stands; no variable says so."""
    for name in ("DT2IT_PROJECT", "DT2IT_RECIPE", "DT2IT_HOME"):
        monkeypatch.delenv(name, raising=False)
    for kind in KINDS:
        (tmp_path / "configs" / kind).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_project_is_found_from_below_and_the_variable_wins(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (project / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(project / "deep/er")
    assert project_root() == project
    assert artifact_home() == project / "data"
    other = tmp_path_factory.mktemp("other")
    monkeypatch.setenv("DT2IT_PROJECT", str(other))
    assert project_root() == other
    monkeypatch.setenv("DT2IT_HOME", str(other / "home"))
    assert artifact_home() == other / "home"


def test_a_folder_with_some_other_configs_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DT2IT_PROJECT", raising=False)
    (tmp_path / "configs/nginx").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert project_root() == shipped_configs().parent  # of the checkout that these tests run in


def test_files_of_the_project_win_one_by_one(project: Path) -> None:
    (project / "configs/deepspeed/zero2.json").write_text("{}")
    (project / "configs/deepspeed/mine.json").write_text("{}")
    assert find_config("deepspeed", "zero2.json") == project / "configs/deepspeed/zero2.json"
    assert find_config("deepspeed", "zero3.json") == shipped_configs() / "deepspeed/zero3.json"
    found = config_files("deepspeed", "*.json")
    assert list(found) == [
        "mine.json",
        "zero2.json",
        "zero2_cpu.json",
        "zero2_one_gpu.json",
        "zero3.json",
        "zero3_cpu.json",
    ]
    assert found["zero2.json"].is_relative_to(project) and not found["zero3.json"].is_relative_to(project)
    assert list(config_files("deepspeed", "*.json", project / "configs/deepspeed")) == ["mine.json", "zero2.json"]


def test_in_the_checkout_both_places_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DT2IT_PROJECT", str(shipped_configs().parent))
    assert config_folders("recipes") == (shipped_configs() / "recipes",)


def test_a_tree_that_was_copied_without_the_link_has_its_configs_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "dt2it_pipeline")
    (tmp_path / "configs").mkdir()
    assert paths.shipped_configs() == tmp_path / "configs"
    (tmp_path / "dt2it_pipeline").mkdir()
    (tmp_path / "dt2it_pipeline/_configs").symlink_to("../configs")
    assert paths.shipped_configs() == tmp_path / "configs"


def test_every_user_sees_the_projects_files_beside_the_packages(project: Path) -> None:
    configs = project / "configs"
    (configs / "recipes/mine.yaml").write_text(MINIMAL.format("mine"))
    (configs / "datasets/ours.yaml").write_text(MANIFEST.format("ours", "ours alone"))
    (configs / "datasets/povid.yaml").write_text(MANIFEST.format("povid", "changed"))
    (configs / "benchmarks/ours.yaml").write_text("name: ours\n")
    (configs / "prompts/judge_pairwise.en.jinja").write_text("OURS")
    (configs / "prompts/t2i.fr.yaml").write_text(
        "- {question: '<image><image>{caption} ?', first: La première., second: La seconde.}\n"
    )
    assert load_recipe("mine").name == "mine" and load_recipe("demo").name == "demo"
    ours, povid, rlhf_v = load_catalogue(("ours", "povid", "rlhf_v"))
    assert ours.path == str(project / "x.jsonl") and povid.licence == "changed" and rlhf_v.hub
    assert {"ours", "vl_rewardbench"} <= set(load_entries())
    assert templates.load_template("pairwise", "en").text == "OURS"
    assert templates.load_template("pairwise", "zh").text != "OURS"
    assert set(load_phrasings()) == {"en", "fr", "zh"}


def test_the_version_of_templates_changes_with_the_projects_file(project: Path) -> None:
    before = templates.version(["pairwise"])
    shipped = (shipped_configs() / "prompts/judge_pairwise.en.jinja").read_text()
    copy = project / "configs/prompts/judge_pairwise.en.jinja"
    copy.write_text(shipped)
    assert templates.version(["pairwise"]) == before  # by content, wherever it lies
    copy.write_text(f"{shipped}\nShorter.")
    assert templates.version(["pairwise"]) != before


def test_what_is_missing_names_both_places(project: Path) -> None:
    places = rf"{project}/configs/%s or {shipped_configs()}/%s"
    own_first = rf"{project}/configs/%s has: (.*); {shipped_configs()}/%s has: "
    with pytest.raises(ConfigFileError, match=rf"no none\.json; {own_first % (('deepspeed',) * 2)}zero2"):
        find_config("deepspeed", "none.json")
    with pytest.raises(RecipeError, match=rf"{own_first % (('recipes',) * 2)}.*demo"):
        load_recipe("nowhere")
    (project / "configs/datasets/zebras.yaml").write_text("name: zebras\n")
    with pytest.raises(ManifestError, match=rf"{own_first % (('datasets',) * 2)}.*povid") as found:
        load_catalogue(("nothing_alike",))
    assert "configs/datasets has: zebras; " in str(found.value)
    with pytest.raises(BenchmarkError, match=rf"'none' in {places % (('benchmarks',) * 2)}; known: .*vl_rewardbench"):
        get_entry("none")


def test_a_path_counts_from_the_project_and_one_below_configs_may_be_the_packages(project: Path) -> None:
    (project / "mine.yaml").write_text(MINIMAL.format("at_the_top"))
    assert load_recipe("mine.yaml").name == "at_the_top"
    assert load_recipe("configs/recipes/smoke.yaml").name == "smoke"
    (project / "configs/recipes/smoke.yaml").write_text(MINIMAL.format("changed"))
    assert load_recipe("configs/recipes/smoke.yaml").name == load_recipe("smoke").name == "changed"
    assert named_file("recipes", str(project / "x")) == project / "x"


def test_the_only_recipe_of_a_project_is_its_default_and_none_is_guessed(project: Path) -> None:
    assert load_recipe().name == "demo"
    (project / "configs/recipes/first.yaml").write_text(MINIMAL.format("first"))
    assert load_recipe().name == "first"
    (project / "configs/recipes/second.yaml").write_text(MINIMAL.format("second"))
    with pytest.raises(RecipeError, match=r"several recipes: first\.yaml, second\.yaml; choose one by DT2IT_RECIPE"):
        load_recipe()


def test_a_model_folder_counts_from_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "models/m").mkdir(parents=True)
    (project / "below").mkdir()
    monkeypatch.chdir(project / "below")
    assert model_path("models/m") == str(project / "models/m")
    assert model_path("Qwen/Qwen3-VL-8B-Instruct") == "Qwen/Qwen3-VL-8B-Instruct"
    assert Path(model_path("demo"), "config.json").is_file()


def test_checkpoints_of_an_ensemble_count_from_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = MINIMAL.format("x") + "curation: {ensemble: {checkpoints: [models/other]}}\n"
    with pytest.raises(RecipeError, match=r"checkpoints\.0: no reward model in models/other"):
        require_files(parse_recipe(text))
    (project / "models/other").mkdir(parents=True)
    (project / "models/other/reward_model.json").write_text("{}")
    (project / "below").mkdir()
    monkeypatch.chdir(project / "below")
    recipe = parse_recipe(text)
    require_files(recipe)
    assert recipe.curation.ensemble is not None
    assert checkpoint_voters(recipe.curation.ensemble) == {"checkpoint/other": str(project / "models/other")}


@pytest.mark.parametrize("part", ["a", "_a", "a.b-c_d", "a..b", "a--b", "a.git", "-a", "a-", ".a", "a.", "é", "", "a b",
                                  "a" * 96, "a" * 97, "a\n", "..", "."])  # fmt: skip
def test_ids_of_the_hub_follow_its_own_rule(part: str) -> None:
    for name in (f"{part}/{part}", f"owner/{part}", f"{part}/name", f"{part}/b/c"):
        try:
            validate_repo_id(name)
        except HFValidationError:
            assert not is_hub_id(name)
        else:
            assert is_hub_id(name)
