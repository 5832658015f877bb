"""SIGINT and SIGTERM in a training: the step is finished and a checkpoint written, then the training ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = ["Interrupted", "StopRequest", "stop_request"]


class Interrupted(KeyboardInterrupt):
    """A signal ended a training after a step, whose checkpoint is in the run's folder.

    Attributes:
        number: of the signal, SIGINT or SIGTERM.
        step: steps made.
        path: the run's folder; None if the run was kept in memory, and is lost.
    """

    def __init__(self, number: int, step: int, path: Path | None) -> None:
        self.number, self.step, self.path = number, step, path
        kept = f"its checkpoint is in {path}" if path else "without out, nothing was kept"
        super().__init__(f"training was stopped by {signal.Signals(number).name} after step {step}: {kept}")


class StopRequest:
    """Hold the number of the signal that requested a stop; 0 if none came."""

    number = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; the second SIGINT raises KeyboardInterrupt at once."""
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM in this block instead of ending; restore their handlers at the end.

    Only the main thread can have handlers. Elsewhere, and where a program ignores a signal, nothing changes.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    for number in before:
        signal.signal(number, stop.receive)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
