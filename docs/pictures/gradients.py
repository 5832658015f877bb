"""Two estimators of the ELBO's gradient: through the noise, and by the score function."""

import math

import torch
from torch import nn
from torch.distributions import Normal

from loglik.vae import VAE, Gaussian

CAPTION = {
    "en": "Gradient of the ELBO by μ of one example of a VAE with 8 latents, by two estimators. Left: one draw. "
    "Right: the error of a mean of draws. Both are unbiased; the score function needs far more draws for the same "
    "error, and a baseline helps.",
    "zh": "一个有 8 个隐变量的 VAE：某个样本的 ELBO 对 μ 的梯度，用两种估计量计算。左：单次抽样。右：多次抽样平均的"
    "误差。两者都无偏，但要达到相同误差，得分函数估计量需要的抽样次数多得多；减去基线会有所改善。",
}
LATENT, DRAWS = 8, 2**14


def draw(plt):
    """Draw a histogram of single draws, and the error against the number of draws."""
    torch.manual_seed(0)
    vae = VAE(nn.Linear(12, 2 * LATENT), nn.Linear(LATENT, 12), Gaussian((12,), 0.5), latent=LATENT).eval()
    x = torch.randn(1, 12).expand(DRAWS, -1)
    mean, log_scale = (part.detach() for part in vae.posterior(x))
    mean = mean.clone().requires_grad_()  # a row for each draw: a gradient for each
    found = vae._draw((mean, log_scale - 1), None)
    value = vae.observation.log_prob(x, found.theta) + found.log_ratio
    (noise,) = torch.autograd.grad(value.sum(), mean, retain_graph=True)
    log_q = Normal(mean, (log_scale - 1).exp()).log_prob(found.z.detach()).sum()
    (score,) = torch.autograd.grad(log_q, mean)
    value = value.detach()
    estimates = {
        "through the noise": noise[:, 0],
        "score function, baseline": (value - value.mean()) * score[:, 0],
        "score function": value * score[:, 0],
    }
    truth = estimates["through the noise"].mean()
    figure, (left, right) = plt.subplots(1, 2)
    sizes = [2**k for k in range(12)]
    for (name, draws), line in zip(estimates.items(), ("-", ":", "--"), strict=True):
        left.hist(draws.numpy(), bins=100, range=(-700, 700), density=True, histtype="step", linestyle=line, label=name)
        errors = [(draws[: DRAWS // n * n].view(-1, n).mean(1) - truth).square().mean().sqrt() for n in sizes]
        right.loglog(sizes, errors, line, label=f"{name}, std {math.sqrt(draws.var()):.3g}")
    left.set(xlabel="gradient by one draw", yscale="log", yticks=[])
    right.set(xlabel="draws", ylabel="error, root mean square")
    right.set_ylim(None, 3e4)
    right.legend(fontsize=8, loc="upper right")
    return figure
