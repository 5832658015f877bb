"""Coupling: some dimensions are transformed conditionally on the others (Dinh et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.density import conditioned
from loglik.flows.maps import Map
from loglik.networks.dropout import fade_dropout
from loglik.regions import region
from loglik.transforms.transform import Transform

__all__ = ["Coupling"]


class Coupling(Transform):
    r"""Transform the dimensions where `mask` is true; a network computes the maps' parameters from the others.

    $z_A = x_A,\quad z_B = f(x_B;\ \theta(x_A, c))$, so the Jacobian is triangular and
    $\log\det = \sum_{d \in B} \log \lvert \partial z_d / \partial x_d \rvert$.

    Args:
        mask: for each of the D dimensions, or channels of an image, whether it is transformed; m are.
        network: from the other dimensions (B, D - m), or channels (B, D - m, H, W), and an optional context, to
            (B, m · P) or (B, m · P, H, W); the P parameters of one dimension are contiguous.
        map: the family of f, with P parameters.

    Raises:
        ValueError: a mask that is true, or false, for all dimensions.
    """

    moved: Tensor
    kept: Tensor

    def __init__(self, mask: Sequence[bool], network: nn.Module, map: Map) -> None:
        super().__init__()
        chosen = torch.tensor(list(mask), dtype=torch.bool)
        if chosen.all() or not chosen.any():
            raise ValueError("a coupling needs a dimension to transform and one to condition on: mask some, not all")
        self.network, self.map = network, map
        self.register_buffer("moved", chosen.nonzero().squeeze(1), persistent=False)
        self.register_buffer("kept", (~chosen).nonzero().squeeze(1), persistent=False)

    def initialise(self, x: Float[Tensor, "N D *S"]) -> None:
        fade_dropout(self.network, len(x))

    @region
    def _couple(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Float[Tensor, " B"]]:
        move = self.map.decode if inverse else self.map.encode
        m = len(self.moved)
        if x.dim() == 2:  # events last, so that the map runs along contiguous memory
            rows = x.T.contiguous()
            raw = conditioned(self.network, rows.index_select(0, self.kept).T, context)
            y, log_slope = move(rows.index_select(0, self.moved), raw.T.reshape(m, -1, len(x)))
            return rows.index_copy(0, self.moved, y).T, log_slope.sum(0)
        raw = conditioned(self.network, x.index_select(1, self.kept), context)
        chosen = x.index_select(1, self.moved)
        y, log_slope = move(chosen.flatten(0, 1), raw.reshape(len(x) * m, -1, *x.shape[2:]))
        return x.index_copy(1, self.moved, y.view(chosen.shape)), log_slope.reshape(len(x), -1).sum(1)

    def encode(
        self, x: Float[Tensor, "B D *N"], context: Float[Tensor, "B *E"] | None = None
    ) -> tuple[Float[Tensor, "B D *N"], Float[Tensor, " B"]]:
        return self._couple(x, context, inverse=False)

    def decode(
        self, z: Float[Tensor, "B D *N"], context: Float[Tensor, "B *E"] | None = None
    ) -> Float[Tensor, "B D *N"]:
        return self._couple(z, context, inverse=True)[0]
