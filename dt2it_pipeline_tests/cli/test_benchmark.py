"""`dt2it benchmark` on published rows: checkpoints of ours and of other trainers give the same figures.

A served checkpoint gives them too: serve/test_vllm_server.py.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.engines import score_endpoint
from dt2it_pipeline.evaluate.benchmarks import model_benchmark
from dt2it_pipeline.evaluate.benchmarks.metrics import score_benchmark
from dt2it_pipeline.evaluate.benchmarks.rows import load_rows, read_rows
from dt2it_pipeline.evaluate.benchmarks.spec import BenchmarkError, get_entry
from dt2it_pipeline.media.errors import VideoDecoderError
from dt2it_pipeline.serve.vllm_server import serve_arguments
from dt2it_pipeline.storage import atomic, schemas
from dt2it_pipeline_tests.support.benchmark_world import arguments, make_world
from dt2it_pipeline_tests.support.commands import dt2it, failing, invoke


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_world(tmp_path_factory.mktemp("world"))


def test_ours_and_those_of_other_trainers_give_the_same_figures(world: dict[str, Any], tmp_path: Path) -> None:
    root = world["root"]
    said = ""
    models = ("ours", "theirs", "ms_swift")
    for model in models:
        given = arguments(root, str(root / model), tmp_path / model)
        said += dt2it(*given, *(["--system-prompt", "You judge."] if model != "ours" else []))
    assert "8 pairs, where the public file has 1250; 0 ties and 0 unscored" in said
    assert "| DT2IT-MRM | 83.5 |" in said
    figures = [atomic.read_parquet(tmp_path / m / "figures.parquet", "benchmark_figures") for m in models]
    assert all(figures[0].drop_columns("model").equals(other.drop_columns("model")) for other in figures[1:])
    pairs = atomic.read_parquet(tmp_path / "ours" / "results.parquet").to_pandas()
    right = (pairs["chosen_score"] > pairs["rejected_score"]).mean()
    values = dict(zip(figures[0]["figure"].to_pylist(), figures[0]["value"].to_pylist(), strict=True))
    assert values["overall"] == pytest.approx(right)
    assert 0 < right < 1
    assert {"reasoning", "hallucination", "general", "macro"} <= set(values)


def test_convert_prints_what_it_found_and_commands_that_work(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(world["root"] / "rows.jsonl", tmp_path / "data.json")
    shutil.copytree(world["root"] / "images", tmp_path / "images")
    printed = dt2it("convert", world["root"] / "theirs", "demo").splitlines()  # also the name of a model that we ship
    assert f"source: {world['root'] / 'theirs'}: whole weights, which config.json calls " in printed[0]
    assert printed[1:3] == [
        "head: v_head.summary.weight in value_head.safetensors",
        "bias: 7, dropped: the original's scores are these plus 7",
    ]
    assert printed[3].startswith("system turn: not known, since no file names it") and printed[4] == "written: demo"
    serve, benchmark = (shlex.split(line)[1:] for line in printed[-2:])
    assert serve[0] == "serve" and serve_arguments(serve[1], serve[2:], on_cpu=False)[1] == str(tmp_path / "demo")
    assert "8 pairs" in dt2it(*benchmark)


def test_a_base_model_has_no_figures(world: dict[str, Any], tmp_path: Path) -> None:
    printed = " ".join(failing(*arguments(world["root"], str(world["root"] / "base"), tmp_path / "out")).split())
    assert "has no head, so it gives no score" in printed and "value_head.safetensors" in printed
    assert not (tmp_path / "out" / "figures.parquet").exists()


def test_chosen_is_the_side_that_the_row_ranks_first(world: dict[str, Any], tmp_path: Path) -> None:
    entry = get_entry("vl_rewardbench")
    loaded = load_rows(entry, world["rows"], world["root"] / "images", tmp_path)
    texts = {row["response_id"]: row["text"] for row in loaded.responses.to_pylist()}
    for row, chosen, rejected in zip(world["rows"], loaded.chosen, loaded.rejected, strict=True):
        assert texts[chosen] == row["response"][row["human_ranking"].index(0)]
        assert texts[rejected] == row["response"][row["human_ranking"].index(1)]
    assert all(p["turns"][0]["text"].count("<image>") == 1 == len(p["media"]) for p in loaded.prompts.to_pylist())


def test_the_three_schemas_and_images_inside_a_parquet_file(world: dict[str, Any], tmp_path: Path) -> None:
    images = world["root"] / "images"
    name = world["rows"][0]["image"]
    second = {"ID": "a", "Text": "<image> q <image>", "Image": name, "Output1": "x", "Output2": "y", "Category": "vqa"}
    second["Better"] = "Output2"
    loaded = load_rows(get_entry("multimodal_rewardbench"), [second], images, tmp_path)
    texts = {row["response_id"]: row["text"] for row in loaded.responses.to_pylist()}
    assert (texts[loaded.chosen[0]], texts[loaded.rejected[0]]) == ("y", "x")
    assert loaded.prompts["turns"].to_pylist()[0][0]["text"] == "<image>\nq"
    (tmp_path / "mcq").mkdir()
    shutil.copy(images / name, tmp_path / "mcq" / "a.png")
    third = {"id": "a", "image": "mcq/a.png", "prompt": "q", "chosen": "x", "rejected": "y"}
    loaded = load_rows(get_entry("mm_rlhf"), [third], tmp_path, tmp_path / "store")
    assert loaded.prompts.num_rows == 1
    inside = {**world["rows"][0], "image": {"bytes": (images / name).read_bytes(), "path": name}}
    pq.write_table(pa.Table.from_pylist([inside]), tmp_path / "rows.parquet")
    again = load_rows(get_entry("vl_rewardbench"), read_rows(tmp_path / "rows.parquet"), tmp_path, tmp_path / "store")
    outside = load_rows(get_entry("vl_rewardbench"), world["rows"][:1], images, tmp_path / "store")
    assert again.prompts.equals(outside.prompts)


def test_a_missing_image_is_reported_and_counts_as_wrong(world: dict[str, Any], tmp_path: Path) -> None:
    root = world["root"]
    rows = [{**row, "image": "gone.png"} if i == 2 else row for i, row in enumerate(world["rows"])]
    (root / "gone.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    result = invoke(*arguments(root, str(root / "ours"), tmp_path, "gone.jsonl"))
    assert "not scored: mmmu_3: missing image (gone.png" in result.stderr
    assert "1 unscored" in result.stdout
    counted = json.loads(dt2it(*arguments(root, str(root / "ours"), tmp_path, "gone.jsonl"), "--json"))
    assert counted["benchmarks"] == [
        {"benchmark": "vl_rewardbench", "version": 1, "pairs": 8, "ties": 0, "unscored": 1}
    ]  # fmt: skip
    assert {figure["figure"] for figure in counted["figures"]} >= {"overall", "macro"}


def test_a_server_is_asked_in_the_same_way(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wire itself is tested in engines/; here a server that scores by the length of the answer."""

    class Stub:
        model, system_prompt, root = "served", "", "elsewhere"

        def __init__(self, url: str, media_root: str, **settings: Any) -> None: ...

        def score(self, prompts: Any, responses: Any) -> Any:
            return {name: float(len(text)) for name, _, text in responses}, {}

    monkeypatch.setattr(score_endpoint, "EndpointScorer", Stub)
    printed = dt2it(*arguments(world["root"], "http://localhost:1", tmp_path, max_pixels=None))
    assert printed.startswith("images: scaled down as the server's checkpoint says, which is not on this machine\n")
    pairs = atomic.read_parquet(tmp_path / "results.parquet").to_pylist()
    for row, pair in zip(world["rows"], pairs, strict=True):
        best = row["human_ranking"].index(0)
        assert (pair["chosen_score"], pair["rejected_score"]) == (
            len(row["response"][best]), len(row["response"][1 - best])
        )  # fmt: skip
    assert not list(tmp_path.glob("*/work"))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (None, "images: scaled down to at most 1,024 pixels, as in training\n"),
        ("paper", "images: scaled down to at most 1,310,720 pixels; the model was trained at 1,024\n"),
    ],
)
def test_the_size_of_images_is_printed(world: dict[str, Any], tmp_path: Path, given: str | None, line: str) -> None:
    root = world["root"]
    printed = dt2it(*arguments(root, str(root / "ours"), tmp_path, max_pixels=given))
    assert printed.startswith(line)


@pytest.mark.parametrize("given", ["1023", "large", "-5", "1e6"])
def test_another_size_than_pixels_or_a_name_is_refused(world: dict[str, Any], tmp_path: Path, given: str) -> None:
    message = failing(*arguments(world["root"], "m", tmp_path, max_pixels=given), code=2)
    assert "at least 1,024, `trained` or `paper`" in " ".join(message.split())


def test_what_is_wrong_ends_with_one_line(world: dict[str, Any], tmp_path: Path) -> None:
    root = world["root"]
    assert failing(*arguments(root, "/nowhere", tmp_path)).startswith("there is no model folder /nowhere")
    message = failing(*arguments(root, str(root / "ours"), tmp_path, "none.jsonl"))
    assert re.match(r"cannot read benchmark rows .*none\.jsonl", message)
    message = failing(*arguments(root, "m", tmp_path), "--benchmark", "mm_rlhf", code=2)
    assert "--rows and --media once for every --benchmark" in message
    wrong = [*arguments(root, str(root / "ours"), tmp_path), "--media", str(root / "nowhere")]
    wrong.remove("--media")
    wrong.remove(str(root / "images"))
    assert re.match(r"there is no folder .*nowhere, where the images of vl_rewardbench", failing(*wrong))
    (root / "gone.jsonl").write_text("\n".join(json.dumps({**row, "image": "gone.png"}) for row in world["rows"]))
    message = failing(*arguments(root, str(root / "ours"), tmp_path, "gone.jsonl"))
    assert re.match(r"not one row of gone\.jsonl can be scored; .*missing image", message)
    (root / "broken.jsonl").write_text('{"id": "mmmu_1"}\n{oops\n')
    with pytest.raises(BenchmarkError, match="line 2"):
        read_rows(root / "broken.jsonl")
    faulty = [{**world["rows"][0], "human_ranking": [1, 1]}]
    with pytest.raises(BenchmarkError, match=r"row 0: column human_ranking/ranking holds '\[1, 1\]'"):
        load_rows(get_entry("vl_rewardbench"), faulty, root / "images", tmp_path)


@pytest.mark.parametrize("text", ["[" * 10**5, "1" * 5000])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_rows_that_no_reader_takes_are_one_error(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BenchmarkError, match=r"rows\.json"):
        read_rows(tmp_path / name)


def test_lines_end_at_line_breaks_alone_and_may_follow_a_mark(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('\ufeff{"id": "a\u2028b"}\n{"id": "c"}\n', encoding="utf-8")
    assert read_rows(tmp_path / "r.jsonl") == [{"id": "a\u2028b"}, {"id": "c"}]


def test_a_rank_that_is_no_number_names_its_row(tmp_path: Path) -> None:
    row = {"id": "mmmu_1", "query": "q", "image": "a", "response": ["a", "b"], "human_ranking": [0, None]}
    with pytest.raises(BenchmarkError, match="row 0: column human_ranking"):
        load_rows(get_entry("vl_rewardbench"), [row], tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "a\0.png"}, "missing image"),
        ({"image": "loop.png"}, "missing image"),
        ({"image": "\ud800.png"}, "missing image"),
        ({"image": {"bytes": "text", "path": None}}, "missing image"),
        ({"image": b"no image"}, "unreadable image"),
        ({"image": None}, "no image"),
        ({"image": 5}, "image paths are not text"),
        ({"query": "half \ud800"}, "not UTF-8"),
        ({"response": ["a", "\ud800"]}, "not UTF-8"),
    ],
)
def test_an_odd_row_is_quarantined_and_the_others_are_read(
    world: dict[str, Any], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    shutil.copytree(world["root"] / "images", tmp_path / "images")
    (tmp_path / "images" / "loop.png").symlink_to("loop.png")
    rows = [world["rows"][0] | change, world["rows"][1]]
    loaded = load_rows(get_entry("vl_rewardbench"), rows, tmp_path / "images", tmp_path / "store")
    assert loaded.quarantine["reason"].to_pylist() == [reason]
    assert [name is None for name in loaded.chosen] == [True, False]


@pytest.mark.parametrize("change", [{"query": b"bytes"}, {"response": [b"a", "b"]}, {"response": "ab"}])
def test_a_row_that_holds_no_texts_is_named(world: dict[str, Any], tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(BenchmarkError, match="row 0: column "):
        load_rows(get_entry("vl_rewardbench"), [world["rows"][0] | change], tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (schemas.RecordError("table 'scores': no"), "table 'scores': no"),
        (atomic.StoreError("damaged"), "damaged"),
        (VideoDecoderError("needs OpenCV"), "needs OpenCV"),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
    ],
)
def test_a_fault_outside_the_rows_is_one_sentence(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, message: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise fault

    monkeypatch.setattr(model_benchmark, "benchmark_model", broken)
    assert failing(*arguments(world["root"], "m", tmp_path)) == message


def test_an_output_that_is_a_file_is_one_sentence(world: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = failing(*arguments(world["root"], str(world["root"] / "ours"), tmp_path / "file"))
    assert re.fullmatch(r".*file.*: (Not a directory|File exists)", message)


def test_rows_of_other_copies_are_read(world: dict[str, Any], tmp_path: Path) -> None:
    """R1-Reward's repository carries VL-RewardBench with sides by name; others with a list of images, or compressed."""
    images = world["root"] / "images"
    original = world["rows"][:2]
    expected = load_rows(get_entry("vl_rewardbench"), original, images, tmp_path / "store")
    sides = [[row["response"][row["human_ranking"].index(rank)] for rank in (0, 1)] for row in original]
    named = [
        {"id": row["id"], "prompt": row["query"], "image_path": row["image"], "chosen": side[0], "rejected": side[1]}
        for row, side in zip(original, sides, strict=True)
    ]
    listed = [row | {"image": [row["image"]]} for row in original]
    renamed = [{"q": row["query"], **{k: row[k] for k in row if k != "query"}} for row in original]
    for rows, columns in ((named, {}), (listed, {}), (renamed, {"question": "q"})):
        found = load_rows(get_entry("vl_rewardbench").with_columns(columns), rows, images, tmp_path / "store")
        assert found.prompts.equals(expected.prompts) and found.chosen == expected.chosen
        assert score_benchmark("vl_rewardbench", rows, [1, 2], [0, 3], columns=columns).overall == 0.5
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in original)
    assert read_rows(tmp_path / "rows.jsonl.gz") == original
    two = load_rows(
        get_entry("vl_rewardbench"), [original[0] | {"image": [r["image"] for r in original]}], images, tmp_path
    )
    assert len(two.prompts["media"][0]) == 2


@pytest.mark.parametrize("better", ["Output2", "B", "second", "Right"])
def test_a_verdict_may_be_spelled_otherwise_and_mapped_columns_win(
    world: dict[str, Any], tmp_path: Path, better: str
) -> None:
    images = world["root"] / "images"
    row = {"ID": "a", "Text": "q", "Image": world["rows"][0]["image"], "l": "x", "r": "y", "Category": "vqa"}
    entry = get_entry("multimodal_rewardbench").with_columns({"first": "l", "second": "r"})
    loaded = load_rows(entry, [row | {"Better": better, "chosen": "p", "rejected": "o"}], images, tmp_path)
    texts = {response["response_id"]: response["text"] for response in loaded.responses.to_pylist()}
    assert (texts[loaded.chosen[0]], texts[loaded.rejected[0]]) == ("y", "x")
    with pytest.raises(BenchmarkError, match="no column Better/better, which has the better"):
        load_rows(entry, [row], images, tmp_path)
    with pytest.raises(BenchmarkError, match=r"no row has one of the columns photo.*--column image=COLUMN"):
        load_rows(entry.with_columns({"image": "photo"}), [row], images, tmp_path)


def test_a_column_that_is_missing_is_named_with_those_there_are(world: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"q": row["query"], **{k: row[k] for k in row if k != "query"}} for row in world["rows"]]
    (world["root"] / "renamed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    call = arguments(world["root"], str(world["root"] / "ours"), tmp_path, "renamed.jsonl")
    message = failing(*call)
    assert re.search(
        r"row 0: no column query/question.*the row has the columns \['human_ranking', .*--column question=", message
    )
    assert "8 pairs" in dt2it(*call, "--column", "question=q")
    assert "has no fields ['quest']" in failing(*call, "--column", "quest=q")
