import pytest
import yaml

from dt2it_pipeline.config.recipe import RecipeError, load_recipe, parse_recipe
from dt2it_pipeline.config.strict_yaml import load_json, load_yaml
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


def test_a_date_stays_a_date_where_a_library_reads_all_of_them_as_texts(monkeypatch):
    texts = yaml.SafeLoader.yaml_constructors["tag:yaml.org,2002:str"]
    monkeypatch.setitem(yaml.SafeLoader.yaml_constructors, "tag:yaml.org,2002:timestamp", texts)
    assert yaml.safe_load("a: 2024-13-45") == {"a": "2024-13-45"}
    with pytest.raises(yaml.YAMLError, match="month must be in"):
        load_yaml("a: 2024-13-45")


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


ODD = ["2024-13-45", "!!int foo", "!!float foo", "!!timestamp foo", "!!bool foo", "2020-01-01T99:00:00Z", "[" * 1000]


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


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}], k{n}: 1}}\n" for n in range(1, 10)
)


@pytest.mark.parametrize("text", [LAUGHS, MERGES], ids=["lists", "merges"])
def test_aliases_that_stand_for_billions_of_values_are_refused_at_once(tmp_path, text):
    with pytest.raises(RecipeError, match="aliases stand for more than 100,000 values"):
        parse_recipe(f"name: x\n{text}datasets: *a9\n")
    (tmp_path / "m.yaml").write_text(f"name: m\n{text}")
    with pytest.raises(ManifestError, match=r"m\.yaml.*more than 100,000 values"):
        load_manifest(tmp_path / "m.yaml")


def test_an_alias_within_itself_is_refused():
    with pytest.raises(RecipeError, match="stands within what it stands for"):
        parse_recipe("name: x\ndatasets: &a [*a]\n")


def test_an_error_shows_the_beginning_of_a_long_value():
    with pytest.raises(RecipeError) as caught:
        parse_recipe("name: x\nseed: [" + ", ".join(["1"] * 9000) + "]\n")
    assert "seed" in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ['{"a": 1,\n "b": {"c": 1,\n "c": 2}}', '{"c": 1,\n"c":\n2}'])
def test_a_key_that_stands_twice_in_json_is_named_with_its_lines(text):
    with pytest.raises(ValueError, match=r"key 'c' stands twice \(it is in line \d, \d\)"):
        load_json(text)


def test_a_deepspeed_file_with_a_key_twice_is_an_error_that_names_file_and_key(tmp_path, monkeypatch):
    from dt2it_pipeline.config import recipe_files

    file = tmp_path / "zero.json"
    file.write_text('{"zero_optimization": {"stage": 2},\n "zero_optimization": {"stage": 3}}')
    monkeypatch.setattr(recipe_files, "find_config", lambda *names: file)
    with pytest.raises(RecipeError, match=r"zero\.json: key 'zero_optimization' stands twice \(it is in line 1, 2\)"):
        recipe_files.read_deepspeed_config("zero")


def test_what_is_not_utf_8_is_a_sentence_that_names_the_file(tmp_path):
    file = tmp_path / "m.yaml"
    file.write_bytes("name: café\n".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"m\.yaml is not UTF-8 \(at byte 9\): save it as UTF-8"):
        load_recipe(file)
    with pytest.raises(ManifestError, match=r"m\.yaml is not UTF-8 \(at byte 9\)"):
        load_manifest(file)
    with pytest.raises(BenchmarkError, match=r"m\.yaml"):
        load_entries(tmp_path)
