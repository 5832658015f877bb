"""A flow takes data to noise, layer by layer, and its density in the plane."""

import torch
from sklearn.datasets import make_moons

from loglik.density import StandardNormal
from loglik.flows import Flow, nsf

CAPTION = {
    "en": "A flow of four couplings on two moons. From left: the data x, the same points after two couplings, z "
    "after all four, which is near N(0, I), and the density p(x) of the flow.",
    "zh": "四个耦合层的流，数据是两个月牙。从左到右：数据 x，同样的点经过两层之后，经过全部四层之后的 z（接近 N(0, I"
    ")），以及流的密度 p(x)。",
}


def draw(plt):
    """Draw the points between layers, and the density."""
    points, y = make_moons(1500, noise=0.06, random_state=0)
    x = torch.tensor(points, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    flow = Flow(nsf(2, layers=4, hidden=(32, 32)), StandardNormal((2,)))
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for _ in range(250):
        optimizer.zero_grad()
        flow.loss(x[torch.randint(len(x), (128,))]).backward()
        optimizer.step()
    couplings = [number for number, layer in enumerate(flow.transforms) if any(True for _ in layer.parameters())]
    after = {couplings[number - 1]: "z" if number == 4 else f"{number} couplings" for number in (2, 4)}
    stages, z = [("x", x)], x
    with torch.no_grad():
        for number, layer in enumerate(flow.transforms):
            z, _ = layer.encode(z)
            if number in after:
                stages.append((after[number], z))
        side = torch.linspace(-2.9, 2.9, 120)
        density = flow.log_prob(torch.cartesian_prod(side, side)).exp().view(120, 120)
    figure, axes = plt.subplots(1, 4, figsize=(6.4, 2.1), sharex=True, sharey=True)
    for ax, (name, points) in zip(axes, stages, strict=False):
        ax.scatter(*points[:700].T, s=1, c=[f"C{label}" for label in y[:700]])
        ax.set_title(name, fontsize=10)
    axes[-1].pcolormesh(side, side, density.T, cmap="viridis", rasterized=True)
    axes[-1].set_title("p(x)", fontsize=10)
    for ax in axes:
        ax.set(xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), xticks=[], yticks=[], aspect="equal")
    return figure
