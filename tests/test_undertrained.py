"""A run that was ended before it had learned what it can is told by its history."""

import numpy as np
import pytest
import torch

import loglik
from loglik.data.dataset import Data, Split, TextSplit
from loglik.data.spec import DataSpec
from loglik.data.windows import Stream, Windows
from loglik.density import StandardNormal
from loglik.runs import Run
from loglik.training import undertrained

TABLE = DataSpec(kind="array", event_shape=(2,))


def data_of(rows: int) -> Data:
    split = Split(torch.zeros(rows, 2))
    return Data("rows", TABLE, split, split, split)


def run_of(steps: int, nats: list[float], batch_size: int = 10, warmup: int = 0) -> Run:
    """A run with validations at even steps."""
    history = [{"step": steps * (i + 1) // len(nats), "validation_nats": value} for i, value in enumerate(nats)]
    config = {"training": {"batch_size": batch_size, "warmup": warmup}, "steps": steps}
    return Run(StandardNormal((2,)), TABLE, config, history)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (run_of(4, [-9.0, -8.0]), "it made 4 steps, 0.4 of an epoch"),
        (run_of(1, [-9.0]), "it made 1 step, 0.1 of an epoch"),
        (run_of(40, [-9.0, -9.0], warmup=50), "it ended after 40 steps, in the 50 of its learning rate's warm-up"),
        (run_of(40, [-9.0]), "it was validated once, after 40 steps"),
        (run_of(1000, [-20.0, -12.0, -10.0, -9.0, -8.0]), "its validation still rose by 1 nats per example"),
        (run_of(1000, [-20.0, -12.0, -9.0, -9.1, -8.6]), None),  # by less than the standard error
        (run_of(1000, [-20.0, -12.0, -7.0, -9.1, -8.6]), None),  # the best came earlier
        (run_of(0, []), None),  # nothing to train
    ],
)
def test_a_history_says_whether_it_is_finished(run, reason):
    found = undertrained(run, data_of(100), stderr=0.5)
    assert found is None if reason is None else found.startswith(f"undertrained: {reason}")


def test_an_epoch_of_a_text_is_in_tokens():
    """300 tokens are 3 steps of 10 windows of 10, of which there are 291; its history is in nats per window."""
    tokens = Windows(Stream(np.zeros(300, np.uint8), "uint8", 0, 300), 10, 1)
    spec = DataSpec(kind="text", event_shape=(10,), levels=256)
    data = Data("text", spec, TextSplit(tokens), TextSplit(tokens), TextSplit(tokens))
    assert undertrained(run_of(2, [-30.0, -30.0]), data, 0.1) == "undertrained: it made 2 steps, 0.67 of an epoch"
    assert undertrained(run_of(100, [-30.0, -29.5]), data, 0.1) is None
    assert "rose by 0.15 nats per token" in undertrained(run_of(100, [-30.0, -28.5]), data, 0.1)


def test_a_run_of_four_steps_is_undertrained():
    x = np.random.default_rng(0).normal(size=(200, 2))
    run = loglik.fit("flow", x, max_steps=4, progress=False, width=8, depth=1)
    assert undertrained(run, loglik.data.as_data(x), 0.1).startswith("undertrained: ")
    assert undertrained(loglik.fit("independent", x, progress=False), loglik.data.as_data(x), 0.1) is None
