import pytest
import yaml

from dt2it_pipeline.config.recipe import RecipeError, parse_recipe
from dt2it_pipeline.config.strict_yaml import load_yaml
from dt2it_pipeline.evaluate.benchmarks.spec import BenchmarkError, load_entries
from dt2it_pipeline.ingest.manifest import ManifestError, load_manifest


def test_what_is_sound_is_read_as_ever():
    text = "base: &base {a: 1, b: [1, {c: 2}]}\nmore: {<<: *base, a: 3}\n? [1, 2]\n: x\n"
    with pytest.raises(Exception, match="unhashable"):
        load_yaml(text)
    assert load_yaml(text.partition("?")[0]) == {
        "base": {"a": 1, "b": [1, {"c": 2}]},
        "more": {"a": 3, "b": [1, {"c": 2}]},
    }


def test_malformed_yaml_is_placed_without_pyyamls_name_for_a_text():
    with pytest.raises(RecipeError, match=r'(?s)^mine\.yaml is not valid YAML: .*in "the file", line 2') as caught:
        parse_recipe("name: x\ncuration: {policy: joint\nannotation: {}\n", "mine.yaml")
    assert "unicode string" not in str(caught.value)


def test_a_key_that_stands_twice_in_a_recipe_is_named_with_its_lines():
    text = "name: x\ntraining:\n  epochs: 1\n  global_batch_size: 8\n  epochs: 2\n"
    with pytest.raises(RecipeError, match="'epochs' stands twice, in lines 3 and 5"):
        parse_recipe(text)
    with pytest.raises(RecipeError, match="'name' stands twice, in lines 1 and 2"):
        parse_recipe("name: x\nname: y\n")


def test_a_key_that_stands_twice_in_a_manifest_is_named_with_its_line(tmp_path):
    (tmp_path / "m.yaml").write_text("name: m\ncolumns: {image: a, image: b}\n")
    with pytest.raises(ManifestError, match=r"m\.yaml.*'image' stands twice, in line 2"):
        load_manifest(tmp_path / "m.yaml")


ODD = ["2024-13-45", "!!int foo", "!!float foo", "!!timestamp foo", "!!bool foo", "2020-01-01T99:00:00Z", "[" * 20000]


@pytest.mark.parametrize("value", ODD, ids=lambda value: value[:10])
def test_a_value_that_pyyaml_stumbles_over_is_malformed_yaml(tmp_path, value):
    with pytest.raises(yaml.YAMLError):
        load_yaml(f"seed: {value}\n")
    with pytest.raises(RecipeError, match="YAML"):
        parse_recipe(f"name: x\nseed: {value}\n")
    (tmp_path / "m.yaml").write_text(f"name: m\ncitation: {value}\n")
    with pytest.raises(ManifestError, match=r"m\.yaml"):
        load_manifest(tmp_path / "m.yaml")
    (tmp_path / "m.yaml").write_text(f"name: m\ntitle: {value}\n")
    with pytest.raises(BenchmarkError, match=r"m\.yaml"):
        load_entries(tmp_path)


def test_a_key_that_stands_twice_in_a_benchmark_entry_is_named(tmp_path):
    (tmp_path / "m.yaml").write_text("name: m\nmacro: true\nmacro: false\n")
    with pytest.raises(BenchmarkError, match=r"m\.yaml.*'macro' stands twice, in lines 2 and 3"):
        load_entries(tmp_path)
