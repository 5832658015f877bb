"""A second device without one: its tensors hold numbers on the CPU, and mixing them with the CPU's is an error.

It refuses what a GPU refuses: operations between tensors of both devices (other than tensors without dimensions),
indices on the device into a tensor on the CPU, and arrays of its tensors. It does not look inside calls into C++ and
torch.func, whose results have lost their device, and knows nothing of kernels, graphs and speed. Models are trained
before, on the CPU.
"""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("mps")  # only its name: of a CUDA device torch would look for the driver
ACROSS = (Tensor.copy_, Tensor.data.__set__, torch._has_compatible_shallow_copy_type)  # the last two: Module.to
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


def there(tensor: Tensor) -> bool:
    return getattr(tensor, "is_elsewhere", False)


class Elsewhere(TorchFunctionMode):
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
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if target is None:
            target = any(map(there, tensors))
            shaped = [t for t in tensors if t.dim()]
            if func in INDEXING:  # indices may be on the CPU
                shaped = [args[0], *(t for t in tree_leaves(args[1]) if isinstance(t, Tensor) and there(t)), *args[2:]]
                shaped = [t for t in shaped if isinstance(t, Tensor) and t.dim()]
            if len({there(t) for t in shaped}) > 1:
                raise RuntimeError(f"Expected all tensors to be on the same device: {func.__name__}")
        if func == Tensor.to:
            args = [torch.device("cpu") if isinstance(a, torch.device) else a for a in args]
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        out = func(*args, **kwargs)

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
