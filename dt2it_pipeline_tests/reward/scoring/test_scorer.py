"""`RewardModel.score` and the scorer behind it: same numbers in any batch, clear errors, faults that stay alone."""

from __future__ import annotations

import doctest
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.engines.device import DeviceError
from dt2it_pipeline.reward import reward_model as model_module
from dt2it_pipeline.reward.data.collation import PackedExample
from dt2it_pipeline.reward.data.encoding import EncodedPrompt
from dt2it_pipeline.reward.errors import ScoringError
from dt2it_pipeline.reward.modeling.device import Kernels
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.scoring.job import ScoreJob
from dt2it_pipeline.reward.scoring.scorer import Scorer
from dt2it_pipeline.reward.too_long import TOO_LONG
from dt2it_pipeline.storage import atomic, schemas
from dt2it_pipeline_tests.support.small_card import NEED, no_kernels
from dt2it_pipeline_tests.support.tiny import make_frames, make_images, make_prompt
from dt2it_pipeline_tests.support.tolerance import score_tolerance

FAMILIES = ["qwen3_vl", "qwen2_5_vl"]
TOKENS = 160  # more than any sequence of `world` has
ANSWERS = ["red", "it looks green to me", "a blue circle", "no", "yes it is the image"]


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, dict[str, Any], list[tuple[str, str, str]]]:
    """Media root, prompts of every kind by id, and responses to them, two to five each."""
    images = make_images(tmp_path, 4)
    clip = make_frames(tmp_path / "clip", 6, 2.0)
    prompts = {
        "a": make_prompt(images[:1], "what colour"),
        "b": make_prompt(images[1:3], "is it a circle"),
        "c": make_prompt([], "is red a colour"),
        "d": make_prompt([clip], "what is in the image"),
        "e": make_prompt([images[3], images[0]], "and the shape", system="Be strict."),
    }
    counts = dict(zip(prompts, (5, 2, 3, 4, 2), strict=True))
    return tmp_path, prompts, [(f"{key}{n}", key, ANSWERS[n]) for key in prompts for n in range(counts[key])]


def scorer(model: RewardModel, root: Path, tokens_per_batch: int = 4096) -> Scorer:
    return Scorer(model, root, max_length=512, max_pixels=65536, tokens_per_batch=tokens_per_batch)


def test_without_a_limit_what_the_positions_allow_is_scored(base: Callable[..., Path], tmp_path: Path) -> None:
    model = RewardModel.from_pretrained(base(), new_head_seed=0).eval()
    prompts = {"c": make_prompt([], "is red a colour")}
    responses = [("short", "c", "yes"), ("long", "c", "red " * 600), ("longest", "c", "red " * 5000)]
    for limit, left in ((512, {"long", "longest"}), (None, {"longest"})):
        made = Scorer(model, tmp_path, max_length=limit, max_pixels=65536, tokens_per_batch=4096)
        scores, faults = made.score(prompts, responses)
        assert set(faults) == left and set(scores) == {"short", "long", "longest"} - left
        assert {reason for reason, _ in faults.values()} == {TOO_LONG}
    assert faults["longest"][1].endswith("the limit is 4096")


def loaded(folder: Path) -> RewardModel:
    model = RewardModel.from_pretrained(folder, new_head_seed=0).eval()
    model.head.weight.data *= 30  # spread the scores
    return model


@pytest.mark.numerics
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_company(base: Callable[..., Path], world: Any, family: str) -> None:
    root, prompts, responses = world
    model = loaded(base(family))
    together, faults = scorer(model, root).score(prompts, responses)
    assert not faults
    assert list(together) and len(together) == len(responses)
    assert max(together.values()) - min(together.values()) > 1e-3
    for tokens in (64, 300):
        found, _ = scorer(model, root, tokens).score(prompts, responses[::-1])
        assert max(abs(found[name] - together[name]) for name in together) < score_tolerance(model, TOKENS)
    for response in responses:
        (alone,) = scorer(model, root).score(prompts, [response])[0].values()
        assert abs(alone - together[response[0]]) < score_tolerance(model, TOKENS)


def test_a_batch_that_is_large_enough_ends_where_padding_would_grow(base: Callable[..., Path], tmp_path: Path) -> None:
    made = scorer(loaded(base()), tmp_path, tokens_per_batch=8192)
    line = np.zeros(100, np.int32)
    prompt = EncodedPrompt(line, np.zeros((3, 100), np.int32), 100, np.zeros(0, np.int32), ())
    lengths = [1] * 30 + [10] * 30 + [40] * 4
    rows = [(PackedExample(prompt, (np.zeros(length, np.int32),)), [f"{n:03d}"]) for n, length in enumerate(lengths)]
    batches = list(made._batches(rows[::-1]))
    assert sorted(name for part in batches for _, (name,) in part) == [f"{n:03d}" for n in range(64)]
    assert [[len(row) for row, _ in part] for part in batches] == [[101] * 30, [110] * 30, [140] * 4]
    assert len(list(scorer(loaded(base()), tmp_path, tokens_per_batch=220)._batches(rows))) == 15 + 15 + 4


@pytest.mark.numerics
@pytest.mark.parametrize("family", FAMILIES)
def test_score_is_the_scorer_in_plain_python(base: Callable[..., Path], world: Any, family: str) -> None:
    root, prompts, responses = world
    model = loaded(base(family)).train()
    model.model.visual.eval()
    expected, _ = scorer(model.eval(), root).score(prompts, responses)
    model.train()
    model.model.visual.eval()
    texts = [[text for _, key, text in responses if key == prompt] for prompt in prompts]
    wanted = [[expected[name] for name, key, _ in responses if key == prompt] for prompt in prompts]
    from_table = model.score(list(prompts.values()), texts, media_root=root, max_pixels=65536)
    assert all(found.dtype == np.float32 for found in from_table)
    assert model.training and not model.model.visual.training
    assert all(parameter.requires_grad for parameter in model.head.parameters())

    plain = []
    for number, row in enumerate(prompts.values()):
        paths = {kind: [root / m["path"] for m in row["media"] if m["kind"] == kind] for kind in ("image", "video")}
        shown: list[Any] = list(paths["image"])
        if number % 2 == 0:
            shown = [Image.open(path) for path in shown]
        plain.append({"system": row["system"], "turns": row["turns"], "images": shown, "videos": paths["video"]})
    from_dicts = model.score(plain, texts, max_pixels=65536)
    for first, second, known in zip(from_table, from_dicts, wanted, strict=True):
        assert np.allclose(first, known, atol=score_tolerance(model, TOKENS), rtol=0)
        assert np.allclose(second, known, atol=score_tolerance(model, TOKENS), rtol=0)


def test_the_example_in_the_documentation_runs() -> None:
    (example,) = doctest.DocTestFinder().find(RewardModel.score, "score", module=model_module)
    assert len(example.examples) > 3
    result = doctest.DocTestRunner().run(example)
    assert result.failed == 0


def test_media_come_first_without_markers_and_bytes_are_images(base: Callable[..., Path], tmp_path: Path) -> None:
    model = loaded(base())
    Image.effect_noise((64, 48), 80).convert("RGB").save(tmp_path / "a.png")
    asked, images = user("<image>\nWhat is it?"), [str(tmp_path / "a.png")]
    plain = {"turns": user("What is it?"), "images": [(tmp_path / "a.png").read_bytes()]}
    marked, without = model.score([{"turns": asked, "images": images}, plain], [["red", "a dog"]] * 2)
    assert np.allclose(marked, without, atol=score_tolerance(model, TOKENS), rtol=0)
    assert plain["turns"] == user("What is it?")  # what was given stays as it was


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "text": text}]


@pytest.mark.parametrize(
    ("prompt", "texts", "message"),
    [
        ({"turns": user("<image>x")}, ["a"], "prompt 1 has 1 <image> markers in its user turns, but 0 images"),
        ({"turns": user("<image>x"), "images": ["i"], "videos": ["v"]}, ["a"], "prompt 1 has 0 <video> markers"),
        ({"turns": user("x"), "videos": ["/nowhere/v"]}, ["a"], "prompt 1, response 0: missing video"),
        ({"turns": user("x"), "images": [b"not an image"]}, ["a"], "prompt 1: unreadable image"),
        ({"turns": user("x")}, [], "prompt 1 has no responses"),
        ({"turns": user("x")}, "red", "put it into a list"),
        ({"turns": user("x")}, ["fine", " \n"], "prompt 1, response 1: expected a text that is not empty"),
        ({"turns": user("x")}, ["fine", None], "prompt 1, response 1"),
        ({"turns": user("")}, ["a"], "prompt 1, turn 0: the text is empty"),
        ({"turns": [{"role": "judge", "text": "x"}, *user("y")]}, ["a"], "unknown role.*'judge'"),
        ({"turns": [*user("y"), {"role": "assistant", "text": "x"}]}, ["a"], "does not end with a user turn"),
        ({"turns": []}, ["a"], "does not end with a user turn"),
        ({"turns": ["x"]}, ["a"], "prompt 1, turn 0"),
        ({"text": "x"}, ["a"], "prompt 1 is not a mapping with `turns`"),
        ({"turns": user("x"), "image": []}, ["a"], r"unknown keys \['image'\]"),
        ({"turns": user("<image>x"), "images": [3]}, ["a"], "expected a path, bytes or an image of PIL.*found int"),
        ({"turns": user("<image>x"), "images": ["/nowhere/a.png"]}, ["a"], "prompt 1, response 0: missing image"),
        ({"turns": user("x " * 5000)}, ["a"], "longer than max_length, which may be raised"),
        (make_prompt([{"kind": "image", "sha256": "", "path": "a.png"}], "x"), ["a"], "say in media_root"),
    ],
)
def test_wrong_inputs_are_named(base: Callable[..., Path], prompt: Any, texts: Any, message: str) -> None:
    model = RewardModel.from_pretrained(base(), new_head_seed=0)
    with pytest.raises(ValueError, match=message):
        model.score([{"turns": user("is it red")}, prompt], [["yes"], texts])


def test_lists_that_do_not_fit_are_named(base: Callable[..., Path]) -> None:
    model = RewardModel.from_pretrained(base(), new_head_seed=0)
    with pytest.raises(ValueError, match="1 prompts but 2 lists"):
        model.score([{"turns": user("x")}], [["a"], ["b"]])
    with pytest.raises(ValueError, match="for a single prompt"):
        model.score({"turns": user("x")}, ["a"])  # type: ignore[arg-type]
    assert model.score([], []) == []


def test_nan_weights_set_responses_aside(base: Callable[..., Path], world: Any) -> None:
    root, prompts, responses = world
    model = loaded(base())
    model.model.language_model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    scores, faults = scorer(model, root).score(prompts, responses)
    assert not scores
    assert faults == {name: ("score is not a number", "nan") for name, _, _ in responses}
    with pytest.raises(ValueError, match="weights are damaged"):
        model.score([{"turns": user("x")}], [["a"]])


def test_a_batch_that_does_not_fit_the_gpu_is_halved(
    base: Callable[..., Path], world: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, prompts, responses = world
    model = loaded(base())
    expected, _ = scorer(model, root).score(prompts, responses)
    computed = type(model).forward
    most = 2

    def forward(self: Any, batch: Any, features: Any = None) -> torch.Tensor:
        if len(batch.input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return computed(self, batch, features)

    monkeypatch.setattr(type(model), "forward", forward)
    scores, faults = scorer(model, root).score(prompts, responses)
    assert not faults
    assert scores.keys() == expected.keys()
    assert max(abs(scores[name] - expected[name]) for name in scores) < score_tolerance(model, TOKENS)
    assert caplog.text.count("split in halves") == 1
    most = 0
    with pytest.raises(ScoringError, match=r"one sequence of \d+ tokens .*lower scoring.tokens_per_batch"):
        scorer(model, root).score(prompts, responses)


def test_images_that_do_not_fit_the_gpu_at_once_are_encoded_batch_by_batch(
    base: Callable[..., Path], world: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, prompts, responses = world
    model = loaded(base())
    expected, _ = scorer(model, root, TOKENS).score(prompts, responses)
    computed, seen = type(model).encode_images, list[int]()

    def encode_images(self: Any, pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        if len(pixels) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return computed(self, pixels, grids)

    monkeypatch.setattr(type(model), "encode_images", encode_images)
    most = 10**9
    scorer(model, root, TOKENS).score(prompts, responses)
    most = max(seen) - 1
    small = scorer(model, root, TOKENS)
    for _ in range(2):
        scores, faults = small.score(prompts, responses)
        assert not faults and scores.keys() == expected.keys()
        assert max(abs(scores[name] - expected[name]) for name in scores) < score_tolerance(model, TOKENS)
    assert caplog.text.count("each batch encodes its own") == 1
    most = 0
    with pytest.raises(ScoringError, match=r"images of one batch; lower scoring\.max_pixels"):
        small.score(prompts, responses)


def test_features_that_are_to_be_kept_and_do_not_fit_the_gpu_are_encoded_batch_by_batch(
    base: Callable[..., Path], world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    root, prompts, responses = world
    model = loaded(base())
    expected, _ = scorer(model, root, TOKENS).score(prompts, responses)
    computed, passes = type(model).encode_images, iter(range(1000))

    def encode_images(self: Any, pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        if next(passes) in fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return computed(self, pixels, grids)

    def keeping() -> Scorer:
        limits = {"max_length": 512, "max_pixels": 65536, "tokens_per_batch": TOKENS, "vision_disk_gib": 1.0}
        return Scorer(model, root, **limits)  # type: ignore[arg-type]

    monkeypatch.setenv("DT2IT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(type(model), "encode_images", encode_images)
    fails = range(1, 2)
    made = keeping()
    for _ in range(2):
        scores, faults = made.score(prompts, responses)
        assert not faults and scores.keys() == expected.keys()
        assert max(abs(scores[name] - expected[name]) for name in scores) < score_tolerance(model, TOKENS)
    assert caplog.text.count("features are not kept, and each batch encodes its own") == 1
    fails = range(1000)
    with pytest.raises(ScoringError, match=r"images of one batch; lower scoring\.max_pixels"):
        keeping().score(prompts, responses)

    fails = range(0)
    keeping().score(prompts, responses)
    for file in (tmp_path / "home").rglob("*"):
        if file.is_file():
            file.write_bytes(bytes(file.stat().st_size))  # damaged features are encoded again
    fails = range(1000)
    with pytest.raises(ScoringError, match=r"images of one batch; lower scoring\.max_pixels"):
        keeping().score(prompts, responses)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_kernels_that_do_not_fit_the_gpu_are_done_without(
    base: Callable[..., Path], world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    root, prompts, responses = world
    (tmp_path / "checkpoint").mkdir()
    loaded(base()).save_pretrained(tmp_path / "checkpoint")

    def made(attention: str, compile: Any) -> Scorer:
        limits = {"max_length": 512, "max_pixels": 65536, "tokens_per_batch": 4096}
        return Scorer(tmp_path / "checkpoint", root, **limits, attention=attention, compile=compile)  # type: ignore[arg-type]

    expected, _ = made("sdpa", False).score(prompts, responses)
    no_kernels(monkeypatch, "compiled")
    small = made("auto", "auto")
    assert small.model.kernels == Kernels("flex", compiled=True)
    assert small.score(prompts, responses) == (expected, {})
    assert small.model.kernels == Kernels("sdpa", compiled=False)
    assert [record.getMessage() for record in caplog.records if NEED in record.getMessage()] == [
        f"{NEED}; scoring goes on with attention flex in small blocks, compiled layers",
        f"{NEED}; scoring goes on with attention sdpa, layers that are not compiled",
    ]
    assert small.score(prompts, responses) == (expected, {})
    assert caplog.text.count(NEED) == 2  # what does not fit is not tried again

    with pytest.raises(DeviceError, match=rf"{NEED}: set scoring\.attention: sdpa; .*scoring\.compile: false"):
        made("auto", True).score(prompts, responses)  # who asks for compiled layers gets no others


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_full_disk_under_the_compiler_changes_no_kernels(
    base: Callable[..., Path], world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, prompts, responses = world
    (tmp_path / "checkpoint").mkdir()
    loaded(base()).save_pretrained(tmp_path / "checkpoint")
    no_kernels(monkeypatch, "compiled", OSError(errno.ENOSPC, "No space left on device", "/cache/a"))
    made = Scorer(tmp_path / "checkpoint", root, max_length=512, max_pixels=65536, tokens_per_batch=4096)
    with pytest.raises(ScoringError, match=r"torch\.compile cannot write /cache/a: No space left on device; free"):
        made.score(prompts, responses)
    assert made.model.kernels == Kernels("flex", compiled=True)


@pytest.mark.numerics
@pytest.mark.parametrize("ahead", [True, False])
def test_a_medium_that_breaks_sets_only_its_responses_aside(
    base: Callable[..., Path], world: Any, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, prompts, responses = world
    if not ahead:
        monkeypatch.setattr("dt2it_pipeline.reward.scoring.scorer._FEATURE_BYTES", 0)
    model = loaded(base())
    whole, _ = scorer(model, root).score(prompts, responses)
    (root / "clip" / "frame3.png").write_bytes(b"no image")
    (root / "2.png").write_bytes((root / "2.png").read_bytes()[:70])  # header whole, pixels missing
    scores, faults = scorer(model, root).score(prompts, responses)
    assert {name[0] for name in faults} == {"b", "d"}
    assert {reason for reason, _ in faults.values()} == {"unreadable image", "unreadable video"}
    assert scores.keys() | faults.keys() == whole.keys()
    assert max(abs(scores[name] - whole[name]) for name in scores) < score_tolerance(model, TOKENS)


def test_shards_and_processes_do_not_change_a_score(base: Callable[..., Path], world: Any, tmp_path: Path) -> None:
    root, prompts, responses = world
    (tmp_path / "checkpoint").mkdir()
    loaded(base("qwen2_5_vl")).save_pretrained(tmp_path / "checkpoint")
    model = RewardModel.from_pretrained(tmp_path / "checkpoint").eval()
    direct, _ = scorer(model, root).score(prompts, responses)
    table = [dict(row) | {"prompt_id": key} for key, row in prompts.items()]
    atomic.write_parquet(schemas.table(table, "prompts"), tmp_path / "prompts.parquet")
    rows = [{"response_id": r, "prompt_id": p, "text": text, "generator": ""} for r, p, text in responses]
    atomic.write_parquet(schemas.table(rows, "responses"), tmp_path / "responses.parquet")
    for processes, shard, tokens in ((1, 1, 64), (2, 3, 4096), (1, 4, 200)):
        settings = ScoringSettings(
            processes=processes, shard_responses=shard, tokens_per_batch=tokens, max_pixels=65536
        )
        job = ScoreJob(
            checkpoint=str(tmp_path / "checkpoint"), prompts=tmp_path / "prompts.parquet",
            responses=tmp_path / "responses.parquet", media_root=Path(root), settings=settings,
            output=tmp_path / f"{shard}.parquet", work=tmp_path / f"work{shard}", voter="v",
        )  # fmt: skip
        job.run(lambda progress: None)
        found = atomic.read_parquet(job.output, "scores").to_pylist()
        assert [row["response_id"] for row in found] == [name for name, _, _ in responses]
        difference = max(abs(row["score"] - direct[row["response_id"]]) for row in found)
        assert difference < score_tolerance(model, TOKENS)
