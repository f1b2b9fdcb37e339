"""Manifests: every one that ships loads; a wrong one fails with a sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.ingest.manifest import ManifestError, load_catalogue, load_manifest
from dt2it_pipeline.ingest.sources import SourceError, fingerprint, read_source

SHIPPED = sorted((project_root() / "configs/datasets").glob("*.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_manifest_loads_under_its_own_name(file: Path) -> None:
    manifest = load_manifest(file)
    assert manifest.name == file.stem
    assert manifest.licence


@pytest.mark.parametrize("name", ["rlaif_v", "pick_a_pic_v2", "vl_rewardbench"])
def test_a_source_of_the_hub_without_a_revision_is_refused_before_any_network(name: str, tmp_path: Path) -> None:
    manifest = load_manifest(project_root() / f"configs/datasets/{name}.yaml")
    assert manifest.revision is None
    fingerprint(manifest, tmp_path)
    with pytest.raises(
        SourceError,
        match=rf"source '{name}': `revision` is not set: .*`git ls-remote .*{manifest.hub} HEAD` prints the newest",
    ):
        read_source(manifest, tmp_path, tmp_path / "media")


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("path: x\nadapter: rlaif", "there is no adapter 'rlaif'; there are auto,"),
        ("path: x\nadapter: hpdv3", "adapter 'hpdv3' reads sources of kind t2i, t2i_benchmark, not preferences"),
        (
            "path: x\nadapter: rlaif_v\ncolumns: {imgae: a}",
            r"columns names unknown fields \['imgae'\]; known: .*'image'",
        ),
        ("hub: a/b\nrevision: main", "revision: String should match pattern"),
        ("hub: a/b/c", r"hub: 'a/b/c' is no id of the Hub \(owner/name\)"),
        ("hub: a/b..c", r"hub: 'a/b\.\.c' is no id of the Hub \(owner/name\)"),
        ("hub: ''\npath: x", r"hub: '' is no id of the Hub \(owner/name\)"),
        ("revision: " + "a" * 40 + "\npath: x", "`revision` belongs to `hub`"),
        ("language: en", "name the source's place: `path`, `hub` or both"),
        ("path: x\nformat: xml", "format: Input should be 'jsonl', 'json'"),
        ("path: x\nlicense: MIT", "license: unknown key; did you mean licence?"),
        ("path: x\nlimit: 0", "limit: Input should be greater"),
        ("path: ''", "path: String should have at least 1 character"),
        ("path: x\nmedia_root: ''", "media_root: String should have at least 1 character"),
    ],
)
def test_a_wrong_manifest_names_its_fault(tmp_path: Path, lines: str, fault: str) -> None:
    (tmp_path / "m.yaml").write_text(f"name: m\nkind: preferences\nlicence: MIT\n{lines}\n")
    with pytest.raises(ManifestError, match=rf"m.yaml: .*{fault}") as raised:
        load_manifest(tmp_path / "m.yaml")
    assert "Value error" not in str(raised.value)  # pydantic's own words


def test_a_manifest_that_is_no_text_is_reported(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ManifestError, match=r"manifest m\.yaml is not UTF-8"):
        load_manifest(tmp_path / "m.yaml")


def test_a_recipe_names_manifests_by_name_or_path_and_an_unknown_one_lists_those_there_are(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine\nkind: preferences\npath: p.jsonl\nmedia_root: .\nlicence: MIT\n")
    assert [manifest.name for manifest in load_catalogue((str(mine), "povid"))] == ["mine", "povid"]
    with pytest.raises(ManifestError, match=r"there is no manifest .*nowhere\.yaml; .*configs/datasets has: .*povid"):
        load_catalogue(("nowhere",))
    with pytest.raises(ManifestError, match=r"there is no manifest .*xxx\.yaml; .*configs/datasets has: .*povid"):
        load_catalogue(("x" * 300,))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("rlaif-v", "did you mean rlaif_v"),
        ("RLHF_V", "did you mean rlhf_v"),
        ("image_reward", "did you mean .*image_reward_db"),
        ("datasets/povid.yaml", "did you mean povid, which lies in configs/datasets"),
    ],
)
def test_a_misspelt_name_is_answered_by_what_may_be_meant(given: str, meant: str) -> None:
    with pytest.raises(ManifestError, match=rf"there is no manifest .*; {meant}"):
        load_catalogue((given,))


def test_paths_in_a_manifest_count_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    mine = tmp_path / "sets/mine.yaml"
    mine.write_text("name: mine\nkind: preferences\npath: p.jsonl\nmedia_root: ../photos\nlicence: MIT\n")
    (manifest,) = load_catalogue((str(mine),))
    data, media = manifest.located(tmp_path / "sources")
    assert data == tmp_path / "sets/p.jsonl" and media is not None
    assert media.resolve() == (tmp_path / "photos").resolve()
    with pytest.raises(SourceError, match=r"cannot read /.*/sets/p\.jsonl: No such file.*`path` in its manifest"):
        fingerprint(manifest, tmp_path / "sources")
    (own,) = load_catalogue(("own_preferences",))
    assert own.located(tmp_path / "sources")[0] == tmp_path / "sources/own/preferences.jsonl"
