"""`benchmarks.real_noise.rebuild`: sets from made-up files in the formats of JudgeBench, GenAI-Bench and T2VScore."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.real_noise.rebuild.__main__ import main as rebuild
from benchmarks.real_noise.rebuild.annotated import JUDGES, LABEL, RATINGS, SUBSETS
from benchmarks.real_noise.rebuild.judged import GENAI, JUDGEBENCH, REWARD_MODELS
from benchmarks.real_noise.rebuild.pictured import EDITS
from benchmarks.real_noise.sets import NoisySet, load_set
from dt2it_pipeline_tests.benchmarks.test_pictured_sets import write_imagenhub, write_t2iscorescore, write_tcbench
from dt2it_pipeline_tests.benchmarks.test_rated_sets import write_ende, write_simplicity


def built(name: str, tmp_path: Path, *more: str) -> NoisySet:
    rebuild([name, str(tmp_path / "checkout"), "--output", str(tmp_path / "sets"), *more])
    return load_set(tmp_path / "sets" / name)


def write_json(file: Path, rows: list[dict[str, Any]] | dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows), encoding="utf-8")


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


def write_judgebench(checkout: Path) -> None:
    """Three pairs; A is right in the first. o1 prefers A, A in both orders; the better one; B and no answer."""
    keys, right = ("k0", "k1", "k2"), ("A>B", "B>A", "B>A")
    data = [
        {
            "pair_id": key, "source": "mmlu-pro-law", "question": f"Why {key}?", "response_A": "short",
            "response_B": "longer", "label": label,
        } for key, label in zip(keys, right, strict=True)
    ]  # fmt: skip
    write_lines(checkout / "data" / f"{JUDGEBENCH}.jsonl", data)
    outputs = checkout / "outputs"
    said = (("A>B", "A>B"), ("B>A", "A>B"), ("A=B", None))
    o1 = [
        {"pair_id": key, "judgments": [{"decision": one} for one in both]} for key, both in zip(keys, said, strict=True)
    ]
    write_lines(outputs / f"{JUDGEBENCH},judge_name=arena_hard,judge_model=o1-mini-2024-09-12.jsonl", o1)
    for voter, model in REWARD_MODELS.items():
        scores = ([1.0, 2.0], [0.0, 3.0], [1.0, 1.0]) if voter == "grm-gemma-2b" else ([2.5, 0.5],) * 3
        rows = [
            {"pair_id": key, "judgments": [{"judgment": {"scores": given}}]}
            for key, given in zip(keys, scores, strict=True)
        ]
        write_lines(outputs / f"{JUDGEBENCH},judge_name=reward_model,judge_model={model}.jsonl", rows[::-1])


def test_judgebench_labelled_by_a_reward_model(tmp_path: Path) -> None:
    write_judgebench(tmp_path / "checkout")
    made = built("judgebench_grm", tmp_path)
    assert list(made.pairs["pair_id"]) == ["jb-000", "jb-001"]  # the label of the third is for neither side
    assert list(made.right) == [False, True] and list(made.pairs["chosen"]) == ["longer", "longer"]
    assert set(made.pairs["source"]) == {"mmlu"} and "grm-gemma-2b" not in set(made.scores["voter"])
    one = made.scores[made.scores["voter"] == "internlm2-7b"].set_index("response_id")["score"]
    assert one["jb-000-1"] == 2.5 and one["jb-000-2"] == 0.5
    # A in both orders is the first response and then the second one
    assert list(made.votes["order"]) == ["ab", "ba"] * 2
    assert list(made.votes["verdict"]) == ["rejected", "chosen", "chosen", "chosen"]


def test_judgebench_labelled_by_a_judge_keeps_its_other_order(tmp_path: Path) -> None:
    write_judgebench(tmp_path / "checkout")
    made = built("judgebench_o1", tmp_path)
    assert list(made.pairs["pair_id"]) == ["jb-000", "jb-001"] and made.right.all()
    assert list(made.votes["order"]) == ["ba", "ba"] and list(made.votes["verdict"]) == ["rejected", "chosen"]
    assert set(made.scores["voter"]) == set(REWARD_MODELS)


def test_files_of_which_no_pair_follows_make_no_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_judgebench(tmp_path / "checkout")
    file = next((tmp_path / "checkout" / "outputs").glob("*GRM-Gemma*"))
    alike: dict[str, Any] = {"judgments": [{"judgment": {"scores": [1.0, 1.0]}}]}
    write_lines(file, [{"pair_id": f"k{index}", **alike} for index in range(3)])
    with pytest.raises(SystemExit):
        built("judgebench_grm", tmp_path)
    assert "judgebench_grm: no pair follows from these files; are they complete?" in capsys.readouterr().err
    assert not (tmp_path / "sets").exists()


def test_judgebench_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_judgebench(tmp_path / "checkout")
    o1 = next((tmp_path / "checkout" / "outputs").glob("*o1-mini*"))
    o1.write_text(o1.read_text("utf-8").splitlines()[0] + "\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        built("judgebench_o1", tmp_path)
    assert "2 of the pairs in data/ have no judgment; the first is k1" in capsys.readouterr().err
    o1.write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        built("judgebench_o1", tmp_path)
    assert "is not JSON" in capsys.readouterr().err
    o1.unlink()
    with pytest.raises(SystemExit):
        built("judgebench_o1", tmp_path)
    assert "o1-mini-2024-09-12.jsonl is missing; is" in capsys.readouterr().err


def write_genai(checkout: Path, name: str) -> None:
    """Five pairs; the labeller has a tie on the fourth, the visitor none on the third."""
    task, labeller, voters, judges = GENAI[name]
    human = ["leftvote", "rightvote", "bothbad_vote", "rightvote", "leftvote"]
    said: dict[str, list[str | None]] = {labeller: ["[[A>B]]", "[[A>B]]", "[[A>B]]", "[[A=B=Good]]", "[[B>A]]"]}
    said |= {model: ["[[A>B]]", None, "[[A>B]]", "[[A>B]]", "[[A=B=Bad]]"] for model in voters}
    said |= {model: ["[[A=B=Good]]", "[[B > A]]", "[[A>B]]", "[[A>B]]", "[[1, 2, 3]]"] for model in judges}
    key = "instruct_prompt" if task == "image_edition" else "prompt"
    for model, votes in said.items():
        rows = [
            {"idx": idx, key: f"prompt {idx}", "model_vote": vote, "human_vote": person}
            for idx, (vote, person) in enumerate(zip(votes, human, strict=True))
        ]
        # a model's file may be in another order than the labeller's
        order = rows if model == labeller else rows[::-1]
        write_json(checkout / "results" / task / model / "pairwise.json", order)


@pytest.mark.parametrize("name", GENAI)
def test_genai_bench(tmp_path: Path, name: str) -> None:
    _, _, voters, judges = GENAI[name]
    write_genai(tmp_path / "checkout", name)
    made = built(name, tmp_path)
    assert list(made.pairs["prompt"]) == ["prompt 0", "prompt 1", "prompt 4"]
    assert list(made.right) == [True, False, False]
    for voter in voters:
        scores = made.scores.loc[made.scores["voter"] == f"{voter}-as-score", "score"]
        assert list(scores) == [0.5, -0.5, 0, 0]  # none of the pair whose answer could not be read
    for judge in judges:
        given = made.votes[made.votes["judge"] == judge]
        assert list(given["verdict"]) == ["tie", "rejected"] and set(given["order"]) == {"ab"}


def write_t2vscore(checkout: Path) -> Path:
    """Six videos of five models, later ones better, and one that people find alike; returns the table of scores."""
    models = ("first", "second", "third", "fourth", "fifth")
    rated = {
        str(video): {"prompt": f"prompt {video}", "models": {name: [1.0 + place] for place, name in enumerate(models)}}
        for video in range(6)
    }
    rated["6"] = {"prompt": "all alike", "models": {name: [3.0] for name in models}}
    folder = checkout / "datasets"
    write_json(folder / "t2vscore_alignment_score.json", rated)
    table = pd.DataFrame(
        [
            {
                "model_name": name, "video_id": video, "prompt": "", "CLIP Score": 20.0 + place, "X-CLIP Score": place,
                "BLIP-BLEU": 0.1, "T2VScore-A (GPT-4V)": -float(place),
            } for video in range(7) for place, name in enumerate(models)
        ]
    )  # fmt: skip
    table.to_csv(folder / "t2vscore_results.csv", index=False)
    return folder / "t2vscore_results.csv"


def test_t2vscore_takes_each_video_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_t2vscore(tmp_path / "checkout")
    made = built("t2vscore", tmp_path)
    assert len(made.pairs) == 12 and made.right.all() and "all alike" not in set(made.pairs["prompt"])
    names = made.pairs["pair_id"].str.split("-", expand=True)
    videos = pd.concat([names[1] + names[2], names[1] + names[3]])
    assert videos.is_unique
    assert set(made.votes["verdict"]) == {"rejected"} and set(made.scores["voter"]) == {"clipscore", "blip-bleu"}
    wide = made.scores[made.scores["voter"] == "clipscore"].set_index("response_id")["score"]
    assert (made.pairs["chosen_id"].map(wide) > made.pairs["rejected_id"].map(wide)).all()
    assert list(built("t2vscore", tmp_path, "--seed", "1").pairs["pair_id"]) != list(made.pairs["pair_id"])
    table = pd.read_csv(file)
    table[table["model_name"] != "third"].to_csv(file, index=False)
    with pytest.raises(SystemExit):
        built("t2vscore", tmp_path)
    assert "no row of video 0 and model third" in capsys.readouterr().err


def write_llmbar(checkout: Path) -> None:
    """Two pairs of each subset: the label and the judges are for the second side, the ratings for the first."""
    for subset in SUBSETS:
        folder = checkout / "Dataset" / "LLMBar" / subset
        row = {"input": "Do it.", "output_1": "one", "output_2": "two", "label": 1}
        write_json(folder / "dataset.json", [row] * 2)
        for way in (LABEL, *RATINGS.values(), *JUDGES.values()):
            result = {"swap = False": {"winner": "2"}, "score_1": ["9"], "score_2": ["3"]}
            write_json(folder / "evaluators" / way / "result.json", [{"results": [result]}] * 2)


def fails(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    with pytest.raises(SystemExit):
        built(name, tmp_path, *more)
    return capsys.readouterr().err.rpartition("error: ")[2]


# by set: what writes its sources, and the files among them, one of each kind
SOURCES: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "imagenhub_edits": (
        lambda checkout: write_imagenhub(checkout, EDITS, lambda _, good: good),
        ("*_rater1.tsv", "results_gemini_0shot/*/SDEdit/PQ.json", "results_autometrics/*/SDEdit.json"),
    ),
    "tcbench": (
        write_tcbench,
        ("human_scores_all.json", "clip_eval/*/lavie.json", "gpt_eval/*/lavie.json", "i2v_prompts.json"),
    ),
    "t2iscorescore": (
        write_t2iscorescore,
        ("metadata.csv", "VIEScore.csv", "clipscore_score.csv", "gpt4v_dsg_score.csv"),
    ),
    "wmt23_ende": (
        write_ende,
        ("en-de.docs", "en-de/good.txt", "chrF-refA.seg.score", "en-de.ESA-1.seg.score", "en-de.MQM-1.seg.score"),
    ),
    "simplicity": (
        lambda checkout: write_simplicity(
            checkout, {(1, "a"): dict.fromkeys(range(9), 90), (1, "b"): dict.fromkeys(range(9), 10)}
        ),
        ("simplicity_DA_ratings.csv", "metrics_simplicity_DA.csv"),
    ),
    "judgebench_grm": (
        write_judgebench,
        (f"{JUDGEBENCH}.jsonl", "*judge_name=arena_hard*.jsonl", "*GRM-Gemma*.jsonl"),
    ),
    "genai_images": (
        lambda checkout: write_genai(checkout, "genai_images"),
        ("gemini-1.5-pro/pairwise.json", "gpt4o/pairwise.json"),
    ),
    "llmbar_palm": (write_llmbar, ("Natural/evaluators/GPT-4/Rating/result.json",)),
    "t2vscore": (write_t2vscore, ("t2vscore_alignment_score.json", "t2vscore_results.csv")),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_malformed_files_are_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, files = SOURCES[name]
    write(tmp_path / "checkout")
    assert len(built(name, tmp_path).pairs)
    for pattern in files:
        file = sorted((tmp_path / "checkout").rglob(pattern))[0]
        whole = file.read_bytes()
        for content in (b"\xff\xfe", b"null", b"[null]", b'{"a": null}', b'{"a": {"b": "c"}}', b"a,b\n1"):
            file.write_bytes(content)
            assert file.name in fails(name, tmp_path, capsys), (pattern, content)
        file.unlink()
        file.mkdir()
        assert f"{file} cannot be read: Is a directory" in fails(name, tmp_path, capsys)
        file.rmdir()
        file.write_bytes(whole)


# by set: files without which a part of its pairs would have less evidence, or none at all
CUT = {
    "imagenhub_edits": ("results_gpt4v_0shot/*/SDEdit/SC.json", "results_autometrics/*/SDEdit.json"),
    "tcbench": ("umtscore_eval/*/lavie.json", "gpt_eval/*/lavie.json"),
    "t2iscorescore": ("metadata.csv", "VIEScore.csv", "blipscore_score.csv", "fuyu_dsg_score.csv"),
    "wmt23_ende": (
        "chrF-refA.seg.score", "GEMBA-MQM-src.seg.score", "en-de.ESA-1.seg.score", "en-de.MQM-1.seg.score",
        "en-de.da-sqm.seg.score",
    ),
    "simplicity": ("simplicity_DA_ratings.csv", "metrics_simplicity_DA.csv"),
    "judgebench_o1": (f"{JUDGEBENCH}.jsonl", "*judge_name=arena_hard*.jsonl", "*GRM-Gemma*.jsonl"),
    "genai_images": ("idefics2/pairwise.json", "gpt4o/pairwise.json"),
    "llmbar_palm": ("Natural/dataset.json", "Natural/evaluators/GPT-4/Rating/result.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_files_that_are_cut_off_are_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, _ = SOURCES[name.replace("o1", "grm")]
    write(tmp_path / "checkout")
    for pattern in CUT[name]:
        file = sorted((tmp_path / "checkout").rglob(pattern))[0]
        whole = file.read_text("utf-8")
        cut: list[str]
        if file.suffix == ".json":
            made = json.loads(whole)
            kept = dict(list(made.items())[: len(made) // 4]) if isinstance(made, dict) else made[1:]
            cut = [json.dumps(kept), json.dumps(type(made)())]
        else:
            lines = whole.splitlines(keepends=True)
            # of WMT23, whose systems have seven lines each, the third or the half is the first system
            cut = [lines[0], whole[: len(whole) // 2], *("".join(lines[: len(lines) // part]) for part in (2, 3))]
        for content in cut:
            file.write_text(content, encoding="utf-8")
            assert file.name in fails(name, tmp_path, capsys), (pattern, content)
        file.write_text(whole, encoding="utf-8")


def test_the_first_item_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_t2iscorescore(tmp_path / "checkout")
    file = tmp_path / "checkout" / "output" / "scores_per_image" / "blipscore_score.csv"
    lines = file.read_text("utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:-2]), encoding="utf-8")
    message = fails("t2iscorescore", tmp_path, capsys)
    assert f"{file}: 2 of 22 that the set needs are missing, first 001-00; download it again" in message


def test_a_judge_may_lack_some_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tcbench(tmp_path / "checkout")
    file = tmp_path / "checkout" / "eval_results" / "gpt_eval" / "i2v" / "lavie.json"
    assert len(built("tcbench", tmp_path).votes)  # of the first half
    made = json.loads(file.read_text("utf-8"))
    write_json(file, dict(list(made.items())[:-1]))
    assert "lavie.json: 13 of 24 that the set needs are missing, first lavie_00011" in fails(
        "tcbench", tmp_path, capsys
    )


@pytest.mark.parametrize(("old", "new"), [("0.1", "x"), ("0.1", "nan"), ("0.1", ""), ("20.0", "inf"), ("prompt 1", "")])
def test_values_that_are_no_numbers_or_texts_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    file = write_t2vscore(tmp_path / "checkout")
    texts = file.parent / "t2vscore_alignment_score.json"
    changed = texts if old.startswith("prompt") else file
    quoted = (f'"{old}"', "null") if changed is texts else (old, new)
    changed.write_text(changed.read_text("utf-8").replace(*quoted), encoding="utf-8")
    expected = "the prompt of pair t2v-1-" if changed is texts else file.name
    assert expected in fails("t2vscore", tmp_path, capsys)


def test_arguments_that_are_no_folder_or_file_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "checkout is no folder; CHECKOUT is a checkout" in fails("t2vscore", tmp_path, capsys)
    write_t2vscore(tmp_path / "checkout")
    for path in (tmp_path, tmp_path / "absent.csv"):
        assert f"--ratings {path} is no file" in fails("tifa160", tmp_path, capsys, "--ratings", str(path))
    (tmp_path / "sets").write_text("", encoding="utf-8")
    assert "sets/t2vscore cannot be written (Not a directory); --output is" in fails("t2vscore", tmp_path, capsys)
    (tmp_path / "checkout2").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit):
        rebuild(["t2vscore", str(tmp_path / "checkout2"), "--output", str(tmp_path)])
    assert "checkout2 is no folder" in capsys.readouterr().err
