"""Batches: their order is a function of (seed, epoch), and they are at most the data."""

import torch

from helpers.training import REAL, Drift, flow, settings
from loglik.data.dataset import Split
from loglik.training import fit
from loglik.training.batches import Batches


def test_a_subset_is_evenly_spaced_with_its_labels() -> None:
    split = Split(torch.arange(10), torch.arange(10) % 3)
    subset = split.evenly(4)
    assert subset.x.tolist() == [0, 3, 6, 9] and subset.y.tolist() == [0, 0, 0, 0]
    assert split.evenly(10).x.tolist() == list(range(10)) and Split(split.x).evenly(100).y is None


def test_the_order_of_the_data_is_a_function_of_seed_and_epoch(monkeypatch) -> None:
    batches: list[list[int]] = []
    rows_of = Batches.rows

    def recorded(self, step):
        batches.append(rows_of(self, step).tolist())
        return rows_of(self, step)

    monkeypatch.setattr(Batches, "rows", recorded)

    def order(**changes) -> list[list[int]]:
        batches.clear()
        fit(Drift(), REAL, settings=settings(max_steps=10, **changes))
        return [[row for batch in batches[start : start + 5] for row in batch] for start in (0, 5)]  # two epochs

    first, second = order()
    assert sorted(first) == sorted(second) == list(range(160))
    assert first != second
    assert order(learning_rate=1e-4, precision="bf16-mixed") == [first, second]
    assert order(seed=1)[0] not in (first, second)


def test_a_batch_is_at_most_the_data() -> None:
    run = fit(flow(), REAL[:20], max_steps=3, batch_size=1000)
    assert run.steps == 3
    assert fit(flow(), REAL[:20], max_epochs=2, batch_size=1000).steps == 2
    assert fit(flow(), REAL[:20], max_epochs=2, batch_size=5).steps == 6
