"""What an export's card has on its pairs: the sources' licences, and what the pairs were made by."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.config.paths import config_files
from dt2it_pipeline.export.card import Source
from dt2it_pipeline.human_review.tasks import PERSON
from dt2it_pipeline.ingest.landing import FOLDER, landed_manifests
from dt2it_pipeline.ingest.manifest import Manifest, ManifestError, load_manifest
from dt2it_pipeline.storage.artifacts import Artifact


def sources_of(pairs: pa.Table, home: Path, landing: str = FOLDER) -> dict[str, Source]:
    """Licence and citation of every source of the pairs whose manifest is known: of the project, or landed."""
    known: dict[str, Manifest] = {}
    for path in config_files("datasets", "*.yaml").values():
        try:
            manifest = load_manifest(path)
        except ManifestError:
            continue  # a recipe that names it has it in its own file
        known[manifest.name] = manifest
    known |= {manifest.name: manifest for manifest in landed_manifests(home, landing, settle_seconds=0).manifests}
    names = sorted(pc.unique(pairs["source"]).to_pylist())
    return {name: Source(known[name].licence, known[name].citation) for name in names if name in known}


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
