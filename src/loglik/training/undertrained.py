"""Whether a longer training would have improved a run."""

from __future__ import annotations

import math

from loglik.data.dataset import Data
from loglik.runs import Run

__all__ = ["undertrained"]

END = 0.2  # the last fifth of the steps, in which a run should no longer improve


def undertrained(run: Run, data: Data, stderr: float | None) -> str | None:
    """Return why a longer training would raise a run's number; None if its history does not show that.

    A run is undertrained if it made less than one epoch, if it ended in its learning rate's warm-up, if it was
    validated only once, or if its best validation in the last fifth of its steps is higher than the best before by
    more than `stderr`. The best validation of a run that early stopping ended comes earlier.

    Args:
        run: a run, with its history.
        data: its training data.
        stderr: the standard error of its number, in nats per example (per token of a text); 0 if None.
    """
    if not run.steps or not run.history:
        return None
    per = data.train.units_per_example  # nats of a history are per window
    settings = run.config["training"]
    batch = min(settings["batch_size"], len(data.train))
    epoch = max(1, data.train.size // (batch * per))
    steps = f"{run.steps:,} step{'s' * (run.steps > 1)}"
    if run.steps < epoch:
        return f"undertrained: it made {steps}, {run.steps / epoch:.2g} of an epoch"
    if run.steps <= settings["warmup"]:
        return f"undertrained: it ended after {steps}, in the {settings['warmup']} of its learning rate's warm-up"
    nats = [(row["step"] > (1 - END) * run.steps, row["validation_nats"] / per) for row in run.history]
    before, last = ([value for late, value in nats if late is end] for end in (False, True))
    if not before:
        return f"undertrained: it was validated once, after {steps}"
    rise = max(last, default=-math.inf) - max(before)
    if rise > (stderr or 0.0):
        unit = data.train.unit
        return f"undertrained: its validation still rose by {rise:.2g} nats per {unit} in the last fifth of its {steps}"
    return None
