"""Priors of a VAE: nats of each kind on the same test examples, after the same time, with as many parameters.

`python benchmarks/priors.py --data digits --seconds 20` prints a Markdown table: log p(x) with K importance-weighted
draws (a diffusion prior's is the mean of K draws of its bound, which draws do not tighten), and its difference from
N(0, I) over the same examples. Encoder and decoder are MLPs, as wide as makes the parameters of all rows equal to
within a hundredth. Run by hand.
"""

from __future__ import annotations

import argparse
import time
from bisect import bisect_left

import torch

import loglik
from loglik.data import Data, load
from loglik.data.spec import DataSpec
from loglik.evaluation import log_probs, mean_and_stderr
from loglik.recipes import build
from loglik.recipes.priors import PRIORS
from loglik.runs import Run
from loglik.vae.diagnostics import diagnose


def built(spec: DataSpec, prior: str, latent: int, width: int) -> torch.nn.Module:
    return build("vae", spec, network="mlp", prior=prior, latent=latent, width=width)


def parameters_of(density: torch.nn.Module) -> int:
    return sum(p.numel() for p in density.parameters())


def as_wide(spec: DataSpec, prior: str, latent: int, parameters: int) -> int:
    """The width whose density has that many parameters, or as nearly as can be."""

    def count(width: int) -> int:
        return parameters_of(built(spec, prior, latent, width))

    widths = range(64, 700, 4)
    above = bisect_left(widths, parameters, key=count)
    return min(widths[above - 1], widths[above], key=lambda width: abs(count(width) - parameters))


def trained(data: Data, prior: str, width: int, dropout: float, chosen: argparse.Namespace) -> Run:
    start = time.perf_counter()
    run = loglik.fit(
        "vae",
        data,
        network="mlp",
        prior=prior,
        latent=chosen.latent,
        width=width,
        dropout=dropout,
        max_time=chosen.seconds,
        patience=0,
        progress=False,
    )
    assert time.perf_counter() - start < 3 * chosen.seconds + 30
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="digits or fashion-mnist")
    parser.add_argument("--seconds", type=float, default=20.0, help="training time of each")
    parser.add_argument("--latent", type=int, default=16)
    parser.add_argument("--width", type=int, default=256, help="of the VAE with N(0, I), which sets the parameters")
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.2], help="of several the best on validation")
    parser.add_argument("--samples", type=int, default=64, help="K")
    parser.add_argument("--examples", type=int, default=1000, help="of the test split")
    parser.add_argument("--priors", nargs="+", default=list(PRIORS), choices=PRIORS)
    chosen = parser.parse_args()
    data = load(chosen.data)
    test = data.test
    part = type(test)(test.x[: chosen.examples])
    parameters = parameters_of(built(data.spec, "normal", chosen.latent, chosen.width))
    print(
        f"{chosen.data}, {chosen.seconds:g} s each, {torch.get_num_threads()} thread(s), "
        f"L = {chosen.latent}, K = {chosen.samples}, {len(part)} examples\n"
    )
    print("| prior | parameters | dropout | steps | nats | over N(0, I) | in standard errors | KL | gap of the prior |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    reference = None
    for prior in chosen.priors:
        width = as_wide(data.spec, prior, chosen.latent, parameters)
        runs = [trained(data, prior, width, dropout, chosen) for dropout in chosen.dropout]
        held = [log_probs(run.density, data.validation, samples=chosen.samples).mean().item() for run in runs]
        best = max(range(len(runs)), key=held.__getitem__)
        run, density = runs[best], runs[best].density
        scores = log_probs(density, part, samples=chosen.samples)
        nats, error = mean_and_stderr(scores)
        reference = scores if reference is None else reference
        gain, gain_error = mean_and_stderr(scores - reference)
        found = diagnose(density, part.x)
        row = f"| {prior} | {parameters_of(density):,} | {chosen.dropout[best]:g} | {run.steps:,} | "
        row += f"{nats:.2f} ± {error:.2f} | "
        row += (
            "– | – | " if prior == chosen.priors[0] else f"{gain:+.2f} ± {gain_error:.2f} | {gain / gain_error:+.1f} | "
        )
        print(row + f"{found.kl_total:.1f} | {found.gap:.1f} |", flush=True)


if __name__ == "__main__":
    main()
