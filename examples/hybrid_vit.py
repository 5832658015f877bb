"""A minimal hybrid vision Transformer: built, trained and measured (autumn 2025, B1, part (c)).

Convolution finds edges, self-attention relates all patches. The same network is trained without its convolutions and
without its positions, and each is measured on the test split.

    python examples/hybrid_vit.py                              # digits, about a minute
    python examples/hybrid_vit.py --data fashion-mnist --patch 7 --steps 400
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from loglik.classification import Classifier
from loglik.classification.inputs import Levels
from loglik.data import Data, load
from loglik.networks.attention import SelfAttention


class Block(nn.Module):
    """x + Attention(LayerNorm(x)), then x + MLP(LayerNorm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class HybridViT(nn.Module):
    """Images (B, C, H, W) to `outputs` features: convolutions, patches, positions, self-attention, mean."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        stem: int = 32,
        patch: int = 2,
        width: int = 32,
        depth: int = 2,
        heads: int = 4,
        convolution: bool = True,
        positions: bool = True,
    ) -> None:
        super().__init__()
        channels, height, across = shape
        # 1. convolution: two 3×3 maps that keep the size
        self.stem = nn.Identity()
        if convolution:
            self.stem = nn.Sequential(
                nn.Conv2d(channels, stem, 3, padding=1), nn.ReLU(), nn.Conv2d(stem, stem, 3, padding=1), nn.ReLU()
            )
            channels = stem
        # 2. tokens: patches of P × P, each mapped to E numbers by the same linear map
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        # 3. positions: a learned vector for each of the n patches
        count = (height // patch) * (across // patch)
        self.positions = nn.Parameter(0.02 * torch.randn(count, width)) if positions else None
        # 4. self-attention among the patches
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.outputs = width

    def tokens(self, x: Tensor) -> Tensor:
        """Return the sequence of patches that the blocks receive, (B, n, E)."""
        tokens = self.patches(self.stem(x)).flatten(2).transpose(1, 2)
        return tokens if self.positions is None else tokens + self.positions

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.tokens(x))).mean(1)


def classifier(data: Data, **options: bool | int) -> Classifier:
    """Return p(label | image): the network, and one linear map to the classes."""
    network = HybridViT(data.spec.event_shape, **options)
    classes = len(data.spec.classes)
    return Classifier(network, nn.Linear(network.outputs, classes), classes, prepare=Levels(data.spec.levels))


def train(density: Classifier, data: Data, steps: int, batch: int = 64, rate: float = 3e-3) -> None:
    """Minimise the mean cross-entropy of random mini-batches."""
    x, y = data.train.x, data.train.y
    optimizer = torch.optim.AdamW(density.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    density.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,))
        loss = density.loss(y[rows], x[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def measure(density: Classifier, data: Data) -> tuple[float, float]:
    """Return the accuracy and the mean negative log-likelihood, in nats, on the test split."""
    density.eval()
    x, y = data.test.x, data.test.y
    log_p = torch.cat([density.logits(rows) for rows in x.split(500)]).log_softmax(1)
    accuracy = (log_p.argmax(1) == y).double().mean().item()
    return accuracy, -log_p.gather(1, y[:, None]).mean().item()


VARIANTS = {
    "hybrid": {},
    "without convolution": {"convolution": False},
    "without positions": {"positions": False},
    "without both": {"convolution": False, "positions": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="labelled images, by path or name")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--width", type=int, default=32)
    args = parser.parse_args()
    data = load(args.data)
    for name, options in VARIANTS.items():
        found = []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            density = classifier(data, patch=args.patch, width=args.width, **options)
            train(density, data, args.steps)
            found.append(measure(density, data))
        accuracy, nll = torch.tensor(found, dtype=torch.float64).unbind(1)
        count = sum(p.numel() for p in density.parameters())
        print(
            f"{name:20s}  {count:6d} parameters   test accuracy {accuracy.mean():.4f} "
            f"({accuracy.min():.4f} to {accuracy.max():.4f})   test NLL {nll.mean():.3f} nats"
        )


if __name__ == "__main__":
    main()
