"""A density of integers: spikes without noise, and a proper density of x + u."""

import torch

from loglik.flows import Flow
from loglik.flows.bases import GaussianMixture
from loglik.transforms import Dequantize

CAPTION = {
    "en": "Integers 0 ... 7. Left: a mixture of Gaussians trained on the integers themselves puts ever thinner "
    "spikes on them, and its log-density rises without end. Right: the same model of x + u; its mass in each cell "
    "(line) is near the frequencies (bars).",
    "zh": "整数 0 ... 7。左：直接用整数训练的高斯混合模型在整数上形成越来越细的尖峰，对数密度无限上升。右：对 x + u "
    "训练的同一模型，它在每个单元内的概率（线）接近数据的频率（柱）。",
}


def fitted(x, transforms, steps=400):
    """Return a flow over a mixture, and its mean log-probability along training."""
    torch.manual_seed(3)
    base = GaussianMixture((1,), 8)
    with torch.no_grad():
        base.means.copy_(torch.arange(8.0).unsqueeze(1) + 0.3)
    flow = Flow(transforms, base)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.01)
    scores = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = flow.loss(x)
        loss.backward()
        optimizer.step()
        scores.append(-loss.item())
    return flow, scores


def draw(plt):
    """Draw the log-density of both models along training, and the mass of the second."""
    p = torch.tensor([1, 2, 4, 7, 6, 3, 2, 1.0])
    p = p / p.sum()
    x = torch.multinomial(p, 2000, replacement=True).float().unsqueeze(1)
    _, spikes = fitted(x, [])
    flow, bound = fitted(x, [Dequantize(8)])
    figure, (left, right) = plt.subplots(1, 2)
    left.plot(spikes, label="x itself")
    left.plot(bound, label="x + u")
    left.axhline(0, color="gray", linewidth=0.8, linestyle=":")
    left.set(xlabel="step", ylabel="mean log p, nats")
    left.legend(fontsize=9)
    levels = torch.arange(8.0).unsqueeze(1)
    with torch.no_grad():
        mass = flow.log_prob(levels, samples=2000).exp()
    right.bar(range(8), torch.bincount(x.long().squeeze(1), minlength=8) / len(x), alpha=0.4, color="C2")
    right.plot(range(8), mass, "o-", ms=4, color="C1")
    right.set(xlabel="x", ylabel="probability", xticks=range(8))
    return figure
