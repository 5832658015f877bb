"""A progress bar for a training: step, speed, loss, validation nats and time left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import rich.progress as bars
from rich.console import Console

__all__ = ["Progress", "progress_bar"]


class Progress:
    """Show how a training proceeds; without a bar, show nothing."""

    def __init__(self, bar: bars.Progress | None = None, task: bars.TaskID | None = None) -> None:
        self.bar, self.task = bar, task
        self.nats: float | None = None

    def validated(self, nats: float) -> None:
        """Show the newest validation from now on, in nats per example."""
        self.nats = nats

    def update(self, fraction_done: float, step: int, elapsed: float, loss: float) -> None:
        """Show the fraction done, 0 to 1, the step, the seconds so far, and the loss in nats per example."""
        if self.bar is None or self.task is None:
            return
        text = f"step {step}  {step / max(elapsed, 1e-9):.0f}/s  loss {loss:.2f}"
        if self.nats is not None:
            text += f"  validation {self.nats:.2f} nats"
        left = elapsed * (1 - fraction_done) / fraction_done if fraction_done > 0 else 0.0
        self.bar.update(self.task, completed=min(fraction_done, 1.0), text=text, left=f"{left:.0f} s left")


@contextmanager
def progress_bar(name: str, show: bool | None = None) -> Iterator[Progress]:
    """Show a bar on the terminal; by default only if standard error is one."""
    if not (sys.stderr.isatty() if show is None else show):
        yield Progress()
        return
    columns = (
        bars.TextColumn("[bold]{task.description:<14}"),
        bars.BarColumn(bar_width=24),
        bars.TextColumn("{task.fields[text]}"),
        bars.TextColumn("[dim]{task.fields[left]}"),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Progress(bar, bar.add_task(name, total=1.0, text="", left=""))
