"""`benchmarks.real_noise`: sets, methods and measures on tables small enough to work out by hand."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import dt2it_pipeline
from benchmarks.real_noise import baselines, crowds, duel, policies, prefcleanbench
from benchmarks.real_noise.__main__ import main
from benchmarks.real_noise.evidence import Evidence, NotApplicable, Refused
from benchmarks.real_noise.measures import (
    same_share,
)
from benchmarks.real_noise.rebuild.__main__ import main as rebuild
from benchmarks.real_noise.report import beaten, claims_summary, harm_summary, losses, tables
from benchmarks.real_noise.sets import (
    SetError,
    evidence_of,
    judge_accuracy,
    judge_agreement,
    load_set,
    load_sets,
    scenarios,
    subsample,
)
from dt2it_pipeline.errors import UserError
from dt2it_pipeline_tests.support.four_pairs import four_pairs
from dt2it_pipeline_tests.support.noisy_set import write_set


def test_margins_are_scaled_and_not_centred() -> None:
    evidence = four_pairs()
    scale = math.sqrt((1 + 9 + 1 + 0) / 4)
    np.testing.assert_allclose(evidence.margins[:, 0], np.array([1, -3, 1, 0]) / scale)
    np.testing.assert_allclose(evidence.margins[:, 1], [1, 1, -1, np.nan])
    np.testing.assert_allclose(
        evidence.margin, [(1 / scale + 1) / 2, (-3 / scale + 1) / 2, (1 / scale - 1) / 2, 0], atol=1e-12
    )
    np.testing.assert_array_equal(evidence.net, [2, -2, -1, 1])
    np.testing.assert_array_equal(evidence.calls, [2, 2, 2, 2])


def test_simple_methods_by_hand() -> None:
    evidence = four_pairs()
    keep = {
        name: list(getattr(baselines, name)(evidence)["keep"]) for name in ("drop_voters", "drop_judges", "drop_both")
    }
    assert keep == {
        "drop_voters": [True, False, False, True],
        "drop_judges": [True, False, False, True],
        "drop_both": [True, False, False, True],
    }
    assert list(baselines.judges_majority(evidence)["flip"]) == [False, True, True, False]
    assert list(baselines.margin_sign(evidence)["flip"]) == [False, True, True, False]


def test_prefcleanbench_by_hand() -> None:
    evidence = four_pairs()
    assert list(prefcleanbench.vote_all_r(evidence)["keep"]) == [True, True, True, False]
    assert list(prefcleanbench.vote_maj_r(evidence)["keep"]) == [True, True, True, False]
    assert list(prefcleanbench.vote_all_f(evidence)["flip"]) == [False, False, False, True]
    assert list(prefcleanbench.llm_judge_r(evidence)["keep"]) == [True, False, True, True]
    assert list(prefcleanbench.llm_judge_f(evidence)["flip"]) == [False, True, False, False]
    assert list(prefcleanbench.llm_judge_f(evidence)["calls"]) == [1, 1, 1, 1]
    assert prefcleanbench.rw_gap_r(evidence)["keep"].all()  # 20% of four pairs is less than one


def test_evidence_that_is_not_there_is_named() -> None:
    evidence = four_pairs()
    silent = Evidence(evidence.pairs, evidence.scores.iloc[:0], evidence.votes.iloc[:0])
    for method in (baselines.drop_voters, baselines.drop_both, baselines.audit_regression, prefcleanbench.vote_all_r):
        with pytest.raises(NotApplicable, match=r"needs a|needs an"):
            method(silent)


def test_an_audit_of_right_labels_alone_gives_the_rule_of_succession() -> None:
    evidence = four_pairs(pd.DataFrame({"pair_id": ["p0", "p3"], "better_id": ["c0", "c3"]}))
    made = baselines.audit_regression(evidence)
    np.testing.assert_allclose(made["probability"], 0.75)  # (2 + 1) / (2 + 2)
    assert not made["keep"].any()


def test_same_share_splits_ties() -> None:
    np.testing.assert_allclose(same_share(np.array([3.0, 1.0, 1.0, 0.0]), 2), [1, 0.5, 0.5, 0])
    np.testing.assert_allclose(same_share(np.zeros(4), 3), 0.75)
    assert same_share(np.array([1.0, 2.0]), 0).sum() == 0


def test_missing_files_and_columns_are_reported(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "one", 12)
    (folder / "truth.parquet").unlink()
    (folder / "votes.parquet").unlink()
    with pytest.raises(SetError, match=r"one: votes\.parquet, truth\.parquet missing; a set needs pairs\.parquet"):
        load_set(folder)
    folder = write_set(tmp_path / "two", 12)
    pd.read_parquet(folder / "scores.parquet").drop(columns="voter").to_parquet(folder / "scores.parquet")
    with pytest.raises(SetError, match=r"scores\.parquet: columns \['voter'\] missing"):
        load_set(folder)
    folder = write_set(tmp_path / "three", 12)
    pd.read_parquet(folder / "truth.parquet").iloc[1:].to_parquet(folder / "truth.parquet")
    with pytest.raises(SetError, match=r"1 pairs have no better_id .* the first is p0"):
        load_set(folder)
    with pytest.raises(SetError, match="there are no set folders"):
        load_sets(tmp_path / "absent")
    with pytest.raises(SetError, match="no set four"):
        load_sets(tmp_path, ["four"])


def test_subsample_has_the_scores_and_votes_of_its_pairs(tmp_path: Path) -> None:
    given = load_set(write_set(tmp_path / "one"))
    small = subsample(given, 10, seed=3)
    assert len(small.pairs) == len(small.truth) == 10
    assert len(small.scores) == 40 and len(small.votes) == 30
    pd.testing.assert_frame_equal(small.pairs, subsample(given, 10, seed=3).pairs)
    assert list(small.pairs["pair_id"]) != list(subsample(given, 10, seed=4).pairs["pair_id"])


def test_scenarios_differ_and_know_good_judges_from_bad(tmp_path: Path) -> None:
    given = load_set(write_set(tmp_path / "one"))
    right = given.right.mean()
    assert judge_accuracy(given) == pytest.approx({"bad": 0, "good": 1, "lenient": 1 - (1 - right) / 2})
    assert judge_agreement(given) == pytest.approx({"bad": 1 - right, "good": right, "lenient": (1 + right) / 2})
    found = {scenario.name: scenario for scenario in scenarios(given)}
    assert found["all voters, 2 best judges"].judges == ("good", "lenient")
    assert found["all voters, 2 worst judges"].judges == ("bad", "lenient")
    assert found["first voter"].voters == ("sharp",) and found["last voter"].voters == ("blunt",)
    assert len({(s.voters, tuple(sorted(s.judges)), s.audit) for s in found.values()}) == len(found)
    with pytest.raises(SetError, match="an audit of 50 needs 100 pairs"):
        evidence_of(given, found["all voters, audit"], 0)
    evidence = evidence_of(given, found["all voters, audit"], 0, audited=20)
    assert evidence.audited.sum() == len(evidence.audited_right) == 20
    np.testing.assert_array_equal(evidence.audited_right, given.right[evidence.audited])


def test_audit_regression_learns_from_the_audit_alone(tmp_path: Path) -> None:
    given = load_set(write_set(tmp_path / "one", 200))
    scenario = next(s for s in scenarios(given) if s.audit)
    evidence = evidence_of(given, scenario, 0)
    made = baselines.audit_regression(evidence)
    kept = made["keep"].to_numpy() & ~evidence.audited
    assert (given.right ^ made["flip"].to_numpy())[kept].mean() > given.right.mean() + 0.1


def test_paper_answers_about_every_pair(tmp_path: Path) -> None:
    given = load_set(write_set(tmp_path / "one", 120))
    found = {scenario.name: scenario for scenario in scenarios(given)}
    evidence = evidence_of(given, found["all voters, 2 best judges"], 0)
    made = policies.paper(evidence)
    assert list(made["pair_id"]) == list(given.pairs["pair_id"])
    assert 0 < made["calls"].sum() < evidence.calls.sum()
    assert (given.right ^ made["flip"])[made["keep"]].mean() > given.right.mean()
    assert made["probability"].isna().all()
    with pytest.raises(NotApplicable, match="needs a voter"):
        policies.paper(evidence_of(given, found["no voter, 2 best judges"], 0))


def test_clean_preferences_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = four_pairs()
    with monkeypatch.context() as patch:
        patch.setattr(policies, "_NAME", "no_such_function")
        with pytest.raises(NotApplicable, match="has no no_such_function"):
            policies.clean_preferences(evidence)

    def refuses(pairs: pd.DataFrame, **_: object) -> object:
        raise UserError("no")

    monkeypatch.setattr(dt2it_pipeline, "clean_preferences", refuses, raising=False)
    with pytest.raises(Refused, match="no"):
        policies.clean_preferences(evidence)

    def fake(pairs: pd.DataFrame, scores: object = None, votes: object = None, audit: object = None) -> object:
        outcome = ["dropped", "kept", "flipped", "kept"]
        table = pairs.iloc[::-1][["pair_id"]].assign(outcome=outcome, probability=[0.6, 0.9, 0.95, 0.99], reason="")
        after = SimpleNamespace(estimate=0.95, low=0.9, high=0.99)
        accuracy = SimpleNamespace(before=after, after=after)
        more = {"sensitivity": pd.DataFrame(), "wanted": table.iloc[:1], "assumption": None}
        return SimpleNamespace(pairs=table, label_accuracy=accuracy, **more)

    monkeypatch.setattr(dt2it_pipeline, "clean_preferences", fake, raising=False)
    made = policies.clean_preferences(evidence)
    assert list(made["keep"]) == [True, True, True, False]
    assert list(made["flip"]) == [False, True, False, False]
    assert made.attrs == {"after": (0.95, 0.9, 0.99), "wanted": 1, "audited_too": True}
    assert list(made["calls"]) == [2, 2, 2, 2]
    assert list(policies.clean_preferences_wanted(evidence)["calls"]) == [0, 0, 0, 2]


def test_audited_pairs_can_be_trusted_ones_instead(tmp_path: Path) -> None:
    given = load_set(write_set(tmp_path / "s", 200))
    audit = given.truth.sample(60, random_state=0)
    votes = given.votes[given.votes["judge"] == "good"]
    evidence = Evidence(given.pairs, given.scores, votes, audit)
    made = policies.clean_preferences_trusted(evidence)
    others = ~evidence.audited
    assert len(made) == 200 and made["keep"][evidence.audited].all() and not made["flip"][evidence.audited].any()
    better = given.pairs["pair_id"].map(given.truth.set_index("pair_id")["better_id"])
    right = (better == given.pairs["chosen_id"]).to_numpy() != made["flip"].to_numpy()
    assert right[others & made["keep"].to_numpy()].mean() > 0.95 and made["flip"].sum() > 10
    with pytest.raises(NotApplicable, match="needs an audit"):
        policies.clean_preferences_trusted(Evidence(given.pairs, given.scores, votes))


def test_crowd_methods_find_wrong_labels(tmp_path: Path) -> None:
    given = load_set(write_set(tmp_path / "one", 120))
    found = {scenario.name: scenario for scenario in scenarios(given)}
    for package, method, scenario in (
        ("crowdkit", crowds.dawid_skene, "all voters, 2 best judges"),
        ("cleanlab", crowds.crowdlab, "all voters, 2 best judges"),
        ("cleanlab", crowds.confident_learning, "all voters"),
    ):
        pytest.importorskip(package)
        made = method(evidence_of(given, found[scenario], 0))
        assert (given.right ^ made["flip"])[made["keep"]].mean() > given.right.mean()


def test_command_prints_tables_and_writes_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duel, "scenarios", lambda given: scenarios(given)[4:6])
    write_set(tmp_path / "sets" / "one", 40)
    output = tmp_path / "records.json"
    arguments = ["--sets", str(tmp_path / "sets"), "--sizes", "20,all", "--repeats", "1", "--output", str(output)]
    arguments += ["--methods", "nothing;drop, voters;LLM-Judge-F"]
    main(arguments)
    first = capsys.readouterr().out
    records = json.loads(output.read_text(encoding="utf-8"))
    assert {record["size"] for record in records} == {"all", 20}
    assert "### one, 20 pairs" in first and "### Harm" in first and "### Claims" in first and "nowhere" in first
    again = [*arguments, "--sizes", "20"]
    main(again)
    assert capsys.readouterr().out.splitlines()[:8] == first.splitlines()[:8]
    with pytest.raises(SystemExit):
        main([*arguments, "--audited", "0"])
    assert "--audited 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--sets", str(tmp_path / "absent")])
    assert "there are no set folders" in capsys.readouterr().err


def test_an_audit_has_as_many_pairs_as_asked_for(tmp_path: Path) -> None:
    given = load_set(write_set(tmp_path / "one", 60))
    for audited, found in ((20, {40, 60}), (31, {60})):  # 31 are more than half of the pairs: no audit is drawn
        records, _ = duel.run([given], duel.Plan([None], repeats=1, methods=["nothing"], audited=audited))
        assert {record["pairs"] for record in records} == found


def test_report_marks_harm_and_losses() -> None:
    none = {"estimate": math.nan, "low": math.nan, "high": math.nan}
    drawn = {"mean": 0.06, "median": 0.05, "high": 0.08, "share": 0.01}
    claims = {"error": 0.1, "squared": 0.0081, "chance": drawn, "stated": drawn | {"high": 0.2}}
    base = {
        "set": "s", "size": "all", "scenario": "all voters", "repeat": 0, "before": 0.9, "kept": 0.5, "overclaim": 0.1,
        "calibration": claims, "calls": 1.0, "utility": 0.2, "rival": "nothing", "held": None, "beaten_by": {},
    }  # fmt: skip
    bad = {"estimate": -0.1, "low": -0.2, "high": -0.01}
    rows = [
        base | {"method": "ours", "accuracy": 0.8, "harm": bad, "advantage": bad, "held": False},
        base | {"method": "theirs", "accuracy": math.nan, "harm": none, "advantage": none},
    ]
    assert "| ours | 80.0 of 50 !< | -10.0 |" in tables(rows)
    assert "| +10.0 | 10.0 | 5.0 | 1.00 |" in tables(rows)
    assert claims_summary(rows[:1], {"all voters": True}).splitlines()[2] == (
        "| ours | yes | 1 | 10.0 | 5.0 | 1 | 6.0 | 0 | 9.0 |"
    )
    assert losses(rows, ["ours"]) == (
        "- ours; s, all pairs; all voters: harm -10.0 (-20.0 to -1.0) in 1 of 1 draws; -10.0 (-20.0 to -1.0) against "
        "`nothing` in 1 of 1 draws"
    )
    assert losses(rows, ["theirs"]) == "- nowhere"
    assert harm_summary(rows).splitlines()[2].startswith("| ours | 1 | 1 | -10.0 | 1 |")
    assert harm_summary(rows).splitlines()[2].endswith("| 0 of 1 |")


def test_report_names_baselines_that_beat_a_method_beyond_chance() -> None:
    lost = {"estimate": -0.1, "low": -0.2, "high": -0.01}
    rows = [
        {
            "set": "s", "size": "all", "scenario": scenario, "repeat": place, "method": "ours",
            "rival": "drop, both", "advantage": lost, "beaten_by": {"drop, both": p, "nothing": 1.0},
        }
        for place, (p, scenario) in enumerate([(0.001, "audit"), (0.02, "audit"), (0.03, "judge"), (0.5, "judge")])
    ]  # fmt: skip
    first, *found = beaten(rows, ["ours"]).splitlines()
    assert "4 draws" in first and "better in 4;" in first and "baselines, some one is in 3;" in first
    assert first.endswith("in 1 (Holm) or 3 (Benjamini and Hochberg)")
    assert len(found) == 2 and "s, all pairs; audit: `drop, both`; -10.0 (-20.0 to -1.0)" in found[0]
    assert "in 2 of 2 draws; least adjusted 0.004 (Holm), 0.004" in found[0] and "1 of 2 draws" in found[1]
    assert "nothing" not in "".join(found)
    assert beaten(rows, ["theirs"]) == "- nothing was compared"


def test_pandalm_is_rebuilt_from_a_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "checkout" / "data"
    data.mkdir(parents=True)
    rows = [
        {"idx": idx, "instruction": "Do it.", "input": given, "response1": "one", "response2": True} | annotators
        for idx, (given, annotators) in enumerate(
            [
                ("", {"annotator1": 1, "annotator2": 1, "annotator3": 1}),
                ("Now.", {"annotator1": 2, "annotator2": 2, "annotator3": 2}),
                ("", {"annotator1": 0, "annotator2": 0, "annotator3": 0}),
            ]
        )
    ]
    gpt, own = [{"gpt_result": said} for said in ("2", "Tie", "1")], [{"pandalm_result": said} for said in (1, 2, 0)]
    for name, made in (("testset-v1", rows), ("gpt-3.5-turbo-testset-v1", gpt), ("pandalm-7b-testset-v1", own)):
        (data / f"{name}.json").write_text(json.dumps(made), encoding="utf-8")
    rebuild(["pandalm", str(tmp_path / "checkout"), "--output", str(tmp_path / "sets")])
    made = load_set(tmp_path / "sets" / "pandalm")
    assert list(made.pairs["pair_id"]) == ["pl-0000", "pl-0001"] and made.right.all()
    assert list(made.pairs["prompt"]) == ["Do it.", "Do it.\nNow."] and list(made.pairs["chosen"]) == ["one", "True"]
    assert list(made.votes["verdict"]) == ["rejected", "chosen", "tie", "chosen"]
    assert list(made.scores["score"]) == [-0.5, 0.5, 0.5, -0.5, 0, 0, -0.5, 0.5]
    with pytest.raises(SystemExit):
        rebuild(["llmbar_palm", str(tmp_path / "checkout"), "--output", str(tmp_path / "sets")])
    assert "is missing; is" in capsys.readouterr().err
