"""Forming pairs: agreement, strength, spread, and what is left out."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest

from dt2it_pipeline.config.recipe import PairingSettings
from dt2it_pipeline.construct.pairs import PairingError, form_pairs
from dt2it_pipeline.storage import content_ids, schemas
from dt2it_pipeline_tests.support.construct_world import COLORS, prompt_row, response_rows


def _form(
    tmp_path,
    scored: dict[str, tuple[list[float], float | None]],
    seed: int = 0,
    prompts: int = 1,
    reference: str | None = None,
    **settings,
):
    """Pairs of prompts that all have the same texts; text -> (score in each listwise order, pointwise score)."""
    rows = [prompt_row(tmp_path, color, reference=reference) for color in COLORS[:prompts]]
    responses, judgements = [], []
    for row in rows:
        for response in response_rows(row, *scored):
            responses.append(response)
            listwise, pointwise = scored[response["text"]]
            presentations = [("listwise", [i], score) for i, score in enumerate(listwise)]
            for mode, order, score in [*presentations, ("pointwise", [], pointwise)]:
                judgements.append(
                    {
                        "prompt_id": row["prompt_id"],
                        "response_id": response["response_id"],
                        "judge": "test",
                        "mode": mode,
                        "order": order,
                        "score": score,
                        "criteria": "{}",
                        "status": "unparsable" if score is None else "ok",
                        "template_hash": "",
                    }
                )
    tables = (schemas.table(r, k) for r, k in ((rows, "prompts"), (responses, "responses"), (judgements, "judgements")))
    pairs, aside = form_pairs(*tables, PairingSettings(**settings), seed)
    return pairs.to_pylist(), aside.to_pylist()


def test_strength_is_the_mean_of_the_listwise_and_pointwise_differences(tmp_path):
    # listwise: ((9 - 5) + (7 - 5)) / 2 = 3; pointwise: 8 - 7 = 1
    ((pair,), aside) = _form(tmp_path, {"worse": ([5.0, 5.0], 7.0), "better": ([9.0, 7.0], 8.0)})
    assert (pair["chosen"], pair["rejected"], pair["strength"]) == ("better", "worse", pytest.approx(2.0))
    assert (pair["label"], pair["source"], aside) == ("constructed", "test", [])
    assert pair["pair_id"] == content_ids.pair_id(pair["prompt_id"], pair["rejected_id"], pair["chosen_id"])


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (([9.0], 3.0), ([4.0], 8.0), "judgements disagree on the order"),
        (([9.0, 4.0], 9.0), ([5.0, 5.0], 1.0), "judgements disagree on the order"),
        (([9.0], 6.0), ([4.0], 6.0), "judgements disagree on the order"),
        (([6.0], 6.0), ([6.0], 6.0), "tied"),
        (([6.3], 6.2), ([6.0], 6.0), "weaker than min_strength"),
    ],
)
def test_pairs_without_a_clear_order_are_quarantined_with_the_reason(tmp_path, first, second, reason):
    scored = {"one": first, "two": second, "clearly worse": ([0.0] * len(first[0]), 0.0)}
    pairs, aside = _form(tmp_path, scored)
    assert {frozenset((p["chosen"], p["rejected"])) for p in pairs} == {
        frozenset(("one", "clearly worse")),
        frozenset(("two", "clearly worse")),
    }
    assert [row["reason"] for row in aside] == [reason]


def test_texts_that_differ_in_form_only_make_no_pair(tmp_path):
    scored = {"It is red.": ([9.0], 9.0), "it is **RED**": ([5.0], 5.0), "It is blue.": ([1.0], 1.0)}
    _, aside = _form(tmp_path, scored)
    assert [row["reason"] for row in aside] == ["near-identical texts"]


def test_a_response_with_a_faulty_judgement_takes_no_part(tmp_path):
    pairs, aside = _form(tmp_path, {"a": ([9.0], 9.0), "b": ([5.0], None), "c": ([1.0], 1.0)})
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("a", "c")]
    assert aside == []


def test_a_prompt_gives_at_most_m_pairs_and_every_candidate_is_accounted_for(tmp_path):
    scored = {f"text {i}": ([float(i)], float(i)) for i in range(6)}
    pairs, aside = _form(tmp_path, scored, prompts=4, max_pairs_per_prompt=4)
    assert set(Counter(pair["prompt_id"] for pair in pairs).values()) == {4}
    assert len(pairs) + len(aside) == 4 * len(list(itertools.combinations(scored, 2)))
    assert {row["reason"] for row in aside} == {"prompt has enough pairs"}
    assert len({row["row_id"] for row in aside} | {pair["pair_id"] for pair in pairs}) == 60


def test_strengths_are_spread_over_the_bands_that_occur(tmp_path):
    scored = {f"text {i}": ([float(i)], float(i)) for i in range(6)}
    pairs, _ = _form(tmp_path, scored, prompts=5, max_pairs_per_prompt=3)
    bands = Counter(int(pair["strength"]) for pair in pairs)
    assert set(bands) == {1, 2, 3, 4, 5}  # a plain draw would seldom take the one pair of strength 5 among fifteen
    assert max(bands.values()) - min(bands.values()) <= 3


def test_the_seed_decides_and_repeats(tmp_path):
    scored = {f"text {i}": ([float(i)], float(i)) for i in range(6)}
    first, again, other = (_form(tmp_path, scored, seed, 6, max_pairs_per_prompt=2)[0] for seed in (0, 0, 1))
    assert first == again != other


def test_no_pair_at_all_is_one_error_that_names_the_settings(tmp_path):
    with pytest.raises(PairingError, match=r"2 responses.*1 tied.*sampling\.temperature"):
        _form(tmp_path, {"a": ([5.0], 5.0), "b": ([5.0], 5.0)})
    with pytest.raises(PairingError, match=r"pairing\.min_strength"):
        _form(tmp_path, {"a": ([5.2], 5.2), "b": ([5.0], 5.0)})


def test_answers_that_all_miss_their_reference_are_shown_beside_it(tmp_path):
    same = ([5.0], 5.0)
    missed = {"word " * 40: same, "It is blue.": same}
    words = r"1 tied.*No answer contains its reference; one is 'word word [^']{70}\.\.\.', where 'red' is right"
    with pytest.raises(PairingError, match=words):
        _form(tmp_path, missed)
    for reference, answer in (
        ("りんご", "りんごです。"),
        ("สีแดง", "มันเป็นสีแดง"),
        ("빨간색", "빨간색입니다."),
        ("1000", "It has 1,000."),
        ("US", "The U.S. it is."),
        ("red", "ＲＥＤ"),
    ):
        with pytest.raises(PairingError, match=r"No answer has its reference as words of its own; one is ") as found:
            _form(tmp_path, {answer: same, "none": same}, reference=reference)
        assert f"{answer!r}, where {reference!r} is right" in str(found.value)
    with pytest.raises(PairingError, match="No answer contains its reference"):
        _form(tmp_path, {"a hundred": same, "1.5": same}, reference="red")
    for reference, texts in (
        ("red", ["It is RED.", "blue"]),
        ("yes", ["There is a red shape.", "Indeed."]),  # either may be right without the word
        ("a shape that is all red and has four corners", ["red", "blue"]),
    ):
        with pytest.raises(PairingError) as found:
            _form(tmp_path, dict.fromkeys(texts, same), reference=reference)
        assert "1 tied" in str(found.value) and "reference" not in str(found.value)


def test_a_target_histogram_is_met_and_what_is_beyond_it_is_quarantined(tmp_path):
    # differences 1..5 in every prompt; many more weak pairs than strong ones
    scored = {f"text {i}": ([float(i)], float(i)) for i in range(6)}
    bins = [{"from_strength": low, "share": share} for low, share in ((0.0, 0.25), (2.0, 0.25), (4.0, 0.5))]
    pairs, aside = _form(tmp_path, scored, prompts=6, max_pairs_per_prompt=15, strength_bins=bins)
    counts = Counter(0 if pair["strength"] < 2 else 2 if pair["strength"] < 4 else 4 for pair in pairs)
    assert len(pairs) + len(aside) == 6 * 15
    assert {row["reason"] for row in aside} == {"strength bin has enough pairs"}
    assert counts == {4: 18, 0: 9, 2: 9}  # three pairs of strength 4 or 5 a prompt set the size


def test_a_bin_that_nothing_falls_into_does_not_empty_the_others(tmp_path):
    bins = [{"from_strength": 0.0, "share": 0.5}, {"from_strength": 9.0, "share": 0.5}]
    pairs, _ = _form(tmp_path, {"a": ([5.0], 5.0), "b": ([7.0], 7.0)}, strength_bins=bins)
    assert len(pairs) == 1


def test_long_texts_that_share_nearly_all_words_make_no_pair_and_short_ones_may(tmp_path):
    long = "the image shows a wide street with many cars and people who walk along the shops on a warm and sunny day"
    other = long.replace("sunny", "windy")
    third = {"no such thing is there": ([5.0], 5.0)}
    pairs, aside = _form(tmp_path, {long: ([9.0], 9.0), other: ([2.0], 2.0)} | third, near_identical=0.9)
    assert (len(pairs), [row["reason"] for row in aside]) == (2, ["near-identical texts"])
    pairs, aside = _form(tmp_path, {long: ([9.0], 9.0), other: ([2.0], 2.0)} | third, near_identical=1.0)
    assert (len(pairs), aside) == (3, [])
    kept, _ = _form(tmp_path, {"it is red": ([9.0], 9.0), "it is blue": ([2.0], 2.0)}, near_identical=0.5)
    assert len(kept) == 1


@pytest.mark.parametrize(("verdict", "kept"), [(1.0, 1), (0.5, 0), (0.0, 0), (None, 0)])
def test_a_pairwise_verdict_must_agree(tmp_path, verdict, kept):
    row = prompt_row(tmp_path, "red")
    good, bad, spare, other = response_rows(row, "good", "bad", "spare", "other")
    judgements = []
    for response, score in ((good, 9.0), (bad, 2.0), (spare, 9.0), (other, 2.0)):
        shared = {"prompt_id": row["prompt_id"], "response_id": response["response_id"], "judge": "test"}
        rest = {"status": "ok", "template_hash": "", "criteria": "{}", "order": []}
        judgements += [shared | rest | {"mode": mode, "score": score} for mode in ("listwise", "pointwise")]
    for one, two, score in ((good, bad, verdict), (bad, good, None if verdict is None else 1 - verdict)):
        judgements.append(
            {
                "prompt_id": row["prompt_id"],
                "response_id": one["response_id"],
                "judge": "test",
                "mode": "pairwise",
                "order": [0, 1],
                "score": score,
                "criteria": json.dumps({"against": two["response_id"]}),
                "status": "no reply" if score is None else "ok",
                "template_hash": "",
            }
        )
    tables = (
        schemas.table([row], "prompts"),
        schemas.table([good, bad, spare, other], "responses"),
        schemas.table(judgements, "judgements"),
    )
    pairs, aside = form_pairs(*tables, PairingSettings(max_pairs_per_prompt=6), seed=0)
    assert sum((pair["chosen"], pair["rejected"]) == ("good", "bad") for pair in pairs.to_pylist()) == kept
    assert pairs.num_rows + aside.num_rows == 6


def test_without_prompts_there_are_no_pairs_and_no_error():
    empty = [schemas.table([], kind) for kind in ("prompts", "responses", "judgements")]
    pairs, aside = form_pairs(*empty, PairingSettings(), seed=0)
    assert pairs.num_rows == aside.num_rows == 0
