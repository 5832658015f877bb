"""Features of a text: an encoder over its tokens, and the mean over positions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from loglik.networks.transformer import BlockSettings, Encoder

__all__ = ["TokenEncoder"]


class TokenEncoder(nn.Module):
    """Tokens (B, T), integers 0 ... K-1, to `outputs` = E features.

    Args:
        levels: K.
        width, depth, heads: of the encoder, which has rotary positions.
        padding: the padding token, masked in attention and left out of the mean; None for no padding.
        dropout: the fraction of embeddings and of the encoder's outputs dropped in training.
    """

    def __init__(
        self,
        levels: int,
        *,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        padding: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.padding, self.outputs = padding, width
        self.tokens = nn.Embedding(levels, width)
        self.dropout = nn.Dropout(dropout)
        self.encoder = Encoder(width, depth, heads, dropout=dropout, settings=BlockSettings(rotary=True))
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, x: Integer[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        tokens = x.long()
        h = self.dropout(self.tokens(tokens))
        if self.padding is None:
            return self.encoder(h).mean(1)
        seen = tokens != self.padding
        seen = seen | (torch.arange(seen.shape[1], device=x.device) == 0)  # one position even if all are padding
        h = self.encoder(h, seen[:, None, None])
        return (h * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True)
