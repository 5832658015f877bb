"""A graphed function is captured once for each shape and replayed, and gives what the function gives."""

import pytest
import torch

from helpers.graphs import fake_graphs
from loglik.graphs import MAX_GRAPHS, WARMUP, Graphed


def noisy(x, scale):
    return x * 2 + torch.randn_like(x), x.sum() if scale is None else scale * x.sum()


def test_a_replay_gives_what_the_function_gives_and_its_outputs_stay():
    graphed = Graphed(noisy)
    inputs = torch.randn(8, 3, 4)
    seen = []
    with fake_graphs() as fake, torch.no_grad():
        for number, x in enumerate(inputs):
            torch.manual_seed(number)
            seen.append(graphed(x, None))
    assert (fake.aside, fake.captures, fake.replays) == (WARMUP, 1, len(inputs) - WARMUP)
    for number, (x, outputs) in enumerate(zip(inputs, seen, strict=True)):
        torch.manual_seed(number)
        assert all(map(torch.equal, outputs, noisy(x, None)))


def test_each_shape_has_its_graph_up_to_a_limit():
    graphed = Graphed(lambda x: x + 1)
    with fake_graphs() as fake, torch.no_grad():
        for _ in range(WARMUP + 2):
            for size in range(1, MAX_GRAPHS + 3):
                x = torch.full((size,), float(size))
                assert torch.equal(graphed(x), x + 1)
    assert fake.captures == MAX_GRAPHS and fake.replays == 2 * MAX_GRAPHS


def test_a_failed_capture_is_reported_once_and_calls_are_plain():
    lines: list[str] = []
    graphed = Graphed(lambda x: x + 1, report=lines.append)
    with fake_graphs(fails=True) as fake, torch.no_grad():
        assert [graphed(torch.tensor(float(i))).item() for i in range(6)] == [1, 2, 3, 4, 5, 6]
    assert fake.captures == 1 and fake.replays == 0
    assert lines == [
        "no CUDA graph, each kernel is launched by itself: RuntimeError: operation not permitted when stream is "
        "capturing"
    ]


def test_an_error_of_the_function_itself_is_raised():
    def wrong(x):
        raise ValueError("wrong")

    graphed = Graphed(wrong)
    with fake_graphs(), torch.no_grad():
        for _ in range(WARMUP + 2):
            with pytest.raises(ValueError, match="wrong"):
                graphed(torch.zeros(1))


def test_calls_are_plain_with_gradients_within_a_capture_and_without_cuda():
    inner = Graphed(lambda x: x + 1)
    outer = Graphed(lambda x: inner(x) * 2)
    with fake_graphs() as fake:
        for _ in range(WARMUP + 2):
            x = torch.ones(2, requires_grad=True)
            inner(x).sum().backward()
            assert x.grad is not None
        assert fake.aside == 0
        with torch.no_grad():
            for _ in range(2 * WARMUP):
                assert outer(torch.ones(2)).tolist() == [4.0, 4.0]
    assert len(outer._graphs) == 1
    plain = Graphed(lambda x: x + 1)
    with torch.no_grad():
        for _ in range(WARMUP + 2):
            plain(torch.ones(1))
    assert not plain._graphs and not plain._calls
