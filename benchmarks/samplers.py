"""Compare samplers of a trained diffusion: quality, by features of our classifier, against network evaluations.

    python benchmarks/samplers.py DIFFUSION_RUN CLASSIFIER_RUN [--n 2000] [--evaluations 5,7,10,15,20,50]
        [--methods unipc,ipndm] [--reference 1000] [--until 3] [--out DIR]

The Fréchet distance (Heusel et al. 2017) is between Gaussians fitted to the features of samples and of the same number
of test examples. The maximum mean discrepancy (Bińkowski et al. 2018) is unbiased, with the kernel (xᵀy/d + 1)³.
Neither is comparable with numbers from other features. Every sampler starts from the same noise. The results are
samplers.json and samplers.png.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import loglik
from loglik.data import load
from loglik.density import Density
from loglik.diffusion import with_sampler
from loglik.diffusion.sampler import METHODS

TWICE = ("heun", "predictor-corrector")  # 2N - 1 evaluations in N steps


@torch.no_grad()
def features(classifier: Density, x: Tensor) -> Tensor:
    """Return the input of the classifier's head, (N, h) in float64."""
    prepare: nn.Module = classifier.prepare or nn.Identity()  # type: ignore[assignment]
    return torch.cat([classifier.features(prepare(rows)) for rows in x.split(256)]).flatten(1).double()


def frechet(a: Tensor, b: Tensor) -> float:
    """Return ‖μ_a - μ_b‖² + tr(C_a + C_b - 2 (C_a C_b)^½)."""
    first, second = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * cross).item()


def mmd(a: Tensor, b: Tensor) -> float:
    """Return the squared maximum mean discrepancy, without the kernel of a point with itself."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def apart(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return (apart(a) + apart(b) - 2 * kernel(a, b).mean()).item()


@torch.no_grad()
def draw(density: Density, n: int, classes: int, batch: int, seed: int = 0) -> tuple[Tensor, int]:
    """Return n samples from the noise of a seed, and the number of network evaluations per sample."""
    diffusion = density if hasattr(density, "draw") else density.base
    rows, evaluations = [], 0
    for start in range(0, n, batch):
        count = min(batch, n - start)
        torch.manual_seed(seed * 1_000_003 + start)
        context = torch.arange(start, start + count) % classes if density.conditional else None
        x, evaluations = diffusion.draw(count, context)
        rows.append(x if diffusion is density else density.decode(x))
    return torch.cat(rows), evaluations


def curve(
    density: Density, classifier: Density, test: Tensor, chosen: argparse.Namespace, classes: int
) -> list[dict[str, Any]]:
    """Return a row for the reference (the ancestral chain), and one per sampler and number of evaluations."""
    truth = features(classifier, test[: chosen.n])
    requested = [("ddpm", chosen.reference)]
    requested += [(method, int(n)) for method in chosen.methods.split(",") for n in chosen.evaluations.split(",")]
    rows = []
    for method, budget in requested:
        steps = (budget + 1) // 2 if method in TWICE else budget
        start = time.perf_counter()
        until = None if budget == chosen.reference else chosen.until
        sampled = with_sampler(density, method=method, steps=steps, until=until)
        x, evaluations = draw(sampled, chosen.n, classes, chosen.batch)
        seen = features(classifier, x)
        row = {"method": method, "evaluations": evaluations, "frechet": frechet(seen, truth), "mmd": mmd(seen, truth)}
        rows.append(row | {"seconds": time.perf_counter() - start})
        print(
            ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in rows[-1].items()
            )
        )
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, name, words in zip(axes, ("frechet", "mmd"), ("Fréchet distance", "MMD²"), strict=True):
        for number, method in enumerate(dict.fromkeys(row["method"] for row in rows[1:])):
            points = sorted((row["evaluations"], row[name]) for row in rows[1:] if row["method"] == method)
            axis.plot(
                *zip(*points, strict=True),
                marker="os"[number // 10],
                markersize=3,
                linestyle=("-", ":")[number // 10],
                label=method,
            )
        axis.axhline(rows[0][name], color="black", linestyle="--", label=f"ddpm, {rows[0]['evaluations']} evaluations")
        axis.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel=words)
        ticks = sorted({row["evaluations"] for row in rows[1:] if row["method"] not in TWICE})
        axis.set_xticks(ticks, labels=map(str, ticks))
        axis.set_xticks([], minor=True)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("diffusion", type=Path)
    parser.add_argument("classifier", type=Path)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--evaluations", default="5,7,10,15,20,50")
    parser.add_argument("--methods", default=",".join(m for m in METHODS if m != "adaptive"))
    parser.add_argument("--reference", type=int, default=1000)
    parser.add_argument("--until", type=float, help="the last log-SNR of the samplers, except the reference")
    parser.add_argument("--out", type=Path, default=Path("runs/samplers"))
    chosen = parser.parse_args(words)
    run, judge = loglik.load(chosen.diffusion), loglik.load(chosen.classifier)
    test = load(run.config["source"], like=run.spec).test.tensor()
    chosen.n = min(chosen.n, len(test))
    rows = curve(run.density, judge.density, test, chosen, len(run.spec.classes))
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "samplers.json").write_text(json.dumps(rows, indent=2) + "\n")
    plot(rows, chosen.out / "samplers.png")
    near = [r for r in rows[1:] if r["evaluations"] <= 10]
    if near:
        best = min(near, key=lambda row: row["frechet"])
        ratio = best["frechet"] / rows[0]["frechet"]
        print(f"best with at most 10 evaluations: {best['method']}, {ratio:.2f} of the reference's Fréchet distance")


if __name__ == "__main__":
    main()
