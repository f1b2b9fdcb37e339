"""Attention of shared sequences, and what happens where a backbone cannot take them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dt2it_pipeline.reward.data.collation import PackedExample, collate, unpack, with_pixels
from dt2it_pipeline.reward.modeling.attention import _kernel_options, block_mask, in_blocks, sees
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.scoring.scorer import Scorer
from dt2it_pipeline_tests.support.tiny import make_prompt
from dt2it_pipeline_tests.support.tolerance import float32_tolerance, gradient_tolerance, score_tolerance

pytestmark = [
    pytest.mark.numerics,
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]
SEGMENTS = torch.tensor([[-1, 0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 2, 2, 3, -1, -1]], dtype=torch.int16)
RESPONSES = ["red", "it looks green to me", "a blue circle"]
TOKENS = 128  # more than any sequence of `questions` has


def test_a_token_sees_the_prompt_and_its_own_response() -> None:
    seen = sees(SEGMENTS, torch.zeros_like(SEGMENTS), torch.arange(8).expand(2, -1))
    assert seen[0, 7].int().tolist() == [0, 1, 1, 1, 0, 0, 1, 1]
    assert seen[0, 5].int().tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    assert seen[0, 2].int().tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    assert seen[1, 5].int().tolist() == [1, 1, 0, 0, 0, 1, 0, 0]


def test_the_block_mask_says_the_same() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 8, 16) for _ in range(3))
    seen = sees(SEGMENTS, torch.zeros_like(SEGMENTS), torch.arange(8).expand(2, -1))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen.unsqueeze(1))
    found = flex_attention(query, key, value, block_mask=block_mask(SEGMENTS, torch.zeros_like(SEGMENTS)))
    operations = 16 + (8 + 3) + 8  # products of queries and keys, softmax, sum of values
    within = float32_tolerance(operations) * value.abs().max().item()
    assert torch.allclose(found, expected, atol=within, rtol=0)


@pytest.mark.parametrize(("kibibytes", "dtype", "smaller"), [
    (99, torch.float32, True), (163, torch.float32, False), (227, torch.float32, False), (99, torch.bfloat16, False),
    (None, torch.float32, True),
])  # fmt: skip
def test_small_cards_have_smaller_blocks_in_float32(
    monkeypatch: pytest.MonkeyPatch, kibibytes: int | None, dtype: torch.dtype, smaller: bool
) -> None:
    given = {} if kibibytes is None else {"shared_memory_per_block_optin": 1024 * kibibytes}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: SimpleNamespace(**given))

    def found(start: torch.Tensor) -> torch.Tensor:
        options = _kernel_options(dtype, start.device)
        assert options["FORCE_USE_FLEX_ATTENTION"]
        return start + options.get("fwd_BLOCK_M", 128) + options.get("fwd_num_stages", 3)

    expected = 64 + 2 if smaller else 128 + 3
    assert found(torch.zeros(())) == expected
    # In a compiled layer the card is asked while the layer is compiled, and breaks no graph.
    torch._dynamo.reset()
    assert torch.compile(found, backend="eager", fullgraph=True)(torch.zeros(())) == expected
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_blocks_fit_any_card_and_each_other(dtype: torch.dtype) -> None:
    given = _kernel_options(dtype, torch.device("cuda:1"), small_blocks=True)
    numbers = {False: (64, 64, 64, 64), True: (16, 16, 16, 16)}[dtype == torch.float32]  # PyTorch's own
    rows = [given.get(f"bwd_BLOCK_{name}", own) for name, own in zip(("M1", "N1", "M2", "N2"), numbers, strict=True)]
    size = 128 * dtype.itemsize  # bytes of a row of queries, keys or values
    forward = (given["fwd_BLOCK_M"] + 2 * given["fwd_BLOCK_N"]) * size
    backward = max(2 * rows[0] + 2 * rows[1], 2 * rows[2] + 2 * rows[3]) * size  # and of gradients
    assert given["num_stages"] == 1 and max(forward, backward) <= 48 * 1024
    assert rows[1] % rows[0] == 0 and rows[2] % rows[3] == 0  # as the kernel of the backward pass asks for


def test_blocks_of_queries_leave_out_what_none_of_them_sees() -> None:
    segment = torch.tensor([[0] * 300 + [1] * 100 + [2] * 100, [0] * 290 + [1] * 90 + [2] * 100 + [-1] * 20])
    seen = sees(segment, torch.zeros_like(segment), torch.arange(500).expand(2, -1))
    mask = torch.zeros(2, 1, 500, 500).masked_fill_(~seen.unsqueeze(1), float("-inf"))
    blocks = in_blocks(mask)
    assert isinstance(blocks, tuple)
    assert [(block.start, block.stop) for block in blocks] == [(0, 128), (128, 256), (256, 384), (384, 500)]
    assert blocks[0].runs == ((0, 128),)
    assert blocks[3].runs == ((0, 500),)
    assert all(block.mask.shape[3] == sum(stop - start for start, stop in block.runs) for block in blocks)
    rebuilt = torch.full_like(mask, float("-inf"))
    for block in blocks:
        columns = torch.cat([torch.arange(*run) for run in block.runs])
        rebuilt[:, :, block.start : block.stop, columns] = block.mask
    assert torch.equal(rebuilt, mask)
    second = in_blocks(mask[:1, :, 400:].repeat(1, 1, 3, 1))  # of the second response alone
    assert second[0].runs == ((0, 300), (400, 500))
    assert in_blocks(mask[:, :, :255]).shape[2] == 255  # one block: the mask as it is


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("common", [True, False])
def test_scores_and_gradients_in_blocks_are_those_of_the_dense_mask(
    setup: Callable[..., Any], base: Callable[..., Path], media: tuple[Path, Any], family: str, common: bool
) -> None:
    _, prompt_encoder, _ = setup(family)
    words = "the shape in the middle of this image is of which colour "
    prompts = prompt_encoder.prompts(
        [make_prompt(media[1][:1], words * 30 + end) if common else make_prompt([], end + words * 25) for end in "ab"]
    )
    texts = prompt_encoder.responses([words * 6, words * 9, "red"])
    batch = with_pixels(collate([PackedExample(prompt, tuple(texts)) for prompt in prompts]), prompt_encoder.registry)
    assert batch.input_ids.shape[1] > 500
    found = []
    for attention in ("sdpa", "sdpa_blocks"):
        model = RewardModel.from_pretrained(base(family), new_head_seed=0, attention=attention).train()
        assert isinstance(model._masks(batch, torch.float32, None, 0)[0], tuple) == (attention == "sdpa_blocks")
        scores = model(batch)
        (scores * torch.linspace(-1, 2, len(scores))).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((scores.detach(), gradients))
    (dense, dense_gradients), (blocks, gradients) = found
    tokens = batch.input_ids.shape[1]
    assert torch.allclose(dense, blocks, atol=score_tolerance(model, tokens), rtol=0)
    assert set(gradients) == set(dense_gradients)
    within = gradient_tolerance(model, tokens, dense_gradients.values())
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, dense_gradients[name], atol=within, rtol=0), name


@pytest.fixture
def sliding(base: Callable[..., Path], tmp_path: Path) -> Path:
    """A tiny Qwen2.5-VL whose upper layers see six tokens back, as its configuration allows."""
    folder = tmp_path / "sliding"
    shutil.copytree(base("qwen2_5_vl"), folder)
    config = json.loads((folder / "config.json").read_text())
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 6, "layer_types": kinds}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def questions(media: tuple[Path, Any]) -> dict[str, Any]:
    return {"p": make_prompt(media[1][:1], "what colour is the shape"), "q": make_prompt([], "is red a colour")}


def test_sliding_windows_take_the_concatenated_path_and_say_so(
    sliding: Path, media: tuple[Path, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = RewardModel.from_pretrained(sliding, new_head_seed=0).eval()
    scorer = Scorer(model, media[0], max_length=512, max_pixels=65536, tokens_per_batch=2048)
    responses = [(f"{key}{n}", key, text) for key in "pq" for n, text in enumerate(RESPONSES)]
    with caplog.at_level(logging.WARNING, "dt2it_pipeline"):
        scores, faults = scorer.score(questions(media), responses)
        scorer.score(questions(media), responses[:1])
    assert not faults
    assert [record.message.count("sliding-window") for record in caplog.records] == [1]

    prompt_encoder, model = scorer.prompt_encoder, scorer.model
    for key, row in questions(media).items():
        (prompt,) = prompt_encoder.prompts([row])
        for number, text in enumerate(prompt_encoder.responses(RESPONSES)):
            ids = torch.tensor([[*prompt.tokens, *text]])
            given = {}
            if prompt.images:
                pixels, grids = prompt_encoder.registry.patches(
                    [prompt_encoder.registry.decode(i) for i in prompt.images]
                )
                given = {"pixel_values": pixels, "image_grid_thw": grids}
            types = (ids == prompt_encoder.image_token).int()
            hidden = model.model(input_ids=ids, mm_token_type_ids=types, **given).last_hidden_state
            within = score_tolerance(model, ids.shape[1])
            assert scores[f"{key}{number}"] == pytest.approx(model.head(hidden[0, -1]).item(), abs=within, rel=0)
    assert model.model.language_model.layers[1].self_attn.sliding_window == 6
    shared = collate([PackedExample(prompt_encoder.prompts([row])[0], tuple(prompt_encoder.responses(RESPONSES)))])
    with pytest.raises(ValueError, match="one response per row"):
        model(shared)


@pytest.mark.parametrize("attention", ["eager", "flex", "sdpa_blocks"])
def test_other_attention_scores_the_same(base: Callable[..., Path], media: tuple[Path, Any], attention: str) -> None:
    for count in (1, 3):
        responses = [(f"{key}{n}", key, text) for key in "pq" for n, text in enumerate(RESPONSES[:count])]
        found = []
        for name in ("sdpa", attention):
            model = RewardModel.from_pretrained(base("qwen2_5_vl"), new_head_seed=0, attention=name).eval()
            scorer = Scorer(model, media[0], max_length=512, max_pixels=65536, tokens_per_batch=2048)
            found.append(scorer.score(questions(media), responses)[0])
        assert len(found[0]) == 2 * count
        assert max(abs(found[0][name] - found[1][name]) for name in found[0]) < score_tolerance(model, TOKENS)


def test_attention_that_takes_no_mask_scores_the_same(
    base: Callable[..., Path], media: tuple[Path, Any], caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AttentionInterface

    def causal_only(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        assert attention_mask is None
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2), None

    AttentionInterface.register("causal_only", causal_only)
    responses = [(f"{key}{n}", key, text) for key in "pq" for n, text in enumerate(RESPONSES)]
    found = []
    for attention in ("sdpa", "causal_only"):
        model = RewardModel.from_pretrained(base(), new_head_seed=0, attention=attention).eval()
        scorer = Scorer(model, media[0], max_length=512, max_pixels=65536, tokens_per_batch=2048)
        with caplog.at_level(logging.WARNING, "dt2it_pipeline"):
            found.append(scorer.score(questions(media), responses)[0])
    assert len(found[0]) == len(responses)
    assert max(abs(found[0][name] - found[1][name]) for name in found[0]) < score_tolerance(model, TOKENS)
    assert ["'causal_only' takes no mask" in record.message for record in caplog.records] == [True]


def test_flash_attention_cannot_share_and_is_refused_where_it_is_missing(base: Callable[..., Path]) -> None:
    model = RewardModel.from_pretrained(base(), new_head_seed=0)
    assert model.sharing_fault() is None
    model.model.language_model.config._attn_implementation_internal = "flash_attention_2"
    assert "takes no mask" in (model.sharing_fault() or "")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="use 'sdpa'"):
            RewardModel.from_pretrained(base(), new_head_seed=0, attention="flash_attention_2")
    with pytest.raises(ValueError, match="nonsense"):
        RewardModel.from_pretrained(base(), new_head_seed=0, attention="nonsense")


def test_unpacking_keeps_the_order(setup: Callable[..., Any]) -> None:
    _, prompt_encoder, _ = setup()
    (prompt,) = prompt_encoder.prompts([make_prompt([], "is red a colour")])
    texts = prompt_encoder.responses(RESPONSES)
    rows = unpack([PackedExample(prompt, tuple(texts))])
    assert [row.responses[0].tolist() for row in rows] == [text.tolist() for text in texts]
    assert collate(rows).is_causal
    assert not collate(rows, padding="left").is_causal
