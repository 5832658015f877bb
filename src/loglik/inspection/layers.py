"""The layers of a network as they run: hooks on its modules, in the order of the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from loglik.cpu.private import tree_leaves
from loglik.density import evaluation_mode

__all__ = ["WHOLE", "device_of", "evaluating", "first_tensor", "hooked", "kind_of", "owners"]


WHOLE = "(network)"  # the name of the network itself among its layers
Before = Callable[[str, nn.Module, Any], Any]
After = Callable[[str, nn.Module, Any, Any], None]


@contextmanager
def hooked(network: nn.Module, *, before: Before | None = None, after: After | None = None) -> Iterator[None]:
    """Call `before` and `after` around the forward pass of every module.

    The calls are `before(name, module, inputs)` and `after(name, module, inputs, output)`. `inputs` are the positional
    and the keyword arguments; if `before` returns a value other than None, it replaces them. On its second call a
    module is named `name#2`, and so on. The network itself is `(network)`.
    """
    calls: dict[str, int] = {}

    def numbered(name: str) -> str:
        count = calls.get(name, 1)
        return (name or WHOLE) + (f"#{count}" if count > 1 else "")

    def hooks(name: str) -> tuple[Callable[..., Any], Callable[..., None]]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return None if before is None else before(numbered(name), module, (args, kwargs))

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if after is not None:
                after(numbered(name), module, (args, kwargs), output)

        return enter, leave

    handles: list[Any] = []
    for name, module in network.named_modules():
        enter, leave = hooks(name)
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(network: nn.Module, seed: int = 0) -> Iterator[None]:
    """Set the network to evaluation mode and seed the noise; restore both at the end."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it runs a Transformer's layer without its submodules
    try:
        device = device_of(network)
        with evaluation_mode(network), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's first parameter or buffer, or the CPU if it has neither."""
    return next((t.device for t in (*network.parameters(), *network.buffers())), torch.device("cpu"))


def owners(network: nn.Module, ran: Container[str]) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each layer that ran: the innermost that contains them, else `(network)`."""
    owned: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        owner = name.rpartition(".")[0]
        while owner and owner not in ran:
            owner = owner.rpartition(".")[0]
        owned.setdefault(owner or WHOLE, []).append(parameter)
    return owned


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor of a module's inputs or output."""
    return next((leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)), None)


def kind_of(module: nn.Module) -> str:
    """Return a layer's class, and the kernel, stride and dilation of a convolution or pooling, as text."""
    kind = type(module).__name__.lstrip("_")
    kernel = getattr(module, "kernel_size", None)
    if kernel is None:
        return kind
    parts = [kind, _size(kernel)]
    for letter, name in (("s", "stride"), ("d", "dilation")):
        value = _size(getattr(module, name, 1) or 1)
        if set(value.split("×")) != {"1"}:
            parts.append(f"{letter}{value}")
    return " ".join(parts)


def _size(value: Any) -> str:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return str(values[0]) if len(set(values)) == 1 else "×".join(map(str, values))
