"""Inspect a density on a data set: measure all that applies to it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from loglik.data import as_data
from loglik.data.dataset import Data
from loglik.data.store import Rows
from loglik.density import Density
from loglik.devices import fork_generators, resolve_device
from loglik.evaluation.scores import arguments
from loglik.hub import local_run
from loglik.inspection.cost import Cost, saved_bytes, sequence_cost
from loglik.inspection.counts import LayerCount, layer_counts
from loglik.inspection.equivariance import Translation, invariance_error, translation_error
from loglik.inspection.gradients import GradientFlow, gradient_flow
from loglik.inspection.layers import device_of, evaluating, first_tensor, hooked
from loglik.inspection.measured_fields import effective_field, measured_fields
from loglik.inspection.permutation import Permutation, permutation_errors
from loglik.inspection.receptive import ReceptiveField, receptive_fields
from loglik.missing import hot_deck
from loglik.networks.attention import SelfAttention
from loglik.recipes import RECIPES, build
from loglik.runs import Run, load

__all__ = ["Inspection", "inspect", "load_or_build"]

EXAMPLES = 16
MAX_HEAT_MAPS = 5


@dataclass
class Inspection:
    """The measurements of one density.

    Attributes:
        model: the name of the family.
        trained: whether the density is a run's.
        data: the data set that it was inspected on.
        examples: the number of examples that passed through the networks.
        counts: parameters, FLOPs and memory of each layer.
        saved_bytes: what a training step saves for the backward pass of one example, without the weights; None if the
            loss uses `torch.func`, which hides the saved tensors.
        flow: gradients over depth.
        fields: receptive fields of an image classifier's layers, with respect to the input of its features; else None.
        agreement: the number of these layers whose measured field equals the field by the formula.
        heat: effective fields of some of the layers, each (H, W).
        translation: the error of the last maps; None if there are no maps.
        invariance: relative change of features and logits when the images move by one pixel.
        permutations: errors of the first attention layer and of the last in a row; empty without attention.
        maps: attention weights at the first example, (H, T, S) for each self-attention layer.
        cost: time and memory against length; None without attention.
        left_out: the measurements that do not apply, each with its reason in a sentence.
    """

    model: str
    trained: bool
    data: Data
    examples: int
    counts: list[LayerCount]
    saved_bytes: float | None
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


def load_or_build(
    model: str,
    data: str | None = None,
    *,
    label: str | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> tuple[Run, Data]:
    """Load a run, or build an untrained density of a family, a run without a path; return it with its data.

    A family without data is built for digits. The density is on the device, of which `resolve_device` knows the names.

    Raises:
        ValueError: if `model` is neither a run nor a family, or there is no such device.
    """
    device = resolve_device(device)
    path = local_run(model)
    if (path / "config.yaml").is_file():
        run = load(path, device=device)
        return run, run.data_for(data, label=label)
    if model.partition(":")[0] not in RECIPES:
        what = "is not a run (it has no config.yaml)" if path.exists() else "is neither a run nor a model"
        raise ValueError(
            f"{model} {what}: pass a folder that `loglik fit` wrote, or one of the models {', '.join(RECIPES)}"
        )
    dataset = as_data(data or "digits", label=label, seed=seed)
    with fork_generators(device):
        torch.manual_seed(seed)
        density = build(model, dataset.spec).to(device)
        density.initialise(*arguments(density, dataset.train.x[: 2**12], _rows(dataset.train.y, 2**12)))
    return Run(density.eval(), dataset.spec, {"model": model}), dataset


def inspect(
    density: Density, data: Data, *, split: str | None = None, model: str = "", trained: bool = True, seed: int = 0
) -> Inspection:
    """Measure all that applies to a density, on the first examples of a split; the test split if None.

    Every density has parameters, FLOPs, memory, gradient flow and Jacobians. A classifier of images also has receptive
    fields and translation errors; a network with attention also has attention maps, permutation errors and a cost
    against length.
    """
    part, device = data.split(split or data.scored_split), device_of(density)
    x, y = hot_deck(part.x[:EXAMPLES]).to(device), _rows(part.y, EXAMPLES)
    event, context = arguments(density, x, y)

    def loss() -> Tensor:
        return density.loss(event, context)

    def loss_of_others() -> Tensor:
        return density.loss(*arguments(density, x.roll(1, 0), y))

    saved = _saved_bytes(density, loss, seed)
    inspection = Inspection(
        model=model or type(density).__name__.lower(),
        trained=trained,
        data=data,
        examples=len(x),
        counts=layer_counts(density, loss, batch=len(x), seed=seed),
        saved_bytes=None if saved is None else saved / len(x),
        flow=_flow(density, loss, loss_of_others, seed, hidden=saved is None),
    )
    if density.event == "y" and data.spec.kind == "image":
        _images(inspection, density, x, seed)
    else:
        inspection.left_out.append(
            "Receptive fields and translation errors apply to classifiers of images, and this is "
            f"{_what(density, data)}."
        )
    _attention(inspection, density, loss, seed)
    return inspection


def _saved_bytes(density: Density, loss: Any, seed: int) -> int | None:
    """Return the bytes saved for the backward pass; None if the loss uses `torch.func`."""
    with evaluating(density, seed):
        try:
            return saved_bytes(loss, (*density.parameters(), *density.buffers()))
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):
                raise
            return None


def _flow(density: Density, loss: Any, loss_of_others: Any, seed: int, *, hidden: bool) -> GradientFlow:
    if hidden:
        reason = "the loss computes derivatives by torch.func, which hides its layers"
        return GradientFlow([], 1.0, 1.0, "not measured", reason)
    if not any(True for _ in density.parameters()):
        return GradientFlow([], 1.0, 1.0, "not measured", "there are no weights to train by gradients")
    return gradient_flow(density, loss, first=_first_data_layer(density, loss, loss_of_others, seed), seed=seed)


def _images(inspection: Inspection, density: Any, x: Tensor, seed: int) -> None:
    """Measure receptive fields and translation errors, with respect to the input of the features."""
    with torch.no_grad(), evaluating(density):
        images = density.prepare(x) if density.prepare is not None else x.float()
    network = nn.Sequential(OrderedDict(features=density.features, head=density.head))
    inspection.fields = receptive_fields(network, images)
    measured = measured_fields(network, images, draws=2, seed=seed)
    inspection.agreement = sum(measured.get(f.layer) == f.seen for f in inspection.fields)
    growing: list[ReceptiveField] = []
    for f in inspection.fields:
        if len(f.shape) == 3 and f.jump is not None and (not growing or f.size > growing[-1].size):
            growing.append(f)
    step = max(1, -(-len(growing) // MAX_HEAT_MAPS))
    mixed = [f for f in inspection.fields if f.whole and f.jump is None]
    chosen = growing[::-1][::step][::-1] + mixed[:1]
    inspection.heat = {f.layer: effective_field(network, images, f.layer, draws=4, seed=seed) for f in chosen}
    inspection.translation = translation_error(network, images, seed=seed)
    if inspection.translation is None:
        inspection.left_out.append(
            "Translation errors apply to layers whose outputs are maps, and the first layer flattens the image."
        )
    inspection.invariance = {
        "features": invariance_error(density.features, images),
        "logits": invariance_error(network, images),
    }


def _attention(inspection: Inspection, density: Density, loss: Any, seed: int) -> None:
    """Record the attention maps, and measure permutation errors and the cost against length."""

    def before(name: str, module: nn.Module, inputs: Any) -> None:
        args, _ = inputs
        if isinstance(module, SelfAttention):
            inspection.maps[name] = module.maps(args[0][:1], *(_first_example(value) for value in args[1:3]))[0].cpu()

    with torch.no_grad(), evaluating(density, seed), hooked(density, before=before):
        loss()
    inspection.permutations = permutation_errors(density, loss, seed=seed)
    if not inspection.permutations:
        inspection.left_out.append(
            "Permutation errors and the cost against length apply to attention, and this network has none."
        )
        return
    inspection.cost = sequence_cost(seed=seed)


def _first_data_layer(density: Density, loss: Any, loss_of_others: Any, seed: int) -> str | None:
    """Return the first layer whose output depends on the data, and not only on the time or the label."""
    runs: list[dict[str, Tensor]] = []
    for call in (loss, loss_of_others):
        outputs: dict[str, Tensor] = {}

        def after(name: str, module: nn.Module, inputs: Any, output: Any, outputs: Any = outputs) -> None:
            if any(True for _ in module.parameters()) and (out := first_tensor(output)) is not None:
                outputs[name] = out

        with torch.no_grad(), evaluating(density, seed), hooked(density, after=after):
            call()
        runs.append(outputs)
    return next((name for name, out in runs[0].items() if not torch.equal(out, runs[1].get(name, out))), None)


def _first_example(value: Any) -> Any:
    """Return the first example's part of a mask (B, 1, 1, S); a rotation is shared by all examples."""
    return value[:1] if isinstance(value, Tensor) and value.dim() == 4 else value


def _rows(y: Tensor | Rows | None, n: int) -> Tensor | None:
    return None if y is None else y[:n]


def _what(density: Density, data: Data) -> str:
    """Return what a density is, in words."""
    kind = {"image": "images", "table": "tables", "array": "arrays", "text": "text"}[data.spec.kind]
    return f"a classifier of {kind}" if density.event == "y" else f"a density of {kind}"
