"""The Gaussian that is nearest to a mixture, by the KL divergence in either order."""

import torch

from loglik.flows.bases import GaussianMixture

CAPTION = {
    "en": "One Gaussian fitted to two modes. Maximum likelihood minimises KL(data ‖ model) and covers both; the "
    "divergence in the other order, KL(model ‖ data), settles on one.",
    "zh": "用一个高斯分布拟合两个峰。最大似然最小化 KL(数据 ‖ 模型)，覆盖两个峰；次序相反的 KL(模型 ‖ 数据) 只停在一"
    "个峰上。",
}


def draw(plt):
    """Draw the mixture and both fits."""
    p = GaussianMixture((1,), 2)
    with torch.no_grad():
        p.means.copy_(torch.tensor([[-1.6], [2.0]]))
        p.log_scales.copy_(torch.tensor([[-0.3], [-0.7]]))
        p.logits.copy_(torch.tensor([0.4, 0.0]))
    fits = {}
    for name in ("KL(data ‖ model)", "KL(model ‖ data)"):
        torch.manual_seed(1)
        q = GaussianMixture((1,), 1)
        with torch.no_grad():
            q.means.fill_(0.5)
        optimizer = torch.optim.Adam(q.parameters(), lr=0.03)
        for _ in range(400):
            optimizer.zero_grad()
            if name.startswith("KL(data"):
                loss = q.loss(p.sample(256))
            else:  # through the noise of q's samples
                x = q.means + q.log_scales.exp() * torch.randn(256, 1)
                loss = (q.log_prob(x) - p.log_prob(x)).mean()
            loss.backward()
            optimizer.step()
        fits[name] = q
    x = torch.linspace(-5, 5, 500).unsqueeze(1)
    figure, ax = plt.subplots()
    with torch.no_grad():
        ax.fill_between(x.squeeze(1), p.log_prob(x).exp(), alpha=0.25, color="C2", label="data")
        for (name, q), line in zip(fits.items(), ("-", "--"), strict=True):
            ax.plot(x, q.log_prob(x).exp(), line, label=f"minimises {name}")
    ax.set(xlabel="x", ylabel="density", ylim=(0, 0.75))
    ax.legend(fontsize=9, loc="upper left")
    return figure
