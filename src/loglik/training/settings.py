"""The settings of a training."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any

from loglik.devices import resolve_device
from loglik.recipes.options import check_types

__all__ = ["TrainingSettings", "seconds", "with_device"]


OPTIMIZERS = ("adamw", "sgd", "muon")
PRECISIONS = ("auto", "32-true", "64-true", "bf16-mixed", "16-mixed")  # weights of 16 bits round small steps away
MAX_RANKS = 65_536


def seconds(text: str | float) -> float:
    """Return the seconds of a time such as `45s`, `5m`, `1h`, or of a number of seconds.

    >>> seconds("5m")
    300.0
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(text))
    if not match or not 0 < float(match[1]) < 1e9:
        raise ValueError(f"{text!r} is not a time: write 45s, 5m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def with_device(device: str | None, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the chosen settings with those of Lightning Fabric that stand for a device; `auto` and None add nothing.

    Raises ValueError for a device that this machine does not have, and where `chosen` names another.

    >>> with_device("cpu", {"max_steps": 5})
    {'max_steps': 5, 'accelerator': 'cpu'}
    """
    if device is None or device == "auto":
        return chosen
    resolve_device(device)
    kind, _, index = device.partition(":")
    named = {"accelerator": kind, **({"devices": f"{index},"} if index else {})}  # "1," is the device with number 1
    twice = [f"{name}=" for name in named if name in chosen]
    if twice:
        raise ValueError(f'device="{device}" chooses the device: leave out {" and ".join(twice)}')
    return {**chosen, **named}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of `fit`.

    Attributes:
        max_steps, max_epochs, max_time: training ends at the first of these limits; max_time is in seconds. Without a
            limit it ends after 2,000 steps.
        batch_size: examples per step, over all ranks and parts.
        accumulate: the number of parts in which each rank computes its examples of a step, one after the other; their
            gradients are averaged. More parts need less memory, and give the same weights to rounding.
        checkpoint: keep only the inputs of a network's repeated blocks for the backward pass, which computes the blocks
            again: less memory, about a third more time.
        optimizer: `adamw`; `sgd` with Nesterov's `momentum`; or `muon` for the hidden layers' matrices and kernels,
            scaled so that AdamW's learning rates suit it, with AdamW for all other parameters.
        momentum: of `sgd`.
        learning_rate: the learning rate after `warmup`; it then falls along a half cosine to 1 % of this.
        warmup: steps in which the learning rate rises linearly from 0.
        weight_decay: on matrices and kernels, not on biases, norms and other vectors.
        gradient_clip: the largest gradient norm, in nats per dimension of the event.
        ema_decay: decay of the moving average of the weights, which is evaluated and saved in place of the weights; 0
            for no average.
        patience: validations that show overfitting before training stops: worse than the best by more than the standard
            error of the difference, while training is better than it was at the best. 0 never stops early.
        validate_every: steps between validations; if None, an epoch, but between 25 and 500 steps. With `max_time`
            alone, there are 25 validations at even times instead.
        seed: fixes the initial weights of a named model, the order of the data and the noise.
        keep: the newest checkpoints that stay in a run's folder.
        precision, accelerator, devices, strategy, num_nodes: arguments of Lightning Fabric. `precision="auto"` is
            bf16-mixed if the device has instructions that multiply in bfloat16, else 32-true. `strategy="fsdp2"` gives
            each device a shard of the weights, gradients, optimizer states and average; `ddp`, all of them.
        compile: whether torch.compile compiles the repeated parts of the networks, which takes 5 to 60 s before the
            first step. These count as training time. `auto` compiles on a CUDA GPU where that saves more time within
            the limits than it takes.
        cuda_graph: on one CUDA GPU, capture the step as a graph after three steps and replay it, which launches all its
            kernels at once. Where that fails, training says so and continues without a graph.
    """

    max_steps: int | None = None
    max_epochs: int | None = None
    max_time: float | None = None
    batch_size: int = 128
    accumulate: int = 1
    checkpoint: bool = False
    optimizer: str = "adamw"
    momentum: float = 0.9
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.995
    patience: int = 10
    validate_every: int | None = None
    seed: int = 0
    keep: int = 2
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    num_nodes: int = 1
    compile: bool | str = "auto"
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        above = (
            "max_steps",
            "max_epochs",
            "max_time",
            "validate_every",
            "learning_rate",
            "batch_size",
            "accumulate",
            "keep",
            "gradient_clip",
        )
        for name in above:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("weight_decay", "patience", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("ema_decay", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r:.80}")
        for name in ("devices", "num_nodes"):
            if type(value := getattr(self, name)) is int and value > MAX_RANKS:
                raise ValueError(f"{name} must be at most {MAX_RANKS:,}, got {value}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {self.optimizer!r}: use {', '.join(OPTIMIZERS)}")
        if self.compile not in (True, False, "auto") or type(self.compile) is int:
            raise ValueError(f"compile must be true, false or auto, got {self.compile!r}")

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all settings."""
        return [f.name for f in fields(cls)]

    def with_limit(self) -> TrainingSettings:
        """Return these settings, with a limit of 2,000 steps if they have no limit."""
        if self.max_steps or self.max_epochs or self.max_time:
            return self
        return replace(self, max_steps=2000)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as config.yaml holds them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
