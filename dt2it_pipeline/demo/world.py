"""Writes the embedded world: source files as a user would have them, made from easy-VQA.

Training images are cut into three disjoint slices, for prompts, preferences and text-to-image preferences; test
images feed the benchmarks only. The preferences are noisy and biased towards one style; what is truly better lies in
`truth.jsonl`, which only the demo's grading reads.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dt2it_pipeline.demo import language
from dt2it_pipeline.demo.easyvqa import ShapeImage, easy_vqa_root, load_split
from dt2it_pipeline.storage.leftovers import owned_prefix

if TYPE_CHECKING:
    from dt2it_pipeline.config.sections.demo import DemoSettings

__all__ = ["GROUPS", "easy_vqa_root", "write_world"]

GROUPS = ("style-random", "style-congruent", "style-incongruent")
_FILES = ("prompts", "preferences", "truth", "t2i", "benchmark", "benchmark_t2i")
_T2I_PER_IMAGE = 2  # rows of t2i that one image is expected to serve when the training images are cut

Row = dict[str, Any]


def write_world(root: Path, settings: DemoSettings, seed: int = 0) -> None:
    """Write the world's source files into the folder `root`, which appears only when it is complete.

    The same settings and seed give the same bytes. A world that is already there is replaced.

    Raises:
        EasyVQAMissingError: the package easy-vqa is not installed.
        FileExistsError: `root` holds something that is not a world.
        ValueError: easy-VQA has too few questions or images for the settings, which are named.
    """
    easy_vqa_root()
    if root.exists() and any(root.iterdir()) and not all((root / f"{name}.jsonl").is_file() for name in _FILES):
        raise FileExistsError(f"{root} holds other files; name an empty or new folder for the demo's world")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=owned_prefix(f".{root.name}")) as temporary:
        made = Path(temporary) / root.name
        (made / "images").mkdir(parents=True)
        _Writer(made, settings, seed).write()
        if root.exists():
            root.rename(Path(temporary) / "replaced")
        made.rename(root)


class _Writer:
    def __init__(self, root: Path, settings: DemoSettings, seed: int) -> None:
        self.root, self.settings = root, settings
        self.rng = random.Random(seed)
        self.names: dict[Path, str] = {}

    def write(self) -> None:
        settings = self.settings
        train = load_split("train")
        self.rng.shuffle(train)
        weights = (settings.prompts, settings.preferences, settings.t2i / _T2I_PER_IMAGE)
        for_prompts, for_preferences, for_t2i = _cut(train, weights)
        test = load_split("test")
        self.rng.shuffle(test)

        self._lines("prompts", self._prompts(for_prompts))
        preferences, truth = self._preferences(for_preferences)
        self._lines("preferences", preferences)
        self._lines("truth", truth)
        self._lines("t2i", self._t2i("t2i", for_t2i, settings.t2i))
        self._lines("benchmark", self._benchmark(test))
        self._lines("benchmark_t2i", self._t2i("bench-t2i", test, settings.benchmark_per_group))
        self._truncate_images(preferences)

    def _lines(self, name: str, rows: Sequence[Row]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.root / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def _image(self, image: ShapeImage) -> str:
        """Copy an image once; returns its path from the world's folder."""
        if image.path not in self.names:
            name = f"images/{image.path.parent.parent.name}_{int(image.path.stem):05d}.png"
            shutil.copyfile(image.path, self.root / name)
            self.names[image.path] = name
        return self.names[image.path]

    def _questions(self, images: Sequence[ShapeImage], setting: str, count: int) -> list[tuple[ShapeImage, str, str]]:
        """`count` different questions about `images`, the three kinds equally often.

        In easy-VQA's yes/no questions the thing asked for is mostly absent. Here presence and absence, asked for with
        and without negation, are equally frequent too, or "there is no ..." would be a safe answer.
        """
        pools: dict[tuple[str, bool, str], deque[tuple[ShapeImage, str, str]]] = {}
        for image in images:
            for question, answer in dict(image.questions).items():
                parsed = language.parse_question(question)
                key = (parsed.kind, parsed.negated, answer if parsed.kind == "yes_no" else "")
                pools.setdefault(key, deque()).append((image, question, answer))
        for pool in pools.values():
            self.rng.shuffle(pool)
        turns: list[tuple[str, bool, str]] = []
        for negated, answer in ((False, "yes"), (True, "yes"), (False, "no"), (True, "no")):
            turns += [("shape", False, ""), ("color", False, ""), ("yes_no", negated, answer)]
        chosen = []
        for number in range(count):
            pool = pools.get(turns[number % len(turns)], deque())
            if not pool:
                raise ValueError(
                    f"easy-VQA has too few questions for demo.{setting} = {count}: they ran out after {number}; "
                    "lower it, or the other sizes of the demo"
                )
            chosen.append(pool.popleft())
        self.rng.shuffle(chosen)
        return chosen

    def _prompts(self, images: Sequence[ShapeImage]) -> list[Row]:
        found = self._questions(images, "prompts", self.settings.prompts)
        return [
            {"id": f"prompt-{number:05d}", "image": self._image(image), "question": question, "answer": answer}
            for number, (image, question, answer) in enumerate(found)
        ]

    def _preferences(self, images: Sequence[ShapeImage]) -> tuple[list[Row], list[Row]]:
        settings = self.settings
        count = settings.preferences
        mislabelled = _exactly(settings.noise, count, self.rng)
        verbose_chosen = _exactly(settings.style_bias, count, self.rng)
        preferences, truth = [], []
        for number, (image, question, answer) in enumerate(self._questions(images, "preferences", count)):
            wrong = language.wrong_answer(question, answer, self.rng)
            first, second = (wrong, answer) if mislabelled[number] else (answer, wrong)
            styles: tuple[language.Style, language.Style] = ("verbose", "plain")
            if not verbose_chosen[number]:
                styles = ("plain", "verbose")
            chosen = language.answer_in_style(styles[0], question, first, self.rng)
            rejected = language.answer_in_style(styles[1], question, second, self.rng)
            row = {"id": f"pref-{number:05d}", "image": self._image(image), "question": question}
            preferences.append({**row, "chosen": chosen, "rejected": rejected})
            better, worse = (rejected, chosen) if mislabelled[number] else (chosen, rejected)
            truth.append({**row, "chosen": better, "rejected": worse})
        return preferences, truth

    def _t2i(self, prefix: str, images: Sequence[ShapeImage], count: int) -> list[Row]:
        """Captions with a matching and a non-matching image: another color, another shape, or both."""
        images = [image for image in images if image.color and image.shape]
        rows = []
        matching = _endless(images)
        for number in range(count):
            preferred = next(matching)
            other = self._different(preferred, images, number % 3)
            caption = language.caption(preferred.color, preferred.shape, self.rng)
            sides = {"preferred": self._image(preferred), "other": self._image(other)}
            rows.append({"id": f"{prefix}-{number:05d}", "caption": caption, **sides})
        return rows

    def _different(self, image: ShapeImage, images: Sequence[ShapeImage], way: int) -> ShapeImage:
        ways = ((True, False), (False, True), (True, True))
        # A small slice may lack the wanted difference; the next best then serves.
        for wanted in (ways[way], *ways):
            others = [other for other in images if (other.color != image.color, other.shape != image.shape) == wanted]
            if others:
                return self.rng.choice(others)
        raise ValueError("too few images for text-to-image preferences; raise demo.t2i or lower the other sizes")

    def _benchmark(self, images: Sequence[ShapeImage]) -> list[Row]:
        count = self.settings.benchmark_per_group
        found = self._questions(images, "benchmark_per_group", count * len(GROUPS))
        rows = []
        for number, (image, question, answer) in enumerate(found):
            group = GROUPS[number % len(GROUPS)]
            better, worse = self._styles(group)
            rows.append(
                {
                    "id": f"bench-{number:05d}",
                    "group": group,
                    "image": self._image(image),
                    "question": question,
                    "chosen": language.answer_in_style(better, question, answer, self.rng),
                    "rejected": language.answer_in_style(
                        worse, question, language.wrong_answer(question, answer, self.rng), self.rng
                    ),
                }
            )
        return sorted(rows, key=lambda row: (GROUPS.index(row["group"]), row["id"]))

    def _styles(self, group: str) -> tuple[language.Style, language.Style]:
        """Styles of the better and of the worse answer."""
        if group == "style-congruent":
            return "verbose", "plain"
        if group == "style-incongruent":
            return "plain", "verbose"
        return self.rng.choice(language.STYLES), self.rng.choice(language.STYLES)

    def _truncate_images(self, preferences: Sequence[Row]) -> None:
        names = sorted({row["image"] for row in preferences})
        if self.settings.corrupt_images > len(names):
            raise ValueError(
                f"demo.corrupt_images = {self.settings.corrupt_images}, but preferences use {len(names)} images"
            )
        for name in self.rng.sample(names, self.settings.corrupt_images):
            content = (self.root / name).read_bytes()
            (self.root / name).write_bytes(content[: len(content) // 2])


def _cut(images: Sequence[ShapeImage], weights: Sequence[float]) -> list[Sequence[ShapeImage]]:
    """Disjoint slices of `images` with sizes in the proportion of `weights`."""
    slices, taken, start = [], 0.0, 0
    for weight in weights:
        taken += weight
        end = round(len(images) * taken / sum(weights))
        slices.append(images[start:end])
        start = end
    return slices


def _exactly(share: float, count: int, rng: random.Random) -> list[bool]:
    """`count` flags in random order, of which the share `share` is true."""
    flags = [number < round(share * count) for number in range(count)]
    rng.shuffle(flags)
    return flags


def _endless(images: Sequence[ShapeImage]) -> Iterator[ShapeImage]:
    while True:
        yield from images
