"""Compare two estimators of the ELBO's gradient: reparametrised (z = μ + σ ε), and by the score function.

The gradient of a linear VAE has a closed form. Both estimators are unbiased, and the reparametrised one has by far the
smaller variance (Kingma and Welling 2014; Mohamed et al. 2020, "Monte Carlo gradient estimation").

    python examples/gradient_estimators.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence


def gradients(x: Tensor, w: Tensor, sigma: float, draws: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return d ELBO / dμ of q(z | x) = N(μ, s²), x ~ N(w z, σ²): exact, and one estimate per draw and estimator."""
    mu, s = torch.tensor(0.3, requires_grad=True), torch.tensor(0.5)
    q, prior = Normal(mu, s), Normal(0.0, 1.0)
    expected = -0.5 * ((x - w * mu).square() + (w * s).square()).sum() / sigma**2
    exact = torch.autograd.grad(expected - kl_divergence(q, prior), mu)[0]

    means = mu.expand(draws)
    q = Normal(means, s)
    z = q.rsample()

    def log_weight(z: Tensor) -> Tensor:
        return Normal(w * z[:, None], sigma).log_prob(x).sum(1) + prior.log_prob(z) - q.log_prob(z)

    reparametrised = torch.autograd.grad(log_weight(z).sum(), means, retain_graph=True)[0]
    fixed = z.detach()
    score = torch.autograd.grad((log_weight(fixed).detach() * q.log_prob(fixed)).sum(), means)[0]
    return exact, {"reparametrised": reparametrised, "score function": score}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2**14)
    parser.add_argument("--out", type=Path, default=Path("gradient_estimators.png"))
    options = parser.parse_args()

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    torch.manual_seed(0)
    exact, estimates = gradients(torch.tensor([1.0, -0.5, 2.0]), torch.tensor([1.0, 0.3, 1.5]), 0.8, options.draws)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = [2**k for k in range(int(math.log2(options.draws)) - 1)]
    for (name, draws), color in zip(estimates.items(), ("#24588f", "#b5482f"), strict=True):
        error = draws.std().item() / math.sqrt(len(draws))
        print(f"{name}: {draws.mean():.4f} ± {error:.4f}, variance {draws.var():.3f} (exact {exact:.4f})")
        left.hist(draws.numpy(), bins=120, range=(-60, 60), density=True, alpha=0.65, color=color, label=name)
        errors = [(draws[: len(draws) // n * n].view(-1, n).mean(1) - exact).square().mean().sqrt() for n in sizes]
        right.loglog(sizes, errors, color=color, label=name)
    left.axvline(exact.item(), color="black", linewidth=0.8)
    left.set(xlabel="gradient of μ from one draw (line: exact)", yticks=[], yscale="log", ylim=(1e-4, None))
    right.set(xlabel="number of draws averaged", ylabel="root-mean-square error")
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=8)
    figure.suptitle("Two unbiased estimators of the ELBO's gradient", fontsize=10)
    FigureCanvasAgg(figure).print_png(options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
