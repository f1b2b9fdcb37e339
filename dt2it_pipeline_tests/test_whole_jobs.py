"""Rounds 0 and 1 with every real engine, on the smoke recipe: tables, reports, runs that find what is finished."""

import shutil
import subprocess

import dagster as dg
import pytest

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline_tests.support.smoke_rounds import (
    PARTITIONED,
    ROUND_1,
    UNPARTITIONED,
    command,
    copy_data,
    environment,
    finished_home,
    run,
)

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(2000)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home in which `construct` and rounds 0 and 1 have run."""
    return finished_home(tmp_path_factory)


def every_artifact(store: Store):
    for name in UNPARTITIONED:
        yield name, store.read(name)
    for name in PARTITIONED:
        for number in "01":
            yield f"{name}/{number}", store.read(name, number)


def test_no_row_is_lost_at_any_stage(home):
    for name, artifact in every_artifact(Store(home)):
        if "rows_in" in artifact.metadata:
            metadata = artifact.metadata
            left_out = sum(metadata.get(key, 0) for key in ("rows_quarantined", "rows_dropped", "rows_contested"))
            assert metadata["rows_in"] == metadata["rows_out"] + left_out, name
            assert artifact["quarantine"].num_rows == left_out or name == "candidate_responses", name


def test_damaged_images_are_quarantined_and_the_rest_goes_on(home):
    preferences = Store(home).read("raw_preferences")
    reasons = set(preferences["quarantine"]["reason"].to_pylist())
    assert reasons == {"unreadable image"}
    assert preferences["pairs"].num_rows == 160 - preferences["quarantine"].num_rows


def test_preferred_images_stand_first_in_exactly_half(home):
    artifact = Store(home).read("t2i_pairs")
    assert artifact.metadata["preferred_first"] == artifact["pairs"].num_rows // 2 == 20


def test_constructed_pairs_come_from_sampled_answers(home):
    store = Store(home)
    texts = set(store.read("candidate_responses")["responses"]["text"].to_pylist())
    pairs = store.read("debiased_pairs")["pairs"]
    assert pairs.num_rows > 0
    assert set(pairs["chosen"].to_pylist()) | set(pairs["rejected"].to_pylist()) <= texts


def test_round_1_trains_on_what_round_0_curated(home):
    store = Store(home)
    curated = set(store.read("curated_pairs", "0")["pairs"]["pair_id"].to_pylist())
    first, second = (set(store.read("training_pairs", n)["pairs"]["pair_id"].to_pylist()) for n in "01")
    assert curated
    assert second == first | curated


def test_round_1_hears_the_voters_of_both_rounds(home):
    votes = Store(home).read("voted_pairs", "1")["pairs"]["votes"].to_pylist()
    assert {vote["voter"] for row in votes for vote in row} == {"reward_model/0", "reward_model/1"}


def test_flips_are_half_of_the_negative_pairs(home):
    metadata = Store(home).read("voted_pairs", "0").metadata
    assert metadata["flipped"] == metadata["negative"] // 2


def test_every_pair_ends_curated_or_quarantined(home):
    store = Store(home)
    for number in "01":
        voted, verified, contested, annotated, curated = (
            store.read(name, number)
            for name in ("voted_pairs", "verified_pairs", "contested_pairs", "annotated_pairs", "curated_pairs")
        )
        assert voted["pairs"].num_rows == verified["pairs"].num_rows + contested["pairs"].num_rows
        dropped = annotated["quarantine"].num_rows
        assert curated["pairs"].num_rows == voted["pairs"].num_rows - dropped


def test_the_report_stands_alone(home):
    page = (home / "report.html").read_text(encoding="utf-8")
    assert "control" in page
    assert "ceiling" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "From round 0 to round 1" in page
    assert "unaccounted" not in page
    assert page.count("✓ ") > 10
    assert "Against the ceiling: round 1" in page
    assert "source.demo_preferences" in page  # among the wall times
    assert "Policy “paper”" in page
    assert "round 1" in (home / "report.md").read_text(encoding="utf-8")


def test_the_next_round_is_announced_in_headless_runs(home, monkeypatch):
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as instance:
        key = dg.AssetKey("feedback_pairs")
        assert set(instance.get_materialized_partitions(key)) == {"1"}
        observed = instance.fetch_observations(key, limit=5).records
        digest = Store(home).read("curated_pairs", "0").digest
        assert observed[0].asset_observation is not None
        assert observed[0].asset_observation.tags["dagster/data_version"] == digest


def test_the_same_job_again_uses_what_is_finished(home, tmp_path):
    before = {name: artifact.digest for name, artifact in every_artifact(Store(home))}
    copy_data(home, tmp_path)
    log = run(tmp_path, *ROUND_1)
    assert log.count("reused, inputs and settings unchanged") >= len(PARTITIONED)
    assert {name: artifact.digest for name, artifact in every_artifact(Store(tmp_path))} == before


def test_a_round_without_its_predecessor_stops_before_anything_trains(home, tmp_path):
    copy_data(home, tmp_path)
    for name in (*PARTITIONED, "reward_model", "verifier_model", "round_report"):
        shutil.rmtree(tmp_path / "artifacts" / name)
    done = subprocess.run(
        command(*ROUND_1), env=environment(tmp_path), cwd=project_root(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    log = " ".join((done.stdout + done.stderr).split())
    assert "round 1 needs curated_pairs of round 0" in log
    assert "dt2it run round --round 0" in log
