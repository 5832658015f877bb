"""The forward SDE, the reverse SDE and the probability-flow ODE of one density, with its exact score."""

import torch

from loglik.diffusion import LinearBeta
from loglik.diffusion.sde import diffusion, forward_drift, probability_flow, reverse_drift

CAPTION = {
    "en": "Data that are -1 or 1, under the VP-SDE with linear β(t): the forward SDE; the reverse SDE; the "
    "probability-flow ODE. The last two use the exact score, start from N(0, 1) at t = 1, and arrive at the data.",
    "zh": "取值为 -1 或 1 的数据在线性 β(t) 的 VP-SDE 下：前向 SDE、逆向 SDE 和概率流 ODE。"
    "后两者使用精确的分数，在 t = 1 处从 N(0, 1) 出发，最后到达数据。",
}

STEPS, PATHS = 1000, 24


def score(schedule, x, t):
    """Return the score of the mixture ½ N(-α, σ²) + ½ N(α, σ²), whose expected data are tanh(α x / σ²)."""
    a, s = schedule.alpha(t), schedule.sigma(t)
    return (a * torch.tanh(a * x / s**2) - x) / s**2


def draw(plt):
    """Draw paths of each process."""
    schedule = LinearBeta(t_min=1e-3)
    times = torch.linspace(0, 1, STEPS + 1).square().clamp_min(1e-3).unique()
    start = torch.cat([-torch.ones(PATHS // 2, 1), torch.ones(PATHS // 2, 1)])
    x, forward = start, [start]
    for now, later in zip(times[:-1], times[1:], strict=True):
        h = later - now
        x = x + h * forward_drift(schedule, x, now) + h.sqrt() * diffusion(schedule, now) * torch.randn_like(x)
        forward.append(x)
    x = y = torch.randn(PATHS, 1)
    reverse, ode = [x], [y]
    for now, earlier in zip(times.flip(0)[:-1], times.flip(0)[1:], strict=True):
        h = now - earlier
        noise = h.sqrt() * diffusion(schedule, now) * torch.randn_like(x)
        x = x - h * reverse_drift(schedule, x, now, score(schedule, x, now)) + noise
        y = y - h * probability_flow(schedule, y, now, score(schedule, y, now))
        reverse.append(x)
        ode.append(y)
    figure, axes = plt.subplots(1, 3, sharey=True)
    panels = (("forward SDE", times, forward), ("reverse SDE", times.flip(0), reverse), ("ODE", times.flip(0), ode))
    for axis, (title, at, path) in zip(axes, panels, strict=True):
        lines = torch.cat(path, 1).T
        colors = ["C1" if end > 0 else "C0" for end in (path[0] if title == "forward SDE" else path[-1])]
        for number, color in enumerate(colors):
            axis.plot(at, lines[:, number], color=color, linewidth=0.7, alpha=0.8)
        axis.set(title=title, xlabel="t", ylim=(-3.2, 3.2))
    axes[0].set_ylabel("x")
    return figure
