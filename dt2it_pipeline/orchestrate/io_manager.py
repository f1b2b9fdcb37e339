"""Tables between assets: Parquet files in the store, partitions as folders."""

from __future__ import annotations

import hashlib
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
from pydantic import Field

from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline.storage.atomic import StoreError

_COMPANIONS = {"prompts", "quarantine"}  # tables that go with a main table


class ArtifactIOManager(dg.ConfigurableIOManager):
    """Writes artifacts, Arrow tables and pandas frames to the store, and reads them back in the type that is asked for.

    A table or frame needs its kind (a key of `schemas.SCHEMAS`) in the asset's metadata, under `table`. Read as
    `pyarrow.Table` or `pandas.DataFrame`, an asset of several tables gives its main one; read as `Artifact`, all of
    them.
    """

    home: str = Field(description="Folder of the artifacts (DT2IT_HOME).")

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Store an asset's value; an artifact that its stage has stored already is left as it is."""
        store, name, partition = Store(self.home), context.asset_key.to_user_string(), _partition(context)
        if isinstance(obj, Artifact) and obj.stored_digest is not None:
            return
        if isinstance(obj, pd.DataFrame):
            obj = pa.Table.from_pandas(obj, preserve_index=False)
        if isinstance(obj, pa.Table):
            kind = (context.definition_metadata or {}).get("table")
            if kind is None:
                raise dg.DagsterInvariantViolationError(
                    f"asset {name}: say which table it is: metadata={{'table': KIND}}"
                )
            obj = Artifact({str(kind): obj}, {"rows_out": obj.num_rows})
        if not isinstance(obj, Artifact):
            raise dg.DagsterInvariantViolationError(
                f"asset {name} returned {type(obj).__name__}, not a table or an artifact"
            )
        store.write(name, obj, _content_key(obj), partition)

    def load_input(self, context: dg.InputContext) -> Any:
        """Load the current version of an upstream asset, as the input's annotation asks."""
        store, name, partition = Store(self.home), context.asset_key.to_user_string(), _partition(context)
        if store.current(name, partition) is None:
            job = "construct" if partition is None else f"round --round {partition}"
            raise StoreError(f"{name} has not been made in {self.home}. Run it first: dt2it run {job}")
        artifact = store.read(name, partition)
        wanted = context.dagster_type.typing_type
        if wanted not in (pa.Table, pd.DataFrame):
            return artifact
        main = [kind for kind in artifact.tables if kind not in _COMPANIONS] or list(artifact.tables)
        if len(main) != 1:
            raise dg.DagsterInvariantViolationError(
                f"{context.asset_key.to_user_string()} holds {sorted(artifact.tables)}; annotate the input as Artifact"
            )
        return artifact[main[0]].to_pandas() if wanted is pd.DataFrame else artifact[main[0]]


def _partition(context: dg.OutputContext | dg.InputContext) -> str | None:
    return context.asset_partition_key if context.has_asset_partitions else None


def _content_key(artifact: Artifact) -> str:
    digest = hashlib.sha256()
    for kind in sorted(artifact.tables):
        digest.update(kind.encode())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, artifact.tables[kind].schema) as writer:
            writer.write_table(artifact.tables[kind].combine_chunks())
        digest.update(sink.getvalue())
    return digest.hexdigest()[:32]
