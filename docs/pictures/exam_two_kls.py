"""The Gaussian that maximum likelihood finds for a mixture, and the one of the other KL divergence."""

import torch
from torch.distributions import Normal

CAPTION = {
    "en": "A mixture of two Gaussians (filled). Maximum likelihood, the minimum of KL(p‖q), covers both modes; "
    "the minimum of KL(q‖p) chooses one.",
    "zh": "两个高斯的混合（填充）。最大似然即最小化 KL(p‖q)，覆盖两个峰；最小化 KL(q‖p) 只选一个峰。",
}


def draw(plt):
    """Minimise both divergences over mean and standard deviation by quadrature."""
    grid = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    dx = grid[1] - grid[0]
    p = 0.3 * Normal(-1.5, 0.5).log_prob(grid).exp() + 0.7 * Normal(1.5, 0.5).log_prob(grid).exp()

    def forward(q):
        return -(p * q).sum() * dx  # the cross-entropy: KL(p‖q) up to the entropy of p

    def reverse(q):
        return (q.exp() * (q - p.log())).sum() * dx

    figure, axis = plt.subplots()
    axis.fill_between(grid, p, alpha=0.25, color="#888888", linewidth=0)
    for divergence, label, color in ((forward, "min KL(p‖q)", "#2a7fb8"), (reverse, "min KL(q‖p)", "#c8553d")):
        theta = torch.tensor([0.6, 0.4], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([theta], max_iter=200, line_search_fn="strong_wolfe")

        def closure(divergence=divergence, theta=theta, optimizer=optimizer):
            optimizer.zero_grad()
            loss = divergence(Normal(theta[0], theta[1].exp()).log_prob(grid))
            loss.backward()
            return loss

        optimizer.step(closure)
        mean, std = theta[0].item(), theta[1].exp().item()
        density = Normal(mean, std).log_prob(grid).exp()
        axis.plot(grid, density, color=color, label=f"{label}: mean {mean:.2f}, std {std:.2f}")
    axis.set(xlabel="x", ylabel="density", xlim=(-5, 5))
    axis.legend()
    return figure
