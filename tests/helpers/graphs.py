"""CUDA graphs without CUDA: a capture records the function, and each replay calls it with the graph's own inputs.

As on a GPU, a capture changes nothing: what it computes is not there before the first replay, and tensors in `kept`
have their values from before.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from loglik import graphs


class FakeGraphs:
    """Count the plain calls, captures and replays."""

    def __init__(self, kept: Callable[[], Iterable[Tensor]], fails: bool) -> None:
        self.kept, self.fails = kept, fails
        self.aside = self.captures = self.replays = 0
        self.capturing = False

    def can_capture(self, device: torch.device) -> bool:
        return not self.capturing

    def run_on_side_stream(self, function, inputs):
        self.aside += 1
        return function(*inputs)

    def capture(self, function, inputs):
        self.captures += 1
        kept = list(self.kept())
        before, state = [t.detach().clone() for t in kept], torch.get_rng_state()
        self.capturing = True
        try:
            if self.fails:
                raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")
            outputs = function(*inputs)
        finally:
            self.capturing = False
            with torch.no_grad():
                for tensor, value in zip(kept, before, strict=True):
                    tensor.copy_(value)
            torch.set_rng_state(state)
        every = outputs if isinstance(outputs, tuple) else (outputs,)
        for output in every:
            output.fill_(-1)

        def replay() -> None:
            self.replays += 1
            again = function(*inputs)
            for output, value in zip(every, again if isinstance(again, tuple) else (again,), strict=True):
                output.copy_(value)

        return outputs, replay


@contextmanager
def fake_graphs(kept: Callable[[], Iterable[Tensor]] = tuple, *, fails: bool = False) -> Iterator[FakeGraphs]:
    fake = FakeGraphs(kept, fails)
    names = ("can_capture", "run_on_side_stream", "capture")
    with mock.patch.multiple(graphs, **{name: getattr(fake, name) for name in names}):
        yield fake
