"""The adapters on published rows: the counts that must come out. Images are made up under the names in the rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.rows import Conversation, ImagePair, Quarantined
from dt2it_pipeline.ingest.sources import items_of, read_source
from dt2it_pipeline_tests.support.ingest_world import numbered_image, reasons
from dt2it_pipeline_tests.support.real_data import real_file


def manifest(file: str, adapter: str, kind: str, **more: Any) -> Manifest:
    return Manifest(name=adapter, kind=kind, adapter=adapter, path=str(real_file(file)), licence="see INDEX.md", **more)  # type: ignore[arg-type]


def test_vl_rewardbench(tmp_path: Path) -> None:
    """Every row becomes an item, those whose id is used twice too; images are named by id, so these share one."""
    made = manifest("vl_rewardbench/data.json", "vl_rewardbench", "benchmark", media_root=str(tmp_path / "root"))
    found = [item for item in items_of(made, tmp_path) if isinstance(item, Conversation)]
    for number, name in enumerate(sorted({str(item.media[0].value) for item in found})):
        numbered_image(tmp_path / "root" / name, number)
    artifact = read_source(made, tmp_path, tmp_path / "media")
    assert dict(artifact.metadata) == {"rows_in": 1250, "rows_out": 1250, "rows_quarantined": 0}
    items = artifact["benchmark_items"].to_pylist()
    assert Counter(item["group"] for item in items) == {"hallucination": 749, "reasoning": 318, "general": 183}
    assert len({item["pair_id"] for item in items}) == len({item["item_id"] for item in items}) == 1250
    assert len({item["item_id"].split("#")[0] for item in items}) == 1225


def test_mm_rlhf_rewardbench(tmp_path: Path) -> None:
    made = manifest(
        "mm_rlhf_rewardbench/mm_reward_bench.jsonl",
        "mm_rlhf_rewardbench",
        "benchmark",
        media_root=str(tmp_path / "root"),
    )
    found = [item for item in items_of(made, tmp_path) if isinstance(item, Conversation)]
    for number, (name, kind) in enumerate(sorted({(str(item.media[0].value), item.media[0].kind) for item in found})):
        if kind == "image":
            numbered_image(tmp_path / "root" / name, number)
        else:
            for frame in range(2):
                numbered_image(tmp_path / "root" / name / f"{frame}.png", 1000 + 2 * number + frame)
    artifact = read_source(made, tmp_path, tmp_path / "media")
    assert dict(artifact.metadata) == {"rows_in": 170, "rows_out": 170, "rows_quarantined": 0}
    items = artifact["benchmark_items"].to_pylist()
    assert Counter(item["group"] for item in items) == {"mcq": 42, "long": 37, "short": 34, "safety": 32, "video": 25}
    assert len({item["item_id"] for item in items}) == 46
    videos = [p for p in artifact["prompts"].to_pylist() if [medium["kind"] for medium in p["media"]] == ["video"]]
    assert videos and all(prompt["turns"][0]["text"].startswith("<video>\n") for prompt in videos)


def test_rankings_of_image_reward(tmp_path: Path) -> None:
    found = list(items_of(manifest("imagereward/test.json", "image_reward", "t2i"), tmp_path))
    assert sum(isinstance(item, ImagePair) for item in found) == 6399
    assert [item.reason for item in found if isinstance(item, Quarantined)] == ["tie"] * 831
    assert len({item.row_id for item in found}) == 466


def test_povid_with_its_images(tmp_path: Path) -> None:
    root = str(real_file("povid_schema/images").parent)
    made = manifest("povid_schema/step3_sanity.json", "povid", "preferences", media_root=root)
    artifact = read_source(made, tmp_path, tmp_path / "media")
    assert dict(artifact.metadata) == {"rows_in": 10, "rows_out": 8, "rows_quarantined": 2}
    assert reasons(artifact) == ["missing value"] * 2  # art-2 and art-3 have an empty answer
    assert len(list((tmp_path / "media").rglob("*.jpg"))) == 8


def test_one_published_row_of_a_schema(tmp_path: Path) -> None:
    for file, adapter in (("povid_readme_row.json", "povid"), ("spa_vl_readme_row.json", "spa_vl")):
        (item,) = items_of(manifest(f"schema_examples/{file}", adapter, "preferences"), tmp_path)
        assert isinstance(item, Conversation) and item.chosen != item.rejected
    (item,) = items_of(manifest("schema_examples/r1_reward_rl_readme_row.json", "r1_reward", "preferences"), tmp_path)
    # The page abbreviates the message, first answer included.
    assert isinstance(item, Quarantined) and item.reason == "answers not found"
