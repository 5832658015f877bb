"""Along training, the NLL less the entropy is the KL divergence."""

import torch

from loglik.density import StandardNormal
from loglik.divergence import cross_entropy, entropy
from loglik.flows import Flow, nsf
from loglik.flows.bases import GaussianMixture

CAPTION = {
    "en": "A flow learns data from a known mixture of Gaussians. Left: its NLL falls to the entropy of the data. "
    "Right: the NLL less the entropy (dots, with fresh samples) is the KL divergence (line, summed over a grid).",
    "zh": "流模型学习来自已知高斯混合分布的数据。左：负对数似然降到数据的熵。右：负对数似然减去熵（点，用新样本计算"
    "）就是 KL 散度（线，对网格求和）。",
}


def mixture():
    """Return three Gaussians in the plane."""
    p = GaussianMixture((2,), 3)
    with torch.no_grad():
        p.means.copy_(torch.tensor([[-1.5, 0.0], [1.0, 1.2], [1.0, -1.2]]))
        p.log_scales.copy_(torch.tensor([[-1.0, 0.0], [-0.5, -1.0], [-0.5, -1.0]]))
    return p


def draw(plt):
    """Draw NLL, entropy and divergence against the number of steps."""
    p, side = mixture(), torch.linspace(-5, 5, 161)
    q = Flow(nsf(2, layers=4, hidden=(32,)), StandardNormal((2,)))
    grid, cell = torch.cartesian_prod(side, side), (side[1] - side[0]).item() ** 2
    with torch.no_grad():
        log_p = p.log_prob(grid)
    optimizer = torch.optim.Adam(q.parameters(), lr=3e-3)
    h = entropy(p, 300_000).nats
    steps, nll, kl = [], [], []
    for step in range(201):
        if step in (0, 5, 10, 20, 30, 50, 80, 120, 160, 200):
            with torch.no_grad():
                kl.append((cell * log_p.exp() * (log_p - q.log_prob(grid))).sum().item())
            nll.append(cross_entropy(p, q, 50_000).nats)
            steps.append(step)
        optimizer.zero_grad()
        q.loss(p.sample(256)).backward()
        optimizer.step()
    figure, (left, right) = plt.subplots(1, 2)
    left.plot(steps, nll, "o-", ms=4, label="NLL")
    left.axhline(h, color="C2", label="entropy")
    left.set(xlabel="step", ylabel="nats")
    left.legend(fontsize=9)
    right.semilogy(steps, kl, color="C1", label="KL")
    right.semilogy(steps, [value - h for value in nll], "o", ms=4, label="NLL - entropy")
    right.set(xlabel="step", ylabel="nats")
    right.set_yticks([0.05, 0.1, 0.2, 0.5], ["0.05", "0.1", "0.2", "0.5"])
    right.yaxis.set_minor_formatter("")
    right.legend(fontsize=9)
    return figure
