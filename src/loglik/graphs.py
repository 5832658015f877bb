"""CUDA graphs: a function's kernels are captured once for each shape of its inputs and launched together.

A GPU often waits for Python to launch small kernels. A graph launches all kernels of a function at once. On other
devices, and where a capture fails, the function is called as it is.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Graphed", "can_capture", "capture", "graphed", "run_on_side_stream"]

WARMUP = 3  # plain calls before a capture: they create optimizer states, workspaces and compiled code
MAX_GRAPHS = 8  # of one function; further shapes are called plainly, since each graph keeps memory

Inputs = Sequence[Tensor | None]


class Graphed:
    """A function of tensors that is captured once for each shape of its inputs, and replayed.

    The first calls with a shape are plain, on a side stream. A replay copies the inputs into the graph's own and
    returns copies of its outputs. Calls are plain on other devices than CUDA, where gradients are enabled (a replay has
    no autograd graph; a function that needs gradients inside enables them itself), and within another capture.

    Random numbers come from the device's default generator, which the graph knows: a seed set before a replay holds.

    Args:
        function: from tensors, or None, to a tensor or a tuple of tensors. It reads no value on the host, and does the
            same operations whenever the shapes of its inputs are the same. What changes between calls is in tensors.
        report: called with one line when a capture fails; all later calls are plain.
        enabled: False for plain calls only.
    """

    def __init__(
        self, function: Callable[..., Any], *, report: Callable[[str], None] = lambda line: None, enabled: bool = True
    ) -> None:
        self.function, self.report, self.enabled = function, report, enabled
        self._calls: dict[tuple[Any, ...], int] = {}
        self._graphs: dict[tuple[Any, ...], tuple[Inputs, Any, Callable[[], None]]] = {}

    def __call__(self, *inputs: Tensor | None) -> Any:
        device = next((x.device for x in inputs if x is not None), torch.device("cpu"))
        if not self.enabled or torch.is_grad_enabled() or not can_capture(device):
            return self.function(*inputs)
        key = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
        if key not in self._graphs:
            calls = self._calls[key] = self._calls.get(key, 0) + 1
            if calls <= WARMUP:
                return run_on_side_stream(self.function, inputs)
            if len(self._graphs) >= MAX_GRAPHS or not self._capture(key, inputs):
                return self.function(*inputs)
        static, outputs, replay = self._graphs[key]
        for own, new in zip(static, inputs, strict=True):
            if own is not None and new is not None:
                own.copy_(new)
        replay()
        return _map(torch.clone, outputs)

    def _capture(self, key: tuple[Any, ...], inputs: Inputs) -> bool:
        """Capture the function for inputs of a shape; return whether that succeeded."""
        static = [None if x is None else x.clone() for x in inputs]
        try:
            outputs, replay = capture(self.function, static)
        except Exception as error:  # a plain call raises it again if it is not the capture's
            self.enabled = False
            why = (str(error).splitlines() or [""])[0]
            self.report(f"no CUDA graph, each kernel is launched by itself: {type(error).__name__}: {why:.200}")
            return False
        self._graphs[key] = static, outputs, replay
        return True


class _Graphs:
    """The graphed functions of a module. A copy of the module begins without any."""

    def __init__(self) -> None:
        self.place: tuple[int, ...] = ()
        self.functions: dict[tuple[Any, ...], Graphed] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Graphs:
        return _Graphs()

    def __reduce__(self) -> tuple[type[_Graphs], tuple[()]]:
        return _Graphs, ()


def graphed(module: nn.Module, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a module for calls without gradients in evaluation mode: as a graph where there can be one.

    The module keeps the graph until its parameters or buffers move. Of each name the first function is kept, so what
    changes between calls must be an input, and the rest belong to the module.
    """
    if module.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function
    first = next(chain(module.parameters(), module.buffers()), None)
    if first is None or not can_capture(first.device):
        return function
    graphs: _Graphs = module.__dict__.setdefault("_graphs", _Graphs())
    place = tuple(tensor.data_ptr() for tensor in chain(module.parameters(), module.buffers()))
    if graphs.place != place:
        graphs.place, graphs.functions = place, {}
    device = first.device.type
    key = name, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return graphs.functions.setdefault(key, Graphed(function))


def can_capture(device: torch.device) -> bool:
    """Return whether a call on a device can be captured: on CUDA, outside another capture."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


def run_on_side_stream(function: Callable[..., Any], inputs: Inputs) -> Any:
    """Call a function on a side stream, as torch requires before a capture."""
    with torch.cuda.device(_device(inputs)):
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(here)
        with torch.cuda.stream(side):
            outputs = function(*inputs)
        here.wait_stream(side)
        _map(lambda output: output.record_stream(here), outputs)
    return outputs


def capture(function: Callable[..., Any], inputs: Inputs) -> tuple[Any, Callable[[], None]]:
    """Return a function's outputs and what computes them anew from the inputs' present values.

    A failed capture raises, and leaves the stream and the generator as they were.
    """
    device = _device(inputs)
    graph = torch.cuda.CUDAGraph()
    gc.collect()  # a tensor that is freed during a capture would fail it
    with torch.cuda.device(device):
        here, generator = torch.cuda.current_stream(), torch.cuda.default_generators[torch.cuda.current_device()]
        state = generator.clone_state()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # type: ignore[no-untyped-call]
                outputs = function(*inputs)
        except Exception:
            torch.cuda.set_stream(here)  # torch leaves the capture's stream in use, and its generator in capture
            generator.graphsafe_set_state(state)
            raise

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return outputs, replay


def _device(inputs: Inputs) -> torch.device:
    return next(x.device for x in inputs if x is not None)


def _map(function: Callable[[Tensor], Any], outputs: Any) -> Any:
    return tuple(map(function, outputs)) if isinstance(outputs, tuple) else function(outputs)
