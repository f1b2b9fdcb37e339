"""Style balance: what is kept, and that the probe then finds nothing."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dt2it_pipeline import records
from dt2it_pipeline.construct.debias import balance_style
from dt2it_pipeline.evaluate.style import style_probe

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
    return records.table(rows, "pairs")


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
    kept, aside = balance_style(records.table(rows, "pairs"), seed=0)
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
def test_every_pair_is_kept_or_set_aside_and_a_mirrored_set_is_kept_whole(texts):
    distinct = [(a, b) for a, b in dict.fromkeys(texts) if a != b]
    rows = [records.make_pair(f"p{i}", a, b, source="s") for i, (a, b) in enumerate(distinct)]
    mirrored = [records.make_pair(f"q{i}", b, a, source="s") for i, (a, b) in enumerate(distinct)]
    kept, aside = balance_style(records.table(rows + mirrored, "pairs"), seed=0)
    assert (kept.num_rows, aside.num_rows) == (2 * len(distinct), 0)
    some, rest = balance_style(records.table(rows, "pairs"), seed=0)
    assert some.num_rows + rest.num_rows == len(distinct)
