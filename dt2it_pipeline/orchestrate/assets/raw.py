"""Group `raw`: the catalogue's sources as tables. A source that has not changed is not read again."""

import time
from dataclasses import replace

import dagster as dg
import pyarrow.compute as pc

from dt2it_pipeline.config.sections.cleaning import CleaningSettings
from dt2it_pipeline.config.sections.demo import DemoSettings
from dt2it_pipeline.config.sections.landing import LandingSettings
from dt2it_pipeline.engines.launch.fork_server import available_processes
from dt2it_pipeline.ingest.landing import landed_manifests
from dt2it_pipeline.ingest.manifest import Manifest, load_catalogue, require_first_training_set
from dt2it_pipeline.ingest.provenance import RECORD, provenance_of
from dt2it_pipeline.ingest.sources import (
    SourceError,
    concatenate,
    fingerprint,
    read_source,
)
from dt2it_pipeline.observe.progress import Report
from dt2it_pipeline.orchestrate.freshness import freshness
from dt2it_pipeline.orchestrate.resources import StoreResource
from dt2it_pipeline.orchestrate.stage.cached_stage import run_stage, stage_key, step_reporter
from dt2it_pipeline.orchestrate.stage.checks import SOURCES_READABLE
from dt2it_pipeline.orchestrate.stage.stage_asset import StageResult, stage_asset
from dt2it_pipeline.reformulate.phrasings import load_phrasings, version
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline.storage.atomic import write_json_atomic

GROUP = "raw"
_DEMO = "demo_sources"
_WORLD_VERSION = "2"  # as a stage's code_version: of writing the demo's world
# And of reading a source, by its kind; other kinds have _READER_VERSION.
_READER_VERSIONS = {"preferences": "7", "truth": "7", "benchmark": "5", "t2i": "4", "t2i_benchmark": "3"}
_READER_VERSION = "4"
_PREFERENCES, _T2I, _BENCHMARKS = "raw_preferences", "raw_t2i_preferences", "raw_benchmarks"
_KINDS = {
    "raw_prompts": ("prompts",),
    _PREFERENCES: ("preferences",),
    _T2I: ("t2i",),
    _BENCHMARKS: ("benchmark", "t2i_benchmark"),
}


def build_raw_assets(
    recipe_name: str,
    datasets: tuple[str, ...],
    cleaning: CleaningSettings,
    landing: LandingSettings,
    demo: DemoSettings | None,
    seed: int,
) -> list[dg.AssetsDefinition]:
    """Assets that read the recipe's sources: one per kind; with a demo also its files and its truth."""
    manifests = load_catalogue(datasets)
    require_first_training_set(manifests, recipe_name)
    deps = [] if demo is None else [_DEMO]
    landed = (landing, tuple(manifest.name for manifest in manifests))
    made = [
        _raw_asset(name, what, tuple(m for m in manifests if m.kind in _KINDS[name]), tables, deps, cleaning, landed)
        for name, what, tables in (
            ("raw_prompts", "Questions with images and a reference answer.", ("prompts",)),
            (_PREFERENCES, "Noisy preference pairs, as published.", ("pairs", "prompts")),
            (_T2I, "Human text-to-image preferences.", ("t2i_preferences",)),
            (_BENCHMARKS, "Held-out pairs that no training set may contain.", ("benchmark_items", "prompts")),
        )
    ]
    if demo is not None:
        truth = tuple(m for m in manifests if m.kind == "truth")
        what = (
            "The demo's true labels of raw_preferences. Only the report's grading and the ceiling arm read them; "
            "curation never does."
        )
        made += [
            _demo_sources(demo, seed),
            _raw_asset("demo_truth", what, truth, ("pairs", "prompts"), deps, CleaningSettings(near_duplicate=None)),
        ]
    return made


def _demo_sources(settings: DemoSettings, seed: int) -> dg.AssetsDefinition:
    @stage_asset(
        name=_DEMO,
        group=GROUP,
        part="sources",
        stage="ingest",
        code_version=_WORLD_VERSION,
        kinds={"python"},
        reconciles=False,
    )
    def demo_sources(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult:
        """The demo's source files, as a user would have them: made from easy-VQA with a fixed seed."""
        from dt2it_pipeline.demo.world import write_world

        folder = store.open().sources / "demo"
        key = stage_key(_DEMO, _WORLD_VERSION, {}, {"demo": settings, "seed": seed})
        marker = folder / "world.json"
        with store.open().locked(_DEMO, on_wait=context.log.warning):
            if not marker.exists() or key not in marker.read_text(encoding="utf-8"):
                write_world(folder, settings, seed=seed)
                write_json_atomic({"key": key}, marker)
        return dg.MaterializeResult(
            metadata={"path": dg.MetadataValue.path(str(folder))}, data_version=dg.DataVersion(key)
        )

    return demo_sources


def _raw_asset(
    name: str,
    what: str,
    manifests: tuple[Manifest, ...],
    kinds: tuple[str, ...],
    deps: list[str],
    cleaning: CleaningSettings,
    landing: tuple[LandingSettings, tuple[str, ...]] | None = None,
) -> dg.AssetsDefinition:
    @stage_asset(
        name=name,
        description=what,
        group=GROUP,
        part="sources",
        stage="ingest",
        code_version={_PREFERENCES: "8", _BENCHMARKS: "6"}.get(name, "5"),
        kinds={"parquet"},
        tables=(*kinds, "quarantine"),
        checks=(SOURCES_READABLE,),
        deps=deps,
        freshness_policy=freshness(landing[0]) if landing else None,
    )
    def raw(context: dg.AssetExecutionContext, store: StoreResource) -> StageResult:
        opened = store.open()
        landed, unreadable = _landed(opened, name, *landing) if landing else ((), {})
        artifacts, faults = _read_all(context, opened, (*manifests, *landed))
        faults |= unreadable
        useless = {
            source: _why_useless(source, artifact) for source, artifact in artifacts.items() if _is_useless(artifact)
        }
        if manifests and not artifacts:
            raise dg.Failure(f"no source of {name} can be read: {'; '.join(faults.values())}", allow_retries=False)
        joined = concatenate(
            list(artifacts.values()),
            (*kinds, "quarantine"),
            cleaning.near_duplicate,
            step_reporter(context),
            available_processes(),
        )
        unread = [
            records.quarantine_row(source, "ingest", "unreadable source", why, source) for source, why in faults.items()
        ]
        said = {source: one.model_dump() for source, one in provenance_of((*manifests, *landed)).items()}
        tables = dict(joined.tables)
        tables["quarantine"] = schemas.table([*tables["quarantine"].to_pylist(), *unread], "quarantine")
        artifact = run_stage(
            context,
            opened,
            lambda work: Artifact(tables, dict(joined.metadata) | {RECORD: said}),
            inputs=artifacts,
            settings={"faults": faults, "cleaning": cleaning, RECORD: said},
        )
        faults |= useless
        faults |= {
            manifest.name: f"source {manifest.name!r}: `media_root` is given, and no row names an image or video; "
            "say under `columns` which column does"
            for manifest in (*manifests, *landed)
            if manifest.media_root and manifest.name in artifacts and _all_without_media(artifacts[manifest.name])
        }
        for source, one in artifacts.items():
            if (bare := _without_media(one)) and not _all_without_media(one):
                context.log.warning(
                    f"source {source!r}: {bare:,} of its {one['prompts'].num_rows:,} prompts have no image or video, "
                    "where others have; they are read as text alone"
                )
        if repeated := artifact.metadata.get("repeated_ids"):
            context.log.warning(
                f"repeated ids: {repeated:,} (rows with the id of an earlier row of their source); `row_id` does not "
                "tell them apart"
            )
        # Where some sources can be used, the others are reported and the run goes on with what there is.
        nothing = bool(manifests) and len(useless) == len(artifacts)
        readable = dg.AssetCheckResult(
            check_name=SOURCES_READABLE.name,
            passed=not faults,
            severity=dg.AssetCheckSeverity.ERROR if nothing else dg.AssetCheckSeverity.WARN,
            description="; ".join(faults.values()) or None,
            metadata=faults,
        )
        return StageResult(artifact, checks=(readable,))

    return raw


def _is_useless(source: Artifact) -> bool:
    """Whether a source holds rows and not one can be used: rather a wrong manifest than so many wrong rows."""
    return bool(source.metadata["rows_in"]) and not source.metadata["rows_out"]


def _without_media(source: Artifact) -> int:
    """How many of a source's prompts show nothing; 0 where it has no prompts."""
    prompts = source.tables.get("prompts")
    if prompts is None:
        return 0
    return int(pc.sum(pc.equal(pc.list_value_length(prompts["media"]), 0), min_count=0).as_py())


def _all_without_media(source: Artifact) -> bool:
    """Whether a source has prompts and not one of them shows anything."""
    return 0 < _without_media(source) == source["prompts"].num_rows


def _why_useless(name: str, source: Artifact) -> str:
    first = source["quarantine"].slice(0, 1).to_pylist()[0]
    return (
        f"source {name!r}: not one of its {source.metadata['rows_in']:,} rows can be used; "
        f"the first, {first['row_id']}: {first['reason']} ({first['detail']})"
    )


def _landed(
    store: Store, asset: str, settings: LandingSettings, taken: tuple[str, ...]
) -> tuple[tuple[Manifest, ...], dict[str, str]]:
    """Manifests for an asset that have landed, and by file name why others that are its own cannot be read.

    One that does not say which kind it is of is the preferences' own, so that every fault is reported, and once.
    """
    found, folder = landed_manifests(store.home, settings, taken), settings.folder
    others = {kind for name, kinds in _KINDS.items() if name != asset for kind in kinds}
    faults = {
        landed.file.name: f"{folder}/{landed.file.name} is not read: {' '.join(landed.fault.split())}"
        for landed in found.unread
        if landed.kind in _KINDS[asset] or (asset == _PREFERENCES and landed.kind not in others)
    }
    return tuple(manifest for manifest in found.manifests if manifest.kind in _KINDS[asset]), faults


def _read_all(
    context: dg.AssetExecutionContext, store: Store, manifests: tuple[Manifest, ...]
) -> tuple[dict[str, Artifact], dict[str, str]]:
    """By name: artifacts of the sources that can be read, and what is wrong with the others."""
    artifacts: dict[str, Artifact] = {}
    faults: dict[str, str] = {}
    for manifest in manifests:
        slot = f"source.{manifest.name}"
        try:
            # Two-image questions of a benchmark are worded while it is read.
            words = {"phrasings": version(load_phrasings())} if manifest.kind == "t2i_benchmark" else {}
            version_of = _READER_VERSIONS.get(manifest.kind, _READER_VERSION)
            key = stage_key(slot, version_of, {"source": fingerprint(manifest, store.sources), **words}, {})
            with store.locked(slot, on_wait=context.log.warning):
                artifact = store.find(slot, key, on_damage=context.log.warning)
                artifact = artifact or _read(manifest, store, slot, key, step_reporter(context))
        except SourceError as error:
            faults[manifest.name] = str(error)
            continue
        artifacts[manifest.name] = artifact
    return artifacts, faults


def _read(manifest: Manifest, store: Store, slot: str, key: str, report: Report) -> Artifact:
    started = time.monotonic()
    read = read_source(manifest, store.sources, store.media, report, available_processes())
    return store.write(
        slot, replace(read, metadata=dict(read.metadata) | {"seconds": round(time.monotonic() - started, 1)}), key
    )
