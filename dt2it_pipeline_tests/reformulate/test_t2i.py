import pytest

from dt2it_pipeline import records
from dt2it_pipeline.recipe import T2ISettings
from dt2it_pipeline.reformulate.t2i import reformulate


def medium(sha):
    return {"kind": "image", "sha256": sha, "path": f"{sha}.png"}


def preference(number, caption="a cat", preferred=None, other=None):
    preferred, other = preferred or f"good{number}", other or f"bad{number}"
    return {
        "row_id": records.content_hash(caption, preferred, other),
        "caption": caption,
        "preferred": medium(preferred),
        "other": medium(other),
        "strength": None,
        "language": "en",
        "source": "s",
    }


def table(rows):
    return records.table(rows, "t2i_preferences")


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_the_preferred_picture_stands_first_in_exactly_half(count):
    bundle = reformulate(table([preference(i) for i in range(count)]), T2ISettings(), seed=3)
    prompts = {p["prompt_id"]: p for p in bundle["prompts"].to_pylist()}
    first = 0
    for pair in bundle["pairs"].to_pylist():
        media = [m["sha256"] for m in prompts[pair["prompt_id"]]["media"]]
        place = next(i for i, sha in enumerate(media) if sha.startswith("good"))
        assert pair["chosen"].startswith(f"Image {place + 1} is better")
        assert pair["rejected"].startswith(f"Image {2 - place} is better")
        first += place == 0
    assert first == count // 2 == bundle.facts["preferred_first"]


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does():
    rows = [preference(i) for i in range(40)]
    one = reformulate(table(rows), T2ISettings(), seed=0)
    assert one["pairs"].equals(reformulate(table(rows[::-1]), T2ISettings(), seed=0)["pairs"])
    assert not one["pairs"].equals(reformulate(table(rows), T2ISettings(), seed=1)["pairs"])


def test_what_is_not_used_is_counted():
    rows = [preference(i) for i in range(6)]
    rows += [preference(9, preferred="x", other="y"), preference(9, preferred="y", other="x")]
    bundle = reformulate(table(rows), T2ISettings(max_pairs=4), seed=0)
    assert bundle["pairs"].num_rows == 4
    reasons = sorted(bundle["set_aside"]["reason"].to_pylist())
    assert reasons == ["beyond t2i.max_pairs"] * 2 + ["contradictory preference"] * 2
    assert bundle.facts["rows_in"] == bundle.facts["rows_out"] + bundle.facts["rows_set_aside"]


def test_a_marker_in_a_caption_does_not_stand_for_a_picture():
    bundle = reformulate(table([preference(0, caption="an <image> of {braces}")]), T2ISettings(), seed=0)
    text = bundle["prompts"].to_pylist()[0]["turns"][0]["text"]
    assert text.count("<image>") == 2
    assert "{braces}" in text


def test_no_preference_at_all_gives_no_pair():
    bundle = reformulate(table([]), T2ISettings(), seed=0)
    assert bundle["pairs"].num_rows == bundle["prompts"].num_rows == 0
    assert bundle.facts == {"rows_in": 0, "rows_out": 0, "rows_set_aside": 0, "preferred_first": 0}
