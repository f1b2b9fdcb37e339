"""metrics.prom: written by every stage, from the artifacts in force."""

import time

import dagster as dg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dt2it_pipeline.orchestrate.stage.cached_stage import run_stage
from dt2it_pipeline.orchestrate.stage.metrics import FILE, METRICS, write_metrics
from dt2it_pipeline.storage.artifacts import Artifact, Store

TALLY = {"calls": 9, "asked": 7, "looked_up": 2, "no_reply": 1, "unusable": 0, "unusable_example": "words"}
TALLY |= {"prompt_tokens": 700, "completion_tokens": 70, "cost": 0.5, "line": {"requests": 8, "timeout": 1}}


def figures(store):
    text = (store.home / FILE).read_text()
    families = text_string_to_metric_families(text)
    return {(s.name, *sorted(filter(None, s.labels.values()))): s.value for f in families for s in f.samples}


def stage(store, metadata, fail=False):
    @dg.asset(name="made", partitions_def=dg.StaticPartitionsDefinition(["0", "1"]), code_version="1")
    def made(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        def compute(work):
            if fail:
                raise ValueError("no")
            return Artifact({}, metadata)

        run_stage(context, store, compute, inputs={}, settings={"fail": int(fail)})
        return dg.MaterializeResult()

    return dg.materialize([made], partition_key="1", raise_on_error=False).success


def test_a_stage_writes_its_figures_and_a_reuse_is_a_success_too(tmp_path):
    store = Store(tmp_path)
    metadata = {"rows_in": 10, "rows_out": 7, "rows_quarantined": 3, "judges": {"mine": TALLY}, "anchored": True,
                "label_accuracy_after": [0.9, 0.8, None]}  # fmt: skip
    before = time.time()
    assert stage(store, metadata)
    found = figures(store)
    key = ("dt2it_stage_last_success_timestamp_seconds", "1", "made")
    assert before - 1 <= found[key] <= time.time() + 1
    assert found[("dt2it_stage_rows", "1", "in", "made")] == 10
    assert found[("dt2it_stage_rows", "1", "made", "quarantined")] == 3
    assert found[("dt2it_judge_calls", "1", "made", "mine")] == 9
    assert found[("dt2it_judge_replies", "1", "made", "mine", "no_reply")] == 1
    assert found[("dt2it_judge_tokens", "1", "completion", "made", "mine")] == 70
    assert found[("dt2it_judge_requests", "1", "made", "mine", "timeout")] == 1
    assert found[("dt2it_label_accuracy", "1", "after", "low", "made")] == 0.8
    assert ("dt2it_label_accuracy", "1", "after", "high", "made") not in found
    (store.home / FILE).unlink()
    time.sleep(0.05)
    assert stage(store, metadata)
    assert figures(store)[key] > found[key]
    last = figures(store)[key]
    assert not stage(store, metadata, fail=True)
    assert figures(store)[key] == last


def test_what_several_goes_of_judging_asked_is_added_up(tmp_path):
    store = Store(tmp_path)
    goes = [{"asked": {"mine": {"asked": 2, "looked_up": 1}}}, {"asked": {"mine": {"asked": 3}, "other": {"asked": 1}}}]
    store.write("annotated_pairs", Artifact({}, {"judging": goes}), "k", "0")
    write_metrics(store)
    found = figures(store)
    assert found[("dt2it_judge_replies", "0", "annotated_pairs", "asked", "mine")] == 5
    assert found[("dt2it_judge_replies", "0", "annotated_pairs", "looked_up", "mine")] == 1
    assert found[("dt2it_judge_replies", "0", "annotated_pairs", "asked", "other")] == 1


def test_damage_and_a_file_that_cannot_be_written_cost_no_stage(tmp_path):
    store = Store(tmp_path)
    store.write("good", Artifact({}, {"seconds": 2}), "k")
    store.write("bad", Artifact({}, {"seconds": 2}), "k")
    (tmp_path / "artifacts" / "bad" / "k" / "manifest.json").write_text("{")
    write_metrics(store)
    assert {name[1] for name in figures(store)} == {"good"}
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    (tmp_path / FILE / "inside").touch()
    assert stage(store, {})


@pytest.mark.parametrize("name", METRICS)
def test_names_are_those_that_prometheus_takes_and_say_their_unit(name):
    assert name.startswith("dt2it_") and name.replace("_", "").isalnum() and METRICS[name].endswith(".")
