"""Training on the device `meta`, which has shapes and no numbers: a read on the host raises."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
FUSED = ("_fused_adamw_.tensor_lr", "_fused_sgd_.tensor_lr")


def _no_numbers(*args, **kwargs) -> None:
    """A fused step, which torch has not for this device: all that it uses must be there, so that no host is asked."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    assert all(tensor.is_meta for tensor in tensors), "an argument of a fused step is on the host"
    assert isinstance(kwargs["lr"] if "lr" in kwargs else args[-1], Tensor) and kwargs["found_inf"] is not None


@contextmanager
def meta_training() -> Iterator[Fabric]:
    """A Fabric that trains on `meta`, where torch's fused optimizers are allowed."""
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric._strategy._root_device = META
    fabric._accelerator.setup_device = lambda device: None
    library = torch.library.Library("aten", "IMPL")
    for name in FUSED:
        library.impl(name, _no_numbers, "Meta")
    with mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: ["meta"]):
        try:
            yield fabric
        finally:
            library._destroy()
