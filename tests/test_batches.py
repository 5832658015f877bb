"""Batches: their order is a function of (seed, epoch), and they are at most the data."""

from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning_fabric import Fabric

from helpers.training import REAL, Drift, flow, settings
from loglik.data.dataset import Split
from loglik.training import fit
from loglik.training.batches import Batches
from loglik.training.prefetch import Prefetch


def test_a_subset_is_evenly_spaced_with_its_labels() -> None:
    split = Split(torch.arange(10), torch.arange(10) % 3)
    subset = split.evenly(4)
    assert subset.x.tolist() == [0, 3, 6, 9] and subset.y.tolist() == [0, 0, 0, 0]
    assert split.evenly(10).x.tolist() == list(range(10)) and Split(split.x).evenly(100).y is None


def test_the_order_of_the_data_is_a_function_of_seed_and_epoch(monkeypatch) -> None:
    batches: dict[int, list[int]] = {}
    rows_of = Batches.rows

    def recorded(self, step):
        batches[step] = rows_of(self, step).tolist()
        return rows_of(self, step)

    monkeypatch.setattr(Batches, "rows", recorded)

    def order(**changes) -> list[list[int]]:
        batches.clear()
        fit(Drift(), REAL, settings=settings(max_steps=10, **changes))
        return [[row for step in range(start, start + 5) for row in batches[step]] for start in (0, 5)]  # two epochs

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


class Stream:
    """A CUDA stream on the CPU: work is done at once."""

    def __init__(self, device=None) -> None:
        self.waited: list = []

    def wait_stream(self, other) -> None:
        self.waited.append(other)


def test_batches_that_do_not_fit_on_a_gpu_come_one_ahead(monkeypatch) -> None:
    here, loaded, kept = Stream(), [], []
    fakes = {"Stream": Stream, "current_stream": lambda device: here, "stream": lambda stream: nullcontext()}
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(**fakes))
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: kept.append(stream))

    def load(step):
        loaded.append(step)
        return torch.full((2,), step), None if step % 2 else torch.full((1,), 10 * step)

    prefetch = Prefetch(load, torch.device("cpu"))
    for number, step in enumerate([4, 5, 6, 2, 3], 1):
        x, y = prefetch.batch(step)
        assert x.tolist() == [step, step] and (y is None if step % 2 else y.item() == 10 * step)
        assert here.waited == [prefetch.stream] * number  # the step's kernels wait for the copy
        assert loaded[-1] == step + 1
    assert loaded == [4, 5, 6, 7, 2, 3, 4] and kept == [here] * 8


def test_ranks_have_slices_of_one_batch() -> None:
    split = Split(torch.arange(50))

    def fabric(rank, world):
        return Mock(spec=Fabric, device=torch.device("cpu"), global_rank=rank, world_size=world)

    whole = Batches(split, batch_size=12, seed=3, fabric=fabric(0, 1))
    parts = [Batches(split, batch_size=12, seed=3, fabric=fabric(rank, 3), accumulate=2) for rank in range(3)]
    for step in (0, 3, 4, 9):
        assert torch.equal(torch.cat([part.batch(step)[0] for part in parts]), whole.batch(step)[0])
    assert Batches(split, batch_size=99, seed=3, fabric=fabric(0, 3), accumulate=4).batch_size == 48
    with pytest.raises(ValueError, match=r"batch_size 50 must be a multiple of 51 \(51 devices\)"):
        Batches(split, batch_size=99, seed=3, fabric=fabric(0, 51))
    with pytest.raises(ValueError, match=r"batch_size 12 must be a multiple of 5 \(5 devices\)"):
        Batches(split, batch_size=12, seed=3, fabric=fabric(0, 5))
