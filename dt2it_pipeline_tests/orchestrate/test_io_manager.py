import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from dt2it_pipeline.orchestrate.io_manager import ArtifactIOManager
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store

ROUNDS = dg.StaticPartitionsDefinition(["0", "1"])


def scores(score=1.0):
    return schemas.table([{"response_id": "r", "voter": "v", "score": score}], "scores")


@dg.asset(metadata={"table": "scores"})
def arrow_scores() -> pa.Table:
    return scores()


@dg.asset(metadata={"table": "scores"})
def frame_scores(arrow_scores: pd.DataFrame) -> pd.DataFrame:
    return arrow_scores.assign(score=arrow_scores["score"] * 2)


@dg.asset(partitions_def=ROUNDS)
def artifactd(context: dg.AssetExecutionContext, frame_scores: pa.Table) -> Artifact:
    own = scores(float(context.partition_key) + frame_scores["score"][0].as_py())
    return Artifact({"scores": own, "quarantine": schemas.table([], "quarantine")})


@dg.asset(partitions_def=ROUNDS)
def reader(context: dg.AssetExecutionContext, artifactd: pd.DataFrame) -> Artifact:
    context.log.info(str(len(artifactd)))
    return Artifact({"scores": pa.Table.from_pandas(artifactd, preserve_index=False)})


@dg.asset
def untold() -> pa.Table:
    return scores()


@dg.asset
def ambiguous() -> Artifact:
    return Artifact({"scores": scores(), "votes": schemas.table([], "votes")})


@dg.asset
def reads_ambiguous(ambiguous: pa.Table) -> None:
    raise AssertionError("never reached")


def run(home, *assets, partition=None):
    return dg.materialize(
        list(assets),
        resources={"io_manager": ArtifactIOManager(home=str(home))},
        partition_key=partition,
        raise_on_error=True,
    )


def test_tables_and_frames_go_in_and_come_out(tmp_path):
    run(tmp_path, arrow_scores, frame_scores)
    assert Store(tmp_path).read("frame_scores")["scores"]["score"].to_pylist() == [2.0]


def test_partitions_are_folders(tmp_path):
    for partition in ("0", "1"):
        run(tmp_path, arrow_scores, frame_scores, artifactd, reader, partition=partition)
    assert (tmp_path / "artifacts/artifactd/1").is_dir()
    assert [Store(tmp_path).read("reader", p)["scores"]["score"][0].as_py() for p in "01"] == [2.0, 3.0]


def test_a_table_without_a_kind_says_what_to_write(tmp_path):
    with pytest.raises(dg.DagsterInvariantViolationError, match="say which table it is"):
        run(tmp_path, untold)


def test_an_asset_of_several_tables_asks_for_a_artifact(tmp_path):
    with pytest.raises(dg.DagsterInvariantViolationError, match="annotate the input as Artifact"):
        run(tmp_path, ambiguous, reads_ambiguous)
