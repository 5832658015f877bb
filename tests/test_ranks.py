"""Two ranks compute what one computes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from helpers.training import same

RANKS = """
    import os, sys
    from types import SimpleNamespace
    import torch
    from lightning_fabric import Fabric
    import loglik
    from loglik.data import from_arrays
    from loglik.evaluation import log_probs
    from loglik.flows import Coupling, Spline
    from loglik.flows.spline import parameters_per_dim
    from loglik.networks import MLP
    from loglik.training import fit, loop

    ranks, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)

    def flow():
        torch.manual_seed(0)
        return loglik.Flow([Coupling([False, True], MLP(1, parameters_per_dim(4)), Spline(4, 4.0))],
                           loglik.StandardNormal((2,)))

    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0.1 * x[:, 1] + x[:, 0]
    where = {"accelerator": "cpu", "devices": ranks, "strategy": "ddp" if ranks > 1 else "auto"}
    run = fit(flow(), x, out=folder + "/run", max_steps=12, validate_every=5, batch_size=32, **where)
    rank = int(os.environ.get("LOCAL_RANK", "0"))

    now = iter(range(100_000))  # on the second rank time goes faster and validations seem slower
    loop.time = SimpleNamespace(perf_counter=lambda: next(now) * (0.05 + 0.2 * rank))
    timed = fit(flow(), x, max_time=10, batch_size=32, patience=0, **where)

    fabric = Fabric(**where)
    fabric.launch()
    vae = loglik.fit("vae", torch.round(x.abs()).to(torch.int64), max_steps=2, width=8)  # each rank alone
    data = from_arrays(torch.round(x.abs()).to(torch.int64))
    scores = log_probs(vae.density, data.split("all"), samples=3, seed=1, batch_size=16, fabric=fabric)
    torch.save({"weights": run.density.state_dict(), "nats": [r["validation_nats"] for r in run.history],
                "scores": scores, "timed": timed.steps, "world": fabric.world_size}, f"{folder}/{rank}.pt")
"""


def ranks(number: int, folder: Path) -> list[dict]:
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(textwrap.dedent(RANKS))
    alone = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "NODE_RANK")}
    command = [sys.executable, "-W", "ignore", str(script), str(number), str(folder)]
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(number)]


def test_two_ranks_are_as_good_as_one(tmp_path) -> None:
    (one,), (first, second) = ranks(1, tmp_path / "one"), ranks(2, tmp_path / "two")
    assert (one["world"], first["world"], second["world"]) == (1, 2, 2)
    assert same(first["weights"], second["weights"])
    for name, value in one["weights"].items():  # the mean of two half batches' gradients is the batch's
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-5)
    assert first["nats"] == second["nats"]
    assert first["nats"] == pytest.approx(one["nats"], abs=1e-4)
    assert torch.equal(first["scores"], second["scores"])
    torch.testing.assert_close(first["scores"], one["scores"], rtol=0, atol=1e-6)
    assert first["timed"] == second["timed"] > 5
    assert (tmp_path / "two" / "run" / "model.safetensors").is_file()
