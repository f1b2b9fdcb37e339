"""`benchmarks.real_noise.rebuild.rated`: sets from made-up files in the formats of WMT23 and Simplicity-DA."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.real_noise.rebuild.__main__ import main as rebuild
from benchmarks.real_noise.rebuild.rated import CAMPAIGN, JUDGES, METRICS, VOTERS, WMT23
from benchmarks.real_noise.sets import NoisySet, load_set

Scores = Mapping[str, Sequence[float | None]]
SYSTEMS = ("bad", "good", "refA")
LABELS: Scores = {"good": [90, 10, 50, 90, 90, 90, None], "bad": [20, 80, 50, 20, 20, 20, 20], "refA": [100.0] * 7}


def write(file: Path, lines: Sequence[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def write_scores(file: Path, scores: Scores) -> Path:
    return write(file, [f"{system}\t{score}" for system, given in scores.items() for score in given])


def built(name: str, tmp_path: Path, *more: str) -> NoisySet:
    rebuild([name, str(tmp_path / "checkout"), "--output", str(tmp_path / "sets"), *more])
    return load_set(tmp_path / "sets" / name)


def fails(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    with pytest.raises(SystemExit):
        built(name, tmp_path, *more)
    return capsys.readouterr().err


def write_wmt23(checkout: Path, languages: str) -> Path:
    """Seven segments in two documents, two systems and the reference; every metric prefers the good system."""
    folder = checkout / WMT23
    write(folder / "sources" / f"{languages}.txt", [f"source {index}" for index in range(7)])
    write(folder / "documents" / f"{languages}.docs", ["news\tpaper"] * 3 + ["social\tpaper"] * 4)
    for system in SYSTEMS:
        texts = [f"{system} {index}" for index in range(7)]
        write(folder / "system-outputs" / languages / f"{system}.txt", texts)
    for name in VOTERS.values():
        scores = {system: [float(place)] * 7 for place, system in enumerate(SYSTEMS)}
        write_scores(folder / "metric-scores" / languages / f"{name}.seg.score", scores)
    for name in JUDGES.values():
        judged: Scores = {"bad": [-5, -5, 0, 0, 0, 0, 0], "good": [0, 0, 0, 0, 0, 0, 0]}
        write_scores(folder / "metric-scores" / languages / f"{name}.seg.score", judged)
    return folder


def write_ende(checkout: Path) -> Path:
    folder = write_wmt23(checkout, "en-de")
    write_scores(folder / "human-scores" / "en-de.da-sqm.seg.score", LABELS)
    mqm: Scores = {"good": [0, -1, 0, -1, -9, 0, 0], "bad": [-5, -2, -9, -1, -3, -3, -5], "refA": [0] * 7}
    write_scores(folder / "human-scores" / "en-de.mqm.seg.score", mqm)
    again: Scores = {"good": [0, 0, 0, -1, 0, None, 0], "bad": [-1, -1, -9, -1, -5, None, -5], "refA": [0] * 7}
    write_scores(checkout / CAMPAIGN / "en-de.MQM-1.seg.score", again)
    esa: Scores = {"good": [60, None, 60, 60, 60, 60, 60], "bad": [70] * 7}
    write_scores(checkout / CAMPAIGN / "en-de.ESA-1.seg.score", esa)
    return folder


def test_wmt23_keeps_what_two_experts_agree_on_and_somebody_labelled(tmp_path: Path) -> None:
    folder = write_ende(tmp_path / "checkout")
    made = built("wmt23_ende", tmp_path)
    # left out: 2 and 3, label or experts are for neither side; 4, they disagree; 5, one expert alone; 6, no label
    assert list(made.pairs["prompt"]) == ["source 0", "source 1"] and list(made.right) == [True, False]
    assert list(made.pairs["chosen"]) == ["good 0", "bad 1"] and list(made.pairs["source"]) == ["news", "news"]
    better = made.scores.set_index(["voter", "response_id"])["score"]
    assert set(made.scores["voter"]) == set(VOTERS) and len(made.scores) == 2 * 2 * len(VOTERS)
    for voter in VOTERS:
        assert better[voter].loc[made.truth["better_id"]].eq(1.0).all()
    votes = made.votes.pivot(index="judge", columns="pair_id", values="verdict")
    assert set(votes.index) == {*JUDGES, "esa-rater"}
    assert all(list(votes.loc[judge]) == ["chosen", "rejected"] for judge in JUDGES)
    assert votes.loc["esa-rater"].iloc[0] == "rejected" and pd.isna(votes.loc["esa-rater"].iloc[1])
    write(folder / "system-outputs" / "en-de" / "bad.txt", ["good 0", *(f"bad {index}" for index in range(1, 7))])
    assert list(built("wmt23_ende", tmp_path).pairs["prompt"]) == ["source 1"]  # equal texts


def test_wmt23_pairs_are_drawn_without_a_common_translation(tmp_path: Path) -> None:
    folder = write_ende(tmp_path / "checkout")
    names = [f"system-{place}" for place in range(5)]
    apart: Scores = {name: [float(place)] * 7 for place, name in enumerate(names)}
    for file in [*(folder / "human-scores").iterdir(), *(folder / "metric-scores" / "en-de").iterdir()]:
        write_scores(file, apart)
    for file in (tmp_path / "checkout" / CAMPAIGN).iterdir():
        write_scores(file, apart)
    for name in names:
        write(folder / "system-outputs" / "en-de" / f"{name}.txt", [name] * 7)
    made = built("wmt23_ende", tmp_path)
    assert len(made.pairs) == 14 and made.right.all()
    sides = made.pairs["prompt"] + pd.concat([made.pairs["chosen"], made.pairs["rejected"]])
    assert sides.is_unique
    assert list(built("wmt23_ende", tmp_path, "--seed", "1").pairs["pair_id"]) != list(made.pairs["pair_id"])


def test_wmt23_side_by_side_weighs_marked_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_wmt23(tmp_path / "checkout", "zh-en")
    write_scores(folder / "human-scores" / "zh-en.mqm.seg.score", LABELS)
    write_scores(folder / "human-scores" / "zh-en.da-sqm.seg.score", LABELS)
    none, punctuation, non_translation = (
        ("No-error", "No-error"), ("Fluency/Punctuation", "Minor"), ("Non-translation!", "Major"),
    )  # fmt: skip
    grammar, mistranslation, test = (
        ("Fluency/Grammar", "Minor"),
        ("Accuracy/Mistranslation", "Major"),
        ("Found", "HOTW-test"),
    )
    marked = {
        # six minor errors are more than a major one
        ("news_paper", 1): ([mistranslation], [grammar] * 6),
        # nine errors of punctuation are less than another minor one
        ("news_paper", 2): ([punctuation] * 9, [grammar]),
        ("social_paper", 1): ([none], [test]),  # a test of attention weighs nothing
        # five major errors are as many as a segment that is no translation
        ("social_paper", 2): ([mistranslation] * 5, [non_translation]),
        ("social_paper", 3): ([mistranslation] * 4, [non_translation]),
    }
    head = "system\tdoc\tdocSegId\trater\tsource\ttarget\tcategory\tseverity"
    lines = [
        f'{system}\t{document}:zh-en\t{place}\trater{rater}\t"\t<v>x</v>\t{category}\t{severity}'
        for (document, place), sides in marked.items()
        for system, errors in zip(("good", "bad"), sides, strict=True)
        for rater in (3, 5, 8)
        for category, severity in errors
    ]
    table = write(tmp_path / "marked.tsv", [head, *lines])
    made = built("wmt23_zhen", tmp_path, "--ratings", str(table))
    assert list(made.pairs["prompt"]) == ["source 0", "source 1", "source 5"]
    assert list(made.right) == [True, False, True] and set(made.votes["judge"]) == {*JUDGES, "sqm-annotator"}
    write(table, [head, lines[0].replace("\t1\t", "\t4\t")])
    more = ("--ratings", str(table))
    assert "segment 4 of news_paper is not one of" in fails("wmt23_zhen", tmp_path, capsys, *more)
    write(table, ["system\tdoc", "good\tnews_paper:zh-en"])
    assert "columns ['docSegId', 'rater', 'category', 'severity'] missing" in fails(
        "wmt23_zhen", tmp_path, capsys, *more
    )
    assert "wmt23_zhen needs --ratings sxs_mqm_" in fails("wmt23_zhen", tmp_path, capsys)
    cut = tmp_path / "cut.tsv.gz"
    cut.write_bytes(gzip.compress("\n".join([head, *lines]).encode())[:-20])
    assert "cut.tsv.gz is not readable as a table" in fails("wmt23_zhen", tmp_path, capsys, "--ratings", str(cut))


def test_wmt23_names_what_is_missing_or_malformed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_ende(tmp_path / "checkout")
    file = folder / "human-scores" / "en-de.da-sqm.seg.score"
    write_scores(file, {**LABELS, "bad": [20] * 6})
    assert "seg.score: bad has 6 scores for 7 segments" in fails("wmt23_ende", tmp_path, capsys)
    write(file, ["good\t90", "good 10"])
    assert "seg.score, line 2: '' is no score" in fails("wmt23_ende", tmp_path, capsys)
    file.unlink()
    assert "en-de.da-sqm.seg.score is missing; is" in fails("wmt23_ende", tmp_path, capsys)
    write_scores(file, LABELS)
    metric = next((folder / "metric-scores" / "en-de").glob("chrF*"))
    write_scores(metric, {"good": [1.0] * 7})
    assert "chrF-refA.seg.score: bad has 0 scores for 7 segments" in fails("wmt23_ende", tmp_path, capsys)
    write(folder / "documents" / "en-de.docs", ["news paper"] * 7)
    assert "expected lines of a kind and a document" in fails("wmt23_ende", tmp_path, capsys)
    write(folder / "documents" / "en-de.docs", ["news\tpaper"] * 6)
    assert "en-de.docs: 6 lines for 7 segments" in fails("wmt23_ende", tmp_path, capsys)


def write_simplicity(checkout: Path, ratings: Mapping[tuple[int, str], Mapping[int, int]]) -> None:
    """Ratings by rater of each simplification; every metric is 1 for systems named "a..." and 2 for "b..." ones."""
    rows = [
        {
            "sent_id": sentence, "sys_name": system, "orig_sent": f"sentence {sentence}",
            "simp_sent": f"{system} of {sentence}", "rater_id": rater, "simplicity": rating,
        } for (sentence, system), given in ratings.items() for rater, rating in given.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    folder = checkout / "data"
    for name in ("ratings_per_annotator", "metrics_per_sentence"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "ratings_per_annotator" / "simplicity_DA_ratings.csv", index=False)
    scores = [
        {"sent_id": sentence, "sys_name": system, "test_set": test, **dict.fromkeys(METRICS.values(), score)}
        for sentence, system in ratings
        for test, score in (("turk", 0.0), ("all", float("xab".index(system[0]))))
    ]
    pd.DataFrame(scores).to_csv(folder / "metrics_per_sentence" / "metrics_simplicity_DA.csv", index=False)


def test_simplicity_truth_is_without_the_label_and_the_judges(tmp_path: Path) -> None:
    high, low = dict.fromkeys(range(9), 90), dict.fromkeys(range(9), 10)
    ratings = {
        (1, "a"): high | {9: 0}, (1, "b"): low | {9: 100},  # one of ten raters prefers b
        (2, "a"): high, (2, "b"): high | {8: 10},  # one alone tells them apart, the others do not
        (3, "a"): {0: 90, 1: 90, 2: 90}, (3, "b"): {0: 10, 1: 10, 3: 10},  # too few raters of both
        (4, "a"): high,  # alone
        **{(5, f"a{place}"): dict.fromkeys(range(9), 10 * place) for place in range(5)},
        (6, "a"): {0: 99, 1: 99, 2: 99, 3: 10}, (6, "b"): {0: 0, 1: 0, 2: 0, 4: 50},  # the others prefer b
    }  # fmt: skip
    write_simplicity(tmp_path / "checkout", ratings)
    right = set()
    for seed in range(30):
        made = built("simplicity", tmp_path, "--seed", str(seed))
        one, many = made.pairs[made.pairs["prompt"] == "sentence 1"], made.pairs[made.pairs["prompt"] == "sentence 5"]
        assert len(one) == 1 and len(one) + len(many) + 1 == len(made.pairs)
        assert {"sda-1-a", "sda-6-b"} <= set(made.truth["better_id"])
        assert made.pairs["chosen_id"].iloc[-1] == "sda-6-a" and list(made.votes["verdict"].iloc[-2:]) == ["chosen"] * 2
        assert set(made.votes["judge"]) == {"rater-1", "rater-2"}
        right.add(bool(made.right[one.index[0]]))
        # five in a ring: each in two pairs, but for pairs whose mean ratings are 10 apart
        responses = pd.concat([many["chosen_id"], many["rejected_id"]])
        assert responses.value_counts().max() <= 2 and made.right[many.index].all()
        places = many[["chosen_id", "rejected_id"]].apply(lambda ids: ids.str[-1].astype(int))
        assert (places["chosen_id"] - places["rejected_id"] >= 2).all()
    assert right == {True, False}  # whoever labels
    assert one["chosen"].iloc[0] in ("a of 1", "b of 1")
    scores = made.scores.set_index(["voter", "response_id"])["score"]
    assert set(made.scores["voter"]) == set(METRICS)
    assert scores["sari"]["sda-1-a"] == 1.0 and scores["sari"]["sda-1-b"] == 2.0  # of all references


def test_simplicity_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkout = tmp_path / "checkout"
    write_simplicity(checkout, {(1, "a"): dict.fromkeys(range(9), 90), (1, "b"): dict.fromkeys(range(9), 10)})
    metrics = checkout / "data" / "metrics_per_sentence" / "metrics_simplicity_DA.csv"
    table = pd.read_csv(metrics)
    table[table["sys_name"] == "a"].to_csv(metrics, index=False)
    assert "no row of sentence 1 and system b, which is rated" in fails("simplicity", tmp_path, capsys)
    metrics.write_text("", encoding="utf-8")
    assert "is not readable as a table" in fails("simplicity", tmp_path, capsys)
    metrics.unlink()
    assert "metrics_simplicity_DA.csv is missing; is" in fails("simplicity", tmp_path, capsys)
