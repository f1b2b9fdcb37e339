"""The authors' figures from the same scores, worked out by hand on published rows and rows of published schemas."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline.evaluate.benchmarks.bootstrap import measure
from dt2it_pipeline.evaluate.benchmarks.metrics import BenchmarkError, BenchmarkResult, combined, score_benchmark
from dt2it_pipeline.evaluate.benchmarks.presentation import present
from dt2it_pipeline.evaluate.benchmarks.spec import Entry, find_entry, get_entry, load_entries
from dt2it_pipeline_tests.support.real_data import real_rows


def vl_rows() -> list[dict[str, Any]]:
    return real_rows("vl_rewardbench/data.json")


def mm_rlhf_rows() -> list[dict[str, Any]]:
    return real_rows("mm_rlhf_rewardbench/mm_reward_bench.jsonl")


def margins(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores with wrong answers and a few ties."""
    rng = np.random.default_rng(seed)
    chosen, rejected = rng.normal(0.5, 1, count), rng.normal(0, 1, count)
    tied = rng.random(count) < 0.05
    return chosen, np.where(tied, chosen, rejected)


def test_vl_rewardbench_groups_overall_and_macro() -> None:
    rows = vl_rows()
    chosen, rejected = margins(len(rows))
    result = score_benchmark("vl_rewardbench", rows, chosen, rejected)
    counts: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for row, a, b in zip(rows, chosen, rejected, strict=True):
        first = row["id"].replace("_", "-").split("-")[0]
        group = {"RLAIF": "hallucination", "RLHF": "hallucination", "hallucination": "hallucination"}.get(first)
        group = group or {"mathverse": "reasoning", "mmmu": "reasoning"}.get(first, "general")
        counts[group] += 1
        right[group] += a > b
    assert counts == {"hallucination": 749, "reasoning": 318, "general": 183}
    assert result.groups == pytest.approx({group: right[group] / counts[group] for group in counts})
    assert result.overall == pytest.approx(right.total() / 1250)
    assert result.macro == pytest.approx(sum(right[g] / counts[g] for g in counts) / 3)
    assert result.ties == int((chosen == rejected).sum()) > 0
    assert {name: result.figures[name].count for name in counts} == counts


def test_mm_rlhf_rewardbench_acc_and_acc_plus() -> None:
    rows = mm_rlhf_rows()
    chosen, rejected = margins(len(rows), seed=1)
    chosen = chosen + 1.0
    result = score_benchmark("MM-RLHF-RewardBench", rows, chosen, rejected)
    pairs: Counter[str] = Counter()
    right: Counter[str] = Counter()
    whole: dict[str, dict[str, bool]] = defaultdict(dict)
    for row, a, b in zip(rows, chosen, rejected, strict=True):
        category = (row.get("image") or row.get("video")).split("/")[0]
        pairs[category] += 1
        right[category] += a > b
        whole[category][row["id"]] = whole[category].get(row["id"], True) and bool(a > b)
    assert pairs == {"mcq": 42, "long": 37, "short": 34, "safety": 32, "video": 25}
    ids = [value for own in whole.values() for value in own.values()]
    assert len(ids) == 46 == result.figures["acc_plus"].count
    assert result.acc == result["Acc"] == pytest.approx(right.total() / 170)
    assert result.acc_plus == result["Acc+"] == pytest.approx(sum(ids) / 46)
    assert 0 < result.acc_plus < result.acc
    for category, own in whole.items():
        assert result[category] == pytest.approx(right[category] / pairs[category])
        assert result[f"acc_plus/{category}"] == pytest.approx(sum(own.values()) / len(own))


def multimodal_row(number: int, category: str, row_id: str, nested: bool = False) -> dict[str, Any]:
    row: dict[str, Any] = {
        "ID": row_id, "Text": f"question {number}", "Image": f"images/x/{number}.jpg",
        "Output1": f"one {number}", "Output2": f"two {number}", "Better": ("Output1", "Output2")[number % 2],
    }  # fmt: skip
    return row | ({"Meta": {"Category": category}} if nested else {"Category": category})


MULTIMODAL = [
    # category, id, right?, ...
    ("open_generation/correctness_task", "nocaps_1", True),
    ("open_generation/correctness_task", "visitbench_2", False),
    ("open_generation/preference_task", "nocaps_3", True),
    ("knowledge", "mmmu-s_1", True),
    ("knowledge", "mmmu-s_2", True),
    ("reasoning", "MathVista_1", False),
    ("reasoning", "mathvista_2", True),
    ("reasoning", "EMMA-Coding_1", True),
    ("reasoning", "image2struct_2", False),
    ("reasoning", "image2struct_3", False),
    ("safety", "PAIRS_1", True),
    ("safety", "pairs_2", False),
    ("safety", "toxic_3", False),
    ("safety", "toxic_4", False),
    ("vqa", "MMBench_1", True),
]


@pytest.mark.parametrize("nested", [False, True])
def test_multimodal_rewardbench_categories_and_overall_without_safety(nested: bool) -> None:
    rows = [multimodal_row(i, category, name, nested) for i, (category, name, _) in enumerate(MULTIMODAL)]
    scores = [(1.0, 0.0) if right else (0.0, 1.0) for _, _, right in MULTIMODAL]
    result = score_benchmark("Multimodal RewardBench", rows, *zip(*scores, strict=True))
    assert result.groups == pytest.approx({
        "general_correctness": 1 / 2, "general_preference": 1, "knowledge": 1, "math": 1 / 2, "coding": 1 / 3,
        "safety": 1 / 4, "vqa": 1,
    })  # fmt: skip
    assert result["reasoning"] == pytest.approx(2 / 5)
    assert (result["safety/bias"], result["safety/toxicity"]) == (1 / 2, 0)
    assert result.overall == pytest.approx(8 / 15)
    assert result["overall_without_safety"] == pytest.approx(7 / 11)
    assert result.macro == pytest.approx((1 / 2 + 1 + 1 + 1 / 2 + 1 / 3 + 1 / 4 + 1) / 7)
    assert result["macro_without_safety"] == pytest.approx((1 / 2 + 1 + 1 + 1 / 2 + 1 / 3 + 1) / 6)
    frame = score_benchmark("multimodal_rewardbench", pd.DataFrame(rows), *zip(*scores, strict=True))
    assert dict(frame) == dict(result)


def test_a_tie_and_a_missing_score_are_wrong_and_counted_apart() -> None:
    rows = mm_rlhf_rows()[:4]  # one id
    result = score_benchmark("mm_rlhf_rewardbench", rows, [1, 2, None, 3], [0, 2, 0, math.nan])
    assert result.results["outcome"].tolist() == ["correct", "tie", "unscored", "unscored"]
    assert (result.pairs, result.correct, result.ties, result.unscored) == (4, 1, 1, 2)
    assert (result.acc, result.acc_plus) == (1 / 4, 0)


def test_rows_are_distinguished_by_content_where_an_id_is_used_twice() -> None:
    rows = vl_rows()
    ids = Counter(row["id"] for row in rows)
    assert sum(count > 1 for count in ids.values()) == 25
    result = score_benchmark("vl_rewardbench", rows, np.ones(1250), np.zeros(1250), repeats=0)
    assert result.results["item_key"].is_unique
    assert not result.results["item_id"].is_unique


def test_the_order_of_the_rows_changes_no_figure() -> None:
    rows = vl_rows()
    chosen, rejected = margins(len(rows))
    order = np.random.default_rng(3).permutation(len(rows))
    one = score_benchmark("vl_rewardbench", rows, chosen, rejected, repeats=0)
    two = score_benchmark("vl_rewardbench", [rows[i] for i in order], chosen[order], rejected[order], repeats=0)
    assert dict(one) == pytest.approx(dict(two))


def test_intervals_are_those_of_the_binomial_where_pairs_are_independent_and_wider_where_they_are_not() -> None:
    rows = vl_rows()
    chosen, rejected = margins(len(rows))
    result = score_benchmark("vl_rewardbench", rows, chosen, rejected, repeats=4000)
    for name, count in (("hallucination", 749), ("general", 183)):
        figure = result.figures[name]
        half = 1.96 * math.sqrt(figure.value * (1 - figure.value) / count)
        assert figure.high - figure.low == pytest.approx(2 * half, rel=0.1)
        assert figure.low < figure.value < figure.high
    again = score_benchmark("vl_rewardbench", rows, chosen, rejected, repeats=4000)
    other = score_benchmark("vl_rewardbench", rows, chosen, rejected, repeats=4000, seed=1)
    assert again.figures == result.figures
    assert other.figures != result.figures
    mm = mm_rlhf_rows()
    by_id = {name: i % 3 > 0 for i, name in enumerate(dict.fromkeys(row["id"] for row in mm))}
    together = score_benchmark("mm_rlhf", mm, [float(by_id[row["id"]]) for row in mm], np.full(len(mm), 0.5))
    half = 1.96 * math.sqrt(together.acc * (1 - together.acc) / 170)
    assert together.figures["overall"].high - together.figures["overall"].low > 1.3 * 2 * half


def test_both_overalls_of_several_benchmarks() -> None:
    vl, mm = vl_rows(), mm_rlhf_rows()
    one = score_benchmark("vl_rewardbench", vl, *margins(1250))
    two = score_benchmark("mm_rlhf_rewardbench", mm, np.ones(170), np.zeros(170))
    both = combined([one, two])
    assert both["pooled"].value == pytest.approx((one.correct + 170) / 1420)
    assert both["mean"].value == pytest.approx((one.overall + 1) / 2)
    assert both["pooled"].low < both["pooled"].value < both["pooled"].high


def test_overalls_of_all_three_benchmarks_with_and_without_safety() -> None:
    """Counted pair by pair from the published rows, apart from the code that is tested."""
    multimodal = [multimodal_row(i, category, name) for i, (category, name, _) in enumerate(MULTIMODAL)]
    right, accuracy, results = 0, [], []
    for seed, (name, rows) in enumerate(
        [("VL-RewardBench", vl_rows()), ("MM-RLHF-RewardBench", mm_rlhf_rows()), ("Multimodal RewardBench", multimodal)]
    ):
        chosen, rejected = margins(len(rows), seed=10 + seed)
        results.append(score_benchmark(name, rows, chosen, rejected, repeats=50))
        own = sum(bool(a > b) for a, b in zip(chosen, rejected, strict=True))
        right, accuracy = right + own, [*accuracy, own / len(rows)]
    both = combined(results)
    assert both["pooled"].value == pytest.approx(right / (1250 + 170 + len(MULTIMODAL)))
    assert both["pooled"].count == 1250 + 170 + len(MULTIMODAL)
    assert both["mean"].value == pytest.approx(sum(accuracy) / 3)
    safe = [bool(a > b) for a, b, row in zip(chosen, rejected, multimodal, strict=True) if row["Category"] != "safety"]
    assert results[2]["overall_without_safety"] == pytest.approx(sum(safe) / len(safe))
    assert results[2].overall == pytest.approx(accuracy[2])


def test_always_the_first_scores_99_6_unshuffled_and_half_when_shuffled_by_content() -> None:
    rows = vl_rows()
    better = [row["response"][row["human_ranking"].index(0)] for row in rows]
    worse = [row["response"][row["human_ranking"].index(1)] for row in rows]
    as_published = np.array([row["human_ranking"] == [0, 1] for row in rows], dtype=float)
    assert score_benchmark("vl_rewardbench", rows, as_published, 1 - as_published).overall == pytest.approx(0.996)
    presented = present([row["query"] for row in rows], better, worse, seed=0)
    always_first = score_benchmark("vl_rewardbench", rows, *presented.scores(["first"] * len(rows)))
    assert abs(always_first.overall - 0.5) < 0.05
    knows = ["second" if second else "first" for second in presented.chosen_is_second]
    assert score_benchmark("vl_rewardbench", rows, *presented.scores(knows)).overall == 1
    swapped = present([row["query"] for row in rows], worse, better, seed=0)
    assert (swapped.first, swapped.second) == (presented.first, presented.second)
    assert present([row["query"] for row in rows], better, worse, seed=1).first != presented.first
    unsure = score_benchmark("vl_rewardbench", rows[:2], *present("ab", "cd", "ef").scores(["tie", None]), repeats=0)
    assert (unsure.ties, unsure.unscored) == (1, 1)
    with pytest.raises(ValueError, match="verdict 'A'"):
        present("a", "b", "c").scores(["A"])


@pytest.mark.parametrize(
    "name", ["VL-RewardBench", "vl_reward_bench", "MMInstruction/VL-RewardBench", "VLRewardBench", "vl_rewardbench"]
)
def test_a_benchmark_is_found_by_any_spelling(name: str) -> None:
    assert get_entry(name).name == "vl_rewardbench"


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(BenchmarkError, match=r"'x'.*known: mm_rlhf_rewardbench, multimodal_rewardbench, vl_reward"):
        score_benchmark("x", [], [], [])
    with pytest.raises(BenchmarkError, match="1 rows, 2 chosen and 1 rejected"):
        score_benchmark("vl_rewardbench", [{"id": "mmmu_1"}], [1, 2], [0])
    with pytest.raises(BenchmarkError, match=r"row 0: no group fits .*'haiku'"):
        score_benchmark("multimodal_rewardbench", [{"ID": "a", "Category": "haiku"}], [1], [0])
    with pytest.raises(BenchmarkError, match=r"no group fits .*category.*None.*has the columns \['ID', 'Kind'\]"):
        score_benchmark("multimodal_rewardbench", [{"ID": "a", "Kind": "vqa"}], [1], [0])
    with pytest.raises(BenchmarkError, match="row 0: no id"):
        score_benchmark("mm_rlhf_rewardbench", [{"image": "mcq/1.png"}], [1], [0])
    with pytest.raises(BenchmarkError, match=r"row 0: \"\['a'\]\" is no usable id"):
        score_benchmark("mm_rlhf_rewardbench", [{"id": ["a"], "image": "mcq/1.png"}], [1], [0])
    with pytest.raises(BenchmarkError, match="chosen_scores"):
        score_benchmark("vl_rewardbench", [{"id": "mmmu_1"}], ["high"], [0])
    assert find_entry("my own set") is None


def test_an_entry_with_an_unknown_group_or_a_shared_alias_is_refused(tmp_path: Any) -> None:
    good = "name: one\nfields: {id: [id]}\ngroups: [{group: a, prefix: {id: [x]}}]\n"
    (tmp_path / "one.yaml").write_text(good)
    assert load_entries(tmp_path)["one"].group_of({"id": "X1"}) == "a"
    (tmp_path / "two.yaml").write_text(good.replace("name: one", "name: two\naliases: [O-n-e]"))
    with pytest.raises(BenchmarkError, match=r"one\.yaml and two\.yaml share the name 'one'"):
        load_entries(tmp_path)
    (tmp_path / "two.yaml").write_text(good.replace("name: one", "name: two") + "unions: {c: [b]}\n")
    with pytest.raises(BenchmarkError, match=r"two\.yaml.*unknown groups \['b'\]"):
        load_entries(tmp_path)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"groups": [{"group": "overall"}]}, "overall"),
        ({"groups": [{"group": "Acc+"}]}, r"Acc\+"),
        ({"groups": [{"group": "Accuracy"}]}, "Accuracy"),
        ({"parts": [{"group": "macro", "of": "g"}]}, "macro"),
        ({"unions": {"overall": ["g", "h"]}}, "overall"),
        ({"unions": {"g": ["g", "h"]}}, "'g', 'g'"),
        ({"parts": [{"group": "h", "of": "g"}]}, "'h', 'h'"),
        ({"parts": [{"group": "p", "of": "g"}], "unions": {"P": ["g", "h"]}}, "'P', 'p'"),
        ({"parts": [{"group": "p", "of": "g"}, {"group": "p", "of": "h"}]}, "a part belongs to one group"),
        ({"without": {"h": ["h"]}, "unions": {"overall_h": ["g"]}}, "overall_h"),
        ({"without": {"h": ["h"]}, "unions": {"macro_h": ["g"]}}, "macro_h"),
        ({"all_right_by": "id", "unions": {"acc_plus/g": ["g", "h"]}}, "acc_plus/g"),
    ],
)
def test_an_entry_in_which_one_figure_would_overwrite_another_is_refused(given: dict[str, Any], named: str) -> None:
    sound = {"name": "x", "fields": {"id": ["id"]}, "groups": [{"group": "g"}, {"group": "h"}, {"group": "g"}]}
    Entry.model_validate(sound)
    with pytest.raises(ValueError, match=named):
        Entry.model_validate(sound | given)


def test_a_group_of_the_items_never_overwrites_a_figure_of_the_entry() -> None:
    entry = Entry.model_validate({"name": "x", "groups": [{"group": "g"}], "unions": {"u": ["g"]}})
    assert {"g", "u", "overall"} == set(measure(entry, np.ones(2, bool), ["g", "g"], ["", ""], [0, 1]).figures)
    with pytest.raises(BenchmarkError, match=r"groups \['u'\] have the names of other figures"):
        measure(entry, np.ones(2, bool), ["g", "u"], ["", ""], [0, 1])


def test_an_id_that_is_no_valid_text_can_still_be_written() -> None:
    result = score_benchmark("vl_rewardbench", [{"id": "mmmu_\ud800"}], [1], [0], repeats=0)
    assert result.results["item_id"].tolist() == ["mmmu_\\ud800"]
    assert score_benchmark("mm_rlhf", [{"id": 7, "image": "mcq/1.png"}], [1], [0], repeats=0).acc_plus == 1


def test_a_result_is_a_mapping_and_a_table() -> None:
    result = score_benchmark("vl_rewardbench", [{"id": "mmmu_1"}, {"id": "RLAIF-V-1"}], [1, 0], [0, 1], repeats=10)
    assert isinstance(result, BenchmarkResult)
    assert dict(result) == {"overall": 0.5, "reasoning": 1, "hallucination": 0, "macro": 0.5}
    assert result.table["figure"].tolist() == list(result)
    assert math.isnan(result.acc_plus)
    assert "overall=0.5000" in repr(result)
