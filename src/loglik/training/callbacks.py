"""Callbacks: code of the user that a training calls, and that may stop it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_fabric import Fabric

from loglik.density import evaluation_mode
from loglik.runs import Run

__all__ = ["Callback", "Callbacks", "StopTraining"]

STEPS_BETWEEN_AGREEMENTS = 16  # on several ranks, which stop at the same step


class StopTraining(Exception):
    """Raised by a callback to stop the training; it ends as it does at its limit."""


class Callback:
    """What `fit(..., callbacks=[...])` calls on the first rank; override what you need.

    Each method gets the number of steps made, metrics by name, and the run so far: `run.density` has the weights that
    validations score (the moving average, where there is one), `run.history` a row per validation. The run is for
    reading. A callback stops the training by returning True or raising `StopTraining`; a validation follows, and the
    run has the best weights. What it draws from torch's global generator changes nothing.

    >>> class Until(Callback):
    ...     def on_validation(self, step, metrics, run):
    ...         return metrics["validation_nats"] > -100
    """

    def on_step(self, step: int, metrics: Mapping[str, float], run: Run) -> bool | None:
        """Called after each step, with `loss` in nats per example, `learning_rate` and `time` in seconds.

        On a GPU, the loss is the newest that has arrived: training does not wait for it.
        """

    def on_validation(self, step: int, metrics: Mapping[str, float], run: Run) -> bool | None:
        """Called after each validation, with the fields of `loglik.runs.METRICS`."""

    def on_end(self, step: int, metrics: Mapping[str, float], run: Run) -> None:
        """Called once after the training, with the last validation's metrics and the finished run."""


class Callbacks:
    """Call callbacks on the first rank, and let all ranks agree on when to stop.

    Args:
        callbacks: in the order in which they are called.
        fabric: the ranks.
    """

    def __init__(self, callbacks: Sequence[Any], fabric: Fabric) -> None:
        self.callbacks = tuple(callbacks)
        if wrong := [c for c in self.callbacks if not isinstance(c, Callback)]:
            raise ValueError(f"callbacks must be instances of loglik.training.Callback, got {wrong[0]!r:.100}")
        self.fabric = fabric
        self.stopped = False

    def on_step(self, step: int, metrics: Mapping[str, float], run: Run) -> None:
        self._call(run, lambda callback: callback.on_step(step, metrics, run))

    def on_validation(self, step: int, metrics: Mapping[str, float], run: Run) -> None:
        self._call(run, lambda callback: callback.on_validation(step, metrics, run))

    def on_end(self, step: int, metrics: Mapping[str, float], run: Run) -> None:
        self._call(run, lambda callback: callback.on_end(step, metrics, run))

    def stop_at(self, step: int) -> bool:
        """Return whether training stops after this step, the same on every rank."""
        if not self.callbacks or self.fabric.world_size == 1:
            return self.stopped
        if step % STEPS_BETWEEN_AGREEMENTS == 0:
            self.stopped = self.fabric.broadcast(self.stopped)
            return self.stopped
        return False

    def _call(self, run: Run, method: Callable[[Callback], bool | None]) -> None:
        if not (self.callbacks and self.fabric.is_global_zero):
            return
        with evaluation_mode(run.density):  # a callback's evaluation must not move the statistics of a batch norm
            for callback in self.callbacks:
                try:
                    self.stopped |= bool(method(callback))
                except StopTraining:
                    self.stopped = True
