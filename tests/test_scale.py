"""Training on several processes: who writes and prints, shards, lost ranks, and restarts."""

import json
import os
import re
import shutil
import signal
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import loglik
from helpers import training as small
from helpers.ranks import LAUNCHERS, PREFIXES, alone, free_port, run_script, start
from loglik.networks import CausalTransformer, ResidualMLP
from loglik.ranks import is_first_rank, launched_processes, restarted
from loglik.training import TrainingSettings
from loglik.training.fabric import as_launched
from loglik.training.sharding import gathered_blocks

SPREAD = 1e-5  # of two ranks' weights from one's, relative to their norm


@pytest.fixture
def environment(monkeypatch):
    """Set variables of a launcher, and no others."""
    for name in os.environ:
        if name in ("RANK", "WORLD_SIZE") or name.startswith(PREFIXES):
            monkeypatch.delenv(name)
    return lambda variables: [monkeypatch.setenv(*pair) for pair in variables.items()]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_first_rank_is_the_launchers(launcher, environment) -> None:
    first, second = LAUNCHERS[launcher]
    environment(first)
    assert is_first_rank()
    assert launched_processes() == ((2, 1) if launcher == "torchrun" else (1, 2))
    environment(second)
    assert not is_first_rank()


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "2"}, True),  # as Fabric sets them
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, False),
        ({"NODE_RANK": "1"}, False),  # of the second machine, before Fabric starts its other processes
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash", "SLURM_PROCID": "1"}, True),  # a shell, not srun
        ({"RANK": "3"}, True),  # of something else
    ],
)
def test_without_a_launcher_the_rank_is_fabrics(variables, first, environment) -> None:
    environment(variables)
    assert is_first_rank() is first
    assert launched_processes() is None


def test_settings_take_what_was_launched(environment) -> None:
    settings = TrainingSettings(max_steps=1)
    assert as_launched(settings) is settings
    environment(LAUNCHERS["srun on two machines"][1])
    assert (as_launched(settings).devices, as_launched(settings).num_nodes) == (1, 2)
    with pytest.raises(ValueError, match=r"started 1 processes on each of 2 machines, but devices=4 and num_nodes=1"):
        as_launched(TrainingSettings(devices=4))


def test_contradicting_variables_are_a_users_error(environment) -> None:
    environment({"SLURM_NTASKS": "4"})
    with pytest.raises(ValueError, match="--ntasks=4"):
        is_first_rank()


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restart_is_the_launchers(name, environment, monkeypatch, tmp_path) -> None:
    x = small.REAL.astype("float32")
    options = {"out": tmp_path / "run", "max_steps": 4, "validate_every": 2, "accelerator": "cpu"}
    torch.manual_seed(0)
    whole = loglik.fit(small.flow(), x, **options)
    environment({name: "1"})
    assert restarted()
    lines: list[str] = []
    torch.manual_seed(0)
    again = loglik.fit(small.flow(), x, report=lines.append, **options)  # without resume=True
    assert small.same(whole.density.state_dict(), again.density.state_dict())
    assert any("continues at step 4" in line for line in lines)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("torchrun", marks=pytest.mark.slow),
        "torchrun on two machines",
        pytest.param("srun on two machines", marks=pytest.mark.slow),
    ],
)
def test_one_rank_prints_and_writes(launcher, tmp_path) -> None:
    table = tmp_path / "table.csv"
    np.savetxt(table, small.REAL[:60], delimiter=",", header="a,b", comments="")
    words = ["-m", "loglik", "fit", str(table), "--model", "flow", "--max-steps", "2", "--device", "cpu"]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "PYTHONPATH": os.pathsep.join(sys.path)}
    folder = tmp_path / "run"
    ranks = [start([*words, "--out", str(folder)], **address, **variables) for variables in LAUNCHERS[launcher]]
    (first, errors), (second, more) = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors + more
    assert first.count("run: ") == 1 and second == ""
    assert (folder / "model.safetensors").is_file()
    assert os.listdir(tmp_path).count("run") == 1


def test_gathered_blocks_are_called_and_have_layers() -> None:
    transformer, residual = CausalTransformer(8, 3, 2), ResidualMLP(2, 2, width=8, depth=2, context=4)
    assert gathered_blocks(transformer) == list(transformer.blocks)
    assert gathered_blocks(residual) == list(residual.blocks)
    assert gathered_blocks(small.flow()) == []  # transforms are not called, and layers may be read
    assert gathered_blocks(small.vae()) == []


# ---- shards ----

RANKS = """
    import json, sys
    from pathlib import Path
    import torch, loglik
    from helpers import training as small
    from helpers.ranks import Bytes
    from loglik.networks import CausalTransformer
    from loglik.training.compilation import Loss
    from loglik.training.sharding import is_sharded, trained_copy
    from loglik.training.fabric import launch_fabric

    torch.set_num_threads(1)
    folder, strategy = Path(sys.argv[1]), sys.argv[2]
    where = {"accelerator": "cpu", "devices": 2, "strategy": strategy}

    def fit(density, x, name, **options):
        torch.manual_seed(0)
        settings = small.settings(**{"max_steps": 20, "validate_every": 5, **where, **options})
        return loglik.fit(density(), x, out=folder / name, settings=settings, resume=(folder / name).exists())

    def blocks():
        return loglik.Autoregressive(CausalTransformer(16, 2, 2), (4,), 3)

    real, levels = small.REAL.astype("float32"), small.WHOLE
    fit(small.flow, real, "adamw")
    fit(blocks, levels, "muon", optimizer="muon")
    fit(small.flow, real, "begun on one", optimizer="muon")
    fit(small.flow, real, "begun on two", optimizer="muon", max_steps=10)

    fabric = launch_fabric(small.settings(**where))
    density = blocks()
    module = fabric.setup_module(Loss(trained_copy(density) if is_sharded(fabric) else density))
    with Bytes() as bytes:
        fabric.backward(module(torch.as_tensor(levels[:16]), None))
    if fabric.is_global_zero:
        (folder / "bytes.json").write_text(json.dumps(bytes.sent))
"""


def blocks() -> loglik.Autoregressive:
    return loglik.Autoregressive(CausalTransformer(16, 2, 2), (4,), 3)


def fit_here(density, x, out: Path | None = None, resume: bool = False, **options) -> loglik.Run:
    torch.manual_seed(0)
    settings = small.settings(**{"max_steps": 20, "validate_every": 5, "accelerator": "cpu", **options})
    return loglik.fit(density(), x, out=out, settings=settings, resume=resume)


def assert_near(weights: dict[str, torch.Tensor], path: Path) -> None:
    found = load_file(path / "model.safetensors")
    assert found.keys() == weights.keys()
    difference = sum((found[k] - v).double().square().sum() for k, v in weights.items())
    norm = sum(v.double().square().sum() for v in weights.values())
    assert difference.sqrt() < SPREAD * norm.sqrt()


def padded(density: torch.nn.Module, ranks: int) -> int:
    """The bytes of float32 parameters whose rows are shared equally."""
    return sum(4 * -(-len(p) // ranks) * ranks * (p.numel() // len(p)) for p in density.parameters())


@pytest.mark.parametrize("strategy", ["fsdp2", pytest.param("ddp", marks=pytest.mark.slow)])
def test_two_ranks_equal_one_and_resume_on_any_number(strategy, tmp_path) -> None:
    real, levels = small.REAL.astype("float32"), small.WHOLE
    fit_here(small.flow, real, tmp_path / "begun on one", optimizer="muon", max_steps=10)
    run_script(RANKS, tmp_path, str(tmp_path), strategy)
    adamw = fit_here(small.flow, real)
    muon = fit_here(blocks, levels, optimizer="muon")
    fit_here(small.flow, real, tmp_path / "one", optimizer="muon", max_steps=10)
    flow = fit_here(small.flow, real, tmp_path / "one", resume=True, optimizer="muon")
    fit_here(small.flow, real, tmp_path / "begun on two", resume=True, optimizer="muon")
    for run, name in [(adamw, "adamw"), (muon, "muon"), (flow, "begun on one"), (flow, "begun on two")]:
        assert_near(run.density.state_dict(), tmp_path / name)
        history = loglik.load(tmp_path / name, density={"muon": blocks}.get(name, small.flow)()).history
        nats = [row["validation_nats"] for row in history]
        assert nats == pytest.approx([row["validation_nats"] for row in run.history], abs=1e-5)

    sent = json.loads((tmp_path / "bytes.json").read_text())
    whole, repeated = padded(blocks(), 2), sum(padded(block, 2) for block in gathered_blocks(blocks()))
    assert 0 < repeated < whole
    if strategy == "fsdp2":  # blocks are gathered for the loss and again for its gradient, the rest once
        assert sent == {"allgather_base": whole + repeated, "reduce_scatter_base": whole}
    else:
        assert sent["allreduce"] == 4 * sum(p.numel() for p in blocks().parameters())


COMPILED = """
    import sys
    import torch, loglik
    from helpers import training as small
    from loglik import regions

    regions.COMPILER.clear()
    regions.COMPILER.update(backend="eager", dynamic=False)  # torch's tracing, without its code generator
    torch.set_num_threads(1)
    torch.manual_seed(0)
    where = {"accelerator": "cpu", "devices": 2, "strategy": sys.argv[2], "compile": True, "max_steps": 20}
    more = {"validate_every": 5, "optimizer": "sgd", "ema_decay": 0.0, "learning_rate": 1e-2}
    lines = []
    settings = small.settings(**where, **more)
    x = small.REAL.astype("float32")
    run = loglik.fit(small.flow(), x, out=sys.argv[1], settings=settings, report=lines.append)
    assert run.config["chosen"]["compile"] is True, lines
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_compiled_ranks_equal_one(strategy, tmp_path) -> None:
    """Of a flow that draws no noise, which compiled ranks do not share."""
    options = {"optimizer": "sgd", "ema_decay": 0.0, "learning_rate": 1e-2}
    one = fit_here(small.flow, small.REAL.astype("float32"), **options)
    run_script(COMPILED, tmp_path, str(tmp_path / "run"), strategy)
    assert_near(one.density.state_dict(), tmp_path / "run")


# ---- lost ranks and restarts ----

ONE_LINE = r"error: rank \d: another process of this training ended: training stopped; pass --resume to continue\n"


def wait_for(path: Path, process) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    """The processes that a process started, in their order."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[1]) == pid:
            found.append(int(stat.parent.name))
    return sorted(found)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_where_a_rank_is_killed_the_other_ends_with_one_line(strategy, tmp_path) -> None:
    words = ["-m", "loglik", "fit", "wine", "--model", "vae", "--max-steps", "1000000", "--set", "validate_every=5"]
    words += ["--device", "cpu", "--devices", "2", "--strategy", strategy, "--out", str(tmp_path / "run")]
    first = start(words, PYTHONPATH=os.pathsep.join(sys.path))
    wait_for(tmp_path / "run" / "metrics.csv", first)
    (second,) = children(first.pid)
    os.kill(second, signal.SIGKILL)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 2
    assert re.fullmatch(ONE_LINE, errors)


FOREVER = """
    import sys, loglik
    where = {"device": "cpu", "devices": 2, "strategy": sys.argv[2]}
    loglik.fit("vae", "wine", out=sys.argv[1], max_steps=10**6, validate_every=5, **where)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("rank", [0, 1])
def test_where_a_rank_is_killed_a_script_ends(rank, strategy, tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(FOREVER))
    first = start([str(script), str(tmp_path / "run"), strategy], PYTHONPATH=os.pathsep.join(sys.path))
    wait_for(tmp_path / "run" / "metrics.csv", first)
    os.kill([first.pid, *children(first.pid)][rank], signal.SIGKILL)
    _, errors = first.communicate(timeout=60)  # until both have ended, as both have the pipe
    assert first.returncode != 0
    last = errors.splitlines()[-1]
    assert re.search(rf"rank {1 - rank}: another process of this training ended: .*; pass resume=True to con", last)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_run_that_torchrun_starts_again_ends_as_the_run_without_the_kill(strategy, tmp_path) -> None:
    def torchrun(name: str):
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
        words += ["-m", "loglik", "fit", "wine", "--model", "vae", "--max-steps", "400", "--set", "validate_every=10"]
        words += ["--device", "cpu", "--strategy", strategy, "--out", str(tmp_path / name)]
        return start(words, PYTHONPATH=os.pathsep.join(sys.path))

    killed = torchrun("killed")
    wait_for(tmp_path / "killed" / "checkpoints" / "step-000000020.sha256", killed)
    os.kill(children(killed.pid)[-1], signal.SIGKILL)
    output, errors = killed.communicate(timeout=240)
    assert killed.returncode == 0, errors[-3000:]
    assert output.count("training continues at step") == 1 and output.count("run: ") == 1
    whole = torchrun("whole")
    whole.communicate(timeout=240)
    assert small.same(*(load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole")))


def test_the_examples_for_schedulers_are_well_formed() -> None:
    import ast
    import subprocess

    import yaml

    examples = Path(__file__).parents[1] / "examples"
    assert subprocess.run([shutil.which("bash") or "bash", "-n", examples / "slurm.sh"], env=alone()).returncode == 0
    tree = ast.parse((examples / "ray_train.py").read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert "loglik.fit" in calls
    task = yaml.safe_load((examples / "skypilot.yaml").read_text(encoding="utf-8"))
    assert {"resources", "setup", "run"} <= task.keys() and "loglik fit" in task["run"]
