"""Demonstrate network degradation, and how shortcuts remove it.

A deeper plain network trains worse than a shallow one; a deeper residual network does not. Plain and residual networks
of 20 and 56 layers (He et al. 2016, section 4.2) train on the same data for the same steps, and one picture shows their
training errors.

    python examples/degradation.py                          # digits, a few minutes
    python examples/degradation.py --data fashion-mnist --steps 400
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import loglik
from loglik.classification import Classifier
from loglik.classification.inputs import Levels
from loglik.data import Data
from loglik.networks import ResNet


def classifier(data: Data, layers: int, residual: bool, width: int) -> Classifier:
    """Return a network of 6n + 2 layers: a stem, three stages of n blocks with two convolutions each, a linear head."""
    network = ResNet(
        data.spec.event_shape[0],
        widths=(width, 2 * width, 4 * width),
        blocks=[(layers - 2) // 6] * 3,
        stem="strided" if data.spec.event_shape[1] > 16 else "small",
        residual=residual,
    )
    head = nn.Linear(network.outputs, len(data.spec.classes))
    return Classifier(network, head, len(data.spec.classes), prepare=Levels(data.spec.levels))


def training_error(density: Classifier, data: Data, n: int = 1000) -> float:
    """Return the error on the first n training images."""
    x, y = data.train.x[:n], data.train.y[:n]
    density.eval()
    with torch.no_grad():
        return (density.logits(x).argmax(1) != y).double().mean().item()


def curve(data: Data, layers: int, residual: bool, width: int, steps: int, points: int) -> list[tuple[int, float]]:
    """Train, and return pairs of step and training error, of the weights themselves (no moving average)."""
    torch.manual_seed(0)
    density = classifier(data, layers, residual, width)
    errors = [(0, training_error(density, data))]
    x, y = data.train.x, data.train.y
    optimizer = torch.optim.SGD(density.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        rows = torch.randint(len(x), (128,))
        density.train()
        loss = density.loss(y[rows], x[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // points) == 0:
            errors.append((step, training_error(density, data)))
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("degradation.png"))
    options = parser.parse_args()

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    data = loglik.data.load(options.data)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, residual in ((left, False), (right, True)):
        for layers, color in zip(options.depths, ("#8a8f99", "#24588f", "#b5482f"), strict=False):
            errors = curve(data, layers, residual, options.width, options.steps, options.points)
            axes.plot(*zip(*errors, strict=True), color=color, label=f"{layers} layers")
            name = f"{'residual' if residual else 'plain'}, {layers} layers"
            print(f"{name}: training error {errors[-1][1]:.1%} after {options.steps} steps", flush=True)
        axes.set(title="residual" if residual else "plain", xlabel="steps", ylim=(0, 1))
        axes.legend(frameon=False)
    left.set_ylabel("training error")
    figure.suptitle(f"Degradation on {data.name}")
    FigureCanvasAgg(figure).print_png(options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
