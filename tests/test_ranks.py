"""Two ranks compute what one computes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from helpers.ranks import alone
from helpers.training import same

HEAD = """
    import os, sys
    from types import SimpleNamespace
    import torch
    import loglik
    from lightning_fabric import Fabric

    ranks, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    where = {"accelerator": "cpu", "devices": ranks, "strategy": os.environ["STRATEGY"] if ranks > 1 else "auto"}
    rank = int(os.environ.get("LOCAL_RANK", "0"))
"""

DECISIONS = """
    from loglik.data import from_arrays
    from loglik.evaluation import log_probs
    from loglik.training import Callback, NotFinite, fit, loop
    from helpers.training import REAL, Breaks, flow

    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0.1 * x[:, 1] + x[:, 0]
    torch.manual_seed(0)
    os.environ["LOGLIK_CPU"] = "loglik" if rank else "torch"  # as another CPU on the second machine
    run = fit(flow(dropout=0.3), x, out=folder + "/run", max_steps=12, validate_every=5, batch_size=32, **where)
    del os.environ["LOGLIK_CPU"]
    loglik.cpu.choices._chosen = None

    now = iter(range(100_000))  # on the second rank time goes faster and validations seem slower
    clock, loop.time = loop.time, SimpleNamespace(perf_counter=lambda: next(now) * (0.05 + 0.2 * rank))
    timed = fit(flow(), x, max_time=10, batch_size=32, patience=0, **where)
    loop.time = clock

    stopped = []
    for seed in range(3):  # few data and a high rate: each overfits at once
        options = {"max_steps": 300, "validate_every": 5, "batch_size": 8, "learning_rate": 0.05, "ema_decay": 0.0}
        stopped.append(fit(flow(), x[:40], patience=1, seed=seed, **options, **where).steps)

    class Until(Callback):  # the first rank alone calls it
        def on_step(self, step, metrics, run):
            assert rank == 0
            return step == 5
    until = fit(flow(), x, max_steps=40, batch_size=32, callbacks=[Until()], **where)

    class Part(Breaks):  # the examples of one rank alone break
        def log_prob(self, x, context=None, *, samples=1):
            return super().log_prob(x) + torch.where(x[:, 0] == x.new_tensor(7.0), torch.nan, 0.0)
        def loss(self, x, context=None):
            return -self.log_prob(x).mean()
        def terms(self, x, context=None, *, samples=1):
            return {"odd": self.log_prob(x), "rest": torch.zeros(len(x))}

    broken = x.clone()
    broken[loglik.data.from_arrays(x).train.index[3]] = 7.0
    try:
        fit(Part(0, ""), broken, max_steps=40, batch_size=32, **where)
    except NotFinite as error:
        message = str(error)

    fabric = Fabric(**where)
    fabric.launch()
    vae = loglik.fit("vae", torch.round(x.abs()).to(torch.int64), max_steps=2, width=8)  # each rank alone
    data = from_arrays(torch.round(x.abs()).to(torch.int64))
    scores = log_probs(vae.density, data.split("all"), samples=3, seed=1, batch_size=16, fabric=fabric)
    torch.save({"weights": run.density.state_dict(), "history": run.history, "scores": scores, "timed": timed.steps,
                "stopped": stopped, "until": until.steps, "told": until.density.state_dict(),
                "message": message, "cpu": run.config["cpu"], "world": fabric.world_size},
               f"{folder}/{rank}.pt")
"""

WEIGHTS = """
    from helpers.densities import SPECS, draw, tiny
    from loglik.data.dataset import Data, Split
    from loglik.evaluation import log_probs
    from loglik.evaluation.scores import arguments
    from loglik.training import fit

    fabric = Fabric(**where | ({"strategy": "ddp"} if ranks > 1 else {}))
    fabric.launch()
    results = {}
    for case in sys.argv[3:]:
        family, spec, optimizer = case.split("/")
        torch.manual_seed(0)
        density, (x, y) = tiny(family, SPECS[spec]), draw(SPECS[spec], 96)
        halves = Split(x[:64], y[:64]), Split(x[64:], y[64:])
        data = Data("drawn", SPECS[spec], halves[0], halves[1], halves[1])
        density.eval().initialise(*arguments(density, x, y))
        scores = log_probs(density, data.train, samples=3, seed=1, batch_size=16, fabric=fabric)
        options = {"max_steps": 20, "batch_size": 32, "ema_decay": 0.0, "learning_rate": 1e-2, "warmup": 2}
        run = fit(density, data, optimizer=optimizer, validate_every=20, **options, **where)
        results[case] = run.density.state_dict(), scores
    torch.save(results, f"{folder}/{rank}.pt")
"""

SOME = ["flow/mixed table/adamw", "vae/image/adamw", "autoregressive/image/sgd", "diffusion/mixed table/adamw"]
OTHERS = [
    "classifier/image/sgd",
    "classifier/mixed table/sgd",
    "autoregressive/mixed table/sgd",
    "autoregressive/text/sgd",
    "flow/image/adamw",
    "flow:glow/large image/adamw",
    "flow:maf/table/muon",
    "flow:nsf/whole array/adamw",
    "flow:continuous/real array/sgd",
    "vae/mixed table/muon",
    "vae:vamp/image/sgd",
    "vae:flow/image/adamw",
    "vae:hierarchical/image/adamw",
    "vae:diffusion/image/adamw",
    "diffusion/image/sgd",
    "diffusion/large image/sgd",
]


def ranks(number: int, folder: Path, script: str, *arguments: str, strategy: str = "ddp") -> list[dict]:
    folder.mkdir()
    file = folder / "script.py"
    file.write_text(textwrap.dedent(HEAD) + textwrap.dedent(script))
    environment = {**alone(), "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-W", "ignore", str(file), str(number), str(folder), *arguments]
    done = subprocess.run(
        command, env=environment | {"STRATEGY": strategy}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(number)]


def test_two_ranks_decide_as_one(tmp_path) -> None:
    (one,), (first, second) = (ranks(n, tmp_path / str(n), DECISIONS) for n in (1, 2))
    assert (one["world"], first["world"], second["world"]) == (1, 2, 2)
    assert same(first["weights"], second["weights"])
    assert first["cpu"] == second["cpu"] == one["cpu"]
    for name, value in one["weights"].items():  # the mean of two half batches' gradients is the batch's
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-5)
    for mine, other, single in zip(first["history"], second["history"], one["history"], strict=True):
        assert {**mine, "time": 0} == {**other, "time": 0}
        assert mine["train_nats"] == pytest.approx(single["train_nats"], abs=1e-5)  # the mean over the ranks
        assert mine["validation_nats"] == pytest.approx(single["validation_nats"], abs=1e-4)
    assert torch.equal(first["scores"], second["scores"])
    torch.testing.assert_close(first["scores"], one["scores"], rtol=0, atol=1e-6)
    assert first["timed"] == second["timed"] > 5
    assert first["stopped"] == second["stopped"] and max(first["stopped"]) < 300
    assert (one["until"], first["until"], second["until"]) == (5, 16, 16)  # the ranks agree every 16 steps
    assert same(first["told"], second["told"])
    assert first["message"] == second["message"] == one["message"]
    assert "the loss is nan, in its term 'odd'" in first["message"]
    assert (tmp_path / "2" / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("strategy", "cases"),
    [
        ("ddp", SOME),
        pytest.param("ddp", OTHERS, marks=pytest.mark.slow),
        pytest.param("fsdp2", [*SOME, *OTHERS], marks=pytest.mark.slow),
    ],
    ids=["some", "others", "all in shards"],
)
def test_two_ranks_have_the_weights_of_one(strategy, cases, tmp_path) -> None:
    """AdamW only where no gradient is 0 but for rounding, as a key's bias's is: it makes a step of it."""
    (one,), (first, second) = (ranks(n, tmp_path / str(n), WEIGHTS, *cases, strategy=strategy) for n in (1, 2))
    far = {}
    for case, (whole, scores) in one.items():
        (weights, first_scores), (others, second_scores) = first[case], second[case]
        assert same(weights, others) and torch.equal(first_scores, second_scores), case
        torch.testing.assert_close(first_scores, scores, rtol=1e-6, atol=1e-6)
        gap = max((weights[k] - v).abs().max().item() / max(v.abs().max().item(), 1e-2) for k, v in whole.items())
        if gap > 1e-5:
            far[case] = gap
    assert not far
