"""torch.compile for the regions of a density's loss, chosen by what it costs and gains.

`auto` leaves a CPU alone, where compiling takes longer than it saves within the usual limits. On a CUDA GPU a few plain
steps are timed. Where the steps left would save more time than compiling takes, the regions are compiled, timed as
well, and kept if they are faster. The noise is the same either way.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from statistics import median

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from loglik.checks import data_checked
from loglik.cpu.private import allow_compilations, keep_saved_tensors
from loglik.density import Density
from loglik.devices import fork_generators
from loglik.graphs import WARMUP, can_capture, capture, run_on_side_stream
from loglik.regions import COMPILER, compiled_regions, observed_regions

__all__ = ["Choice", "Loss", "choose_compilation", "compiler_settings"]

SECONDS_TO_START = 5.0  # of the compiler, and
SECONDS_PER_REGION = 5.0  # of each distinct region: both as a cold cache takes
EXPECTED_GAIN = 0.25  # of a step's time; 16 % to 73 % were measured
MIN_GAIN = 0.03  # of a step's time, below which compiled steps are not kept
MAX_COMPILATIONS = 64  # of one region's code; torch's limit of 8 is less than the shapes of a U-Net

Batch = tuple[Tensor, Tensor | None]


class Loss(nn.Module):
    """The loss as a forward pass, which data-parallel wrappers expect; compiled where `compiled` is true.

    The regions are compiled, or the whole loss if it has none.
    """

    def __init__(self, density: Density) -> None:
        super().__init__()
        self.density = density
        self.compiled, self.regions = False, 0
        self._whole: Callable[..., Tensor] | None = None

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        if not self.compiled:
            return self.density.loss(x, context)
        if self.regions:
            with compiled_regions():
                return self.density.loss(x, context)
        if self._whole is None:
            self._whole = torch.compile(self.density.loss, **COMPILER)
        return self._whole(x, context)


@dataclass(frozen=True)
class Choice:
    """Whether steps are compiled, a line that says why, and the seconds that choosing took."""

    compiled: bool
    line: str = ""
    seconds: float = 0.0


def choose_compilation(
    module: nn.Module,
    batch: Callable[[], Batch],
    fabric: Fabric,
    *,
    requested: bool | str,
    recorded: bool | None = None,
    seconds_left: Callable[[float], float] = lambda step: float("inf"),
    cuda_graph: bool = True,
) -> Choice:
    """Choose whether a training's steps are compiled, and compile them.

    Args:
        module: a `Loss`, as Fabric set it up. Weights and buffers are afterwards what they were.
        batch: returns the event and the context of a step; called only if steps may be compiled.
        fabric: the device and the ranks, which all follow the first.
        requested: the setting `compile`.
        recorded: the choice of the run that is resumed, which is made again; None for none.
        seconds_left: from the seconds of a step to the seconds of training left.
        cuda_graph: the setting: whether steps are to be replayed as a CUDA graph, and so are timed.
    """
    wanted = recorded if recorded is not None else None if requested == "auto" else bool(requested)
    if wanted is False or (wanted is None and not _may_pay(fabric.device)):
        return Choice(False)
    began = time.perf_counter()
    x, context = batch()
    loss = next(part for part in module.modules() if isinstance(part, Loss))

    def seconds() -> float:
        return fabric.broadcast(_seconds(step, fabric.device, cuda_graph))

    def step() -> None:
        with torch.enable_grad(), data_checked():
            fabric.backward(module(x, context))
        for parameter in module.parameters():
            parameter.grad = None

    with _kept_state(loss.density, fabric.device):
        loss.compiled = False
        with observed_regions() as seen:
            step()
        loss.regions = len(seen)
        compiled, line = _choose(loss, step, wanted, seconds, seconds_left)
    loss.compiled = compiled
    return Choice(compiled, line, time.perf_counter() - began)


def _choose(
    loss: Loss,
    step: Callable[[], None],
    wanted: bool | None,
    seconds: Callable[[], float],
    seconds_left: Callable[[float], float],
) -> tuple[bool, str]:
    """Return whether compiled steps are kept, and why."""
    count = max(1, loss.regions)
    what = f"{count} region{'s' * (count > 1)}"
    plain = 0.0
    if wanted is None:
        plain = seconds()
        left, cost = seconds_left(plain), SECONDS_TO_START + SECONDS_PER_REGION * count
        if EXPECTED_GAIN * left < cost:
            saved = f"about {EXPECTED_GAIN * left:.0f} s of the {left:.0f} s left"
            return False, f"not compiled: {what} would take about {cost:.0f} s to compile and save {saved}"
    began = time.perf_counter()
    loss.compiled = True
    try:
        step()
    except Exception as error:  # a missing compiler, or code that it does not accept
        why = " ".join(str(error).split())[:200]
        return False, f"not compiled: torch.compile failed, so steps run without it ({type(error).__name__}: {why})"
    compiling = f"compiled: {what} in {time.perf_counter() - began:.0f} s"
    if wanted is not None:
        return True, compiling
    compiled = seconds()
    if compiled > (1 - MIN_GAIN) * plain:
        return False, f"not compiled: a step takes {1e3 * compiled:.1f} ms compiled and {1e3 * plain:.1f} ms without"
    return True, f"{compiling}, a step takes {1e3 * compiled:.1f} ms instead of {1e3 * plain:.1f} ms"


@contextmanager
def compiler_settings(requested: bool | str, device: torch.device) -> Iterator[None]:
    """Set the compiler up for a training that may be compiled: right gradients, enough shapes, no warnings of its own.

    The compiler overwrites a part of some saved tensors before it reads the whole.
    """
    if requested is False or (requested == "auto" and not _may_pay(device)):
        yield
        return
    with warnings.catch_warnings(), keep_saved_tensors(), allow_compilations(MAX_COMPILATIONS):
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\._inductor")
        yield


def _may_pay(device: torch.device) -> bool:
    return device.type == "cuda"


@contextmanager
def _kept_state(density: Density, device: torch.device) -> Iterator[None]:
    """Restore a density's buffers and the random state at the end of a block."""
    buffers = [(buffer, buffer.clone()) for buffer in density.buffers()]
    density.train()
    with fork_generators(device):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _seconds(step: Callable[[], None], device: torch.device, cuda_graph: bool) -> float:
    """Return the seconds of a step, the median of five, once it is warm; as a replayed CUDA graph where it is to be."""

    def function(x: Tensor) -> Tensor:
        step()
        return x

    call = step
    if cuda_graph and can_capture(device):
        inputs = [torch.zeros((), device=device)]
        for _ in range(WARMUP):
            run_on_side_stream(function, inputs)
        with suppress(Exception):  # something in the step reads the host
            call = capture(function, inputs)[1]
    times = []
    for _ in range(6):
        _synchronize(device)
        began = time.perf_counter()
        call()
        _synchronize(device)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
