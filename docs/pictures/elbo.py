"""The ELBO: a posterior and its approximation, and the bound as it rises with importance weights."""

import math

import torch
from torch import nn
from torch.distributions import Normal

from loglik.vae import VAE, Gaussian

CAPTION = {
    "en": "A VAE with one latent. Left: for one x, the posterior p(z | x) and a Gaussian q(z | x). Right: the bound "
    "of K importance weights rises from the ELBO (K = 1) to log p(x), which is integrated on a grid.",
    "zh": "只有一个隐变量的 VAE。左：给定一个 x，后验 p(z | x) 与高斯分布 q(z | x)。右：K 个重要性权重的下界从 ELBO"
    "（K = 1）上升到 log p(x)，后者由网格积分得到。",
}


class Decoder(nn.Module):
    """A curve: z is mapped to (z², z)."""

    def forward(self, z):
        return torch.cat([z.square(), 0.4 * z], 1)


class Encoder(nn.Module):
    """The same q for each x: the mean 0.4 and the log-scale -0.2."""

    def forward(self, x):
        return torch.tensor([0.4, -0.2]).expand(len(x), 2)


def draw(plt):
    """Draw the two densities over z, and the bound against K."""
    vae = VAE(Encoder(), Decoder(), Gaussian((2,), 0.4), latent=1).eval()
    x = torch.tensor([[0.9, 0.2]])
    z = torch.linspace(-3, 3, 2001).unsqueeze(1)
    with torch.no_grad():
        mean, log_scale = vae.posterior(x)
        joint = vae.observation.log_prob(x.expand(len(z), -1), vae.parameters_of(z)) + vae.prior.log_prob(z)
        log_p = joint.logsumexp(0) + math.log((z[1] - z[0]).item())
        q = Normal(mean, log_scale.exp()).log_prob(z).squeeze(1)
        ks = [2**k for k in range(11)]
        bounds = [vae.log_prob(x.repeat(2**17 // k, 1), samples=k).mean().item() for k in ks]
    figure, (left, right) = plt.subplots(1, 2)
    left.plot(z, (joint - log_p).exp(), label="p(z | x)")
    left.plot(z, q.exp(), "--", label="q(z | x)")
    left.set(xlabel="z", ylabel="density", xlim=(-2, 2.5))
    left.legend(loc="upper left", fontsize=9)
    right.axhline(log_p.item(), color="C2", label="log p(x)")
    right.semilogx(ks, bounds, "o-", ms=3, label="bound")
    right.set(xlabel="K", ylabel="nats")
    right.legend(loc="lower right", fontsize=9)
    return figure
