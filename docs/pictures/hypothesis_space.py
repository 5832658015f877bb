"""Decision regions of classifiers with hypothesis spaces of growing expressivity."""

import math

import torch
from torch import nn

from loglik.classification import Classifier
from loglik.networks import MLP

CAPTION = {
    "en": "Two spirals and p(y | x) of three classifiers, each trained with the same number of steps. A line and "
    "four hidden units are too few for the spirals; a wider and deeper hypothesis space has a member that separates "
    "them.",
    "zh": "两条螺旋线，以及三个分类器的 p(y | x)，训练步数相同。一条直线或四个隐藏单元不足以分开螺旋线；更宽更深的假"
    "设空间里有能分开它们的成员。",
}


def spirals(n):
    """Return n points of each of two spirals, and their labels."""
    t = torch.linspace(0.3, 1.0, n).repeat(2) * 3.5 * math.pi
    y = torch.arange(2).repeat_interleave(n)
    angle = t + math.pi * y
    x = torch.stack([t * angle.cos(), t * angle.sin()], 1) / 9
    return x + 0.03 * torch.randn_like(x), y


def classifier(hidden):
    """Return a classifier whose features are an MLP; without hidden layers it is linear."""
    features = MLP(2, hidden[-1] if hidden else 2, hidden[:-1], activation=nn.ReLU)
    head = nn.Sequential(nn.ReLU(), MLP(hidden[-1], 2, ())) if hidden else MLP(2, 2, ())
    return Classifier(features, head, 2)


def draw(plt):
    """Draw the regions of a linear, a narrow and a deep classifier."""
    torch.manual_seed(1)
    x, y = spirals(100)
    side = torch.linspace(-1.4, 1.4, 80)
    grid = torch.cartesian_prod(side, side)
    figure, axes = plt.subplots(1, 3, figsize=(6.4, 2.6), sharex=True, sharey=True)
    for ax, (name, hidden) in zip(
        axes, {"linear": (), "one layer of 4": (4,), "three layers of 32": (32, 32, 32)}.items(), strict=True
    ):
        model = classifier(hidden)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(500):
            optimizer.zero_grad()
            model.loss(y, x).backward()
            optimizer.step()
        with torch.no_grad():
            p = model.probabilities(grid)[:, 1].view(80, 80)
            error = (model.probabilities(x).argmax(1) != y).float().mean().item()
        ax.contourf(side, side, p.T, levels=[0, 0.1, 0.3, 0.5, 0.7, 0.9, 1], cmap="coolwarm", alpha=0.6)
        for label, colour in ((0, "C0"), (1, "C3")):
            ax.scatter(*x[y == label].T, s=3, color=colour)
        ax.set_title(f"{name}\nerror {100 * error:.0f} %", fontsize=10)
        ax.set(xticks=[], yticks=[], aspect="equal")
    return figure
