"""What cards say of a source: licence, citation and revision, as the manifest has them that was really read.

The artifacts of sources record them by the source's name. A card takes them from there, or from the manifests that a
recipe names; another manifest of the same name is never asked.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, ValidationError

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.storage.artifacts import Store, StoreError

UNKNOWN = "not known"
RECORD = "provenance"  # key in the metadata of RECORDED_IN
RECORDED_IN = ("raw_prompts", "raw_preferences", "raw_t2i_preferences", "raw_benchmarks")


class Provenance(BaseModel):
    """Of one source.

    Attributes:
        licence: of the data.
        citation: how it is cited; may be empty.
        revision: dataset of the Hub with its commit; empty for files without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    licence: str = UNKNOWN
    citation: str = ""
    revision: str = ""


def provenance_of(manifests: Iterable[Manifest]) -> dict[str, Provenance]:
    """What manifests say, by the name of the source.

    >>> povid = Manifest(name="povid", kind="preferences", hub="someone/povid", licence="MIT")
    >>> provenance_of([povid])["povid"].revision
    'someone/povid, newest'
    """
    return {
        manifest.name: Provenance(
            licence=manifest.licence,
            citation=manifest.citation,
            revision="" if manifest.hub is None else f"{manifest.hub}, {manifest.revision or 'newest'}",
        )
        for manifest in manifests
    }


def recorded(store: Store) -> dict[str, Provenance]:
    """What the manifests said that the sources in an artifact home were read by, by the name of the source."""
    found: dict[str, Provenance] = {}
    for name in RECORDED_IN:
        try:
            record = (store.metadata(name) or {}).get(RECORD, {})
            found |= {source: Provenance.model_validate(said) for source, said in record.items()}
        except (StoreError, ValidationError, AttributeError):  # a damaged record costs the card a licence, no more
            continue
    return found
