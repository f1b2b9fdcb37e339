from __future__ import annotations

import numpy as np
import pytest

from dt2it_pipeline.reward.training.schedule import Schedule, cosine_with_warmup, micro_batches


def test_every_epoch_shows_every_pair_once() -> None:
    schedule = Schedule(examples=50, batch_size=8, epochs=2, max_steps=None, seed=3)
    seen = np.concatenate([schedule.step(n) for n in range(schedule.steps)])
    assert len(seen) == schedule.samples_seen == 100
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    assert seen[:50].tolist() != seen[50:].tolist()


def test_order_depends_on_the_seed_alone() -> None:
    one, same, other = (Schedule(50, 8, 2, None, seed) for seed in (3, 3, 4))
    assert one.step(2).tolist() == same.step(2).tolist() != other.step(2).tolist()


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"), [(0.5, None, 4), (1.0, 3, 3), (0.001, None, 1), (9.0, 99, 57)]
)
def test_number_of_steps(epochs: float, max_steps: int | None, steps: int) -> None:
    assert Schedule(50, 8, epochs, max_steps, 0).steps == steps


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("pairs", [1, 2, 7, 64])
def test_ranks_share_a_step_without_loss_and_in_step(ranks: int, pairs: int) -> None:
    lengths = np.random.default_rng(0).integers(10, 90, 100)
    chosen = np.random.default_rng(1).permutation(100)[:pairs]
    parts = [micro_batches(chosen, lengths, rank, ranks, 10) for rank in range(ranks)]
    assert sorted(np.concatenate([run for part in parts for run in part]).tolist()) == sorted(chosen.tolist())
    assert len({len(part) for part in parts}) == 1  # the same number of collectives on every rank
    assert max(len(run) for part in parts for run in part) <= 10


def test_cosine_with_warmup() -> None:
    rates = [cosine_with_warmup(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    assert cosine_with_warmup(0, 1, 0.0) == 1.0


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("pairs", [1, 2, 7, 64])
@pytest.mark.parametrize("budget", [50, 300])
def test_a_token_budget_bounds_every_pass_and_loses_no_pair(ranks: int, pairs: int, budget: int) -> None:
    lengths = np.random.default_rng(0).integers(10, 90, 100)
    chosen = np.random.default_rng(1).permutation(100)[:pairs]
    parts = [micro_batches(chosen, lengths, rank, ranks, 10, budget) for rank in range(ranks)]
    runs = [run for part in parts for run in part]
    assert sorted(np.concatenate(runs).tolist()) == sorted(chosen.tolist())
    assert len({len(part) for part in parts}) == 1
    for run in runs:
        assert len(run) <= 10
        assert len(run) <= 1 or len(run) * lengths[run].max() <= budget


def test_a_pair_beyond_the_budget_has_a_pass_to_itself() -> None:
    lengths = np.array([10, 10, 900, 10])
    runs = micro_batches(np.arange(4), lengths, 0, 1, 10, 40)
    assert [run.tolist() for run in runs] == [[0, 1, 3], [2]]


def test_a_token_budget_needs_fewer_passes_of_the_same_size() -> None:
    lengths = np.random.default_rng(0).geometric(0.01, 256) + 20
    alone = micro_batches(np.arange(256), lengths, 0, 1, 32)
    largest = max(len(run) * lengths[run].max() for run in alone)
    budget = micro_batches(np.arange(256), lengths, 0, 1, 4096, largest)
    assert max(len(run) * lengths[run].max() for run in budget) <= largest
    assert len(budget) < len(alone)


def test_ranks_without_work_for_all_passes_halve_their_runs() -> None:
    lengths = np.array([10] * 7 + [90])
    parts = [micro_batches(np.arange(8), lengths, rank, 2, 10, 90) for rank in range(2)]
    assert [len(part) for part in parts] == [2, 2]
    assert all(len(run) for part in parts for run in part)


@pytest.mark.parametrize("ranks", [1, 3])
def test_pairs_in_one_row_fill_the_budget(ranks: int) -> None:
    lengths = np.random.default_rng(0).geometric(0.01, 100) + 20
    budget = 2 * int(lengths.max())
    parts = [micro_batches(np.arange(100), lengths, rank, ranks, 4096, budget, one_row=True) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(pair for part in parts for run in part for pair in run.tolist()) == list(range(100))
    assert all(lengths[run].sum() <= budget for part in parts for run in part)
    padded = micro_batches(np.arange(100), lengths, 0, ranks, 4096, budget)
    assert len(parts[0]) < len(padded)


@pytest.mark.parametrize("budget", [None, 900])
@pytest.mark.parametrize("one_row", [False, True])
def test_a_pass_holds_so_many_answers_and_lists_are_whole(budget: int | None, one_row: bool) -> None:
    draw = np.random.default_rng(5)
    responses = draw.choice([2, 3, 4, 9], size=90)
    lengths = 40 * responses + draw.integers(0, 40, size=90)

    def passes(rank: int, responses: np.ndarray | None) -> list[np.ndarray]:
        given = np.arange(90), lengths, rank, 2, 4, budget, lengths
        return micro_batches(*given, responses=responses, one_row=one_row)

    parts = [passes(rank, responses) for rank in range(2)]
    assert len(parts[0]) == len(parts[1])
    assert sorted(np.concatenate([*parts[0], *parts[1]]).tolist()) == list(range(90))
    runs = [run for part in parts for run in part if len(run) > 1]
    assert max(int(responses[run].sum()) for run in runs) == 8  # four pairs of answers
    assert all(9 not in responses[run] for run in runs)
    if budget is not None:
        assert all((lengths[run].sum() if one_row else len(run) * lengths[run].max()) <= budget for run in runs)
    # Where all are pairs, answers are not looked at.
    for rank in range(2):
        plain, counted = passes(rank, None), passes(rank, np.full(90, 2))
        assert [run.tolist() for run in counted] == [run.tolist() for run in plain]
