"""A limit on what a stranger's configuration may build: modules and tensors are counted as they are registered.

A parameter is registered before it is filled, and memory is taken when it is filled. So a model that is larger than the
file of its weights is refused before it takes memory or time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks

__all__ = ["ModelTooLarge", "limit_size"]

MODULES_PER_TENSOR = 16  # activations, dropout and containers have no tensors
EXTRA_MODULES = 2**10
EXTRA_NUMBERS = 2**22  # masks and tables that are not stored; wrappers register a module's tensors again


class ModelTooLarge(ValueError):
    """A model has more modules or numbers than its file of weights."""


@contextmanager
def limit_size(shapes: Sequence[tuple[int, ...]]) -> Iterator[None]:
    """Raise `ModelTooLarge` where this thread builds modules that cannot be those of tensors with these shapes."""
    modules = EXTRA_MODULES + MODULES_PER_TENSOR * len(shapes)
    numbers = EXTRA_NUMBERS + 4 * sum(map(math.prod, shapes))
    thread, seen = threading.get_ident(), {"modules": 0, "numbers": 0}

    def count_module(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        if threading.get_ident() != thread:
            return
        seen["modules"] += 1
        if seen["modules"] > modules:
            raise ModelTooLarge(f"the model has over {modules:,} modules, and its weights are {len(shapes):,} tensors")

    def count_tensor(parent: nn.Module, name: str, value: Any) -> None:
        if threading.get_ident() != thread or not isinstance(value, Tensor):
            return
        count_module(parent, name, None)
        seen["numbers"] += value.numel()
        if seen["numbers"] > numbers:
            got = "×".join(map(str, value.shape)) or "1"
            raise ModelTooLarge(f"the model is larger than its weights: it has a tensor {name} of {got} numbers")

    with ExitStack() as stack:
        for register, hook in (
            (hooks.register_module_module_registration_hook, count_module),
            (hooks.register_module_parameter_registration_hook, count_tensor),
            (hooks.register_module_buffer_registration_hook, count_tensor),
        ):
            stack.callback(register(hook).remove)  # type: ignore[operator]
        yield
