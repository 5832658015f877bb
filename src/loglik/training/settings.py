"""How a density is trained."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any

from loglik.recipes.options import check_types

__all__ = ["TrainingSettings", "seconds"]


OPTIMIZERS = ("adamw", "sgd", "muon")


def seconds(text: str | float) -> float:
    """A time as `45s`, `5m`, `1h`, or a number of seconds.

    >>> seconds("5m")
    300.0
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(text))
    if not match or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is not a time: write 45s, 5m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of `fit`.

    Attributes:
        max_steps, max_epochs, max_time: where training ends, whichever comes first; max_time in seconds.
            2,000 steps if none is given.
        batch_size: examples a step, over all ranks.
        optimizer: `adamw`; `sgd` with Nesterov's `momentum`; or `muon` for the hidden layers' matrices and kernels,
            scaled so that AdamW's learning rates do, with AdamW for all else.
        learning_rate: after a linear warm-up of `warmup` steps; then a half cosine to 1 % of it.
        weight_decay: on matrices; biases, norms and other vectors are spared.
        gradient_clip: the largest gradient norm, in nats per dimension of the event.
        ema_decay: of the moving average of the weights, which is what validation sees and what is kept; 0 for none.
        patience: validations that are worse than the best, by more than the standard error of the difference, while
            training is better than it was then, before training stops; 0 never stops early.
        validate_every: steps between validations; an epoch, but 25 to 500 steps, if None. With `max_time` alone,
            validations come at 25 even times instead.
        seed: fixes the initial weights of a named model, the order of the data and the noise.
        precision, accelerator, devices, strategy, num_nodes: as Lightning Fabric takes them. `precision="auto"` is
            bf16-mixed where the device has instructions that multiply in bfloat16, else 32-true.
        compile: compile the loss with torch.compile: 5 to 60 s before the first step, which count as training time.
    """

    max_steps: int | None = None
    max_epochs: int | None = None
    max_time: float | None = None
    batch_size: int = 128
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
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    num_nodes: int = 1
    compile: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        above = (
            "max_steps",
            "max_epochs",
            "max_time",
            "validate_every",
            "learning_rate",
            "batch_size",
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
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {self.optimizer!r}: use {', '.join(OPTIMIZERS)}")

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in fields(cls)]

    def with_limit(self) -> TrainingSettings:
        """These settings, ending after 2,000 steps if they name no end."""
        if self.max_steps or self.max_epochs or self.max_time:
            return self
        return replace(self, max_steps=2000)

    def to_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}
