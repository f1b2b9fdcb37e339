import json
import os
import signal
import subprocess
import sys
import threading
import time
from random import Random

import pandas as pd
import pytest

from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store, model_digest
from dt2it_pipeline.storage.atomic import StoreError, atomic_directory, read_parquet, write_parquet
from dt2it_pipeline.storage.integrity import digests_of, sealed


def pairs(count=3):
    return schemas.table([records.make_pair("p", f"a{i}", "b", source="s") for i in range(count)], "pairs")


def test_what_is_written_is_read_back(tmp_path):
    store = Store(tmp_path)
    written = store.write("stage", Artifact({"pairs": pairs()}, {"rows_out": 3}), "key", "0")
    read = store.read("stage", "0")
    assert read["pairs"].equals(pairs())
    assert read.metadata == {"rows_out": 3}
    assert read.digest == written.digest
    assert store.current("stage", "0") == "key"


def test_the_same_tables_give_the_same_bytes_and_digest_whatever_the_metadata(tmp_path):
    store = Store(tmp_path)
    one = store.write("one", Artifact({"pairs": pairs()}, {"seconds": 1.0}), "k")
    two = store.write("two", Artifact({"pairs": pairs()}, {"seconds": 2.0}), "k")
    assert one.table_path("pairs").read_bytes() == two.table_path("pairs").read_bytes()
    assert one.digest == two.digest
    assert store.write("three", Artifact({"pairs": pairs(2)}), "k").digest != one.digest


def test_pandas_frames_and_tables_give_the_same_file(tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    write_parquet(frame, tmp_path / "frame.parquet")
    assert read_parquet(tmp_path / "frame.parquet").to_pydict() == {"a": [1, 2], "b": ["x", "y"]}


def put_table(artifact, table):
    """Write a table into a stored artifact as another version of the code would have."""
    write_parquet(table, artifact.table_path("pairs"))
    file = artifact.folder / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(
        json.dumps(sealed(manifest | {"files": digests_of(artifact.folder, [*artifact.folder.glob("*.p*")])}))
    )


def test_a_version_of_an_earlier_schema_is_read_or_says_what_to_do(tmp_path):
    store = Store(tmp_path)
    written = store.write("stage", Artifact({"pairs": pairs()}), "k")
    put_table(written, pairs().drop_columns(["row_id"]))
    assert store.read("stage")["pairs"].equals(pairs())
    put_table(written, pairs().rename_columns({"chosen": "better"}))
    with pytest.raises(StoreError, match=r"stage was made by another version .*\['chosen'\].*; run its stage again"):
        store.read("stage")
    reported = []
    assert store.find("stage", "k", on_damage=reported.append) is None
    assert reported[0].endswith("it is made again now")
    (written.folder / "manifest.json").write_text('{"tables": ["pairs"], "metadata": {}, "digest": "0"}')
    with pytest.raises(StoreError, match=r"stage was made by another version .*digests of its files; run its stage"):
        store.metadata("stage")


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    store = Store(tmp_path)
    store.write("stage", Artifact({"pairs": pairs()}), "good")
    with pytest.raises(schemas.RecordError):
        store.write("stage", Artifact({"pairs": pairs().drop_columns(["chosen"])}), "bad")
    assert store.current("stage") == "good"
    assert sorted(p.name for p in (tmp_path / "artifacts/stage").iterdir()) == ["current", "good"]


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_writer_killed_in_the_middle_leaves_the_old_version_in_force(tmp_path):
    store = Store(tmp_path)
    store.write("stage", Artifact({"pairs": pairs()}), "old")
    script = (
        "import sys, time; from dt2it_pipeline.storage.artifacts import Store\n"
        f"with Store({str(tmp_path)!r}).writing('stage', 'new') as folder:\n"
        "    (folder / 'pairs.parquet').write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert store.current("stage") == "old"
    assert store.read("stage")["pairs"].equals(pairs())


def test_only_the_last_versions_are_kept(tmp_path):
    store = Store(tmp_path)
    for number in range(4):
        store.write("stage", Artifact({"pairs": pairs(number + 1)}), f"k{number}")
    assert not store.has("stage", "k0")
    assert not store.has("stage", "k1")
    assert store.read("stage")["pairs"].num_rows == 4


def test_reading_what_is_not_there_says_so(tmp_path):
    with pytest.raises(StoreError, match="stage, partition 1 has not been materialised"):
        Store(tmp_path).read("stage", "1")


def test_a_damaged_table_is_named(tmp_path):
    store = Store(tmp_path)
    artifact = store.write("stage", Artifact({"pairs": pairs()}), "k")
    artifact.table_path("pairs").write_bytes(b"PAR1 not parquet")
    with pytest.raises(StoreError, match="stage is damaged"):
        store.read("stage")


def test_an_unwritable_home_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="set DT2IT_HOME to a folder that can be written to"):
        Store(tmp_path / "file").write("stage", Artifact({"pairs": pairs()}), "k")


def test_a_models_digest_covers_its_tokenizer_and_not_its_card(tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "README.md"):
        (tmp_path / name).write_text("x")
    before = model_digest(str(tmp_path))
    (tmp_path / "README.md").write_text("another card")
    assert model_digest(str(tmp_path)) == before
    (tmp_path / "tokenizer.json").write_text("another tokenizer")
    assert model_digest(str(tmp_path)) != before


def test_an_adapters_digest_covers_its_base_model(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "model.safetensors").write_bytes(b"first")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = model_digest(str(adapter))
    (base / "README.md").write_text("a card")
    assert model_digest(str(adapter)) == before
    (base / "model.safetensors").write_bytes(b"other weights")
    assert model_digest(str(adapter)) != before
    for named in ("some/model-of-the-hub", str(adapter), None, 3):
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
        assert model_digest(str(adapter))


@pytest.mark.parametrize("garbage", [b"\xff\xfe\x00", b"", b"../elsewhere", b"two words"])
def test_a_damaged_pointer_is_named_and_mended_by_the_stage(tmp_path, garbage):
    store = Store(tmp_path)
    store.write("stage", Artifact({"pairs": pairs()}), "k")
    (tmp_path / "artifacts/stage/current").write_bytes(garbage)
    with pytest.raises(StoreError, match=r"stage is damaged: .*artifacts/stage/current: .*run its stage again"):
        store.read("stage")
    found = store.find("stage", "k")
    assert found is not None
    assert found["pairs"].equals(pairs())
    assert store.current("stage") == "k"


@pytest.mark.parametrize("garbage", [b"\xff\xfe\x00", b"", b"[]", b"null", b'{"tables": 3}', b'{"tables": ["no"]}'])
def test_a_damaged_manifest_is_named_and_the_version_made_again(tmp_path, garbage):
    store = Store(tmp_path)
    store.write("stage", Artifact({"pairs": pairs()}), "k", "1")
    (tmp_path / "artifacts/stage/1/k/manifest.json").write_bytes(garbage)
    with pytest.raises(StoreError, match=r"stage, partition 1 is damaged: .*manifest\.json: it cannot be read"):
        store.read("stage", "1")
    reported = []
    assert store.find("stage", "k", "1", reported.append) is None
    assert len(reported) == 1
    store.write("stage", Artifact({"pairs": pairs(2)}), "k", "1")
    assert store.read("stage", "1")["pairs"].num_rows == 2


@pytest.mark.parametrize("name", ["pairs.parquet", "model.safetensors", "config.json", "manifest.json"])
def test_no_bit_of_a_stored_file_changes_unnoticed(tmp_path, name):
    store = Store(tmp_path / "home")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/model.safetensors").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "checkpoint/config.json").write_text('{"layers": 3}')
    made = store.write("model", Artifact({"pairs": pairs()}, {"loss": 0.1, "word": "é"}, tmp_path / "checkpoint"), "k")
    file = made.folder / name
    content = file.read_bytes()
    random = Random(5)
    for _ in range(60):
        place = random.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << random.randrange(8)
        file.write_bytes(changed)
        if name == "manifest.json" and json.dumps(json_or_none(changed)) == json.dumps(json.loads(content)):
            continue  # white space alone
        with pytest.raises(StoreError, match=f"{name}: .*; run its stage again, which makes it anew"):
            store.read("model")
        assert store.find("model", "k", on_damage=lambda words: None) is None
    file.write_bytes(content)
    assert store.read("model").digest == made.digest
    file.unlink()
    with pytest.raises(StoreError, match=rf"{name}: it cannot be read \(.*No such file"):
        store.read("model")


def json_or_none(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_damaged_table_is_made_again(tmp_path):
    store = Store(tmp_path)
    artifact = store.write("stage", Artifact({"pairs": pairs()}), "k")
    artifact.table_path("pairs").write_bytes(b"")
    assert store.find("stage", "k") is None


WRITER = """
import sys, time
from dt2it_pipeline.storage.artifacts import Store
with Store({home!r}).writing("stage", "new") as folder:
    (folder / "half").write_text("half"); print("writing", flush=True); time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """A process that is writing a version of `stage`."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER.format(home=str(tmp_path))], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path, writer):
    slot = tmp_path / "artifacts/stage"
    assert len(list(slot.glob(".new.*"))) == 1
    writer.kill()
    writer.wait()
    Store(tmp_path).write("stage", Artifact({"pairs": pairs()}), "k")
    assert sorted(p.name for p in slot.iterdir()) == ["current", "k"]


def test_a_second_writer_waits_for_the_first_and_names_it(tmp_path, writer):
    reported, order = [], []

    def second():
        with Store(tmp_path).locked("stage", on_wait=lambda words: (reported.append(words), order.append("waits"))):
            order.append("writes")

    thread = threading.Thread(target=second)
    thread.start()
    while not order:
        time.sleep(0.01)
    assert list((tmp_path / "artifacts/stage").glob(".new.*"))  # what is being written is not taken for a leftover
    order.append("killed")
    writer.kill()
    thread.join()
    assert order == ["waits", "killed", "writes"]
    assert reported[0].startswith(f"stage waits for process {writer.pid} on ")


def test_partitions_are_locked_each_by_itself(tmp_path):
    store = Store(tmp_path)
    with store.locked("stage", "0"), store.locked("stage", "1"), store.locked("stage", "0"):
        store.write("stage", Artifact({"pairs": pairs()}), "k", "0")
    assert store.current("stage", "0") == "k"


def test_a_card_may_be_written_into_a_stored_checkpoint(tmp_path):
    store = Store(tmp_path / "home")
    (tmp_path / "checkpoint").mkdir()
    for name in ("model.safetensors", "reward_model.json", "README.md"):
        (tmp_path / "checkpoint" / name).write_text("{}")
    made = store.write("model", Artifact({}, {}, tmp_path / "checkpoint"), "k")
    for name in ("reward_model.json", "README.md"):
        (made.folder / name).write_text('{"calibration": {"temperature": 2.0}}')
    assert store.read("model").digest == made.digest
