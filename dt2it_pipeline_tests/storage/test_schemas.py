import pyarrow as pa
import pytest

from dt2it_pipeline.storage import content_ids, records, schemas


def pair(chosen="a", rejected="b"):
    return records.make_pair("p", chosen, rejected, source="s")


def test_a_flip_keeps_the_pair_id_and_swaps_the_response_ids():
    first, second = pair("a", "b"), pair("b", "a")
    assert first["pair_id"] == second["pair_id"]
    assert first["chosen_id"] == second["rejected_id"]


def test_prompt_id_follows_system_turns_and_media_in_order():
    turns = [{"role": "user", "text": "x"}]
    base = content_ids.prompt_id("", turns, ["m1", "m2"])
    assert base == content_ids.prompt_id("", [{"text": "x", "role": "user"}], ["m1", "m2"])
    others = [
        content_ids.prompt_id("s", turns, ["m1", "m2"]),
        content_ids.prompt_id("", [{"role": "user", "text": "y"}], ["m1", "m2"]),
        content_ids.prompt_id("", turns, ["m2", "m1"]),
    ]
    assert base not in others


def test_ids_do_not_depend_on_where_parts_are_split():
    assert content_ids.response_id("ab", "c") != content_ids.response_id("a", "bc")


def test_validate_reorders_and_casts():
    table = schemas.table([pair()], "pairs")
    shuffled = table.select(list(reversed(table.column_names)))
    shuffled = shuffled.set_column(
        shuffled.column_names.index("votes"),
        "votes",
        pa.array([[]], pa.list_(schemas.SCHEMAS["pairs"].field("votes").type.value_type)),
    )
    shuffled = shuffled.set_column(shuffled.column_names.index("round"), "round", pa.array([3], pa.int64()))
    valid = schemas.validate(shuffled, "pairs")
    assert valid.schema.equals(schemas.SCHEMAS["pairs"])
    assert valid["round"].to_pylist() == [3]


def test_a_table_of_an_earlier_version_lacks_what_was_added_since():
    for kind, names in schemas.ADDED_COLUMNS.items():
        old = schemas.table([], kind).drop_columns(list(names))
        assert schemas.validate(old, kind).schema.equals(schemas.SCHEMAS[kind])
    old = schemas.table([pair()], "pairs").drop_columns(["row_id"])
    assert schemas.validate(old, "pairs")["row_id"].to_pylist() == [None]


def test_what_is_quarantined_is_named_by_the_row_of_the_source_where_there_is_one():
    known, made = pair() | {"row_id": "line 7"}, pair()
    assert [records.quarantine_pair(row, "stage", "reason")["row_id"] for row in (known, made)] == [
        "line 7",
        made["pair_id"],
    ]
    assert records.quarantine_pair(known, "stage", "reason")["pair_id"] == known["pair_id"]
    assert records.quarantine_row("\ud800", "stage", "reason")["row_id"] == "\\ud800"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.drop_columns(["chosen"]), "missing columns \\['chosen'\\]"),
        (lambda t: t.append_column("extra", pa.array([1])), "unknown columns \\['extra'\\]"),
        (
            lambda t: t.set_column(0, "pair_id", pa.array([None], pa.string())),
            "column 'pair_id': 1 null, first in row 0",
        ),
        (lambda t: t.set_column(t.column_names.index("round"), "round", pa.array(["x"])), "column 'round'"),
    ],
)
def test_validate_names_what_is_wrong(change, named):
    with pytest.raises(schemas.RecordError, match=named):
        schemas.validate(change(schemas.table([pair()], "pairs")), "pairs")


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(schemas.RecordError, match="known: prompts, responses"):
        schemas.table([], "pear")


def test_every_table_and_column_has_a_description():
    assert set(schemas.DESCRIPTIONS) == set(schemas.SCHEMAS)
    for kind, schema in schemas.SCHEMAS.items():
        assert list(schemas.COLUMNS[kind]) == schema.names
    texts = [
        *schemas.DESCRIPTIONS.values(),
        *(text for columns in schemas.COLUMNS.values() for text in columns.values()),
    ]
    assert all(text.endswith(".") and len(text) > 10 for text in texts)


@pytest.mark.parametrize(
    "text", ["", "plain", 'a "quote" \\ and \n\t\x00', "naïve 猫 \u2028 🙂", "half \ud800 of one", "<image>"]
)
def test_ids_are_the_content_hashes_of_their_parts(text: str) -> None:
    turns = [{"role": "user", "text": text}, {"role": "assistant", "text": "so"}]
    whole = content_ids.content_hash("prompt", text, [["user", text], ["assistant", "so"]], ["m", text])
    assert content_ids.prompt_id(text, turns, ["m", text]) == whole
    assert content_ids.response_id("p", text) == content_ids.content_hash("response", "p", text)
    assert content_ids.pair_id(text, "b", "a") == content_ids.content_hash("pair", text, ["a", "b"])
