"""Compare bits/dim on Fashion-MNIST of our Glow and of normflows's, trained for the same time.

`python benchmarks/images.py --seconds 150` prints a Markdown table. Both sides dequantize uniformly and are scored on
the same test images with one draw of noise per image: a lower bound of log p, so an upper bound of bits/dim. `make
bench` does not run it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
SHAPE = {"scales": 2, "steps": 8, "width": 64, "batch": 64, "learning_rate": 1e-3}  # normflows's Glow
TEST = 1000


def ours(images: dict[str, Any], seconds: float, kind: str) -> tuple[Any, int, int]:
    import torch

    import loglik
    from loglik.data.dataset import Data, Split
    from loglik.evaluation import log_probs

    spec = loglik.DataSpec(kind="image", event_shape=(1, 28, 28), levels=256)
    parts = [Split(torch.from_numpy(images[name])) for name in ("train", "validation", "test")]
    run = loglik.fit(kind, Data("fashion-mnist", spec, *parts), max_time=seconds, progress=False)
    for row in run.history:
        bits = -row["validation_nats"] / (784 * math.log(2))
        print(f"{row['time']:.0f} s, step {row['step']}: {bits:.3f} bits/dim", file=sys.stderr)
    parameters = sum(p.numel() for p in run.density.parameters())
    return log_probs(run.density, parts[2], samples=1), run.steps, parameters


def normflows(images: dict[str, Any], seconds: float, kind: str) -> tuple[Any, int, int]:
    import normflows as nf
    import torch

    scales, bases, flows, merges = SHAPE["scales"], [], [], []
    for scale in range(scales):
        channels, side = 2 ** (scales + 1 - scale), 28 // 2 ** (scales - scale)
        blocks = [
            nf.flows.GlowBlock(channels, SHAPE["width"], split_mode="channel", scale=True)
            for _ in range(SHAPE["steps"])
        ]
        flows.append([*blocks, nf.flows.Squeeze()])
        shape = (channels, side, side) if scale == 0 else (channels // 2, side, side)
        bases.append(nf.distributions.DiagGaussian(shape, trainable=True))
        if scale:
            merges.append(nf.flows.Merge())
    model = nf.MultiscaleFlow(bases, flows, merges, transform=nf.transforms.Logit(alpha=0.01))
    train, test = (torch.from_numpy(images[name]).float() for name in ("train", "test"))

    def log_prob(x: Any) -> Any:
        return model.log_prob((x + torch.rand_like(x)) / 256, None) - 784 * math.log(256)

    model.train()
    with torch.no_grad():
        log_prob(train[:256])  # its ActNorm starts from the first batch
    optimizer, step, start = torch.optim.Adamax(model.parameters(), SHAPE["learning_rate"]), 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        optimizer.zero_grad()
        loss = -log_prob(train[torch.randint(len(train), (SHAPE["batch"],))]).mean()
        if loss.isfinite():
            loss.backward()
            optimizer.step()
        step += 1
    model.eval()
    with torch.no_grad():
        scores = torch.cat([log_prob(part) for part in test.split(100)])
    return scores, step, sum(p.numel() for p in model.parameters())


SIDES: dict[str, Callable[..., Any]] = {"ours": ours, "normflows": normflows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=150.0, help="training time of each side")
    parser.add_argument("--kinds", nargs="+", default=["flow:glow"], help="our models")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--folder", type=Path, default=Path("runs/images"), help="folder for the prepared images")
    parser.add_argument("--peers", help="the peers' Python; by default that of .venv-peers, which is built first")
    chosen = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from run import peers_python

    peers = chosen.peers or peers_python()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    file = chosen.folder / "fashion-mnist.npz"
    _prepare(file)
    print("| model | parameters | steps | bits/dim |\n|---|--:|--:|--:|", flush=True)
    for side in chosen.sides:
        for kind in chosen.kinds if side == "ours" else ["Glow"]:
            python = sys.executable if side == "ours" else peers
            words = [python, __file__, "one", side, file, str(chosen.seconds), kind]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            r = json.loads(done.stdout.strip().splitlines()[-1])
            print(
                f"| {side}, {kind} | {r['parameters']:,} | {r['steps']:,} | {r['bits']:.3f} ± {r['error']:.3f} |",
                flush=True,
            )


def _prepare(file: Path) -> None:
    import numpy as np

    from loglik.data import load

    data = load("fashion-mnist")
    test = data.test.x[:TEST]
    np.savez(file, train=data.train.x.numpy(), validation=data.validation.x.numpy(), test=test.numpy())


def _one(side: str, file: str, seconds: float, kind: str) -> None:
    import numpy as np
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    with np.load(file) as held:
        images = {name: held[name] for name in held.files}
    scores, steps, parameters = SIDES[side](images, seconds, kind)
    bits = -scores.double() / (784 * math.log(2))
    error = bits.std().item() / len(bits) ** 0.5
    print(json.dumps({"bits": bits.mean().item(), "error": error, "steps": steps, "parameters": parameters}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        _one(sys.argv[2], sys.argv[3], float(sys.argv[4]), sys.argv[5])
    else:
        main()
