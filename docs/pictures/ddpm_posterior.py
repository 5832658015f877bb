"""The posterior of a step by Bayes' rule, and the noise of DDPM's chain."""

import torch
from torch.distributions import Normal

from loglik.diffusion import Chain, Discrete, ddpm_betas
from loglik.diffusion.chain import posterior, transition
from loglik.diffusion.schedule import alpha, sigma

CAPTION = {
    "en": "Left: x_t = 0.2 is known and x_0 = 1. The posterior of x_{t-1} is the normalised product of its prior "
    "q(x_{t-1} | x_0) and its likelihood q(x_t | x_{t-1}). Right: DDPM's chain of 1,000 steps.",
    "zh": "左：已知 x_t = 0.2，且 x_0 = 1。x_{t-1} 的后验是先验 q(x_{t-1} | x_0) 与似然 q(x_t | x_{t-1}) "
    "的乘积再归一化。右：DDPM 的 1000 步链。",
}


def draw(plt):
    """Draw the three densities of x_{t-1}, and ᾱ_t with β_t and the posterior's variance."""
    figure, (left, right) = plt.subplots(1, 2)
    low = Chain.of(Discrete([0.2, 0.3]), 2).logsnr
    x_0, x_t, at = torch.tensor(1.0), torch.tensor(0.2), torch.linspace(-1.5, 2.5, 400)
    prior = Normal(alpha(low[0]) * x_0, sigma(low[0])).log_prob(at).exp()
    likelihood = Normal(*transition(at, low[0], low[1])).log_prob(x_t).exp()
    found = Normal(*posterior(x_t, x_0, low[1], low[0])).log_prob(at).exp()
    product = prior * likelihood / torch.trapezoid(prior * likelihood, at)
    left.plot(at, prior, color="C0", label="prior")
    left.plot(at, likelihood, color="C1", label="likelihood")
    left.plot(at, found, color="C2", label="posterior")
    left.plot(at[::20], product[::20], "o", color="C2", markersize=4, label="product")
    left.set(title="Bayes' rule", xlabel="$x_{t-1}$", ylim=(0, 2.2))
    left.legend(fontsize=9, ncols=2, loc="upper center")
    chain = Chain.of(Discrete(ddpm_betas()), 1000)
    _, std = posterior(torch.zeros(()), torch.zeros(()), chain.logsnr[1:], chain.logsnr[:-1])
    right.plot(range(1, 1001), chain.alpha_bar, color="C0", label=r"$\bar\alpha_t$")
    right.plot(range(1, 1001), 1 - chain.alpha_bar, color="C1", label=r"$1 - \bar\alpha_t$")
    right.plot(range(1, 1001), 40 * chain.betas, color="C3", label=r"$40 \beta_t$")
    right.plot(range(2, 1001), 40 * std.square(), "--", color="C2", label=r"40 · posterior variance")
    right.set(title="T = 1,000", xlabel="t", ylim=(0, 1.35))
    right.legend(fontsize=9, ncols=2, loc="upper center")
    return figure
