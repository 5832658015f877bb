"""All that is measured of one density on one data set."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loglik.data import as_data
from loglik.data.dataset import Data
from loglik.density import Density
from loglik.evaluation.scores import arguments
from loglik.inspection.cost import Cost, held_bytes, sequence_cost
from loglik.inspection.counts import LayerCount, layer_counts
from loglik.inspection.equivariance import (
    Permutation,
    Translation,
    invariance_error,
    permutation_errors,
    translation_error,
)
from loglik.inspection.gradients import GradientFlow, gradient_flow
from loglik.inspection.layers import device_of, evaluating, first_tensor, hooked
from loglik.inspection.receptive import ReceptiveField, effective_field, measured_fields, receptive_fields
from loglik.networks.attention import SelfAttention
from loglik.recipes import RECIPES, build
from loglik.runs import load

__all__ = ["Inspection", "find", "inspect"]

EXAMPLES = 16
HEAT_MAPS = 5


@dataclass
class Inspection:
    """The tables of one density.

    Attributes:
        model, trained: the family's name, and whether it is a run's.
        data: what it was inspected on.
        examples: the number of examples that went through the networks.
        counts: parameters, FLOPs and memory of each layer.
        held: bytes that a training step holds for the backward pass of one example, weights not counted; None where
            the loss uses `torch.func`, which lets nobody see it.
        flow: gradients over depth.
        fields: receptive fields of an image classifier's layers, from its features' input; None for others.
        agreement: of how many of those layers the measured field is the propagated one.
        heat: effective fields of some of the layers, each (H, W).
        translation: of the last maps; None where there are none.
        invariance: relative change of features and logits when the images move by one pixel.
        permutations: errors of the first attention layer and of all in a row, empty where there is no attention.
        maps: attention weights at the first example, (H, T, S) for each layer that gives them.
        cost: of length; None where there is no attention.
        left_out: why what is missing does not apply, a sentence each.
    """

    model: str
    trained: bool
    data: Data
    examples: int
    counts: list[LayerCount]
    held: float | None
    flow: GradientFlow
    fields: list[ReceptiveField] | None = None
    agreement: int = 0
    heat: dict[str, Tensor] = field(default_factory=dict)
    translation: Translation | None = None
    invariance: dict[str, float] = field(default_factory=dict)
    permutations: list[Permutation] = field(default_factory=list)
    maps: dict[str, Tensor] = field(default_factory=dict)
    cost: list[Cost] | None = None
    left_out: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.counts)

    @property
    def flops(self) -> float:
        return sum(row.flops for row in self.counts)


def find(
    model: str, data: str | None = None, *, label: str | None = None, seed: int = 0
) -> tuple[Density, Data, str, bool]:
    """A run's density and its data, or an untrained one of a family for data (digits by default), its name, and
    whether it is a run's.

    Raises ValueError, in one line, where the word is neither a run nor a family.
    """
    path = Path(model)
    if (path / "config.yaml").is_file():
        run = load(path)
        return run.density, run.data_for(data, label=label), run.model, True
    if model.partition(":")[0] not in RECIPES:
        what = "is not a run (it has no config.yaml)" if path.exists() else "is neither a run nor a model"
        raise ValueError(
            f"{model} {what}: pass a folder that `loglik fit` wrote, or one of the models {', '.join(RECIPES)}"
        )
    held = as_data(data or "digits", label=label, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        density = build(model, held.spec)
        density.initialise(*arguments(density, held.train.x[: 2**12], _rows(held.train.y, 2**12)))
    return density.eval(), held, model, False


def inspect(
    density: Density, data: Data, *, split: str | None = None, model: str = "", trained: bool = True, seed: int = 0
) -> Inspection:
    """Measure all that applies to a density, on the first examples of a split; the held-out split if None.

    Parameters, FLOPs, memory, gradient flow and Jacobians of any; receptive fields and translations of a classifier of
    images; maps, permutations and the cost in length where there is attention.
    """
    part, device = data.split(split or data.scored_split), device_of(density)
    x, y = part.x[:EXAMPLES].to(device), _rows(part.y, EXAMPLES)
    event, context = arguments(density, x, y)

    def loss() -> Tensor:
        return density.loss(event, context)

    def other() -> Tensor:
        return density.loss(*arguments(density, x.roll(1, 0), y))

    held = _held(density, loss, seed)
    found = Inspection(
        model=model or type(density).__name__.lower(),
        trained=trained,
        data=data,
        examples=len(x),
        counts=layer_counts(density, loss, batch=len(x), seed=seed),
        held=None if held is None else held / len(x),
        flow=_flow(density, loss, other, seed, hidden=held is None),
    )
    if density.event == "y" and data.spec.kind == "image":
        _images(found, density, x, seed)
    else:
        found.left_out.append(
            f"Receptive fields and translations are measured of classifiers of images: this is {_what(density, data)}."
        )
    _attention(found, density, loss, seed)
    return found


def _held(density: Density, loss: Any, seed: int) -> int | None:
    with evaluating(density, seed):
        try:
            return held_bytes(loss, (*density.parameters(), *density.buffers()))
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):
                raise
            return None


def _flow(density: Density, loss: Any, other: Any, seed: int, *, hidden: bool) -> GradientFlow:
    if hidden:
        reason = "the loss differentiates inside itself by torch.func, which hides its layers"
        return GradientFlow([], 1.0, 1.0, "not measured", reason)
    if not any(True for _ in density.parameters()):
        return GradientFlow([], 1.0, 1.0, "not measured", "there are no weights to train by gradients")
    return gradient_flow(density, loss, first=_reader(density, loss, other, seed), seed=seed)


def _images(found: Inspection, density: Any, x: Tensor, seed: int) -> None:
    """Receptive fields and translations, from what the features take on."""
    with torch.no_grad(), evaluating(density):
        images = density.prepare(x) if density.prepare is not None else x.float()
    network = nn.Sequential(OrderedDict(features=density.features, head=density.head))
    found.fields = receptive_fields(network, images)
    measured = measured_fields(network, images, draws=2, seed=seed)
    found.agreement = sum(measured.get(f.layer) == f.seen for f in found.fields)
    growing: list[ReceptiveField] = []
    for f in found.fields:
        if len(f.shape) == 3 and f.jump is not None and (not growing or f.size > growing[-1].size):
            growing.append(f)
    step = max(1, -(-len(growing) // HEAT_MAPS))
    mixed = [f for f in found.fields if f.whole and f.jump is None]
    chosen = growing[::-1][::step][::-1] + mixed[:1]
    found.heat = {f.layer: effective_field(network, images, f.layer, draws=4, seed=seed) for f in chosen}
    found.translation = translation_error(network, images, seed=seed)
    if found.translation is None:
        found.left_out.append(
            "No layer gives maps that could move with the image: the pixels are one row from the start."
        )
    found.invariance = {
        "features": invariance_error(density.features, images),
        "logits": invariance_error(network, images),
    }


def _attention(found: Inspection, density: Density, loss: Any, seed: int) -> None:
    """Maps of each attention layer, permutations of its sequence, and what attention costs in length."""

    def before(name: str, module: nn.Module, inputs: Any) -> None:
        args, _ = inputs
        if isinstance(module, SelfAttention):
            found.maps[name] = module.maps(args[0][:1], *(_one(value) for value in args[1:3]))[0].cpu()

    with torch.no_grad(), evaluating(density, seed), hooked(density, before=before):
        loss()
    found.permutations = permutation_errors(density, loss, seed=seed)
    if not found.permutations:
        found.left_out.append("Permutations and the cost in length are those of attention: this network has none.")
        return
    found.cost = sequence_cost(seed=seed)


def _reader(density: Density, loss: Any, other: Any, seed: int) -> str | None:
    """The first layer whose output depends on the data, and not on the time or the label alone."""
    runs: list[dict[str, Tensor]] = []
    for call in (loss, other):
        seen: dict[str, Tensor] = {}

        def after(name: str, module: nn.Module, inputs: Any, output: Any, seen: dict[str, Tensor] = seen) -> None:
            if any(True for _ in module.parameters()) and (out := first_tensor(output)) is not None:
                seen[name] = out

        with torch.no_grad(), evaluating(density, seed), hooked(density, after=after):
            call()
        runs.append(seen)
    return next((name for name, out in runs[0].items() if not torch.equal(out, runs[1].get(name, out))), None)


def _one(value: Any) -> Any:
    """A mask (B, 1, 1, S) of the first example; a rotation is one for all."""
    return value[:1] if isinstance(value, Tensor) and value.dim() == 4 else value


def _rows(y: Tensor | None, n: int) -> Tensor | None:
    return None if y is None else y[:n]


def _what(density: Density, data: Data) -> str:
    kind = {"image": "images", "table": "tables", "array": "arrays", "text": "text"}[data.spec.kind]
    return f"a classifier of {kind}" if density.event == "y" else f"a density of {kind}"
