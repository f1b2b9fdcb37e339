from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline.style.features import model_difference, style_features
from dt2it_pipeline.style.probe import StyleProbe, _auc, source_probe, style_probe

WORDS = ["red", "blue", "green", "circle", "triangle", "rectangle", "it", "is", "a", "the", "shape", "image", "shows"]


def verbose(text: str) -> str:
    return f"**Answer:** Based on the image, I can clearly see:\n- {text}\n\nI hope this helps!"


def pairs(count: int, bias: float | None, seed: int = 0) -> pd.DataFrame:
    """`bias`: share of pairs whose chosen side is verbose and the other plain; None for one style on both sides."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        a, b = (" ".join(random.choice(WORDS, random.integers(3, 9))) + "." for _ in range(2))
        if bias is not None:
            a, b = (verbose(a), b) if random.random() < bias else (a, verbose(b))
        rows.append({"prompt_id": f"q{i // 3}", "chosen": a, "rejected": b})
    return pd.DataFrame(rows)


def test_a_verbose_bias_is_found() -> None:
    probe = style_probe(pairs(400, 0.9))
    assert probe.auc is not None and probe.ci_low is not None and probe.ci_high is not None
    assert probe.auc >= 0.85
    assert probe.ci_low < probe.auc < probe.ci_high
    assert probe.n == 400
    assert probe.features and all(weight > 0 for _, weight in probe.features[:3])


@pytest.mark.parametrize("bias", [None, 0.5])
def test_unbiased_pairs_give_one_half(bias: float | None) -> None:
    values = [style_probe(pairs(600, bias, seed), seed=seed).auc for seed in range(4)]
    assert np.mean(np.array(values, dtype=float)) == pytest.approx(0.5, abs=0.03)


def test_the_content_of_an_answer_is_not_style() -> None:
    count = 200
    frame = pd.DataFrame({"chosen": ["it is red."] * count, "rejected": ["it is tan."] * count})
    assert style_probe(frame).auc == 0.5


def test_same_seed_same_result() -> None:
    frame = pairs(120, 0.8)
    assert style_probe(frame, seed=3) == style_probe(frame, seed=3)


def test_too_little_to_say() -> None:
    few = style_probe(pairs(19, 0.9))
    assert few == StyleProbe(None, None, None, 19, reason="19 pairs, fewer than 20")
    one = style_probe(pairs(30, 0.9).assign(prompt_id="q"))
    assert one.auc is None and one.reason == "all pairs belong to one prompt"
    assert style_probe(pairs(30, 0.9).assign(prompt_id=["a"] * 29 + ["b"])).n == 30
    with pytest.raises(ValueError, match="folds"):
        style_probe(pairs(30, 0.9), folds=1)
    with pytest.raises(ValueError, match="rejected"):
        style_probe(pairs(30, 0.9).drop(columns="rejected"))


def test_features_see_markup_openings_and_empty_texts() -> None:
    texts = pd.Series(
        ["# Title\n- one\n- two\n**bold** `code`", None, "The image shows 3 cats, perhaps!", "图片中有两只猫。"]
    )
    features = style_features(texts)
    counts = np.expm1(features).round()
    assert len(features) == 4 and np.isfinite(features.to_numpy()).all()
    assert counts.loc[0, ["headings", "bullets", "bold", "code", "line breaks"]].tolist() == [1, 2, 1, 1, 3]
    assert counts.loc[1, "characters"] == 0
    assert features.loc[2, "opens: the image"] == 1 and counts.loc[2, "hedges"] == 1 and counts.loc[2, "digits"] == 1
    assert features.loc[3, "opens: the image"] == 1 and features.loc[3, "no closing stop"] == 0


def test_auc_and_its_error_against_all_comparisons() -> None:
    random = np.random.default_rng(0)
    positive, negative = random.integers(0, 6, 30) / 1.0, random.integers(0, 5, 20) / 1.0
    wins = (positive[:, None] > negative[None]) + 0.5 * (positive[:, None] == negative[None])
    auc, error = _auc(positive, negative)
    assert auc == pytest.approx(wins.mean())
    expected = wins.mean(axis=1).var(ddof=1) / 30 + wins.mean(axis=0).var(ddof=1) / 20
    assert error == pytest.approx(np.sqrt(expected))


def test_leaks_are_ranked_and_say_which_side_has_more() -> None:
    probe = style_probe(pairs(400, 0.9))
    shares = [abs(share - 0.5) for _, share in probe.leaks]
    assert shares == sorted(shares, reverse=True) and dict(probe.leaks)["bold"] == pytest.approx(0.9, abs=0.05)
    assert (
        not style_probe(pairs(2000, None)).leaks
        or max(abs(s - 0.5) for _, s in style_probe(pairs(2000, None)).leaks) < 0.05
    )


def test_chinese_text_is_counted_by_characters() -> None:
    features = np.expm1(style_features(pd.Series(["图片中有 two cats。", "it's 12"]))[["words", "tokens"]]).round()
    assert features.to_numpy().tolist() == [[4 + 2, 4 + 2 + 1], [2, 3 + 2]]


def test_who_wrote_the_sides_is_probed_apart() -> None:
    random = np.random.default_rng(0)
    frame = pairs(300, None)
    frame["chosen_model"] = random.choice(["strong", "weak"], 300, p=[0.9, 0.1])
    frame["rejected_model"] = random.choice(["strong", "weak"], 300, p=[0.1, 0.9])
    probe = source_probe(frame)
    assert probe.auc is not None and probe.auc > 0.85
    assert dict(probe.leaks)["by strong"] > 0.8 > 0.2 > dict(probe.leaks)["by weak"]
    assert source_probe(pairs(300, None)).reason == "0 pairs, fewer than 20"
    alone = source_probe(frame.assign(chosen_model="strong", rejected_model="strong"))
    assert (alone.auc, alone.leaks, alone.reason) == (None, (), "both sides of every pair have one writer")


def test_who_wrote_the_sides_counts_as_style_where_pairs_say_so() -> None:
    random = np.random.default_rng(0)
    frame = pairs(300, None)
    wins = random.random(300) < 0.9
    frame["chosen_model"], frame["rejected_model"] = np.where(wins, "a", "b"), np.where(wins, "b", "a")
    plain = style_probe(frame.drop(columns=["chosen_model", "rejected_model"]))
    seen = style_probe(frame)
    assert plain.auc is not None and plain.auc < 0.6
    assert seen.auc is not None and seen.auc > 0.85
    assert seen.leaks[0][0] in ("by a", "by b")
    assert style_probe(frame.assign(chosen_model="a", rejected_model="a")) == plain  # zero throughout: it drops out
    half = model_difference(pd.DataFrame({"chosen_model": ["a", None, None], "rejected_model": [None, "a", None]}))
    assert half.to_dict("list") == {"by a": [1, -1, 0], "by unknown": [-1, 1, 0]}
