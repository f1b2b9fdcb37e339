"""Prompts of every kind that a scorer may read otherwise than another, and the ways by which one checkpoint is asked.

Used by serve/test_parity.py, and by `python -m benchmarks.score_parity` for the tables of docs/results/parity.md.
"""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dt2it_pipeline.media.markers import split_at_markers
from dt2it_pipeline.media.pixels import ORIENTATION
from dt2it_pipeline.storage import atomic, content_ids
from dt2it_pipeline_tests.support.tiny import make_tiny

if TYPE_CHECKING:
    from dt2it_pipeline.reward.reward_model import RewardModel

SYSTEM = "You judge."
TRAINED_PIXELS = 24_576
_SCORE = (sys.executable, "-c", "from dt2it_pipeline.cli import main; main()", "score")
RESPONSES = ("the shape looks red", "no it is a green circle", "看起来是红色的", "yes\n\n- blue\n- square")

_SENTENCE = ("is", "the", "shape", "in", "it", "a", "red", "circle", "or", "a", "blue", "square")

Prompt = dict[str, Any]  # a row of a prompts table
Scores = dict[str, float]  # by response_id


@dataclass(frozen=True)
class Questions:
    """Prompts by prompt_id, their kinds, and responses (response_id, prompt_id, text); media lie below `media`."""

    media: Path
    prompts: dict[str, Prompt]
    kinds: dict[str, str]
    responses: list[tuple[str, str, str]]

    def kind_of(self, response: str) -> str:
        return self.kinds[response.partition("/")[0]]


def make_checkpoint(root: Path, family: str) -> Path:
    """A random tiny reward model whose scores spread, as training saves it."""
    import torch

    from dt2it_pipeline.reward.reward_model import RewardModel

    (root / "base").mkdir()
    torch.manual_seed(0)
    model = RewardModel.from_pretrained(
        make_tiny(root / "base", family, hidden=128), new_head_seed=0
    )  # the least for vLLM
    model.head.weight.data *= 30
    model.card |= {"name": "parity", "system_prompt": SYSTEM, "image_newlines": True, "max_pixels": TRAINED_PIXELS}
    with atomic.atomic_directory(root / "checkpoint") as folder:
        model.save_pretrained(folder)
    return root / "checkpoint"


def make_questions(media: Path, photos: Path | None = None, words: int = 800) -> Questions:
    """All kinds of prompts.

    Args:
        media: folder to make, for the images.
        photos: folder of photographs (*.jpg), of which prompts are made too.
        words: of the long prompts.
    """
    media.mkdir()
    files = draw(media)
    kinds: list[tuple[str, str, list[str], str, list[dict[str, str]]]] = []  # kind, text, images, system, earlier turns
    for name, kind in files.items():
        kinds.append((kind, f"<image>\nwhat colour is {name}", [name], "", []))
    for photo in sorted(photos.glob("*.jpg"))[:8] if photos else ():
        (media / photo.name).write_bytes(photo.read_bytes())
        kinds.append(("photograph", "<image>\nwhat is in the image", [photo.name], "", []))
    large, small, grey = "large.jpg", "tiny.png", "grey.jpg"
    earlier = [{"role": "user", "text": "<image>\nwhat is it"}, {"role": "assistant", "text": "a red circle"}]
    long = " ".join(itertools.islice(itertools.cycle(_SENTENCE), words))
    kinds += [
        ("several images", "<image><image>\nis the first like the second", [large, small], "", []),
        ("several images", "<image>\n<image>\n<image>\nwhich is green", [small, grey, "wide.png"], "", []),
        ("image between words", "is <image> like <image>? and <image>", [large, small, large], "", []),
        ("no newline behind an image", "<image>what colour", [large], "", []),
        ("image behind the text", "what colour is it<image>", ["photo-like.png"], "", []),
        ("no image", "what is a circle", [], "", []),
        ("Chinese", "<image>\n这张图片里的形状是什么颜色？", [large], "请仔细看。", []),
        ("Chinese", "红色还是蓝色？", [], "", []),
        ("long prompt", f"<image>\n{long}", [small], "", []),
        ("long prompt", long, [], "Look closely.", []),
        ("system prompt of its own", "<image>\nwhat shape", [small], "Look closely.\nBe brief.", []),
        ("the trained system prompt once more", "<image>\nwhat shape", [small], SYSTEM, []),
        ("earlier turns", "and now <image>?", [large, small], "", earlier),
    ]
    prompts: dict[str, Prompt] = {}
    of: dict[str, str] = {}
    responses = []
    for kind, text, images, system, before in kinds:
        turns = [*before, {"role": "user", "text": text}]
        shown = [{"kind": "image", "sha256": image, "path": image} for image in images]
        key = content_ids.prompt_id(system, turns, images)
        prompts[key] = {"prompt_id": key, "system": system, "turns": turns, "media": shown}
        of[key] = kind
        responses += [(f"{key}/{number}", key, answer) for number, answer in enumerate(RESPONSES)]
    return Questions(media, prompts, of, responses)


def draw(folder: Path) -> dict[str, str]:
    """Write images of every kind; returns their kinds by name."""
    scene = _scene(640, 480)
    huge = _scene(2000, 1500)
    files: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
        "large.jpg": ("above the upper limit", huge, {"quality": 92}),
        "large.png": ("above the upper limit", _scene(1500, 2000), {}),
        "tiny.png": ("below the lower limit", _scene(9, 7), {}),
        "one.png": ("below the lower limit", Image.new("RGB", (1, 1), "teal"), {}),
        "wide.png": ("extreme shape", _scene(1900, 11), {}),
        "tall.jpg": ("extreme shape", _scene(10, 1400), {}),
        "photo-like.png": ("between the limits", _scene(150, 130), {}),
        "grey.jpg": ("grey", scene.convert("L"), {}),
        "sixteen.png": ("16-bit", _sixteen(scene), {}),
        "palette.png": ("palette with transparency", _palette(scene), {"transparency": 3}),
        "palette.gif": ("palette with transparency", _palette(scene), {"transparency": 3}),
        "alpha.png": ("half transparent", _alpha(scene), {}),
        "alpha.webp": ("half transparent", _alpha(scene), {"lossless": True}),
        "grey_alpha.png": ("half transparent", _alpha(scene).convert("LA"), {}),
        "cmyk.jpg": ("CMYK", scene.convert("CMYK"), {}),
        "bits.png": ("black and white", scene.convert("1"), {}),
    }
    for turn in (3, 6, 8):
        exif = Image.Exif()
        exif[ORIENTATION] = turn
        files[f"turned{turn}.jpg"] = ("turned by EXIF", scene, {"exif": exif})
    for name, (_, image, options) in files.items():
        image.save(folder / name, **options)
    return {name: kind for name, (kind, _, _) in files.items()}


def _scene(width: int, height: int) -> Image.Image:
    """Shapes on a noisy gradient: detail at every scale, so that another size or filter shows."""
    generator = np.random.default_rng([width, height])
    slope = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 90, width))
    noise = generator.integers(0, 60, size=(height, width, 3))
    image = Image.fromarray((slope[..., None] + noise).clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.ellipse((width // 8, height // 8, width // 2, height // 2), fill=(220, 30, 40))
    pen.rectangle((width // 2, height // 3, width - 1, height - 1), outline=(20, 60, 230), width=max(1, width // 40))
    return image.filter(ImageFilter.SMOOTH)


def _sixteen(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200 + 3000)


def _palette(image: Image.Image) -> Image.Image:
    return image.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)


def _alpha(image: Image.Image) -> Image.Image:
    made = image.convert("RGBA")
    made.putalpha(Image.fromarray(np.add.outer(np.arange(image.height), np.arange(image.width)).astype(np.uint8)))
    return made


def by_pipeline(checkpoint: Path | RewardModel, questions: Questions, **settings: Any) -> Scores:
    """The scorer of the pipeline's jobs."""
    from dt2it_pipeline.reward.scoring.scorer import Scorer

    given = {"max_length": 4096, "max_pixels": None, "tokens_per_batch": 4096} | settings
    return _whole(Scorer(checkpoint, questions.media, **given).score(questions.prompts, questions.responses))


def by_notebook(checkpoint: Path, questions: Questions) -> Scores:
    """`RewardModel.score`, one prompt at a time and images as objects."""
    from dt2it_pipeline.reward.reward_model import RewardModel

    model = RewardModel.from_pretrained(checkpoint)
    found: Scores = {}
    for key, prompt in questions.prompts.items():
        images = [Image.open(questions.media / medium["path"]) for medium in prompt["media"]]
        asked = {"turns": prompt["turns"], "system": prompt["system"], "images": images}
        answers = [(name, text) for name, of, text in questions.responses if of == key]
        (scores,) = model.score([asked], [[text for _, text in answers]])
        found |= {name: float(score) for (name, _), score in zip(answers, scores, strict=True)}
    return found


def by_command(model: str, questions: Questions, work: Path, *options: str) -> Scores:
    """`dt2it score` with a folder or URL, in a process of its own."""
    work.mkdir(parents=True)
    lines = [
        {
            "id": key,
            "turns": prompt["turns"],
            "system": prompt["system"],
            "images": [medium["path"] for medium in prompt["media"]],
            "responses": [text for _, of, text in questions.responses if of == key],
        }
        for key, prompt in questions.prompts.items()
    ]
    (work / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = work / "scores.jsonl"
    given = [
        str(work / "rows.jsonl"),
        "--model",
        model,
        "--output",
        str(output),
        "--media",
        str(questions.media),
        *options,
    ]
    done = subprocess.run([*_SCORE, *given], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not scored" not in done.stderr, done.stderr
    found: Scores = {}
    for line in map(json.loads, output.read_text().splitlines()):
        found |= {f"{line['id']}/{number}": score for number, score in enumerate(line["scores"])}
    return found


def by_client(url: str, questions: Questions, **settings: Any) -> Scores:
    """Our client, which `dt2it benchmark URL` uses."""
    from dt2it_pipeline.engines.score_endpoint import EndpointScorer

    return _whole(EndpointScorer(url, questions.media, **settings).score(questions.prompts, questions.responses))


def by_rewards(model: str, questions: Questions) -> Scores:
    """RewardClient, over a folder or over /score-responses of a server."""
    from dt2it_pipeline.serve import RewardClient

    prompts = []
    for _, key, _ in questions.responses:
        row = questions.prompts[key]
        prompts.append({"turns": row["turns"], "system": row["system"], "images": [m["path"] for m in row["media"]]})
    found = RewardClient(model, media_root=questions.media).rewards(prompts, [text for *_, text in questions.responses])
    assert None not in found
    names = [name for name, *_ in questions.responses]
    return {name: value for name, value in zip(names, found, strict=True) if value is not None}


def by_score_responses(url: str, questions: Questions) -> Scores:
    """Requests to /score-responses as somebody writes them who knows nothing of us, files as they are."""
    found: Scores = {}
    with httpx.Client(timeout=120) as client:
        for key, row in questions.prompts.items():
            images = [base64.b64encode((questions.media / m["path"]).read_bytes()).decode() for m in row["media"]]
            members = [(name, text) for name, of, text in questions.responses if of == key]
            body = {
                "prompt": row["turns"],
                "system": row["system"],
                "images": images,
                "responses": [t for _, t in members],
            }
            answer = client.post(f"{url}/score-responses", json=body)
            assert answer.status_code == 200, answer.text
            found |= {name: score for (name, _), score in zip(members, answer.json()["scores"], strict=True)}
    return found


def by_plain_requests(url: str, questions: Questions) -> Scores:
    """Requests as somebody writes them who knows nothing of us.

    Files go as they are, without newlines behind images that a turn begins with, and without the trained system prompt.
    """
    model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    found: Scores = {}
    with httpx.Client(timeout=120) as client:
        for name, key, text in questions.responses:
            messages = _plain_messages(questions.prompts[key], questions.media, text)
            answer = client.post(f"{url}/classify", json={"model": model, "messages": messages})
            assert answer.status_code == 200, answer.text
            found[name] = answer.json()["data"][0]["probs"][0]
    return found


def _plain_messages(prompt: Prompt, media: Path, text: str) -> list[dict[str, Any]]:
    files = iter(media / medium["path"] for medium in prompt["media"])
    messages: list[dict[str, Any]] = []
    if prompt["system"]:
        messages.append({"role": "system", "content": prompt["system"]})
    for turn in prompt["turns"]:
        if turn["role"] != "user":
            messages.append({"role": turn["role"], "content": turn["text"]})
            continue
        parts: list[dict[str, Any]] = []
        for kind, piece in split_at_markers(turn["text"]):
            if kind == "image":
                content = base64.b64encode(next(files).read_bytes()).decode()
                parts.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{content}"}})
            elif words := piece.lstrip("\n"):
                parts.append({"type": "text", "text": words})
        messages.append({"role": "user", "content": parts})
    return [*messages, {"role": "assistant", "content": text}]


def _whole(found: tuple[Scores, Mapping[str, tuple[str, str]]]) -> Scores:
    scores, faults = found
    assert not faults, faults
    return scores


def differences(reference: Scores, other: Scores, kind_of: Callable[[str], str]) -> dict[str, float]:
    """Largest difference per kind of input, in units of the standard deviation of the reference's scores."""
    assert reference.keys() == other.keys()
    deviation = float(np.std(list(reference.values())))
    found: dict[str, float] = {}
    for name, score in reference.items():
        kind = kind_of(name)
        found[kind] = max(found.get(kind, 0.0), abs(score - other[name]) / deviation)
    return found


def typical_difference(reference: Scores, other: Scores) -> float:
    """Root mean square of all differences, in the unit of `differences`."""
    apart = [other[name] - score for name, score in reference.items()]
    return float(np.sqrt(np.mean(np.square(apart))) / np.std(list(reference.values())))


def table(columns: Mapping[str, Mapping[str, float]], kinds: Sequence[str]) -> str:
    """A Markdown table of differences: a row per kind of input, a column per way."""
    lines = [f"| input | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    lines += [f"| {kind} | {' | '.join(f'{column[kind]:.0e}' for column in columns.values())} |" for kind in kinds]
    return "\n".join(lines)
