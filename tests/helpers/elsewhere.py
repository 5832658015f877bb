"""A second device without one: its tensors hold numbers on the CPU, and mixing them with the CPU's is an error.

It refuses what a GPU refuses: operations between tensors of both devices (other than tensors without dimensions),
indices on the device into a tensor on the CPU, arrays of its tensors, and draws there from a generator of the CPU. It
keeps a record of what a GPU waits for: each value that is read on the host, and each tensor that is copied between the
two devices; within `unattended` these are errors. It does not look inside calls into C++ and torch.func, and knows
nothing of kernels, graphs and speed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from loglik.cpu.private import transforms_active

DEVICE = torch.device("mps")  # only its name: of a CUDA device torch would look for the driver
ACROSS = (Tensor.copy_, Tensor.data.__set__, torch._has_compatible_shallow_copy_type)  # the last two: Module.to
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
READS = {  # on CUDA each waits for the value, or for a shape or an error flag that depends on values
    *(Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.equal, Tensor.__format__, Tensor.__contains__),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__),
    *(torch.nonzero, Tensor.nonzero, torch.argwhere, torch.masked_select, Tensor.masked_select),
    *(torch.equal, torch.allclose, torch.unique, torch.bincount, Tensor.bincount, torch.histc),
    *(torch.linalg.solve, torch.linalg.inv, torch.linalg.cholesky, torch.linalg.eigh, torch.linalg.svd),
}
MULTINOMIAL = (torch.multinomial, Tensor.multinomial)


def there(tensor: Tensor) -> bool:
    return getattr(tensor, "is_elsewhere", False)


def _copied_parameter(parameter, memo, copied=torch.nn.Parameter.__deepcopy__):
    copy = copied(parameter, memo)  # made in C++, which knows of no device
    copy.is_elsewhere = there(parameter)
    return copy


def _following(function, far=False):
    """A function, and those that it returns, whose results are on the second device where an argument is."""

    def followed(*args, **kwargs):
        here = far or any(there(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))

        def mark(leaf):
            if isinstance(leaf, Tensor):
                leaf.is_elsewhere = here
            return _following(leaf, here) if callable(leaf) and not isinstance(leaf, Tensor) else leaf

        return tree_map(mark, function(*args, **kwargs))

    return followed


class ElsewhereFabric(Fabric):
    """Fabric that trains on the second device where it is told to."""

    def __init__(self, *, accelerator: str, devices: int | str, **settings: Any) -> None:
        super().__init__(accelerator="cpu", devices=1, **settings)
        if accelerator == DEVICE.type:
            self._strategy._root_device = DEVICE
            self._accelerator.setup_device = lambda device: None


@contextmanager
def second_device() -> Iterator["Elsewhere"]:
    """The second device is there, and `fit` and the commands can be told to use it."""
    there = [torch.device("cpu"), DEVICE]
    with (
        Elsewhere() as mode,
        mock.patch("loglik.devices.available_devices", lambda: there),
        mock.patch("loglik.training.fabric.Fabric", ElsewhereFabric),
    ):
        yield mode


class Elsewhere(TorchFunctionMode):
    """The second device; `waits` has the name of each call so far that a GPU would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.alone = False

    @contextmanager
    def unattended(self) -> Iterator[None]:
        """Refuse whatever a GPU waits for, and what cannot be part of a CUDA graph."""
        self.alone = True
        try:
            yield
        finally:
            self.alone = False

    def wait(self, what: str) -> None:
        self.waits.append(what)
        if self.alone:
            raise RuntimeError(f"a GPU would wait for the host here: {what}")

    def __enter__(self):
        states = {"get_rng_state": lambda device: torch.empty(0), "set_rng_state": lambda state, device: None}
        self.patches = ExitStack()
        self.patches.enter_context(mock.patch.multiple(torch.mps, **states))  # it draws from the CPU's generator
        for module, name in ((torch.func, "vjp"), (torch, "vmap")):
            self.patches.enter_context(mock.patch.object(module, name, _following(getattr(module, name))))
        self.patches.enter_context(mock.patch.object(torch.nn.Parameter, "__deepcopy__", _copied_parameter))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.patches.close()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return DEVICE if there(args[0]) else torch.device("cpu")
        if func in ACROSS:
            if func == Tensor.copy_ and there(args[0]) != there(args[1]):
                self.wait("copy_ from the other device")
            if func == Tensor.data.__set__:
                args[0].is_elsewhere = there(args[1])
            return func(*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and there(args[0]):
            raise RuntimeError("can't convert a tensor elsewhere to numpy: call cpu() first")
        if what := _waits_for(func, args, kwargs):
            self.wait(what)
        target = self._target(func, args, kwargs)
        copied = func.__name__ == "__deepcopy__"  # its second argument holds the copies made before
        tensors = [t for t in tree_leaves(args[0] if copied else (args, kwargs)) if isinstance(t, Tensor)]
        if target is None:
            target = any(map(there, tensors))
            shaped = [t for t in tensors if t.dim()]
            if func in INDEXING:  # indices may be on the CPU
                shaped = [args[0], *(t for t in tree_leaves(args[1]) if isinstance(t, Tensor) and there(t)), *args[2:]]
                shaped = [t for t in shaped if isinstance(t, Tensor) and t.dim()]
            if len({there(t) for t in shaped}) > 1 and not transforms_active():
                raise RuntimeError(f"Expected all tensors to be on the same device: {func.__name__}")
        if func == Tensor.to:
            args = [torch.device("cpu") if isinstance(a, torch.device) else a for a in args]
        if target and kwargs.get("generator") is not None:
            raise RuntimeError(f"Expected a generator of the device, but found one of the CPU: {func.__name__}")
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        out = func(*args, **kwargs)
        if isinstance(out, torch.Size):
            return out

        def mark(tensor: Tensor) -> Tensor:
            if there(tensor) != target:
                tensor = tensor.view_as(tensor) if any(tensor is t for t in tensors) else tensor  # `to` may give itself
                tensor.is_elsewhere = target
            return tensor

        return tree_map_only(Tensor, mark, out)

    @staticmethod
    def _target(func, args, kwargs):
        """Where a call is told to put its result; None where it follows from the tensors."""
        if func == Tensor.cpu:
            return False
        device = kwargs.get("device")
        if func == Tensor.to and device is None:
            device = next((a for a in args[1:] if isinstance(a, (torch.device, str))), None)
            other = next((a for a in args[1:] if isinstance(a, Tensor)), None)
            if other is not None:
                return there(other)
        return None if device is None else torch.device(device) == DEVICE


def _waits_for(func, args, kwargs) -> str | None:
    """Say why a GPU would wait for the host in a call; None if it would not."""
    first = args[0] if args else None
    if func is torch.tensor or func is torch.as_tensor:
        device = kwargs.get("device")
        return "a tensor made of numbers" if device is not None and torch.device(device) == DEVICE else None
    if not isinstance(first, Tensor):
        return None
    if func == Tensor.to:
        target = Elsewhere._target(func, args, kwargs)
        return None if target in (None, there(first)) else f"to the {'second device' if target else 'CPU'}"
    if not there(first):
        return None
    if func == Tensor.new_tensor:
        return "a tensor made of numbers"
    if func in MULTINOMIAL:
        one_or_different = args[1] == 1 or not (kwargs.get("replacement") or (len(args) > 2 and args[2]))
        return "multinomial, which looks at the probabilities" if one_or_different else None
    if func in INDEXING:
        return _index_waits(args[1], *args[2:])
    if func.__name__ == "repeat_interleave" and isinstance(args[1], Tensor) and "output_size" not in kwargs:
        return "repeat_interleave without output_size"
    if func is torch.where and len(args) == 1:
        return "where"
    return func.__name__ if func in READS else None


def _index_waits(index, value=None) -> str | None:
    """Say why a GPU would wait for an index: for the shape of a selection, or for the index itself."""
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if isinstance(part, list):
            return "an index that is a list"
        if isinstance(part, Tensor) and part.dtype == torch.bool:
            fills = not isinstance(value, Tensor) or value.dim() == 0
            if value is None or not fills:
                return "an index of booleans"
        elif isinstance(part, Tensor) and part.dim() and not there(part):
            return "an index on the CPU"
    return None
