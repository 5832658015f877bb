"""A second device without one: its tensors hold numbers on the CPU, and mixing them with the CPU's is an error.

It refuses what a GPU refuses: operations between tensors of both devices (other than tensors without dimensions),
indices on the device into a tensor on the CPU, arrays of its tensors, and draws there from a generator of the CPU. It
does not look inside calls into C++ and torch.func, and knows nothing of kernels, graphs and speed.
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
def second_device() -> Iterator[None]:
    """The second device is there, and `fit` and the commands can be told to use it."""
    there = [torch.device("cpu"), DEVICE]
    with (
        Elsewhere(),
        mock.patch("loglik.devices.available_devices", lambda: there),
        mock.patch("loglik.training.fabric.Fabric", ElsewhereFabric),
    ):
        yield


class Elsewhere(TorchFunctionMode):
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
            if func == Tensor.data.__set__:
                args[0].is_elsewhere = there(args[1])
            return func(*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and there(args[0]):
            raise RuntimeError("can't convert a tensor elsewhere to numpy: call cpu() first")
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
