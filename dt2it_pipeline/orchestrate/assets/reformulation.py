"""Group `construction`, continued: two-image pairs from text-to-image preferences (part 2)."""

import dagster as dg

from dt2it_pipeline.config.sections.t2i import T2ISettings
from dt2it_pipeline.orchestrate.assets.construction import GROUP
from dt2it_pipeline.orchestrate.resources import StoreResource
from dt2it_pipeline.orchestrate.stage.cached_stage import run_stage
from dt2it_pipeline.orchestrate.stage.checks import POSITIONS_BALANCED
from dt2it_pipeline.orchestrate.stage.stage_asset import StageResult, stage_asset
from dt2it_pipeline.reformulate.phrasings import load_phrasings, version
from dt2it_pipeline.reformulate.t2i import reformulate
from dt2it_pipeline.storage.artifacts import Artifact


def build_t2i_pairs(settings: T2ISettings, seed: int) -> dg.AssetsDefinition:
    """The asset `t2i_pairs`."""

    @stage_asset(
        group=GROUP,
        part="reformulation",
        stage="reformulate",
        code_version="3",
        kinds={"python"},
        tables=("pairs", "prompts", "quarantine"),
        checks=(POSITIONS_BALANCED,),
    )
    def t2i_pairs(
        context: dg.AssetExecutionContext, store: StoreResource, raw_t2i_preferences: Artifact
    ) -> StageResult:
        """Human T2I preferences as two-image questions; the preferred image stands first in exactly half of them."""
        artifact = run_stage(
            context,
            store.open(),
            lambda work: reformulate(raw_t2i_preferences["t2i_preferences"], settings, seed),
            inputs={"raw_t2i_preferences": raw_t2i_preferences, "phrasings": version(load_phrasings())},
            settings={"t2i": settings, "seed": seed},
        )
        first, pairs = int(artifact.metadata["preferred_first"]), artifact["pairs"].num_rows
        balanced = dg.AssetCheckResult(
            check_name=POSITIONS_BALANCED.name,
            passed=first == pairs // 2,
            metadata={"preferred_first": first, "pairs": pairs},
        )
        return StageResult(artifact, checks=(balanced,))

    return t2i_pairs
