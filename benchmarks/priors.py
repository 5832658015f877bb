"""Compare priors of a VAE: nats on the same test examples, after the same time, with equal parameter counts.

`python benchmarks/priors.py --data digits --seconds 20` prints a Markdown table: log p(x) with K importance-weighted
draws (for a diffusion prior the mean of K draws of its bound, which draws do not tighten), and its difference from
N(0, I) over the same examples. Encoder and decoder are MLPs; their width makes the number of parameters of all rows
equal to within 1 %. With `--seeds 1 2 3` each seed splits the data and trains anew, and the differences of all test
examples are pooled. `make bench` does not run it.
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
    """Return the width whose density has closest to that number of parameters."""

    def count(width: int) -> int:
        return parameters_of(built(spec, prior, latent, width))

    widths = range(64, 700, 4)
    above = bisect_left(widths, parameters, key=count)
    return min(widths[above - 1], widths[above], key=lambda width: abs(count(width) - parameters))


def trained(data: Data, prior: str, width: int, dropout: float, seed: int, chosen: argparse.Namespace) -> Run:
    start = time.perf_counter()
    run = loglik.fit(
        "vae",
        data,
        network="mlp",
        prior=prior,
        latent=chosen.latent,
        width=width,
        dropout=dropout,
        seed=seed,
        max_time=chosen.seconds,
        patience=0,
        progress=False,
    )
    assert time.perf_counter() - start < 3 * chosen.seconds + 30
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="digits or fashion-mnist")
    parser.add_argument("--seconds", type=float, default=20.0, help="training time per prior")
    parser.add_argument("--latent", type=int, default=16)
    parser.add_argument(
        "--width", type=int, default=256, help="width of the VAE with N(0, I), which sets the number of parameters"
    )
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.2], help="rates; the best on validation is used")
    parser.add_argument("--samples", type=int, default=64, help="K, draws per example")
    parser.add_argument("--examples", type=int, default=1000, help="number of test examples")
    parser.add_argument("--priors", nargs="+", default=list(PRIORS), choices=PRIORS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the split and of the training")
    chosen = parser.parse_args()
    splits = {seed: load(chosen.data, seed=seed) for seed in chosen.seeds}
    spec = splits[chosen.seeds[0]].spec
    parameters = parameters_of(built(spec, "normal", chosen.latent, chosen.width))
    print(
        f"{chosen.data}, {chosen.seconds:g} s each, {torch.get_num_threads()} thread(s), L = {chosen.latent}, "
        f"K = {chosen.samples}, seeds {chosen.seeds}, at most {chosen.examples} test examples of each\n"
    )
    print("| prior | parameters | dropout | steps | nats | over N(0, I) | in standard errors | KL | gap of the prior |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    reference = None
    for prior in chosen.priors:
        width = as_wide(spec, prior, chosen.latent, parameters)
        kept, parts, found = [], [], []
        for seed, data in splits.items():
            runs = [trained(data, prior, width, dropout, seed, chosen) for dropout in chosen.dropout]
            held = [log_probs(run.density, data.validation, samples=chosen.samples).mean().item() for run in runs]
            best = max(range(len(runs)), key=held.__getitem__)
            part = type(data.test)(data.test.x[: chosen.examples])
            kept.append((chosen.dropout[best], runs[best].steps))
            parts.append(log_probs(runs[best].density, part, samples=chosen.samples))
            found.append(diagnose(runs[best].density, part.x))
        scores = torch.cat(parts)
        nats, error = mean_and_stderr(scores)
        reference = scores if reference is None else reference
        gain, gain_error = mean_and_stderr(scores - reference)
        dropouts = ", ".join(f"{dropout:g}" for dropout in sorted({dropout for dropout, _ in kept}))
        steps = sum(steps for _, steps in kept) / len(kept)
        row = f"| {prior} | {parameters_of(runs[best].density):,} | {dropouts} | {steps:,.0f} | "
        row += f"{nats:.2f} ± {error:.2f} | "
        row += (
            "– | – | " if prior == chosen.priors[0] else f"{gain:+.2f} ± {gain_error:.2f} | {gain / gain_error:+.1f} | "
        )
        total, gap = (sum(getattr(one, name) for one in found) / len(found) for name in ("kl_total", "gap"))
        print(row + f"{total:.1f} | {gap:.1f} |", flush=True)


if __name__ == "__main__":
    main()
