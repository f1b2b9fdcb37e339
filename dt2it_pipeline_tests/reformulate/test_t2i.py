import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dt2it_pipeline.config.sections.t2i import T2ISettings
from dt2it_pipeline.reformulate.phrasings import PhrasingError, load_phrasings, version
from dt2it_pipeline.reformulate.t2i import reformulate, verdict_pair
from dt2it_pipeline.storage import content_ids, schemas


def medium(sha):
    return {"kind": "image", "sha256": sha, "path": f"{sha}.png"}


def preference(number, caption="a cat", preferred=None, other=None, language="en", strength=None, source="s"):
    preferred, other = preferred or f"good{number}", other or f"bad{number}"
    return {
        "preference_id": content_ids.content_hash(caption, preferred, other),
        "caption": caption,
        "preferred": medium(preferred),
        "other": medium(other),
        "strength": strength,
        "language": language,
        "source": source,
    }


def table(rows):
    return schemas.table(rows, "t2i_preferences")


def made(rows, seed=0, **limits):
    """The artifact, and per pair its prompt and whether the preferred image stands first."""
    artifact = reformulate(table(rows), T2ISettings(**limits), seed=seed)
    prompts = {p["prompt_id"]: p for p in artifact["prompts"].to_pylist()}
    found = []
    for pair in artifact["pairs"].to_pylist():
        prompt = prompts[pair["prompt_id"]]
        found.append((pair, prompt, prompt["media"][0]["sha256"].startswith("good")))
    return artifact, found


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_the_preferred_image_stands_first_in_exactly_half(count, language):
    artifact, found = made([preference(i, language=language) for i in range(count)], seed=3)
    one, two = {"en": ("Image 1", "Image 2"), "zh": ("图片1", "图片2")}[language]
    for pair, _, preferred_first in found:
        assert pair["chosen"].startswith(one if preferred_first else two)
        assert pair["rejected"].startswith(two if preferred_first else one)
    assert sum(first for _, _, first in found) == count // 2 == artifact.metadata["preferred_first"]


def test_no_phrasing_and_no_source_predicts_which_position_is_preferred():
    rows = [preference(i, source="ab"[i % 2], language=("en", "zh", "de")[i % 3]) for i in range(301)]
    _, found = made(rows)
    strata = {}
    for pair, prompt, first in found:
        strata.setdefault((pair["source"], prompt["meta"]), []).append(first)
    assert len(strata) == 2 * (4 + 3)
    assert all(abs(2 * sum(firsts) - len(firsts)) <= 1 for firsts in strata.values())


def test_rows_are_asked_in_their_language_in_several_ways_that_follow_from_the_content():
    rows = [preference(i, language=language) for language in ("en", "zh-CN", "de") for i in range(60)]
    rows = [row | {"preference_id": content_ids.content_hash(row["preference_id"], row["language"])} for row in rows]
    rows = [row | {"caption": f"{row['caption']} {i}"} for i, row in enumerate(rows)]
    _, found = made(rows)
    used = {}
    for _, prompt, _ in found:
        text = prompt["turns"][0]["text"]
        assert text.count("<image>") == 2
        assert ("图片1" in text) == (prompt["language"] == "zh-CN")
        used.setdefault(prompt["language"], Counter())[json.loads(prompt["meta"])["phrasing"]] += 1
    assert {name: len(counts) for name, counts in used.items()} == {"en": 4, "zh-CN": 3, "de": 4}
    again = {p["prompt_id"] for _, p, _ in made(rows)[1]}
    alone = [made([row])[1][0][1]["meta"] for row in rows[:20]]
    by_caption = {p["turns"][0]["text"]: p["meta"] for _, p, _ in found}
    assert again == {p["prompt_id"] for _, p, _ in found}
    assert all(meta in by_caption.values() for meta in alone)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=8, unique=True))
def test_columns_give_what_rows_give(captions):
    rows = [
        preference(i, caption, language=("en", "zh")[i % 2], strength=i or None) for i, caption in enumerate(captions)
    ]
    artifact, found = made(rows)
    by_id = {row["preferred"]["sha256"]: row for row in rows}
    for pair, prompt, first in found:
        row = by_id[prompt["media"][0 if first else 1]["sha256"]]
        assert verdict_pair(row, preferred_first=first) == (prompt, pair)
        assert pair["strength"] == row["strength"]
        assert pair["label"] == "reformulated"
    assert artifact["pairs"].num_rows == len(rows)


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does():
    rows = [preference(i) for i in range(40)]
    one = reformulate(table(rows), T2ISettings(), seed=0)
    assert one["pairs"].equals(reformulate(table(rows[::-1]), T2ISettings(), seed=0)["pairs"])
    assert not one["pairs"].equals(reformulate(table(rows), T2ISettings(), seed=1)["pairs"])


def test_what_is_not_used_is_counted():
    rows = [preference(i) for i in range(6)]
    rows += [preference(9, preferred="x", other="y"), preference(9, preferred="y", other="x")]
    rows += [preference(20, source="s"), preference(20, source="t")]
    rows += [preference(30, strength=0.0), preference(31, preferred="z", other="z")]
    artifact, _ = made(rows, max_pairs=4)
    assert artifact["pairs"].num_rows == 4
    assert Counter(artifact["quarantine"]["reason"].to_pylist()) == {
        "beyond t2i.max_pairs": 3,
        "contradictory preference": 2,
        "duplicate preference": 1,
        "tie": 1,
        "identical images": 1,
    }
    assert artifact.metadata["rows_in"] == artifact.metadata["rows_out"] + artifact.metadata["rows_quarantined"]
    assert artifact.metadata["ties"] == 1


def test_pairs_and_what_is_not_used_are_named_by_the_rows_of_the_source():
    rows = [preference(i) | {"row_id": f"ranking {i // 3}"} for i in range(6)]
    rows += [rows[0] | {"row_id": "again"}, preference(8, strength=0.0) | {"row_id": "even"}, preference(9)]
    artifact, found = made(rows)
    by_content = {row["preference_id"]: row.get("row_id") for row in rows[:6] + rows[8:]}
    preferred_images = {prompt["media"][not first]["sha256"]: pair["row_id"] for pair, prompt, first in found}
    assert preferred_images == {row["preferred"]["sha256"]: row.get("row_id") for row in rows[:6] + rows[8:]}
    assert None in by_content.values() and Counter(preferred_images.values())["ranking 1"] == 3
    assert sorted(artifact["quarantine"]["row_id"].to_pylist()) in (["again", "even"], ["even", "ranking 0"])
    prompt, pair = verdict_pair(rows[4], preferred_first=True)
    assert pair["row_id"] == "ranking 1" and prompt["media"][0] == rows[4]["preferred"]


def test_captions_that_differ_by_a_marker_alone_are_one_question():
    rows = [preference(1, "a <image>cat"), preference(1, "a <video>cat")]
    artifact, _ = made(rows)
    assert artifact["pairs"].num_rows == 1
    assert artifact["quarantine"]["reason"].to_pylist() == ["duplicate preference"]


def test_a_marker_in_a_caption_does_not_stand_for_a_image():
    artifact, _ = made([preference(0, caption="an <image> of {braces} {caption}")])
    text = artifact["prompts"].to_pylist()[0]["turns"][0]["text"]
    assert text.count("<image>") == 2
    assert "{braces} {caption}" in text


def test_nothing_usable_gives_empty_tables():
    artifact, _ = made([preference(0, strength=0.0)])
    assert artifact["pairs"].num_rows == artifact["prompts"].num_rows == 0
    assert artifact.metadata["preferred_first"] == 0


def test_no_preference_at_all_gives_no_pair():
    artifact, found = made([])
    assert not found
    assert artifact.metadata == {"rows_in": 0, "rows_out": 0, "rows_quarantined": 0, "preferred_first": 0, "ties": 0}


def test_phrasings_are_versioned_by_their_words_and_a_faulty_one_is_named(tmp_path):
    good = "- question: 'Which is better for {caption}? <image> <image>'\n  first: one\n  second: two\n"
    (tmp_path / "t2i.en.yaml").write_text(good)
    before = version(load_phrasings(tmp_path))
    assert before == version(load_phrasings(tmp_path))
    (tmp_path / "t2i.en.yaml").write_text("# a comment\n" + good)
    assert version(load_phrasings(tmp_path)) == before
    (tmp_path / "t2i.en.yaml").write_text(good.replace("better", "nicer"))
    assert version(load_phrasings(tmp_path)) != before
    (tmp_path / "t2i.zh.yaml").write_text(good.replace("<image> <image>", "<image>"))
    with pytest.raises(PhrasingError, match=r"t2i\.zh\.yaml, phrasing 1: the question must hold <image> 2"):
        load_phrasings(tmp_path)
    (tmp_path / "t2i.zh.yaml").write_text("- {question: a, first: b, second: c, first: d}")
    with pytest.raises(PhrasingError, match=r"t2i\.zh\.yaml: key 'first' stands twice, in line 1"):
        load_phrasings(tmp_path)
    (tmp_path / "t2i.en.yaml").unlink()
    (tmp_path / "t2i.zh.yaml").unlink()
    with pytest.raises(PhrasingError, match=r"no t2i\.en\.yaml"):
        load_phrasings(tmp_path)


def test_only_the_first_phrasings_are_used_where_the_recipe_asks_for_so_many():
    rows = [preference(i) for i in range(40)]
    questions = {}
    for count in (1, None):
        made = reformulate(table(rows), T2ISettings(phrasings=count), seed=0)
        questions[count] = {row["turns"][0]["text"].split('"')[0] for row in made["prompts"].to_pylist()}
    assert questions[1] == {"Here are two images generated for the caption "}
    assert len(questions[None]) > 1
