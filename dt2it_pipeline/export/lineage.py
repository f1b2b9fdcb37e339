"""What an export's card has on its pairs: the sources' licences, and what the pairs were made by."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.human_review.tasks import PERSON
from dt2it_pipeline.ingest.provenance import Provenance, recorded
from dt2it_pipeline.storage.artifacts import Artifact, Store


def sources_of(pairs: pa.Table, store: Store) -> dict[str, Provenance]:
    """Licence, citation and revision of the pairs' sources, of the manifests by which the artifact home read them."""
    known = recorded(store)
    return {name: known[name] for name in sorted(pc.unique(pairs["source"]).to_pylist()) if name in known}


def lineage_of(artifact: Artifact, asset: str, partition: str | None) -> dict[str, str]:
    """What the pairs are and were made by: asset, round, content hash, reward models and judges that voted."""
    voters = pc.unique(pc.list_flatten(artifact["pairs"]["votes"]).combine_chunks().field("voter")).to_pylist()
    return {
        "made by": f"dt2it_pipeline {_version()} (DT2IT-MRM, arXiv 2604.19544)",
        "asset": asset,
        **({} if partition is None else {"round": partition}),
        "version in the store": artifact.folder.name,
        "content hash": artifact.digest,
        "voters": ", ".join(sorted(voter for voter in voters if not voter.startswith(PERSON))) or "none",
        "people who voted": str(sum(voter.startswith(PERSON) for voter in voters)),
    }


def _version() -> str:
    try:
        return version("dt2it-pipeline")
    except PackageNotFoundError:
        return "not installed"
