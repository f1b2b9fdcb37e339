"""What every asset of this code location does, as one decorator: `stage_asset`.

An asset's function computes or finds a stored artifact (see `cached_stage.run_stage`) and returns a `StageResult` (or,
where it writes no artifact, Dagster's own result). The decorator does the rest: group, owners, tags, kinds, pool and
code version; the schema of the tables and a link to the source; the check that rows reconcile; and, once the artifact
is there, metadata with the headline first and row counts.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from dt2it_pipeline.orchestrate.dagster_internals import code_reference
from dt2it_pipeline.orchestrate.stage.cached_stage import log_place_of
from dt2it_pipeline.orchestrate.stage.checks import ROWS_RECONCILE, Check, reconcile
from dt2it_pipeline.orchestrate.stage.metadata import artifact_metadata, main_table, table_schema
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline.storage.schemas import DESCRIPTIONS

OWNERS = ("team:alignment",)  # of every asset: the team that answers for the reward model and its data
GPU_POOL = "gpu"
PART, STAGE = "dt2it/part", "dt2it/stage"  # tags of assets: the part of the method, and what is done


@dataclass(frozen=True)
class StageResult:
    """What an asset's function returns: its stored artifact, checks beside `rows_reconcile`, and metadata to lead with.

    Of `metadata` the first entries are what a person looks for first: accuracy before counts.
    """

    artifact: Artifact
    checks: Sequence[dg.AssetCheckResult] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


def stage_asset(
    *,
    group: str,
    part: str,
    stage: str,
    code_version: str,
    kinds: set[str],
    tables: Sequence[str] = (),
    gpu: bool = False,
    reconciles: bool = True,
    checks: Sequence[Check] = (),
    name: str | None = None,
    description: str | None = None,
    **others: Any,
) -> Callable[[Callable[..., StageResult | dg.MaterializeResult]], dg.AssetsDefinition]:
    """Make an asset of a function that returns a StageResult; it takes what any asset's function takes, and `store`.

    Args:
        group: of the asset graph.
        part: of the method, a tag: sources, construction, reformulation, training, curation, evaluation or export.
        stage: what is done, a tag: sample, judge, train, score, ...
        code_version: see cached_stage.
        kinds: what it works with, shown as icons.
        tables: kinds of the tables in its artifact, the main one first.
        gpu: whether it takes the pool `gpu`, one step at a time.
        reconciles: whether its artifact counts its rows (`checks.ROW_COUNTS`), and the check `rows_reconcile` adds up.
        checks: further checks, whose results are in the StageResult.
        name: by default that of the function.
        description: by default the function's docstring.
        others: any other argument of `dagster.asset`.
    """
    declared = (*((ROWS_RECONCILE,) if reconciles else ()), *checks)

    def decorate(compute: Callable[..., StageResult | dg.MaterializeResult]) -> dg.AssetsDefinition:
        asset = name or compute.__name__

        @functools.wraps(compute)
        def materialise(context: dg.AssetExecutionContext, **given: Any) -> dg.MaterializeResult:
            with log_place_of(context, asset):
                made = compute(context, **given)
            if isinstance(made, dg.MaterializeResult):
                return made
            return materialized(context, given["store"].open(), made, tables, reconciles=reconciles)

        # Dagster reads what a function takes from its signature, and what it gives from its annotations.
        materialise.__annotations__ = dict(compute.__annotations__) | {"return": dg.MaterializeResult}
        materialise.__signature__ = inspect.signature(compute).replace(  # type: ignore[attr-defined]
            return_annotation=dg.MaterializeResult
        )
        made: dg.AssetsDefinition = dg.asset(
            name=asset,
            description=description or inspect.getdoc(compute),
            group_name=group,
            code_version=code_version,
            pool=GPU_POOL if gpu else None,
            kinds=kinds,
            owners=OWNERS,
            tags={PART: part, STAGE: stage},
            metadata=definition_metadata(compute, tables),
            check_specs=[check.spec(asset) for check in declared],
            **others,
        )(materialise)
        return made

    return decorate


def stage_spec(
    name: str,
    compute: Callable[..., Any],
    *,
    part: str,
    stage: str,
    tables: Sequence[str],
    **others: Any,
) -> dg.AssetSpec:
    """The same for one asset of a function that makes several; `others` are any arguments of `dagster.AssetSpec`."""
    tags = {PART: part, STAGE: stage}
    return dg.AssetSpec(name, owners=OWNERS, tags=tags, metadata=definition_metadata(compute, tables), **others)


def definition_metadata(compute: Callable[..., Any], tables: Sequence[str]) -> dict[str, Any]:
    """What is known of an asset before it is made: the columns of its tables, and where its source stands."""
    metadata: dict[str, Any] = {}
    main = main_table(tables)
    if main is not None:
        metadata["dagster/column_schema"] = table_schema(main)
        metadata["rows_are"] = DESCRIPTIONS[main]
    for kind in tables:
        if kind != main:
            metadata[f"{kind}_columns"] = dg.MetadataValue.table_schema(table_schema(kind))
    file = inspect.getsourcefile(compute)
    assert file is not None
    return metadata | code_reference(file, inspect.getsourcelines(compute)[1])


def materialized(
    context: dg.AssetExecutionContext,
    store: Store,
    made: StageResult,
    tables: Sequence[str],
    *,
    name: str | None = None,
    reconciles: bool = True,
) -> dg.MaterializeResult:
    """A stage's result as Dagster's, with its content as data version; checks that do not pass are logged.

    Args:
        context: of the asset.
        store: where the artifact lies.
        made: the result.
        tables: kinds of the tables in its artifact, the main one first.
        name: of the asset, where one function makes several.
        reconciles: whether the check `rows_reconcile` is added.
    """
    checks = [*([reconcile(made.artifact, name)] if reconciles else []), *made.checks]
    for check in checks:
        if not check.passed:
            log = context.log.error if check.severity is dg.AssetCheckSeverity.ERROR else context.log.warning
            found = ", ".join(f"{key} {value.value}" for key, value in check.metadata.items())
            log(f"check {check.check_name} did not pass: {check.description or found or 'it gives no reason'}")
    return dg.MaterializeResult(
        asset_key=name or context.asset_key,
        metadata=artifact_metadata(made.artifact, store.media, made.metadata, main_table(tables)),
        data_version=dg.DataVersion(made.artifact.digest),
        check_results=checks,
    )
