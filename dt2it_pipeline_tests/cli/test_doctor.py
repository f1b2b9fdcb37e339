"""`dt2it doctor`: what it finds, and that --mend mends it. `dt2it gc`: what it lists and removes."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from PIL import Image

from dt2it_pipeline.media.store import store_image
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline_tests.support.commands import dt2it, failing, invoke


def test_a_place_whose_version_is_gone_is_no_whole_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for partition in (None, "0"):
        made = store.write("pairs", Artifact({"pairs": schemas.table([], "pairs")}), "key", partition)
        if partition:
            shutil.rmtree(made.folder)
    ended = invoke("doctor", "--home", tmp_path)
    assert ended.exit_code == 1 and ended.stdout.rstrip().endswith("2 artifacts and 0 media: 1 damaged")
    assert f"pairs, round 0: the folder that {tmp_path / 'artifacts/pairs/0/current'} names is gone" in ended.stdout
    dt2it("doctor", "--home", tmp_path, "--mend")
    assert "1 artifacts and 0 media are as they were written" in dt2it("doctor", "--home", tmp_path)


def test_a_damaged_cache_is_renamed(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "judge_replies.sqlite"
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE replies (key, reply)")
        database.commit()
    file.write_bytes(file.read_bytes()[:2000] + b"\xa5" * 9000)
    before = file.read_bytes()
    assert invoke("doctor", "--home", tmp_path).exit_code == 1 and file.read_bytes() == before
    assert "renamed to judge_replies.sqlite.damaged" in dt2it("doctor", "--home", tmp_path, "--mend")
    assert not file.exists() and file.with_name("judge_replies.sqlite.damaged").read_bytes() == before
    dt2it("doctor", "--home", tmp_path)


def aged(path: Path) -> Path:
    """Something that was last changed days ago."""
    for each in (*path.rglob("*"), path):
        os.utime(each, (time.time() - 9e5, time.time() - 9e5), follow_symlinks=False)
    return path


def prompts(store: Store, *numbers: int) -> Artifact:
    media = [store_image(numbered(number), store.home, store.media).row for number in numbers]
    same = {"system": "", "turns": [], "language": "en", "reference": "", "source": "s", "meta": "{}"}
    rows = [{"prompt_id": f"p{number}", "media": [medium], **same} for number, medium in enumerate(media)]
    return Artifact({"prompts": schemas.table(rows, "prompts")})


def numbered(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def test_gc_lists_and_removes_what_nothing_needs_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = store.write("raw_prompts", prompts(store, 1, 2), "old").folder
    kept = store.write("raw_prompts", prompts(store, 1, 3), "new").folder
    of_a_round = store.write("training_pairs", prompts(store, 4), "key", "0").folder
    orphan = store.media / store_image(numbered(5), tmp_path, store.media).row["path"]
    work = [store.work("raw_prompts", "older"), store.work("training_pairs", "key", "0")]
    for folder in work:
        (folder / "half").write_text("half")
    index = store.media / "index.0.sqlite"
    index.write_bytes(b"x" * 3000)
    compiled = [store.cache / "compiled" / name for name in ("processor-0", "other-0")]
    for folder in compiled:
        folder.mkdir(parents=True)
        (folder / "code.so").write_text("code")
    aged(tmp_path)
    long_ago = time.time() - 31 * 24 * 3600
    os.utime(compiled[0] / "code.so", (long_ago, long_ago))
    going_on = store.work("training_pairs", "next", "0")  # fresh: the next run goes on from it
    (going_on / "half").write_text("half")
    held = {old, orphan, *work, index, compiled[0]}
    names = {str(path) for path in held}
    found = json.loads(dt2it("gc", "--home", tmp_path, "--json"))
    assert {each["path"] for each in found["unneeded"]} == names and not found["removed"]
    assert found["bytes"] == sum(each["bytes"] for each in found["unneeded"]) > 3000
    assert all(path.exists() for path in held)
    said = dt2it("gc", "--home", tmp_path)
    assert "2.9 KiB  media/index.0.sqlite: the index of the media of another version" in said
    assert said.rstrip().endswith("; --remove removes them")

    dt2it("gc", "--home", tmp_path, "--remove")
    assert not any(path.exists() for path in held)
    assert kept.exists() and of_a_round.exists() and (going_on / "half").exists() and compiled[1].exists()
    # The image that only the old version named goes next.
    assert len(json.loads(dt2it("gc", "--home", tmp_path, "--remove", "--json"))["unneeded"]) == 1
    assert dt2it("gc", "--home", tmp_path).rstrip() == f"{tmp_path}: 0 not needed, 0 B"
    assert "2 artifacts and 3 media are as they were written" in dt2it("doctor", "--home", tmp_path)


def test_gc_leaves_media_alone_where_it_cannot_know_and_refuses_while_a_run_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = store.write("raw_prompts", prompts(store, 1), "key").folder
    store_image(numbered(2), tmp_path, store.media)
    aged(tmp_path)
    assert len(json.loads(dt2it("gc", "--home", tmp_path, "--json"))["unneeded"]) == 1
    whole = (made / "prompts.parquet").read_bytes()
    (made / "prompts.parquet").write_bytes(whole[:100])
    assert json.loads(dt2it("gc", "--home", tmp_path, "--json"))["unneeded"] == []
    (made / "prompts.parquet").write_bytes(whole)
    code = "import sys, time; from dt2it_pipeline.storage.artifacts import Store\n" + (
        "with Store(sys.argv[1]).locked('raw_prompts'):\n    print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            assert "a run makes raw_prompts" in failing("gc", "--home", tmp_path, "--remove")
        finally:
            other.kill()
    dt2it("gc", "--home", tmp_path, "--remove")
    assert len(list(store.media.glob("*/*"))) == 1


def test_images_of_a_text_to_image_preference_are_needed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = (store_image(numbered(number), tmp_path, store.media).row for number in (1, 2))
    row = {
        "preference_id": "a", "caption": "red", "preferred": first, "other": second, "strength": None,
        "language": "en", "source": "s", "row_id": "1",
    }  # fmt: skip
    store.write("raw_t2i_preferences", Artifact({"t2i_preferences": schemas.table([row], "t2i_preferences")}), "key")
    aged(tmp_path)
    assert json.loads(dt2it("gc", "--home", tmp_path, "--json"))["unneeded"] == []
    (store.media / second["path"]).unlink()
    assert f"media/{second['path']}: it is missing" in invoke("doctor", "--home", tmp_path).stdout
