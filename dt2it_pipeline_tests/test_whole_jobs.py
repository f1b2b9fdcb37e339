"""The jobs as people run them, with every real engine, on the smoke recipe: tables, reports, kills."""

import contextlib
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster_graphql import DagsterGraphQLClient

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.curate.voters.out_of_fold import fold_of
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline_tests.support.commands import dt2it
from dt2it_pipeline_tests.support.processes import wait_until

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1800)]

SMOKE = "configs/recipes/smoke.yaml"
ROUND_0 = ("round", "--tags", '{"dagster/partition": "0"}')
ROUND_1 = ("round", "--tags", '{"dagster/partition": "1"}')
UNPARTITIONED = (
    "raw_prompts",
    "raw_preferences",
    "raw_t2i_preferences",
    "raw_benchmarks",
    "candidate_responses",
    "judged_responses",
    "debiased_pairs",
    "t2i_pairs",
)
PARTITIONED = (
    "training_pairs",
    "response_scores",
    "voted_pairs",
    "verified_pairs",
    "contested_pairs",
    "annotated_pairs",
    "curated_pairs",
    "benchmark_scores",
)


def environment(home: Path, recipe: str = SMOKE) -> dict[str, str]:
    own = {"DT2IT_RECIPE": recipe, "DT2IT_HOME": str(home), "DAGSTER_HOME": str(project_root()), "HF_HUB_OFFLINE": "1"}
    return os.environ | own


def command(*job: str) -> list[str]:
    return [
        str(Path(sys.executable).parent / "dagster"),
        "job",
        "execute",
        "-m",
        "dt2it_pipeline.definitions",
        "-j",
        *job,
    ]


def run(home: Path, *job: str, recipe: str = SMOKE) -> str:
    """Run a job to its end; its log as one line, since the terminal's lines are wrapped."""
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command(*job), env=environment(home, recipe), cwd=project_root(), capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return " ".join((done.stdout + done.stderr).split())


def recipe_without_arms(folder: Path, *changes: tuple[str, str]) -> str:
    """The smoke recipe with some words changed, and without the trainings that only the report compares with."""
    text = (project_root() / SMOKE).read_text(encoding="utf-8")
    arms = (("control_arm: true", "control_arm: false"), ("ceiling_arm: true", "ceiling_arm: false"))
    for old, new in (*arms, *changes):
        assert text.count(old) == 1
        text = text.replace(old, new)
    recipe = folder / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    return str(recipe)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home in which `construct` and rounds 0 and 1 have run."""
    home = tmp_path_factory.mktemp("whole") / "home"
    for job in (("construct",), ROUND_0, ROUND_1):
        run(home, *job)
    return home


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
    assert "round 1" in (home / "report.md").read_text(encoding="utf-8")


def test_the_next_round_is_announced_in_headless_runs(home, monkeypatch):
    import dagster as dg

    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as instance:
        key = dg.AssetKey("feedback_pairs")
        assert set(instance.get_materialized_partitions(key)) == {"1"}
        observed = instance.fetch_observations(key, limit=5).records
        digest = Store(home).read("curated_pairs", "0").digest
        assert observed[0].asset_observation is not None
        assert observed[0].asset_observation.tags["dagster/data_version"] == digest


def test_the_policy_joint_with_trusted_pairs_an_ensemble_and_out_of_fold_voters(home, tmp_path):
    for part in ("artifacts", "media", "sources"):
        shutil.copytree(home / part, tmp_path / part)
    shutil.copytree(Store(home).read("reward_model", "0").folder, tmp_path / "imported")
    voters = f"out_of_fold: {{folds: 2}}\n  ensemble: {{seeds: 1, checkpoints: [{tmp_path / 'imported'}]}}"
    curation = f"policy: joint\n  trusted_pairs: 4\n  {voters}"
    recipe = recipe_without_arms(tmp_path, ("policy: paper", curation))
    for job in (ROUND_0, ROUND_1):
        run(tmp_path, *job, recipe=recipe)
    store = Store(tmp_path)
    assert "not_trained" in store.read("fold_scores", "0").metadata
    held_out = store.read("training_pairs", "0")["trusted_pairs"]
    debiased = set(store.read("debiased_pairs")["pairs"]["pair_id"].to_pylist())
    assert held_out.num_rows >= 4 and set(held_out["pair_id"].to_pylist()) <= debiased
    for number in "01":
        assert "not_trained" in store.read("verifier_model", number).metadata
        voted, verified, contested, annotated, curated = (
            store.read(name, number)
            for name in ("voted_pairs", "verified_pairs", "contested_pairs", "annotated_pairs", "curated_pairs")
        )
        assert voted.metadata["policy"] == "joint"
        training = store.read("training_pairs", number)
        assert training["trusted_pairs"].equals(held_out)
        assert not {*held_out["prompt_id"].to_pylist()} & {*training["pairs"]["prompt_id"].to_pylist()}
        assert training.metadata["rows_held_out"] >= held_out.num_rows == voted.metadata["trusted_pairs"]
        assert all(len(votes) >= 3 for votes in voted["trusted_pairs"]["votes"].to_pylist())
        bound = math.log(0.8 / 0.2)
        assert min(verified["pairs"]["strength"].to_pylist(), default=bound) >= bound
        assert max(contested["pairs"]["strength"].to_pylist(), default=0) < bound
        assert annotated["votes"].num_rows >= annotated.metadata["judge_calls"]
        assert curated["pairs"].num_rows == voted["pairs"].num_rows - annotated["quarantine"].num_rows
    voted = store.read("voted_pairs", "1")["pairs"].select(["pair_id", "prompt_id", "votes"]).to_pylist()
    folds = fold_of([row["prompt_id"] for row in voted], 2)
    kept = set(store.read("curated_pairs", "0")["pairs"]["pair_id"].to_pylist())
    for row, fold in zip(voted, folds, strict=True):  # nobody judges the pairs that it was trained on
        own = [] if row["pair_id"] in kept else ["reward_model/1"]
        expected = ["checkpoint/imported", f"out_of_fold/1/{fold}", "reward_model/0", *own, "seed/1"]
        assert [vote["voter"] for vote in row["votes"]] == expected
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Policy “joint”" in page
    assert "verifier model" not in page
    assert ">fold_scores<" in page
    assert "after relabelling" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Policy “paper”" in (home / "report.html").read_text(encoding="utf-8")


def test_the_same_job_again_uses_what_is_finished(home):
    before = {name: artifact.digest for name, artifact in every_artifact(Store(home))}
    log = run(home, *ROUND_1)
    assert log.count("reused, inputs and settings unchanged") >= len(PARTITIONED)
    assert {name: artifact.digest for name, artifact in every_artifact(Store(home))} == before


def test_people_decide_pairs_that_judges_left_undecided(home, tmp_path):
    copy = tmp_path / "home"
    for part in ("artifacts", "media", "sources"):
        shutil.copytree(home / part, copy / part)
    # Judges may be asked about two pairs.
    recipe = recipe_without_arms(tmp_path, ("annotation:\n", "annotation:\n  budget_calls: 4\n"))
    run(copy, *ROUND_1, recipe=recipe)
    before = Store(copy).read("annotated_pairs", "1")
    tasks = tmp_path / "tasks"
    dt2it("review", "export", "--round", 1, "--format", "argilla", "--output", tasks, "--home", copy)
    entries = json.loads((tasks / "records.json").read_text())
    assert len(entries) == before["quarantine"].num_rows > 0
    for entry in entries:
        entry |= {"responses": {"better": [{"value": "first", "user_id": "someone"}]}, "status": "completed"}
    (tmp_path / "answers.json").write_text(json.dumps(entries))
    printed = dt2it("review", "import", tmp_path / "answers.json", "--home", copy)
    assert f"{len(entries)} votes of 1 person" in printed
    log = run(copy, *ROUND_1, recipe=recipe)
    after = Store(copy).read("annotated_pairs", "1")
    assert after.metadata["people_votes"] == len(entries)
    assert (after["quarantine"].num_rows, after.metadata["rows_in"]) == (0, before.metadata["rows_in"])
    labels = {row["pair_id"]: row for row in Store(copy).read("curated_pairs", "1")["pairs"].to_pylist()}
    for entry in entries:
        pair = labels[entry["metadata"]["pair_id"]]
        assert (pair["label"], pair["chosen_id"]) == ("annotated", entry["metadata"]["first_id"])
    assert log.count("reused, inputs and settings unchanged") >= 5  # what does not depend on people is not made again


def test_a_round_without_its_predecessor_stops_before_anything_trains(home, tmp_path):
    for part in ("artifacts", "media", "sources"):
        shutil.copytree(home / part, tmp_path / part)
    for name in (*PARTITIONED, "reward_model", "verifier_model", "round_report"):
        shutil.rmtree(tmp_path / "artifacts" / name)
    done = subprocess.run(
        command(*ROUND_1), env=environment(tmp_path), cwd=project_root(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    log = " ".join((done.stdout + done.stderr).split())
    assert "round 1 needs curated_pairs of round 0" in log
    assert "dt2it run round --round 0" in log


def test_killed_anywhere_cancelled_and_started_again_it_ends_in_the_same_tables(home, tmp_path, monkeypatch):
    """SIGKILL to whole runs at random moments; a round that is cancelled in the web UI while it trains; a power cut."""
    recipe = recipe_without_arms(tmp_path)
    killed = through_kills(tmp_path, recipe, "construct", kills=2)
    cancel_in_the_web_ui(tmp_path, recipe, monkeypatch)
    killed += through_kills(tmp_path, recipe, *ROUND_0, kills=3)
    assert killed
    once, again = Store(home), Store(tmp_path)
    for name in UNPARTITIONED:
        assert again.read(name).digest == once.read(name).digest, name
    for name in ("training_pairs", "reward_model", "response_scores", "voted_pairs", "verified_pairs", "curated_pairs"):
        assert again.read(name, "0").digest == once.read(name, "0").digest, name


def through_kills(home: Path, recipe: str, *job: str, kills: int) -> int:
    """Kill the job at random moments, at most so many times, and let it come to its end; how often it was killed."""
    rng = random.Random(time.time_ns())
    for killed, wait in enumerate([*(rng.uniform(8, 35) for _ in range(kills)), 1200.0]):
        with (home / "log").open("w") as log:
            process = subprocess.Popen(
                command(*job), env=environment(home, recipe), cwd=project_root(), stdout=log, stderr=log
            )
            try:
                code = process.wait(wait)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                print(f"killed {job[0]} after {wait:.1f} s")
                continue
            assert code == 0, (home / "log").read_text()[-5000:]
            return killed
    raise AssertionError("not within 1200 s")


def cancel_in_the_web_ui(home: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start round 0 in a web UI and cancel it while it trains: its programs end and its place in the pool is free.

    Then start it again there, and kill run, child, daemon and web server at once, as a machine that goes down does.
    """
    for name, value in environment(home, recipe).items():
        monkeypatch.setenv(name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [str(Path(sys.executable).parent / "dagster"), "dev", "-m", "dt2it_pipeline.definitions", "-p", str(port)]
    with (home / "server.log").open("wb") as log:
        ui = subprocess.Popen(server, cwd=project_root(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    client = DagsterGraphQLClient("127.0.0.1", port_number=port)
    try:
        wait_until(lambda: answers(port), 180)
        run_id = client.submit_job_execution("round", tags={"dagster/partition": "0"})
        wait_until(lambda: programs(home, "work/reward_model/"), 300)
        client.terminate_run(run_id)
        wait_until(lambda: client.get_run_status(run_id) == dg.DagsterRunStatus.CANCELED, 120)
        wait_until(lambda: not programs(home, "work/reward_model/"), 30)
        with dg.DagsterInstance.get() as instance:  # run monitoring may be who frees it, after half a minute
            pool = instance.event_log_storage
            wait_until(lambda: pool.get_concurrency_info("gpu").active_slot_count == 0, 120)
        client.submit_job_execution("round", tags={"dagster/partition": "0"})
        wait_until(lambda: programs(home, "work/reward_model/"), 300)
        power_cut(home)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ui.pid, signal.SIGTERM)
        try:
            ui.wait(20)
        except subprocess.TimeoutExpired:  # the web server now and then outlives it
            os.killpg(ui.pid, signal.SIGKILL)
            ui.wait()


def power_cut(home: Path) -> None:
    """Kill every process whose environment names the home."""
    named = f"DT2IT_HOME={home}\0".encode()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(place.name) != os.getpid() and named in (place / "environ").read_bytes():
                os.kill(int(place.name), signal.SIGKILL)


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def programs(home: Path, word: str) -> list[str]:
    """Command lines of running programs that name a home and a word."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if str(home) in line and word in line]
