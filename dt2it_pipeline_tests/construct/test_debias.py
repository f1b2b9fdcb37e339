"""Style balance: what is kept, and that the probe then finds nothing."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dt2it_pipeline.construct.debias import balance_style, debias
from dt2it_pipeline.construct.generators import models_of, with_models
from dt2it_pipeline.storage import content_ids, records, schemas
from dt2it_pipeline.style.probe import style_probe

PLAIN = ("It is {}.", "The shape is {}.", "This is {}.")
VERBOSE = ("## Answer\n\nThank you for asking! The color is **{}**.", "- **Color:** {}\n- **Confidence:** high")


def _pairs(count: int, bias: float, seed: int = 0):
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        styles = [rng.choice(VERBOSE), rng.choice(PLAIN)]
        if rng.random() > bias:
            styles.reverse()
        good, bad = rng.sample(["red", "blue", "teal", "green"], 2)
        rows.append(records.make_pair(f"p{number}", styles[0].format(good), styles[1].format(bad), source="s"))
    return schemas.table(rows, "pairs")


def test_a_biased_set_becomes_one_in_which_the_probe_finds_nothing():
    pairs = _pairs(1500, bias=0.7)
    before = style_probe(pairs.to_pandas())
    kept, aside = balance_style(pairs, seed=0)
    after = style_probe(kept.to_pandas())
    assert before.auc > 0.65
    assert after.auc < 0.55
    assert kept.num_rows >= 0.5 * pairs.num_rows  # 0.6 is what a bias of 0.7 leaves at most
    assert kept.num_rows + aside.num_rows == pairs.num_rows


def test_pairs_of_one_style_are_all_kept():
    rows = [
        records.make_pair("p1", "It is red.", "It is tan.", source="s"),
        records.make_pair("p2", "A ball.", "A cube.", source="s"),
    ]
    kept, aside = balance_style(schemas.table(rows, "pairs"), seed=0)
    assert (kept.num_rows, aside.num_rows) == (2, 0)


def test_a_style_that_stands_on_one_side_only_leaves_nothing():
    kept, aside = balance_style(_pairs(50, bias=1.0), seed=0)
    assert kept.num_rows == 0
    assert {row["reason"] for row in aside.to_pylist()} == {"no counterpart of the opposite style"}


def test_the_seed_decides_and_repeats():
    pairs = _pairs(300, bias=0.7)
    assert balance_style(pairs, 0)[0].equals(balance_style(pairs, 0)[0])
    assert not balance_style(pairs, 0)[0].equals(balance_style(pairs, 1)[0])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60)), max_size=30))
def test_every_pair_is_kept_or_quarantined_and_a_mirrored_set_is_kept_whole(texts):
    distinct = [(a, b) for a, b in dict.fromkeys(texts) if a != b]
    rows = [records.make_pair(f"p{i}", a, b, source="s") for i, (a, b) in enumerate(distinct)]
    mirrored = [records.make_pair(f"q{i}", b, a, source="s") for i, (a, b) in enumerate(distinct)]
    kept, aside = balance_style(schemas.table(rows + mirrored, "pairs"), seed=0)
    assert (kept.num_rows, aside.num_rows) == (2 * len(distinct), 0)
    some, rest = balance_style(schemas.table(rows, "pairs"), seed=0)
    assert some.num_rows + rest.num_rows == len(distinct)


NONE = schemas.table([], "pairs")


def test_debiasing_keeps_as_many_pairs_as_the_bound_allows():
    pairs = _pairs(800, bias=0.7)
    strict, _ = balance_style(pairs, seed=0)
    chosen = debias(pairs, NONE, bound=0.55, max_pairs_per_prompt=3)
    assert chosen.before.auc > 0.65 and chosen.after.auc <= 0.55
    assert style_probe(chosen.pairs.to_pandas(), seed=7).auc <= 0.55
    assert strict.num_rows <= chosen.pairs.num_rows < pairs.num_rows
    assert chosen.pairs.num_rows + chosen.quarantine.num_rows == pairs.num_rows
    kept = [point["kept"] for point in chosen.curve]
    assert (kept[0], kept[-1]) == (strict.num_rows, pairs.num_rows) and kept == sorted(kept)
    assert chosen.curve[-1]["auc"] == chosen.before.auc


def test_a_looser_bound_keeps_more_and_an_unbiased_set_is_kept_whole():
    pairs = _pairs(800, bias=0.7)
    some, more = (debias(pairs, NONE, bound, 3).pairs.num_rows for bound in (0.55, 0.65))
    assert some < more
    fair = _pairs(1500, bias=0.5)
    assert debias(fair, NONE, 0.55, 3).pairs.num_rows >= 0.95 * fair.num_rows


def test_other_pairs_of_the_same_prompts_are_swapped_in_with_the_pairs_that_they_balance():
    rng = random.Random(0)
    rows, others = [], []
    for number in range(400):
        good, bad = rng.sample(["red", "blue", "teal", "green"], 2)
        verbose, plain = VERBOSE[0], PLAIN[0]
        rows.append(records.make_pair(f"p{number}", verbose.format(good), plain.format(bad), source="s"))
        others.append(records.make_pair(f"p{number}", plain.format(good), verbose.format(bad), source="s"))
    pairs, spares = schemas.table(rows, "pairs"), schemas.table(others, "pairs")
    assert debias(pairs, NONE, 0.55, 2).pairs.num_rows == 0
    chosen = debias(pairs, spares, 0.55, 2)
    assert chosen.pairs.num_rows == 800 and len(chosen.swapped_in) == 400
    assert chosen.after.auc <= 0.55
    single = debias(pairs, spares, 0.55, 1)  # no room for both, but for one each
    prompts = single.pairs["prompt_id"].to_pylist()
    assert len(prompts) == len(set(prompts)) and 300 <= len(prompts) <= 400
    assert single.after.auc <= 0.55
    assert single.pairs.num_rows + single.quarantine.num_rows == 400 + len(single.swapped_in)


def test_pairs_say_which_model_wrote_their_sides():
    pair = records.make_pair("p", "good", "bad", source="s")
    other = records.make_pair("p", "good", "rewritten", source="s")
    made = [
        {"response_id": content_ids.response_id("p", text), "prompt_id": "p", "text": text, "generator": generator}
        for text, generator in (("good", "first|t=1"), ("bad", "second|t=1|mismatched_image"))
    ]
    frame = with_models(schemas.table([pair, other], "pairs"), models_of(schemas.table(made, "responses")))
    assert frame["chosen_model"].tolist() == ["first", "first"]
    assert frame["rejected_model"].isna().tolist() == [False, True]
    assert frame["rejected_model"][0] == "second"


def _of_two_models(count: int, better: float = 0.9, seed: int = 0):
    """Pairs of answers by `strong` and `weak`, in one style; `strong` wins in the share `better` of them."""
    rng = random.Random(seed)
    pairs, models = [], {}
    for number in range(count):
        good, bad = rng.sample(["red", "blue", "teal", "green"], 2)
        texts = [rng.choice(PLAIN).format(word) for word in (good, bad)]
        pairs.append(records.make_pair(f"p{number}", *texts, source="s"))
        writers = ["strong", "weak"] if rng.random() < better else ["weak", "strong"]
        models |= {pairs[-1]["chosen_id"]: writers[0], pairs[-1]["rejected_id"]: writers[1]}
    return schemas.table(pairs, "pairs"), models


def test_a_model_that_wins_nearly_always_is_found_and_balanced():
    pairs, models = _of_two_models(1000)
    blind = debias(pairs, NONE, 0.55, 3)
    assert blind.before.auc < 0.55 and blind.pairs.num_rows > 900  # their texts do not tell them apart
    seen = debias(pairs, NONE, 0.55, 3, models=models)
    assert seen.before.auc > 0.85
    assert dict(seen.before.leaks)["by strong"] > 0.85 > 0.15 > dict(seen.before.leaks)["by weak"]
    assert seen.after.auc <= 0.55
    assert style_probe(with_models(seen.pairs, models), seed=7).auc <= 0.55
    # twice the pairs in which `weak` wins, some 100 of 1,000, are what balance leaves, without their strata's rests
    assert 150 < seen.pairs.num_rows < 300
    assert seen.pairs.num_rows + seen.quarantine.num_rows == pairs.num_rows
    assert [point["kept"] for point in seen.curve][-1] == pairs.num_rows


def test_one_model_on_both_sides_changes_nothing_and_a_model_that_is_not_known_counts_as_one():
    pairs = _pairs(500, bias=0.7)
    ids = [*pairs["chosen_id"].to_pylist(), *pairs["rejected_id"].to_pylist()]
    plain, alone = debias(pairs, NONE, 0.55, 3), debias(pairs, NONE, 0.55, 3, models=dict.fromkeys(ids, "only"))
    assert alone == plain
    pairs, models = _of_two_models(500)
    known = {key: name for key, name in models.items() if name == "strong"}
    assert debias(pairs, NONE, 0.55, 3, models=known).before.auc > 0.85
