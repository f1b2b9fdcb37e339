"""What a training takes one by one: pairs alone, and lists of answers to one prompt with the pairs that curation left.

What belongs here: which pairs go together, and in which of the lists they agree. What does not: the losses
(modeling/list_loss.py).

A list is made of its pairs as they are after curation, and of nothing else. The ranks that the source gave are not
used to fill a gap: a pair that was dropped stays out, and one that was flipped counts as flipped. So all pairs of a
list always share a sequence, and each counts once, whatever became of the others. The pairs of a list may

- be complete: every two answers are a pair, or have equal ranks by the source;
- have gaps: a pair of two unequal answers was dropped, or quarantined;
- contradict each other: a chain of pairs comes back to where it began (A beats B, B beats C, C beats A), as one flip
  can bring about. There is no ranking then, so that each pair keeps a loss of its own.

A list belongs to one prompt. Pairs that have one `list_id` and several prompts are several lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from dt2it_pipeline.reward.data.collation import PackedExample
from dt2it_pipeline.reward.data.encoding import PromptLayout
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline.reward.data.preparation import PreparedPairs
from dt2it_pipeline.reward.modeling.list_loss import Comparisons


@dataclass(frozen=True, slots=True)
class Grouping:
    """Pairs put together to E examples; arrays of an example lie one after the other from its start on.

    Attributes:
        pairs: by number, int64 [pairs]; those of an example keep their order.
        starts: of each example's pairs, int64 [E + 1].
        responses: answers as the pairs name them, each once in an example, int64 [answers].
        response_starts: of each example's answers, int64 [E + 1].
        sides: which of its example's answers are the better and the worse one of each of `pairs`, int64 [pairs, 2].
        lists: which examples are lists of three answers or more, bool [E].
        contradictory: which of them have no ranking, bool [E].
    """

    pairs: np.ndarray
    starts: np.ndarray
    responses: np.ndarray
    response_starts: np.ndarray
    sides: np.ndarray
    lists: np.ndarray
    contradictory: np.ndarray


def group(lists: np.ndarray, prompts: np.ndarray, responses: np.ndarray) -> Grouping:
    """Put pairs together that belong to one list and one prompt; examples come in the order of their first pairs.

    A pair stays alone where it has no list, where both its sides are one text, and where its list has it before: a list
    knows every two answers once.

    >>> made = group(np.array([7, -1, 7]), np.array([0, 0, 0]), np.array([[4, 5], [4, 6], [5, 6]]))
    >>> made.pairs.tolist(), made.starts.tolist(), made.responses.tolist(), made.sides.tolist()
    ([0, 2, 1], [0, 2, 3], [4, 5, 6, 4, 6], [[0, 1], [1, 2], [0, 1]])

    Args:
        lists: number of each pair's list, -1 for none, int [pairs].
        prompts: number of each pair's prompt, int [pairs].
        responses: answers of each pair, the better one first, int [pairs, 2].
    """
    count = len(lists)
    numbers = np.arange(count)
    low, high = np.sort(responses, axis=1).astype(np.int64).T
    listed = (lists >= 0) & (low != high)
    keys = -1 - numbers  # of what an example is made of
    if listed.any():
        seen = np.flatnonzero(listed)
        couples = np.stack([lists[seen], prompts[seen], low[seen], high[seen]], axis=1)
        _, first = np.unique(couples, axis=0, return_index=True)
        seen = seen[np.sort(first)]
        listed = np.isin(numbers, seen)
        keys[seen] = np.unique(couples[np.sort(first), :2], axis=0, return_inverse=True)[1].reshape(-1)
    first, example = _numbered(keys)
    pairs = np.argsort(example, kind="stable")
    starts = _starts(np.bincount(example, minlength=len(first)))

    # Answers in the order in which the pairs show them; the two of a pair alone may be one text.
    owner = np.repeat(example[pairs], 2)
    flat = responses[pairs].astype(np.int64).reshape(-1)
    same = np.where(np.repeat(listed[pairs], 2), flat + 2, np.tile([0, 1], count))
    first, slots = _numbered(owner * (int(flat.max(initial=0)) + 3) + same)
    response_starts = _starts(np.bincount(owner[first], minlength=len(starts) - 1))
    slots = slots.reshape(-1, 2)
    return Grouping(
        pairs=pairs,
        starts=starts,
        responses=flat[first],
        response_starts=response_starts,
        sides=slots - response_starts[example[pairs]][:, None],
        lists=np.diff(response_starts) > 2,
        contradictory=_contradictory(slots, example[pairs], len(starts) - 1),
    )


def _numbered(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each key stands first, in this order, and the number of every entry's key in it; int64."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order))
    return first[order], number[inverse.reshape(-1)]


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _contradictory(slots: np.ndarray, owner: np.ndarray, examples: int) -> np.ndarray:
    """Which examples have pairs that go round in a circle: those left when answers that nobody beats are taken off.

    Args:
        slots: the better and the worse answer of every pair, numbered over all examples, int64 [pairs, 2].
        owner: example of every pair.
        examples: how many there are.
    """
    left = np.arange(len(slots))
    while len(left):
        beaten = np.zeros(int(slots.max()) + 1, dtype=bool)
        beaten[slots[left, 1]] = True
        stay = left[beaten[slots[left, 0]]]
        if len(stay) == len(left):
            break
        left = stay
    found = np.zeros(examples, dtype=bool)
    found[owner[left]] = True
    return found


class TrainingExamples:
    """The examples of a training: prepared pairs alone, and lists of three answers or more.

    Args:
        prepared: the pairs; none may be removed afterwards, but they may be left out.
        loss: of lists; `pairwise`: every pair has a loss of its own.

    Attributes:
        grouping: which pairs each example has.
        pair_counts: pairs of every example, int64 [examples].
        response_counts: its answers.
        ranked: which of them are lists whose loss is Plackett-Luce, bool [examples].
        terms: losses of every example: one for each pair, or one for each choice of a list that is ranked.
    """

    def __init__(self, prepared: PreparedPairs, loss: Literal["pairwise", "plackett_luce"]) -> None:
        self.prepared = prepared
        self.grouping = group(prepared.lists(), prepared.prompt_ranks(), prepared.responses())
        g = self.grouping
        self.pair_counts, self.response_counts = np.diff(g.starts), np.diff(g.response_starts)
        self.ranked = g.lists & ~g.contradictory if loss == "plackett_luce" else np.zeros(len(self), dtype=bool)
        self.terms = np.where(self.ranked, self._choice_counts(), self.pair_counts)

    def __len__(self) -> int:
        return len(self.grouping.lists)

    def _choice_counts(self) -> np.ndarray:
        """Answers of every example that are better than some other."""
        g = self.grouping
        owner = np.repeat(np.arange(len(self)), self.pair_counts)
        chosen = np.unique(g.response_starts[owner] + g.sides[:, 0])
        return np.bincount(np.searchsorted(g.response_starts, chosen, side="right") - 1, minlength=len(self))

    def pairs_of(self, examples: Iterable[int] | np.ndarray) -> np.ndarray:
        """Numbers of the pairs of some examples, one after the other, int64."""
        starts = self.grouping.starts
        parts = [self.grouping.pairs[starts[each] : starts[each + 1]] for each in examples]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def first_pairs(self) -> np.ndarray:
        """The first pair of every example, int64 [examples]; the others have the same prompt."""
        return self.grouping.pairs[self.grouping.starts[:-1]]

    def response_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all answers of every example together, and of the longest one; int64 [examples] each."""
        lengths = self.prepared.table.lengths_of(self.grouping.responses)
        if not len(self):
            return lengths, lengths
        at = self.grouping.response_starts[:-1]
        return np.add.reduceat(lengths, at), np.maximum.reduceat(lengths, at)

    def packed(self, example: int, layout: PromptLayout, registry: ImageRegistry) -> PackedExample:
        """An example as a row of a batch: its prompt once, and every answer to it.

        Args:
            example: its number.
            layout: of the model.
            registry: that has adopted the prepared table's images.
        """
        g = self.grouping
        row = int(self.prepared.rows[g.pairs[g.starts[example]]])
        answers = g.responses[g.response_starts[example] : g.response_starts[example + 1]]
        return self.prepared.table.packed(row, answers, layout, registry)

    def comparisons(self, members: np.ndarray, counts: np.ndarray, strengths: torch.Tensor) -> Comparisons:
        """What is known of the answers in a batch.

        Args:
            members: its examples, in their order.
            counts: which of them count; scores of the others lie between, and are not looked at. bool [members].
            strengths: of all pairs, float32.
        """
        g = self.grouping
        sizes = self.response_counts[members]
        firsts = (np.cumsum(sizes) - sizes)[counts]
        members, sizes = members[counts], sizes[counts]
        most = int(sizes.max())
        grid = firsts[:, None] + np.minimum(np.arange(most), sizes[:, None] - 1)
        places, ranked, pairs, choices = [], [], [], []
        for row, member in enumerate(members.tolist()):
            own = slice(g.starts[member], g.starts[member + 1])
            better, worse = g.sides[own].T
            places.append((row * most + better) * most + worse)
            pairs.append(g.pairs[own])
            ranked.append(np.full(len(better), self.ranked[member]))
            if self.ranked[member]:
                choices.append(row * most + np.unique(better))
        is_ranked = np.concatenate(ranked)
        return Comparisons(
            grid=torch.from_numpy(grid),
            places=torch.from_numpy(np.concatenate(places)),
            strengths=strengths[torch.from_numpy(np.concatenate(pairs))],
            alone=torch.from_numpy(np.flatnonzero(~is_ranked)),
            ranked=torch.from_numpy(np.flatnonzero(is_ranked)),
            choices=torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *choices])),
        )

    def report(self) -> dict[str, int]:
        """Counts for the summary of a training; empty where there are no lists.

        Returns:
            lists, lists_complete, lists_with_gaps, lists_contradictory (these three sum to `lists`), and list_pairs,
            the pairs that lie in them.
        """
        g = self.grouping
        if not g.lists.any():
            return {}
        ranks = self.prepared.ranks()
        ranked = np.flatnonzero(g.lists & ~g.contradictory).tolist()
        complete = int(sum(self._complete(number, ranks) for number in ranked))
        contradictory = int((g.lists & g.contradictory).sum())
        return {
            "lists": int(g.lists.sum()),
            "lists_complete": complete,
            "lists_with_gaps": int(g.lists.sum()) - complete - contradictory,
            "lists_contradictory": contradictory,
            "list_pairs": int(self.pair_counts[g.lists].sum()),
        }

    def _complete(self, example: int, pair_ranks: np.ndarray) -> bool:
        """Whether every two answers of a list are a pair, or equal by the source; `pair_ranks` has all pairs."""
        g, answers = self.grouping, int(self.response_counts[example])
        missing = answers * (answers - 1) // 2 - int(self.pair_counts[example])
        if not missing:
            return True
        own = slice(g.starts[example], g.starts[example + 1])
        ranks = np.full(answers, np.nan)
        ranks[g.sides[own].reshape(-1)] = pair_ranks[g.pairs[own]].reshape(-1)
        tied = np.triu(ranks[:, None] == ranks[None, :], k=1)
        tied[tuple(np.sort(g.sides[own], axis=1).T)] = False
        return bool(tied.sum() == missing)
