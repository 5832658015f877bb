"""Train with Ray Train: each of its workers calls `loglik.fit`, as one rank.

    pip install "ray[train]"
    python examples/ray_train.py photos/ /shared/runs/photos --workers 8 --gpu

Ray starts the workers and gives each its rank in the variables that torchrun sets too. If a worker is lost, Ray starts
all of them again, and the run continues from its newest checkpoint in the shared folder.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

__all__ = ["train_rank"]


def train_rank(config: dict[str, Any]) -> None:
    """Train as one rank of Ray's group."""
    import loglik

    workers = int(os.environ["WORLD_SIZE"])
    begun = (Path(config["out"]) / "config.yaml").is_file()
    run = loglik.fit(
        config["model"],
        config["data"],
        out=config["out"],
        resume=begun,
        max_steps=config["max_steps"],
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        num_nodes=workers // int(os.environ["LOCAL_WORLD_SIZE"]),
        strategy="ddp",
    )
    if os.environ["RANK"] == "0":
        print(f"{run.steps} steps: {run.path}")


def main() -> None:
    """Read the arguments and start the workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--model", default="diffusion")
    parser.add_argument("--max-steps", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true")
    arguments = parser.parse_args()
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={name: getattr(arguments, name) for name in ("data", "out", "model", "max_steps")},
        scaling_config=ScalingConfig(num_workers=arguments.workers, use_gpu=arguments.gpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=3)),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
