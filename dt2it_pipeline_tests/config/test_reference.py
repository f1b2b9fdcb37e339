"""The reference of all settings and the JSON schema: complete, in the project's words, and true to what is accepted."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
import yaml

from dt2it_pipeline.config import RecipeError, parse_recipe, recipe_schema, settings_reference
from dt2it_pipeline.config.paths import shipped_configs
from dt2it_pipeline.config.reference import Setting, UnknownSettingError, section_descriptions

ROWS = settings_reference()
RECIPES = sorted((shipped_configs() / "recipes").glob("*.yaml"))
MINIMAL = "name: x\nannotation: {judges: [{name: a}, {name: b}]}\n"
# Words that GLOSSARY.md replaces.
PRIVATE = r"\b(told|tells?|taste|coin|shaken|doubtful|recalled|untenable|spared|picture|tower|shelf|gold|absent)\b"


def row(key: str, kind: str = "") -> Setting:
    (found,) = [one for one in ROWS if one.key == key and (not kind or kind in one.kinds)]
    return found


def test_all_settings_are_there_and_described() -> None:
    assert len(ROWS) > 220
    assert [one.key for one in ROWS if len(one.description) < 8] == []
    numbers = [one for one in ROWS if re.search(r"\b(integer|number)\b", one.type)]
    assert [one.key for one in numbers if not one.unit] == []
    assert [one.key for one in numbers if not one.range and not one.type.startswith("list")] == []
    assert [one.key for one in ROWS if re.search(PRIVATE, one.description)] == []
    assert len({(one.key, one.kinds) for one in ROWS}) == len(ROWS)


def test_every_section_has_a_docstring() -> None:
    sections = section_descriptions()
    assert {one.section for one in ROWS} <= set(sections)
    assert [key for key, text in sections.items() if not text.strip()] == []
    assert [key for key, text in sections.items() if re.search(PRIVATE, text)] == []


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("seed", ("integer", "0 to 2,147,483,647", "0")),
        ("training.lora", ("section or null", "", "null")),
        ("training.lora.dropout", ("number", "0 to below 1", "0.0")),
        ("training.max_grad_norm", ("number", "above 0", "1.0")),
        ("training.keep", ("last | best", "", "last")),
        ("training.shared_prefix", ("true or false", "", "true")),
        ("annotation.judges", ("list of section", "1 to 2 items", "required")),
        ("annotation.judges[].kind", ("likelihood | answer | endpoint | vllm", "", "likelihood")),
        ("judging.judges[].kind", ("reference | endpoint | vllm | likelihood", "", "required")),
        ("judging.modes", ("list of listwise | pointwise | pairwise", "not empty", '["listwise", "pointwise"]')),
        ("sampling.max_pixels", ("integer or null", "at least 1,024", "null")),
        ("scoring.max_pixels", ("trained | paper or integer", "at least 1,024", "trained")),
    ],
)
def test_type_range_and_default(key: str, expected: tuple[str, str, str]) -> None:
    found = row(key)
    assert (found.type, found.range, found.default) == expected


def test_settings_of_several_kinds_name_them() -> None:
    assert row("judging.judges[].model", "vllm").kinds == ("vllm", "likelihood")
    assert row("judging.judges[].model", "endpoint").default == "required"
    assert row("pairing.restyle.check.threshold").kinds == ("likelihood",)
    assert row("annotation.judges[].baseline").kinds == ("likelihood", "answer")


@pytest.mark.parametrize(
    ("key", "count"), [("training.lora", 5), ("annotation.judges.0.model", 2), ("annotation.judges[1].kind", 1)]
)
def test_a_key_and_what_lies_below_it(key: str, count: int) -> None:
    assert len(settings_reference(key)) == count


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("training.lora.rnk", r"training\.lora\.rank"),
        ("learning_rat", r"training\.learning_rate"),
        ("zzz", "lists them"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, hint: str) -> None:
    with pytest.raises(UnknownSettingError, match=f"no setting '{key}'.*{hint}"):
        settings_reference(key)


def test_defaults_are_what_a_recipe_gets() -> None:
    recipe = parse_recipe(MINIMAL).model_dump(mode="json")
    checked = 0
    for one in ROWS:
        value = recipe
        for part in one.key.split("."):
            value = value.get(part, "nothing") if isinstance(value, dict) else "nothing"
        if value != "nothing" and one.default != "required":
            assert one.default in (value, json.dumps(value, ensure_ascii=False)), one.key
            checked += 1
    assert checked > 90


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_schema_accepts_the_shipped_recipes_which_name_it(path, validator) -> None:
    text = path.read_text(encoding="utf-8")
    validator.validate(yaml.safe_load(text))
    schema = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert schema is not None and (path.parent / schema[1]).is_file()


@pytest.mark.parametrize(
    "text",
    [
        "rouds: 3",
        "training: {epochs: -1}",
        "training: {lora: {rnk: 1}}",
        "rounds: many",
        "judging: {judges: [{name: a}]}",
        "judging: {judges: [{kind: oracle, name: a}]}",
        "judging: {judges: [{kind: vllm}]}",
        "judging: {judges: [{kind: endpoint, name: e, base_url: 'https://h/v1', model: m, concurrency: 0}]}",
        "annotation: {judges: [{name: a}, {name: b}, {name: c}]}",
        "ray: {address: head}",
    ],
)
def test_schema_and_recipe_refuse_the_same(text: str, validator: jsonschema.Draft202012Validator) -> None:
    given = yaml.safe_load(MINIMAL) | yaml.safe_load(text)
    with pytest.raises(RecipeError):
        parse_recipe(yaml.safe_dump(given))
    assert not validator.is_valid(given)


@pytest.mark.parametrize(
    "text",
    [
        "judging: {judges: [{kind: reference}, {kind: endpoint, name: e, base_url: 'https://h/v1', model: m}]}",
        "judging: {judges: [{kind: likelihood, name: a, measure: 'yes'}]}",
        "annotation: {judges: [{name: a, kind: answer}, {name: b, kind: vllm}]}",
        "pairing: {restyle: {rewriter: {kind: vllm, name: a}, check: {kind: words}}}",
        "ray: {gpus_per_worker: 0.5}",
        "cleaning: {near_duplicate: null}",
    ],
)
def test_schema_and_recipe_accept_the_same(text: str, validator: jsonschema.Draft202012Validator) -> None:
    given = yaml.safe_load(MINIMAL) | yaml.safe_load(text)
    parse_recipe(yaml.safe_dump(given))
    validator.validate(given)


def test_the_schema_file_is_that_of_the_settings() -> None:
    file = shipped_configs() / "recipe.schema.json"
    assert json.loads(file.read_text(encoding="utf-8")) == recipe_schema(), (
        "settings have changed: write the schema anew by `dt2it settings --schema configs/recipe.schema.json`"
    )


def test_units_and_descriptions_reach_the_schema() -> None:
    setting = recipe_schema()["$defs"]["TrainingSettings"]["properties"]["save_steps"]
    assert setting["unit"] == "optimiser steps" and setting["description"] == row("training.save_steps").description
