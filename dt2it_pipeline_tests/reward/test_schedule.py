from __future__ import annotations

import numpy as np
import pytest

from dt2it_pipeline.reward.schedule import Schedule, cosine_with_warmup, micro_batches


def test_every_epoch_shows_every_pair_once() -> None:
    schedule = Schedule(pairs=50, pairs_per_step=8, epochs=2, max_steps=None, seed=3)
    seen = np.concatenate([schedule.step(n) for n in range(schedule.steps)])
    assert len(seen) == schedule.presentations == 100
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
