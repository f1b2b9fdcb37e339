"""The embedded world: same seed, same bytes; the promised rates; disjoint slices; truth where it belongs."""

import importlib.util
import json
from collections import Counter

import pytest

from dt2it_pipeline.config.sections.demo import DemoSettings
from dt2it_pipeline.demo import language
from dt2it_pipeline.demo.easyvqa import EasyVQAMissingError
from dt2it_pipeline.demo.world import GROUPS, write_world

SETTINGS = DemoSettings(prompts=120, preferences=400, t2i=90, benchmark_per_group=60)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("home") / "world"
    write_world(root, SETTINGS, seed=3)
    return root


def rows(root, name):
    return [json.loads(line) for line in (root / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def is_verbose(text):
    return text.startswith("#")


def test_same_seed_gives_the_same_bytes_and_replaces_an_older_world(world, tmp_path):
    again = tmp_path / "world"
    write_world(again, SETTINGS, seed=4)
    assert contents(again) != contents(world)
    write_world(again, SETTINGS, seed=3)
    assert contents(again) == contents(world)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]  # no temporary folder stays


def test_files_have_the_promised_sizes_and_keys(world):
    keys = {
        "prompts": (120, {"id", "image", "question", "answer"}),
        "preferences": (400, {"id", "image", "question", "chosen", "rejected"}),
        "truth": (400, {"id", "image", "question", "chosen", "rejected"}),
        "t2i": (90, {"id", "caption", "preferred", "other"}),
        "benchmark": (180, {"id", "group", "image", "question", "chosen", "rejected"}),
        "benchmark_t2i": (60, {"id", "caption", "preferred", "other"}),
    }
    for name, (count, expected) in keys.items():
        found = rows(world, name)
        assert len(found) == len({row["id"] for row in found}) == count
        assert all(set(row) == expected for row in found)
        assert all((world / row[key]).is_file() for row in found for key in ("image", "preferred") if key in row)


def test_noise_and_style_bias_are_exact_and_independent(world):
    truth = {row["id"]: row for row in rows(world, "truth")}
    found = rows(world, "preferences")
    wrong = [row["chosen"] != truth[row["id"]]["chosen"] for row in found]
    verbose = [is_verbose(row["chosen"]) for row in found]
    assert sum(wrong) == 120 and sum(verbose) == 360
    assert all(is_verbose(row["rejected"]) != side for row, side in zip(found, verbose, strict=True))
    both = sum(a and b for a, b in zip(wrong, verbose, strict=True))
    assert abs(both - 0.3 * 360) < 20
    for row in found:
        better = truth[row["id"]]
        assert {row["chosen"], row["rejected"]} == {better["chosen"], better["rejected"]}
        answered = [language.read_answer(row["question"], better[side]) for side in ("chosen", "rejected")]
        assert None not in answered and answered[0] != answered[1]


def test_kinds_of_questions_and_presence_are_balanced(world):
    found = rows(world, "preferences")
    questions = [language.parse_question(row["question"]) for row in found]
    assert all(abs(count - 400 / 3) < 2 for count in Counter(question.kind for question in questions).values())
    right = [row["chosen"].lower() for row in rows(world, "truth")]
    yes_no = [(q, text) for q, text in zip(questions, right, strict=True) if q.kind == "yes_no"]
    absent = sum(f"no {q.thing}" in text or "cannot" in text or "does not" in text for q, text in yes_no)
    assert abs(absent - len(yes_no) / 2) < 2


def test_slices_are_disjoint_and_test_images_feed_benchmarks_only(world):
    images = {}
    for name in ("prompts", "preferences", "t2i", "benchmark", "benchmark_t2i"):
        keys = ("image", "preferred", "other")
        images[name] = {row[key] for row in rows(world, name) for key in keys if key in row}
    assert not images["prompts"] & images["preferences"]
    assert not images["prompts"] & images["t2i"]
    assert not images["preferences"] & images["t2i"]
    for name, found in images.items():
        split = "test_" if name.startswith("benchmark") else "train_"
        assert all(image.startswith(f"images/{split}") for image in found)
    assert {f"images/{path.name}" for path in (world / "images").iterdir()} == set.union(*images.values())


def test_benchmark_groups_have_their_styles(world):
    found = rows(world, "benchmark")
    assert Counter(row["group"] for row in found) == dict.fromkeys(GROUPS, 60)
    styles = {"style-congruent": (True, False), "style-incongruent": (False, True)}
    for row in found:
        wanted = styles.get(row["group"])
        assert wanted in (None, (is_verbose(row["chosen"]), is_verbose(row["rejected"])))


def test_truth_does_not_leak_through_order(world):
    """Neither the id nor the place of a row may tell whether its label is right."""
    truth = {row["id"]: row["chosen"] for row in rows(world, "truth")}
    wrong = [row["chosen"] != truth[row["id"]] for row in rows(world, "preferences")]
    assert abs(sum(wrong[:200]) - sum(wrong[200:])) < 40
    assert abs(sum(wrong[::2]) - sum(wrong[1::2])) < 40


def test_corrupt_images_are_truncated(tmp_path):
    settings = SETTINGS.model_copy(update={"corrupt_images": 3})
    write_world(tmp_path / "world", settings, seed=3)
    broken = []
    for path in (tmp_path / "world" / "images").iterdir():
        if not path.read_bytes().endswith(b"IEND\xaeB`\x82"):
            broken.append(f"images/{path.name}")
    assert len(broken) == 3
    assert set(broken) <= {row["image"] for row in rows(tmp_path / "world", "preferences")}


def test_too_much_is_refused_and_leaves_nothing(tmp_path):
    settings = SETTINGS.model_copy(update={"preferences": 30_000})
    with pytest.raises(ValueError, match=r"demo\.(prompts|preferences) = \d+"):
        write_world(tmp_path / "world", settings)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="other files"):
        write_world(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EasyVQAMissingError, match=r'pip install "dt2it-pipeline\[demo\]"'):
        write_world(tmp_path / "world", SETTINGS)
    assert not list(tmp_path.iterdir())
