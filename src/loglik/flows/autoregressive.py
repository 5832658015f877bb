"""Masked autoregressive flows, and their inverses (Papamakarios et al. 2017; Kingma et al. 2016)."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.cpu.threads import threads_for
from loglik.density import conditioned
from loglik.flows.maps import Map
from loglik.networks.dropout import fade_dropout
from loglik.networks.masked import MaskedMLP
from loglik.regions import region
from loglik.transforms.transform import Transform

__all__ = ["MaskedAutoregressive"]


class MaskedAutoregressive(Transform):
    r"""Map $z_d = f(x_d;\ \theta_d(x_{<d}, c))$: one pass to encode, D steps to decode.

    $\log\det = \sum_d \log \lvert \partial z_d / \partial x_d \rvert$.

    Args:
        network: from (B, D), and an optional context, to (B, D · P). The P parameters of dimension d are contiguous
            and depend only on the dimensions before d. A `MaskedMLP` is inverted at about the cost of one pass, any
            other network in D passes.
        map: the family of f, with P parameters.
        inverse: whether this is an inverse autoregressive flow: one pass to decode, D steps to encode.

    References: Papamakarios et al. 2017, "Masked Autoregressive Flow"; Kingma et al. 2016, "Improved variational
    inference with inverse autoregressive flow".
    """

    def __init__(self, network: nn.Module, map: Map, *, inverse: bool = False) -> None:
        super().__init__()
        self.network, self.map, self.inverse = network, map, inverse

    def initialise(self, x: Float[Tensor, "N D"]) -> None:
        fade_dropout(self.network, len(x))

    def encode(
        self, x: Float[Tensor, "B D"], context: Float[Tensor, "B E"] | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        return (self._sequential if self.inverse else self._parallel)(x, context)

    def decode(self, z: Float[Tensor, "B D"], context: Float[Tensor, "B E"] | None = None) -> Float[Tensor, "B D"]:
        return (self._parallel if self.inverse else self._sequential)(z, context)[0]

    @region
    def _parallel(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Float[Tensor, " B"]]:
        raw = conditioned(self.network, x, context)
        z, log_slope = self.map.encode(x.T.contiguous(), raw.T.reshape(x.shape[1], -1, len(x)))
        return z.T, log_slope.sum(0)

    def _sequential(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Float[Tensor, " B"]]:
        parameters: _Incremental
        if isinstance(self.network, MaskedMLP):
            parameters = self.network.incremental(len(z), context)
        else:
            parameters = _FullPasses(self.network, z, context)
        columns, log_slopes = [], []
        flops = 2 * len(z) * max([0, *(p.numel() for p in self.network.parameters())])  # of a layer
        with threads_for(flops // z.shape[1] if isinstance(self.network, MaskedMLP) else flops):
            for value in z.T.contiguous().unsqueeze(1):
                x, log_slope = self.map.decode(value, parameters.next().unsqueeze(0))
                parameters.append(x[0])
                columns.append(x)
                log_slopes.append(log_slope)
        return torch.cat(columns).T, torch.cat(log_slopes).sum(0)


class _Incremental(Protocol):
    """Outputs of a network for one dimension after another, as `IncrementalOutputs` gives them."""

    def next(self) -> Tensor: ...

    def append(self, x: Tensor) -> None: ...


class _FullPasses:
    """Incremental outputs of any network: a full pass for each dimension, with zeros for later dimensions."""

    def __init__(self, network: nn.Module, like: Float[Tensor, "B D"], context: Tensor | None) -> None:
        self.network, self.context = network, context
        self.columns: list[Tensor] = []
        self.zeros = torch.zeros_like(like)

    def next(self) -> Float[Tensor, "P B"]:
        dim, dims = len(self.columns), self.zeros.shape[1]
        x = torch.cat([torch.stack(self.columns, 1), self.zeros[:, dim:]], dim=1) if self.columns else self.zeros
        raw = conditioned(self.network, x, self.context)
        return raw.unflatten(1, (dims, -1))[:, dim].T

    def append(self, x: Float[Tensor, " B"]) -> None:
        self.columns.append(x)
