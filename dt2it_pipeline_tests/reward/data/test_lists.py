"""Which pairs go together, whatever curation did to some of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dt2it_pipeline.reward.data.lists import Grouping, TrainingExamples, group

Pairs = list[tuple[int, int, int, int]]  # list, prompt, better answer, worse answer


def grouped(pairs: Pairs) -> Grouping:
    table = np.array(pairs, dtype=np.int64).reshape(-1, 4)
    return group(table[:, 0].astype(np.int32), table[:, 1].astype(np.int32), table[:, 2:].astype(np.int32))


def by_example(made: Grouping) -> list[list[int]]:
    return [part.tolist() for part in np.split(made.pairs, made.starts[1:-1])]


def examples_of(pairs: Pairs, loss: Any = "plackett_luce", ranks: Sequence[Sequence[float]] = ()) -> TrainingExamples:
    table = np.array(pairs, dtype=np.int64).reshape(-1, 4)
    prepared: Any = SimpleNamespace(
        lists=lambda: table[:, 0], prompt_ranks=lambda: table[:, 1], responses=lambda: table[:, 2:],
        ranks=lambda: np.array(ranks) if ranks else np.full((len(table), 2), np.nan),
    )  # fmt: skip
    return TrainingExamples(prepared, loss)


def plain_grouping(pairs: Pairs) -> Iterator[tuple[list[int], list[int], bool]]:
    """Pairs, answers and whether they contradict each other, of every example: as a loop over Python objects."""
    found: dict[Any, list[int]] = {}
    seen = set()
    for number, (name, prompt, better, worse) in enumerate(pairs):
        couple = name, prompt, min(better, worse), max(better, worse)
        alone = name < 0 or better == worse or couple in seen
        seen.add(couple)
        found.setdefault(number if alone else (name, prompt), []).append(number)
    for numbers in found.values():
        sides = [answer for number in numbers for answer in pairs[number][2:]]
        answers = sides if len(numbers) == 1 else list(dict.fromkeys(sides))
        beats = {(pairs[number][2], pairs[number][3]) for number in numbers}
        for middle, one, other in itertools.product(set(sides), repeat=3):
            if {(one, middle), (middle, other)} <= beats:
                beats.add((one, other))
        yield numbers, answers, len(numbers) > 1 and any((answer, answer) in beats for answer in sides)


@pytest.mark.parametrize("seed", range(8))
def test_grouping_is_that_of_a_plain_loop(seed: int) -> None:
    draw = np.random.default_rng(seed)
    pairs = [
        (int(draw.integers(-1, 6)), int(draw.integers(0, 2)), int(draw.integers(0, 5)), int(draw.integers(0, 5)))
        for _ in range(80)
    ]
    made, wanted = grouped(pairs), list(plain_grouping(pairs))
    assert by_example(made) == [numbers for numbers, _, _ in wanted]
    answers = [part.tolist() for part in np.split(made.responses, made.response_starts[1:-1])]
    assert answers == [own for _, own, _ in wanted]
    assert made.contradictory.tolist() == [bad for _, _, bad in wanted] and made.contradictory.any()
    assert made.lists.tolist() == [len(own) > 2 for own in answers]
    for example, (numbers, own, _) in enumerate(wanted):
        for place, number in enumerate(numbers, start=int(made.starts[example])):
            assert [own[side] for side in made.sides[place]] == list(pairs[number][2:])


def test_pairs_without_lists_stay_as_they_are() -> None:
    made = grouped([(-1, 0, 3, 4), (-1, 0, 4, 3), (-1, 1, 5, 5), (-1, 0, 3, 4)])
    assert by_example(made) == [[0], [1], [2], [3]]
    assert made.responses.tolist() == [3, 4, 4, 3, 5, 5, 3, 4] and made.sides.tolist() == [[0, 1]] * 4
    assert not made.lists.any() and examples_of([(-1, 0, 3, 4)]).report() == {}
    assert len(examples_of([])) == 0 and examples_of([]).report() == {}


def test_a_list_is_told_by_its_prompt_too() -> None:
    made = grouped([(0, 0, 1, 2), (0, 1, 1, 2), (0, 0, 2, 3), (1, 0, 1, 3)])
    assert by_example(made) == [[0, 2], [1], [3]]


FOUR = [(0, 0, better, worse) for better, worse in itertools.combinations(range(4), 2)]


def test_what_curation_left_is_counted_and_nothing_else_is_used() -> None:
    def at(name: int, pairs: Pairs) -> Pairs:
        return [(name, 0, 10 * name + better, 10 * name + worse) for _, _, better, worse in pairs]

    turned = [(0, 0, 3, 0) if pair == (0, 0, 0, 3) else pair for pair in FOUR]  # the best below the worst: a circle
    swapped = [(0, 0, 1, 0) if pair == (0, 0, 0, 1) else pair for pair in FOUR]  # neighbours: another ranking
    lists = [FOUR, FOUR[1:], turned, swapped, FOUR[:1], FOUR[:2]]
    made = examples_of([pair for name, pairs in enumerate(lists) for pair in at(name, pairs)])
    assert made.report() == {
        "lists": 5, "lists_complete": 2, "lists_with_gaps": 2, "lists_contradictory": 1, "list_pairs": 25
    }  # fmt: skip
    # Choices: three of a ranking of four; without the first pair both of its answers still beat the others.
    assert made.terms.tolist() == [3, 3, 6, 3, 1, 1]
    assert made.ranked.tolist() == [True, True, False, True, False, True]
    pairwise = examples_of([pair for name, pairs in enumerate(lists) for pair in at(name, pairs)], "pairwise")
    assert pairwise.terms.tolist() == [6, 5, 6, 6, 1, 2] and not pairwise.ranked.any()
    assert pairwise.report() == made.report()


def test_equal_ranks_are_no_gap() -> None:
    pairs = [(0, 0, 0, 1), (0, 0, 0, 2)]
    assert examples_of(pairs, ranks=[[1, 2.5], [1, 2.5]]).report()["lists_complete"] == 1
    assert examples_of(pairs, ranks=[[1, 2], [1, 3]]).report()["lists_with_gaps"] == 1
    assert examples_of(pairs).report()["lists_with_gaps"] == 1  # ranks are not known


def test_comparisons_leave_out_what_does_not_count() -> None:
    import torch

    made = examples_of([(0, 0, 0, 1), (0, 0, 0, 2), (-1, 0, 5, 6), (1, 0, 7, 8), (1, 0, 8, 9), (1, 0, 9, 7)])
    strengths = torch.arange(6.0)
    found = made.comparisons(np.array([2, 1, 0]), np.array([True, False, True]), strengths)
    assert found.grid.tolist() == [[0, 1, 2], [5, 6, 7]]  # scores 3 and 4 are of the pair that does not count
    assert found.places.tolist() == [1, 5, 6, 9 + 1, 9 + 2]
    assert found.strengths.tolist() == [3, 4, 5, 0, 1]
    assert (found.alone.tolist(), found.ranked.tolist(), found.choices.tolist()) == ([0, 1, 2], [3, 4], [3])
    short = made.comparisons(np.array([1, 0]), np.array([True, True]), strengths)
    assert short.grid.tolist() == [[0, 1, 1], [2, 3, 4]]
