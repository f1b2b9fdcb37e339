"""The asset `exported_pairs`: one round's curated pairs for others to train on, in every format that is asked for."""

from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
from pydantic import Field

from dt2it_pipeline.export import DATASETS, FORMATS, export_pairs
from dt2it_pipeline.export.lineage import lineage_of, sources_of
from dt2it_pipeline.orchestrate.assets.evaluation import ON_DEMAND
from dt2it_pipeline.orchestrate.resources import StoreResource
from dt2it_pipeline.orchestrate.stage.cached_stage import run_stage
from dt2it_pipeline.orchestrate.stage.stage_asset import StageResult, stage_asset
from dt2it_pipeline.storage.artifacts import Artifact
from dt2it_pipeline.storage.schemas import table

EXPORTED = "exported_pairs"


class ExportConfig(dg.Config):
    """What is written."""

    formats: list[str] = Field(default=sorted(DATASETS), description=f"Formats to write: any of {', '.join(FORMATS)}.")


def build_exported_pairs(rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """The asset `exported_pairs`: folders huggingface/, llamafactory/ and trl/ of one round."""

    @stage_asset(
        name=EXPORTED,
        group=ON_DEMAND,
        part="export",
        stage="export",
        code_version="3",
        kinds={"huggingface"},
        tables=("quarantine",),
        reconciles=False,
        partitions_def=rounds,
    )
    def exported_pairs(
        context: dg.AssetExecutionContext, config: ExportConfig, store: StoreResource, curated_pairs: Artifact
    ) -> StageResult:
        """A round's curated pairs as datasets, images included; what a format cannot hold is quarantined."""
        opened = store.open()
        unknown = sorted(set(config.formats) - set(FORMATS))
        if unknown or not config.formats:
            raise dg.Failure(f"formats {unknown} are unknown; known: {', '.join(FORMATS)}", allow_retries=False)
        sources = sources_of(curated_pairs["pairs"], opened)

        def write(work: Path) -> Artifact:
            folder = work / "export"
            folder.mkdir(exist_ok=True)
            metadata: dict[str, Any] = {}
            quarantined = [table([], "quarantine")]
            for name in sorted(set(config.formats)):
                done = export_pairs(
                    curated_pairs["pairs"],
                    curated_pairs["prompts"],
                    opened.media,
                    folder / name,
                    name,
                    sources=sources,
                    lineage=lineage_of(curated_pairs, "curated_pairs", context.partition_key),
                )
                metadata[f"{name}_pairs"] = done.pairs
                quarantined.append(done.quarantine)
            return Artifact({"quarantine": pa.concat_tables(quarantined)}, metadata, folder)

        artifact = run_stage(
            context,
            opened,
            write,
            inputs={"curated_pairs": curated_pairs},
            settings={
                "formats": {"names": sorted(set(config.formats))},
                "sources": {name: source.model_dump() for name, source in sources.items()},
            },
        )
        folders = {name: dg.MetadataValue.path(str(artifact.folder / name)) for name in sorted(set(config.formats))}
        return StageResult(artifact, metadata=folders)

    return exported_pairs
