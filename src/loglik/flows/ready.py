"""Ready-made flows, each a list of transforms from data to noise: `Flow(nsf(4), StandardNormal((4,)))`.

Vectors should be standardised (`transforms.Standardise`), images real numbers. With `context=E`, each network also
reads a vector (B, E). Apart from fixed rotations and permutations, the flows start at or near the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from loglik.flows.autoregressive import MaskedAutoregressive
from loglik.flows.continuous import Continuous
from loglik.flows.coupling import Coupling
from loglik.flows.elementwise import Elementwise
from loglik.flows.linear import ActNorm, LULinear, random_rotation
from loglik.flows.maps import Affine, Chain, Map, Spline
from loglik.flows.split import Split, Trim
from loglik.networks.conditioner import Conditioner
from loglik.networks.masked import MaskedMLP
from loglik.networks.mlp import MLP
from loglik.networks.pixels import PixelConditioner
from loglik.transforms import Permute, Reshape, Squeeze, Transform

__all__ = [
    "autoregressions",
    "continuous_flow",
    "couplings",
    "glow",
    "iaf",
    "maf",
    "nsf",
    "nsf_autoregressive",
    "real_nvp",
]

Option = int | float | tuple[int, ...]


def couplings(
    dims: int,
    map: Map,
    *,
    layers: int = 6,
    hidden: tuple[int, ...] = (128, 128),
    context: int = 0,
    dropout: float = 0.0,
) -> list[Transform]:
    """Return couplings with random masks in complementary pairs, the same at every call.

    A single dimension has no others to condition on, and gets an `Elementwise` map.
    """
    if dims == 1:
        network = Conditioner(context, map.parameters, hidden, dropout=dropout) if context else None
        return [Elementwise(dims, map, network=None if network is None else _zero_output(network))]
    transforms: list[Transform] = []
    for mask in _masks(dims, layers):
        moved = sum(mask)
        network = Conditioner(dims - moved, moved * map.parameters, hidden, context=context, dropout=dropout)
        transforms.append(Coupling(mask, _zero_output(network), map))
    return transforms


def autoregressions(
    dims: int,
    map: Map,
    *,
    layers: int = 5,
    hidden: tuple[int, ...] = (128, 128),
    context: int = 0,
    dropout: float = 0.0,
    inverse: bool = False,
) -> list[Transform]:
    """Return masked autoregressive transforms, with the order of the dimensions reversed between them."""
    transforms: list[Transform] = []
    for layer in range(layers):
        if layer and dims > 1:
            transforms.append(Permute(range(dims - 1, -1, -1)))
        network = MaskedMLP(dims, map.parameters, hidden, context=context, dropout=dropout)
        transforms.append(MaskedAutoregressive(_zero_output(network), map, inverse=inverse))
    return transforms


def real_nvp(dims: int, **options: Option) -> list[Transform]:
    """Return RealNVP (Dinh et al. 2017): affine couplings, with the options of `couplings`."""
    return couplings(dims, Affine(), **options)  # type: ignore[arg-type]


def nsf(dims: int, *, bins: int = 8, interval: float = 5.0, **options: Option) -> list[Transform]:
    """Return a neural spline flow of couplings (Durkan et al. 2019), with the options of `couplings`."""
    return couplings(dims, Spline(bins, interval), **options)  # type: ignore[arg-type]


def nsf_autoregressive(dims: int, *, bins: int = 8, interval: float = 5.0, **options: Option) -> list[Transform]:
    """Return an autoregressive neural spline flow (Durkan et al. 2019), with the options of `autoregressions`."""
    return autoregressions(dims, Spline(bins, interval), **options)  # type: ignore[arg-type]


def maf(dims: int, **options: Option) -> list[Transform]:
    """Return a masked autoregressive flow (Papamakarios et al. 2017), with the options of `autoregressions`."""
    return autoregressions(dims, Affine(), **options)  # type: ignore[arg-type]


def iaf(dims: int, **options: Option) -> list[Transform]:
    """Return an inverse autoregressive flow (Kingma et al. 2016), which samples in one pass.

    Options as of `autoregressions`.
    """
    return autoregressions(dims, Affine(), inverse=True, **options)  # type: ignore[arg-type]


def continuous_flow(
    dims: int,
    *,
    hidden: tuple[int, ...] = (64, 64),
    context: int = 0,
    steps: int = 8,
    probes: int | None = None,
) -> list[Transform]:
    """Return a continuous flow (Chen et al. 2018).

    With `probes` None, the trace is exact up to 8 dimensions and estimated with one probe beyond.
    """
    network = MLP(dims, dims, hidden, context=1 + context, activation=nn.Tanh)
    return [Continuous(_zero_output(network), steps=steps, probes=probes or (1 if dims > 8 else None))]


def glow(
    shape: Sequence[int],
    *,
    steps: int = 8,
    width: int = 64,
    scales: int = 3,
    context: int = 0,
    map: Map | None = None,
) -> list[Transform]:
    """Return Glow (Kingma and Dhariwal 2018) for images (C, H, W), from images to vectors.

    A scale is a squeeze, then `steps` times ActNorm, an invertible 1×1 convolution and a coupling. After each scale
    except the last, half of the channels is split off as noise. If sides are odd, the last row or column is trimmed
    first; scales that would need to squeeze odd sides later are left out.

    Args:
        shape: (C, H, W) of the events.
        steps: number of steps of each scale.
        width: number of hidden channels of the couplings' networks.
        scales: number of scales.
        context: E, the width of a context vector; 0 for none.
        map: of the couplings; affine if None.
    """
    channels, height, image_width = shape
    even = height - height % 2, image_width - image_width % 2
    if scales > 0 and min(even) > 0 and even != (height, image_width):
        inner = glow((channels, *even), steps=steps, width=width, scales=scales, context=context, map=map)
        border = Chain(Affine(), Spline(8, 5.0))
        network = PixelConditioner(channels, channels * border.parameters, max(1, width // 2))
        return [ActNorm(channels), Trim((channels, height, image_width), inner, network, border)]
    squeezable = scales > 0 and height % 2 == 0 and image_width % 2 == 0
    transforms: list[Transform] = []
    if squeezable:
        transforms.append(Squeeze(2))
        channels, height, image_width = 4 * channels, height // 2, image_width // 2
    map = map or Affine()
    for _ in range(steps if channels > 1 else 0):
        kept = channels // 2
        network = PixelConditioner(kept, (channels - kept) * map.parameters, width, context=context)
        mask = [c >= kept for c in range(channels)]
        transforms += [ActNorm(channels), LULinear(random_rotation(channels)), Coupling(mask, network, map)]
    if squeezable and scales > 1 and height % 2 == 0 and image_width % 2 == 0:
        half = channels // 2
        inner = glow((half, height, image_width), steps=steps, width=width, scales=scales - 1, context=context, map=map)
        network = PixelConditioner(half, 2 * (channels - half), width)
        return [*transforms, Split((channels, height, image_width), inner, network)]
    return [*transforms, Reshape((channels, height, image_width), (channels * height * image_width,))]


def _zero_output(network: nn.Module) -> nn.Module:
    """Set the output layer of a network to zero, so that the map starts as the identity."""
    for parameter in network.output.parameters():  # type: ignore[union-attr]
        nn.init.zeros_(parameter)
    return network


def _masks(dims: int, layers: int) -> list[list[bool]]:
    """Return random masks of half of the dimensions, each odd one the complement of the one before."""
    generator = torch.Generator().manual_seed(0)
    masks = []
    for layer in range(layers):
        if layer % 2 == 0:
            order = torch.randperm(dims, generator=generator)
        mask = torch.zeros(dims, dtype=torch.bool)
        mask[order[: dims // 2] if layer % 2 == 0 else order[dims // 2 :]] = True
        masks.append(mask.tolist())
    return masks
