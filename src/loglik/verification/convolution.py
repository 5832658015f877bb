r"""Convolutions (the notes, "Convolutional and deep networks"; autumn 2025, B1), layer by layer of a model.

A convolution of kernel k, stride s and dilation d from $C_{in}$ to $C_{out}$ channels is equivariant to translations,
$f(g(x)) = g(f(x))$, has $k^2 C_{in} C_{out} + C_{out}$ parameters, and sees $d (k - 1) + 1$ positions along an axis.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from loglik.classification import Classifier
from loglik.inspection import layer_counts, measured_fields, receptive_fields, translation_error
from loglik.verification.calls import Call, calls, loss_of
from loglik.verification.check import Finding, check
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["convolution_parameters", "receptive_field", "translation"]

SECTION = "Convolutional and deep networks"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
POOLINGS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ROUNDING = 1e-4


@check("translation", section=SECTION, statement=r"f(g(x)) = g(f(x))")
def translation(subject: Subject) -> Iterator[Finding]:
    """A convolution of a moved image is the moved convolution; padding shows at the border, and strides break it.

    Two windows of one random image, one position apart, go through each layer by itself. A convolution of stride 1 must
    give moved outputs where no padding is seen. With a stride above 1 the output is compared with the nearer of itself
    and itself moved by one, as no output lies between.
    """
    found = _of_maps(calls(subject, (*CONVOLUTIONS, *POOLINGS), what="convolution or pooling"))
    whole = [c for c in found if isinstance(c.module, CONVOLUTIONS) and _stride(c.module) == 1]
    strided = [c for c in found if isinstance(c.module, CONVOLUTIONS) and _stride(c.module) > 1]
    pooled = [c for c in found if isinstance(c.module, POOLINGS) and _stride(c.module) > 1]
    if whole:
        errors = [_moved(call, subject.seed) for call in whole]
        computed = f"largest relative error away from the border, {_counted(len(whole))} of stride 1"
        yield Finding.equal(computed, max(inside for inside, _ in errors), 0, tolerance=ROUNDING)
        padded = [every for call, (_, every) in zip(whole, errors, strict=True) if any(_paddings(call.module))]
        if padded:
            yield Finding.reported("largest relative error with the border, where padding shows", max(padded))
    for words, some in (("a convolution with a stride above 1", strided), ("a pooling with a stride above 1", pooled)):
        if some:
            error = max(_moved(call, subject.seed)[0] for call in some)
            yield Finding.reported(f"largest relative error of {words}, moved by one position", error)
    if isinstance(subject.density, Classifier) and subject.data.spec.kind == "image":
        yield from _network_moved(*_images(subject), subject.seed)


@check("convolution-parameters", section=SECTION, statement=r"k^2 C_{in} C_{out} + C_{out}")
def convolution_parameters(subject: Subject) -> Iterator[Finding]:
    """The number of parameters of a convolution, by its formula and by count, beside that of a dense layer."""
    found = {n: m for n, m in subject.density.named_modules() if isinstance(m, (*CONVOLUTIONS, *TRANSPOSED))}
    if not found:
        raise DoesNotApply("this model has no convolution")
    plain = {name: module for name, module in found.items() if not is_parametrized(module)}
    if not plain:
        raise DoesNotApply("the weights of all convolutions of this model are computed from other parameters")
    wrong = {name: abs(sum(p.numel() for p in m.parameters()) - _formula(m)) for name, m in plain.items()}
    worst = max(wrong, key=lambda name: wrong[name])
    what = f"largest |count - formula|, {_counted(len(plain))}, at {worst}"
    yield Finding.equal(what, wrong[worst], 0)
    rows = [row for row in layer_counts(subject.density, loss_of(subject, 2)) if row.layer.split("#")[0] in plain]
    dense = [row for row in rows if row.dense_parameters is not None]
    if dense:
        yield Finding.reported(
            f"parameters of {_counted(len(dense))} that ran", float(sum(row.parameters for row in dense))
        )
        total = sum(row.dense_parameters or 0 for row in dense)
        yield Finding.reported("parameters of dense layers between the same inputs and outputs", float(total))


@check("receptive-field", section=SECTION, statement=r"RF_l = RF_{l-1} + (k_l - 1) \prod_{i=1}^{l-1} s_i")
def receptive_field(subject: Subject) -> Iterator[Finding]:
    """The receptive field by the recursion is the set of positions at which the gradient is not zero.

    Each convolution by itself sees $d (k - 1) + 1$ positions, one of masked weights at most as many. In a classifier of
    images the recursion is followed through the whole network, with its border.
    """
    found = _of_maps(calls(subject, CONVOLUTIONS, what="convolution"))
    own = [call for call in found if type(call.module) in CONVOLUTIONS]
    other = [call for call in found if type(call.module) not in CONVOLUTIONS]
    if own:
        wrong = max(max(abs(a - b) for a, b in _fields(call)) for call in own)
        yield Finding.equal(
            f"largest |gradients - formula| in positions, {_counted(len(own))}, each by itself", wrong, 0
        )
    if other:
        beyond = max(max(a - b for a, b in _fields(call)) for call in other)
        yield Finding.at_most(
            f"largest gradients - formula in positions, {_counted(len(other))} of other classes", beyond, 0
        )
    if isinstance(subject.density, Classifier) and subject.data.spec.kind == "image":
        network, images = _images(subject)
        fields = receptive_fields(network, images)
        try:
            measured = measured_fields(network, images, draws=2, seed=subject.seed)
        except RuntimeError:  # gradients are measured in float64, in which not every network runs
            return
        differ = sum(measured.get(field.layer) != field.seen for field in fields)
        yield Finding.equal(f"layers of {len(fields)} whose fields differ, recursion against gradients", differ, 0)
        growing = [field for field in fields if field.jump is not None]
        if growing:
            last = max(growing, key=lambda field: field.size)
            yield Finding.reported(f"largest field by the recursion in pixels, {last.layer}", float(max(last.size)))


def _of_maps(found: list[Call]) -> list[Call]:
    """The calls on a batch of maps (B, C, ...): a user's own classes may receive something else."""

    def plain(call: Call) -> bool:
        channels = getattr(call.module, "in_channels", call.x.shape[1] if call.x.dim() > 1 else 0)
        return call.x.dim() == _dims(call.module) + 2 and call.x.shape[1] == channels

    kept = [call for call in found if plain(call)]
    if not kept:
        raise DoesNotApply("no convolution of this model receives maps with its channels behind the batch")
    return kept


def _images(subject: Subject) -> tuple[nn.Module, Float[Tensor, "B C H W"]]:
    """The features and the head of a classifier of images as one network, and what it receives."""
    density = subject.density
    assert isinstance(density, Classifier) and subject.context is not None
    with subject.drawing():
        x = subject.context[:4]
        images = density.prepare(x) if density.prepare is not None else x.float()
    return nn.Sequential(OrderedDict(features=density.features, head=density.head)), images


def _network_moved(network: nn.Module, images: Tensor, seed: int) -> Iterator[Finding]:
    if images.dim() != 4:
        return
    found = translation_error(network, images, seed=seed)
    if found is None:
        return
    where = f"of {found.layer}, moved by its total stride of {found.shift[0]}"
    if found.inside is not None:
        yield Finding.equal(f"relative error {where}, away from the border", found.inside, 0, tolerance=ROUNDING)
    yield Finding.reported(f"relative error {where}, with the border", found.everywhere)


def _moved(call: Call, seed: int) -> tuple[float, float]:
    """The relative errors of a layer by itself for a translation by one position: away from the border, and in all."""
    module = call.module
    dims = call.x.dim() - 2
    stride = _stride(module)
    margins = [n + p for n, p in zip(_extents(module), _paddings(module), strict=True)]
    sides = [2 * n + 8 * stride for n in margins]
    generator = torch.Generator().manual_seed(seed)
    large = torch.randn(2, call.x.shape[1], *(side + 1 for side in sides), generator=generator).to(call.x)
    still, moved = (_at(large, [slice(i, i + n) for n in sides]) for i in (1, 0))
    with torch.no_grad():
        a, b = module(still), module(moved)  # b shows the same one position further on
    inner = [slice(n // stride + 1, -(n // stride) - 1) for n in margins]
    before, after = [slice(None, -1)] * dims, [slice(1, None)] * dims
    if stride == 1:
        a, b = _at(a, before), _at(b, after)
        return _relative(_at(a, inner), _at(b, inner)), _relative(a, b)
    nearer = min(_relative(_at(a, inner), _at(b, inner)), _relative(_at(a, before), _at(b, after)))
    return nearer, _relative(a, b)


def _at(x: Tensor, parts: Sequence[slice]) -> Tensor:
    """Slices of the last dimensions."""
    index: tuple[Any, ...] = (..., *parts)
    return x[index]


def _fields(call: Call) -> list[tuple[int, int]]:
    """Along each axis the number of positions that a layer sees, by gradients and by the formula."""
    module, extent = copy.deepcopy(call.module), _extents(call.module)
    stride = _stride(module)
    x = torch.zeros(1, call.x.shape[1], *(4 * n + 4 * stride for n in extent))
    (hull,) = list(measured_fields(module, x, draws=1).values())[-1:]
    if hull is None:
        return [(0, n) for n in extent]
    return [(last - first + 1, n) for (first, last), n in zip(hull, extent, strict=True)]


def _formula(module: nn.Module) -> int:
    kernel: tuple[int, ...] = module.kernel_size  # type: ignore[assignment]
    inputs, outputs, groups = int(module.in_channels), int(module.out_channels), int(module.groups)  # type: ignore[arg-type]
    return math.prod(kernel) * inputs * outputs // groups + (outputs if module.bias is not None else 0)


def _extents(module: nn.Module) -> list[int]:
    """d (k - 1) + 1 along each axis."""
    dims = _dims(module)
    kernel, dilation = _values(module.kernel_size, dims), _values(getattr(module, "dilation", 1), dims)
    return [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]


def _paddings(module: nn.Module) -> list[int]:
    if isinstance(module.padding, str):
        return _extents(module) if module.padding == "same" else [0] * _dims(module)
    return _values(module.padding, _dims(module))


def _dims(module: nn.Module) -> int:
    """The number of axes that a convolution or a pooling slides along."""
    kinds = (*CONVOLUTIONS, *POOLINGS)
    return next(n for n in (1, 2, 3) if isinstance(module, tuple(k for k in kinds if k.__name__.endswith(f"{n}d"))))


def _values(value: object, dims: int) -> list[int]:
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * dims  # type: ignore[call-overload]


def _stride(module: nn.Module) -> int:
    return max(_values(module.stride, 1))


def _counted(layers: int) -> str:
    return f"{layers} convolution{'s' * (layers > 1)}"


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.cpu().double(), b.cpu().double()
    return float((a - b).norm() / a.norm().clamp_min(1e-30))
