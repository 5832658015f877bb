"""How the device changes a recipe: precision, size, batch and learning rate on a CUDA GPU. All its numbers are here.

A recipe's own settings suit a few CPU cores, and stay on a CPU. A GPU is busy with more examples at once: each family's
batch grows by a factor that belongs to a GPU of 400 TFLOP/s, and to slower ones in proportion. The rate enters in
steps of a factor of four, so that it is the same whenever it is measured.
"""

from __future__ import annotations

import math
from typing import Any

from loglik.data.spec import DataSpec
from loglik.devices import DeviceInfo
from loglik.recipes.options import Size

__all__ = ["precision_for", "size_for", "training_for"]

BUSY_FLOPS = 400e12  # per second, in bfloat16: the GPU that the factors of batches belong to
BUSY_MEMORY = 2**35  # bytes of memory; with less, batches are smaller in proportion
GROWTH = {
    "classifier": 4,
    "diffusion": 8,
    "vae": 16,
    "flow": 16,
    "mixture": 16,
    "autoregressive": 32,
}  # largest factor of a batch
SMALL_GROWTH = 16  # of networks of dense layers
BUSY_TOKENS = 2**16  # positions of a sequence in a batch
MIN_STEPS_PER_EPOCH = 20  # a larger batch would leave fewer steps than the data suggest
MAX_RATE_GROWTH = 2.0  # of the learning rate: the square root of the batch's growth, at most this

MEDIUM_SECONDS = 60  # of training, and
MEDIUM_STEPS = 5000  # one of which a medium network needs to overtake a small one
MEDIUM_UNITS = {"image": 10_000, "text": 2**20}  # training images or tokens that a medium network does not memorise


def precision_for(family: str, spec: DataSpec, settings: dict[str, Any], *, on_gpu: bool) -> dict[str, Any]:
    """Return the recipe's settings, with bfloat16 for Transformers on a GPU.

    Flows and networks of dense layers keep float32: their steps are not limited by matrix products.
    """
    if on_gpu and (family == "autoregressive" or (family == "classifier" and spec.kind == "text")):
        return {**settings, "precision": "auto"}
    return settings


def size_for(
    family: str, spec: DataSpec, device: DeviceInfo, *, units: int, max_time: float | None, max_steps: int | None
) -> Size:
    """Return the size of the networks where none is set: medium on a fast GPU for enough data and time, else small.

    Args:
        family: its name, without a variant.
        units: number of training examples, or tokens of a text.
        max_time, max_steps: the limits of the training; None for no limit.
    """
    if device.kind != "cuda" or _scale(device) < 1 or family not in GROWTH or family == "flow":
        return "small"
    enough = units >= MEDIUM_UNITS.get(spec.kind, math.inf)
    long = (max_time or 0) >= MEDIUM_SECONDS if max_time is not None else (max_steps or 0) >= MEDIUM_STEPS
    return "medium" if enough and long else "small"


def training_for(
    family: str, spec: DataSpec, settings: dict[str, Any], device: DeviceInfo, *, examples: int
) -> dict[str, Any]:
    """Return the recipe's settings with the device's batch, and the learning rate that goes with it.

    Args:
        family: its name, without a variant.
        settings: the recipe's, which suit a CPU.
        examples: number of training examples; of a text, the windows that fit side by side.
    """
    if device.kind != "cuda" or "batch_size" not in settings:
        return settings
    batch = settings["batch_size"]
    growth: float = GROWTH[family] if "precision" in settings or family == "flow" else SMALL_GROWTH
    if family == "autoregressive":
        growth = min(growth, BUSY_TOKENS // (batch * spec.dims))
    growth = growth * min(1.0, _scale(device)) * min(1.0, device.memory / BUSY_MEMORY)
    growth = min(growth, examples / (MIN_STEPS_PER_EPOCH * batch))
    factor = 2 ** math.floor(math.log2(growth)) if growth >= 1 else 1
    rate = settings["learning_rate"] * min(MAX_RATE_GROWTH, math.sqrt(factor))
    return {**settings, "batch_size": batch * factor, "learning_rate": rate}


def _scale(device: DeviceInfo) -> float:
    """Return the device's rate beside `BUSY_FLOPS`, as a power of 4."""
    return 4.0 ** round(math.log(max(device.flops, 1.0) / BUSY_FLOPS, 4))
