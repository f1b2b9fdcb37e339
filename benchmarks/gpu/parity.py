"""Case `parity`: numbers of bfloat16 and of the attention that is used here, against float32 and the dense mask.

- margins: scores of all responses of the scoring workload in bfloat16 and in float32, and the differences of every two
  responses to a prompt: their correlation, and the share of pairs that both order alike. A head of random weights reads
  a direction in which responses hardly differ. A trained one reads one in which they do, so the direction in which they
  differ most (the first principal component of what the head reads, in float32) is shown, too.
- attention: one batch of prompts with no image, one, three and a video, and one to four responses each. Scores and
  gradients with FlexAttention (compiled on a GPU) and with the dense mask, both in bfloat16. The yardstick is what
  bfloat16 itself changes: the distance of the dense mask in bfloat16 to the dense mask in float32.

A distance is the norm of the difference over the norm of the reference, of all scores or of one weight's gradient; the
largest of all weights is shown. FlexAttention has no gradient on a CPU: its scores alone are compared there, and
`sdpa_blocks`, which a CPU trains with, in both.
"""

from __future__ import annotations

import gc
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.gpu.case import Case
from benchmarks.gpu.data import encoded, prompt_rows
from benchmarks.gpu.figures import Result, markdown

CORRELATION, ALIKE = 0.999, 0.995  # least of margins
TIMES_ROUNDING = 3.0  # most that attention may differ, in units of what bfloat16 changes
_GRADIENT_LAYERS = 8  # decoder layers whose gradients are compared: attention is the same in each
_FRAMES = 8
_RESPONSES = (1, 4, 2, 3)  # to the prompts without image, with one, with three, with a video
PARITY_NOTE = f"""\
Bounds: correlation of at least {CORRELATION} and {ALIKE:.1%} of pairs ordered alike along the main direction; attention
differs from the dense mask by at most {TIMES_ROUNDING:g} times what bfloat16 changes."""


def parity(case: Case) -> Result:
    """Compare; nothing is timed."""
    import torch

    from dt2it_pipeline.engines.device import found_device

    made = case.result("")
    device = found_device()
    with torch.no_grad():
        made.parity |= margins(case, device)
    made.parity |= attention(case, device)
    return made


def _network(
    case: Case, device: Any, dtype: Any, implementation: str, *, compiled: bool, layers: int | None = None
) -> Any:
    """The reward model with its first decoder layers, all of them where `layers` is None."""
    from dt2it_pipeline.reward.modeling.compilation import compile_layers
    from dt2it_pipeline.reward.modeling.model import RewardNetwork

    network = RewardNetwork.from_pretrained(case.checkpoint, dtype=dtype, attention=implementation, device=device)
    if layers is not None:
        del network.model.language_model.layers[layers:]
    network.freeze_vision()
    if compiled:
        compile_layers(network.called_whole())
        network.compiled = True
    return network.eval()


def margins(case: Case, device: Any) -> dict[str, float]:
    """Correlation of margins in bfloat16 and float32, and the share of pairs in the same order, for two heads.

    Args:
        case: names the model and the responses.
        device: where both are computed.
    """
    import torch

    from dt2it_pipeline.reward.data.collation import PackedExample, collate, with_pixels
    from dt2it_pipeline.reward.modeling.device import attention_for, compiles

    settings = case.scoring_settings
    most = settings.pixel_limit or case.part("scoring").max_pixels
    registry, _, prompts, responses = encoded(case.base, case.data("scoring"), most, case.settings.system_prompt)
    chosen = list(zip(prompts, responses, strict=True))[: case.prompts]
    states, head = [], np.zeros(0)
    for dtype in (torch.float32, torch.bfloat16):
        compiled = compiles(settings.compile, device)
        way = attention_for(settings.attention, device, compiled=compiled)
        network = _network(case, device, dtype, way, compiled=compiled)
        read: list[Any] = []
        network.head.register_forward_pre_hook(lambda _, given, into=read: into.append(given[0].float().cpu()))
        for prompt, texts in chosen:
            batch = collate([PackedExample(prompt, tuple(texts))], one_row=network.takes_one_row)
            network(with_pixels(batch, registry).to(device))
        head = network.head.weight.float().cpu().numpy()[0]
        states.append(np.stack([each.numpy() for each in read]))  # [prompts, responses, hidden]
        del network
        _free()
    centred = (states[0] - states[0].mean(axis=1, keepdims=True)).reshape(-1, states[0].shape[-1])
    main = np.linalg.svd(centred, full_matrices=False)[2][0]
    first, second = np.triu_indices(states[0].shape[1], 1)
    pairs = len(states[0]) * len(first)
    made: dict[str, float] = {"pairs": pairs}
    for name, weight in {"random": head, "main": main}.items():
        exact, rounded = ((each[:, first] - each[:, second]).reshape(pairs, -1) @ weight for each in states)
        made[f"{name}_correlation"] = float(np.corrcoef(exact, rounded)[0, 1])
        made[f"{name}_alike"] = float(np.mean(np.sign(exact) == np.sign(rounded)))
    return made


def attention(case: Case, device: Any) -> dict[str, float]:
    """Largest distances of scores and gradients from the dense mask, by implementation, with those of rounding.

    Args:
        case: names the model and the images.
        device: where all are computed.
    """
    import torch

    from dt2it_pipeline.reward.data.collation import collate, with_pixels
    from dt2it_pipeline.reward.modeling.attention import BLOCKS, FLEX
    from dt2it_pipeline.reward.modeling.device import compiles

    examples, registry = mixed_examples(case)
    cuda = device.type == "cuda"
    ways = [(FLEX, cuda)] if cuda else [(FLEX, False), (BLOCKS, True)]
    compiled = cuda and compiles(case.settings.compile, device)

    def measure(dtype: Any, implementation: str, *, gradients: bool, compiled: bool) -> tuple[Any, dict[str, Any]]:
        network = _network(case, device, dtype, implementation, compiled=compiled, layers=_GRADIENT_LAYERS)
        batch = with_pixels(collate(examples, one_row=network.takes_one_row), registry).to(device)
        weight = torch.linspace(-1, 1, len(batch.score_positions), device=device)  # every score counts, each otherwise
        with torch.set_grad_enabled(gradients):
            scores = network(batch)
            if gradients:
                (scores * weight).sum().backward()
        kept = {
            name: value.grad.float().cpu()
            for name, value in network.model.language_model.named_parameters()
            if value.grad is not None and "embed_tokens" not in name
        }
        return scores.detach().float().cpu(), kept

    with _freed():
        exact = measure(torch.float32, "sdpa", gradients=True, compiled=False)
    with _freed():
        dense = measure(torch.bfloat16, "sdpa", gradients=True, compiled=False)
    made = _distances("rounding", exact, dense)
    for implementation, gradients in ways:
        with _freed():
            other = measure(torch.bfloat16, implementation, gradients=gradients, compiled=compiled)
        made |= _distances(implementation, dense, other)
    return made


def _distances(name: str, reference: tuple[Any, dict[str, Any]], other: tuple[Any, dict[str, Any]]) -> dict[str, float]:
    found = {f"{name}_scores": _distance(*(scores for scores, _ in (reference, other)))}
    if other[1]:
        assert reference[1].keys() == other[1].keys()
        found[f"{name}_gradients"] = max(_distance(value, other[1][name]) for name, value in reference[1].items())
    return found


def _distance(reference: Any, other: Any) -> float:
    return float((other - reference).norm() / reference.norm())


@contextmanager
def _freed() -> Iterator[None]:
    yield
    _free()


def _free() -> None:
    """Give back the memory of a network that is gone."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def mixed_examples(case: Case) -> tuple[list[Any], Any]:
    """A prompt without image, with one, with three and with a video, and 1, 4, 2 and 3 responses; their registry."""
    from dt2it_pipeline.reward.data.collation import PackedExample
    from dt2it_pipeline.reward.data.encoding import PromptEncoder, load_processor
    from dt2it_pipeline.reward.data.images import ImageRegistry

    data, part = case.data("training"), case.part("training")
    rows = list(prompt_rows(data))
    still = [row["media"][0] for row in rows[:_FRAMES]]
    root = Path(case.place) / "parity"  # a registry reads below one folder
    root.mkdir(parents=True)
    for medium in still:
        shutil.copy(data / "media" / medium["path"], root)
    video = {"kind": "video", "sha256": "parity", "path": "clip"}
    _write_frames(root / "clip", [root / medium["path"] for medium in still])
    media = [[], still[:1], still[1:4], [video]]
    processor = load_processor(case.base, case.settings.system_prompt)
    most = min(case.settings.max_pixels, part.max_pixels)
    registry = ImageRegistry(processor.image_processor, root, most, processor.video_processor)
    encoder = PromptEncoder(case.base, registry, processor)
    asked = []
    for row, some in zip(rows, media, strict=False):
        words = row["turns"][0]["text"].removeprefix("<image>")
        text = "".join(f"<{medium['kind']}>" for medium in some) + words
        asked.append(row | {"media": some, "turns": [{"role": "user", "text": text}]})
    examples = []
    texts = [row["turns"][0]["text"].removeprefix("<image>\n") for row in rows[4 : 4 + sum(_RESPONSES)]]
    tokens = iter(encoder.responses([" ".join(text.split()[:200]) for text in texts]))
    for prompt, count in zip(encoder.prompts(asked), _RESPONSES, strict=True):
        if isinstance(prompt, Exception):
            raise prompt
        examples.append(PackedExample(prompt, tuple(itertools.islice(tokens, count))))
    return examples, registry


def _write_frames(folder: Path, images: list[Path]) -> None:
    folder.mkdir()
    for number, image in enumerate(images):
        with Image.open(image) as opened:
            opened.save(folder / f"frame{number}.jpg", quality=90)
    (folder / "video.json").write_text(json.dumps({"fps": 2.0}), encoding="utf-8")


def parity_table(results: Sequence[Result]) -> str:
    """All comparisons, a line each, with what they should reach and whether they do.

    >>> print(parity_table([Result("parity", "s", parity={"pairs": 72, "main_correlation": 0.9999, "main_alike": 0.99,
    ...     "rounding_scores": 0.005, "flex_scores": 0.02})]))
    | shape | what                                              | found   | bound   | kept |
    |-------|---------------------------------------------------|---------|---------|------|
    | s     | main direction: correlation of margins (72 pairs) | 0.99990 | 0.99900 | yes  |
    | s     | main direction: pairs ordered alike               | 99.0%   | 99.5%   | no   |
    | s     | dense mask in bfloat16 to float32: scores         | 0.0050  |         |      |
    | s     | flex to the dense mask: scores                    | 0.0200  | 0.0150  | no   |
    """
    rows = [["shape", "what", "found", "bound", "kept"]]
    for result in results:
        found = dict(result.parity)
        pairs = found.pop("pairs")
        for name, value in found.items():
            what, _, measure = name.rpartition("_")
            if measure == "correlation":
                bound = CORRELATION if what == "main" else None
                cells = [f"{_HEADS[what]}: correlation of margins ({pairs:.0f} pairs)", f"{value:.5f}"]
                rows.append([result.shape, *cells, *_verdict(bound, value, ".5f")])
            elif measure == "alike":
                bound = ALIKE if what == "main" else None
                rows.append([result.shape, f"{_HEADS[what]}: pairs ordered alike", f"{value:.1%}"])
                rows[-1] += _verdict(bound, value, ".1%")
            else:
                bound = None if what == "rounding" else -TIMES_ROUNDING * found[f"rounding_{measure}"]
                words = "dense mask in bfloat16 to float32" if bound is None else f"{what} to the dense mask"
                rows.append([result.shape, f"{words}: {measure}", f"{value:.4f}", *_verdict(bound, -value, ".4f")])
    return markdown(rows)


_HEADS = {"random": "random head", "main": "main direction"}


def _verdict(least: float | None, found: float, form: str) -> list[str]:
    """The bound and whether it is kept; upper bounds and what they bound come with a minus. Empty without a bound."""
    return ["", ""] if least is None else [format(abs(least), form), "yes" if found >= least else "no"]
