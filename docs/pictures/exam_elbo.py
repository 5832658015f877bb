"""The ELBO of a linear VAE and its two terms, over the variance of q."""

import math

import torch
from torch.distributions import Normal

CAPTION = {
    "en": "The linear VAE at x = 1.7: the ELBO over the variance v of q(z|x), with q's mean at the true posterior's. "
    "The reconstruction term alone rises as v falls to 0; the ELBO touches log p(x) at the true variance 0.2.",
    "zh": "线性 VAE 在 x = 1.7 处：q(z|x) 的均值取真实后验的均值，ELBO 随其方差 v 的变化。"
    "v 降到 0 时只有重建项仍在上升；ELBO 在真实方差 0.2 处碰到 log p(x)。",
}
W, S, X = 1.0, 0.5, 1.7


def draw(plt):
    """Draw the reconstruction term, minus the KL, their sum and log p(x)."""
    v = torch.logspace(-2.5, 0.5, 200, dtype=torch.float64)
    m = W * X / (W**2 + S**2)
    reconstruction = -0.5 * math.log(2 * math.pi * S**2) - ((X - W * m) ** 2 + W**2 * v) / (2 * S**2)
    kl = 0.5 * (m**2 + v - 1 - v.log())
    truth = Normal(0.0, math.sqrt(W**2 + S**2)).log_prob(torch.tensor(X)).item()
    figure, axis = plt.subplots()
    axis.plot(v, reconstruction, color="#e0a030", label="reconstruction")
    axis.plot(v, -kl, color="#5aa469", label="−KL(q‖p(z))")
    axis.plot(v, reconstruction - kl, color="#2a7fb8", linewidth=2, label="ELBO")
    axis.axhline(truth, color="#c8553d", linestyle="--", label="log p(x)")
    axis.set(xscale="log", xlabel="variance v of q", ylabel="nats", ylim=(-8, 0.5))
    axis.legend()
    return figure
