"""Regions and torch.compile: shared code, the choice of `auto`, and what a run records of it."""

import sys

import pytest
import torch
import yaml
from torch import nn

import loglik
from helpers.alone import run_alone
from helpers.commands import refused, well
from helpers.needs import needs
from loglik import regions
from loglik.density import StandardNormal
from loglik.flows import Flow, Spline, autoregressions, couplings
from loglik.networks import CausalTransformer, ConvNet, ResidualMLP, UNet
from loglik.recipes import build
from loglik.regions import compiled_regions, observed_regions
from loglik.training import compilation

OPTIONS = {"width": 8, "depth": 2, "batch_size": 16, "max_steps": 4, "progress": False, "network": "convnet"}


def images(n=80):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 1, 16, 16), generator=generator).to(torch.uint8)
    return x.numpy(), (torch.arange(n) % 2).numpy()


def spline_flow(transforms):
    return Flow(transforms, StandardNormal((6,))).log_prob


# a network of some depth, its inputs, and the number of distinct regions: with and without a gradient by the input
NETWORKS = {
    "transformer": (lambda depth: CausalTransformer(16, depth, 2), [(2, 8, 16)], 2),
    "convnet": (lambda depth: ConvNet(3, widths=(8, 16), blocks=(depth, depth)), [(4, 3, 8, 8)], 3),
    "unet": (
        lambda depth: UNet(3, width=8, multipliers=(1, 2), blocks=depth, attention=(1,), context=4),
        [(2, 3, 8, 8), (2, 4)],
        4,
    ),
    "residual mlp": (lambda depth: ResidualMLP(6, 6, width=16, depth=depth, context=4), [(8, 6), (8, 4)], 1),
    "couplings": (lambda n: spline_flow(couplings(6, Spline(4), layers=2 * n, hidden=(8,))), [(32, 6)], 2),
    "autoregressions": (lambda n: spline_flow(autoregressions(6, Spline(4), layers=n, hidden=(8,))), [(32, 6)], 2),
}


# ---- regions


def check_sharing(backend, names):
    """Deeper networks compile no more code, and compute what they do without the compiler, gradients included."""
    from torch._dynamo.utils import counters

    regions.COMPILER = {"dynamic": False, **({} if backend == "inductor" else {"backend": backend})}
    for name in names:
        make, shapes, distinct = NETWORKS[name]
        for depth in (2, 4):
            torch.compiler.reset()
            counters.clear()
            torch.manual_seed(0)
            network = make(depth)
            inputs = [torch.randn(shape) for shape in shapes]
            owner = getattr(network, "__self__", network)
            results, gradients, seen = [], [], None
            for run in (observed_regions, compiled_regions):
                with run() as found:
                    results.append(network(*inputs))
                gradients.append(torch.autograd.grad(results[-1].square().sum(), owner.parameters()))
                seen = found or seen
            graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
            assert (len(seen), graphs, breaks) == (distinct, distinct, 0), (name, depth, len(seen), graphs, breaks)
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_compilations_do_not_grow_with_depth():
    run_alone(__file__, "eager", "transformer", "unet", "couplings")


@pytest.mark.slow
@needs("a C++ compiler")
def test_compiled_regions_compute_the_same():
    run_alone(__file__, "inductor", *NETWORKS)


def test_regions_run_plainly_unless_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    CausalTransformer(8, 1, 2)(torch.randn(1, 4, 8))


def test_a_region_within_a_region_is_a_part_of_it():
    flow = Flow(couplings(4, Spline(4), layers=2, hidden=(8,)), StandardNormal((4,)))
    with observed_regions() as seen:
        flow.log_prob(torch.randn(8, 4))
    assert {signature[0].__name__ for signature in seen} == {"_couple"}


@pytest.mark.parametrize("family", ["classifier", "autoregressive", "flow", "vae", "diffusion"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 16, 16)], ids=str)
def test_every_family_has_regions(family, shape):
    spec = loglik.DataSpec(kind="image", event_shape=shape, levels=17, classes=("a", "b"))
    density = build(family, spec, width=8)
    x = torch.randint(0, 17, (2, *shape)).to(torch.uint8)
    density.initialise(torch.tensor([0, 1]) if family == "classifier" else x, x if family == "classifier" else None)
    with observed_regions() as seen:
        density.loss(*((torch.tensor([0, 1]), x) if family == "classifier" else (x,)))
    assert seen


# ---- the choice


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that counts calls, on a device that it may pay on; and the seconds of steps, plain and compiled."""
    calls, seconds = [], {"plain": 0.1, "compiled": 0.05}

    def compile(function, **options):
        def call(*args, **kwargs):
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return call

    def timed(step, device, cuda_graph):
        before = len(calls)
        step()
        return seconds["compiled" if len(calls) > before else "plain"]

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(regions._State, "functions", {})
    monkeypatch.setattr(compilation, "_may_pay", lambda device: True)
    monkeypatch.setattr(compilation, "_seconds", timed)
    calls_and_seconds = type("Compiler", (), {"calls": calls, "seconds": seconds})
    return calls_and_seconds


def train(out=None, **options):
    lines = []
    run = loglik.fit("classifier", images(), out=out, report=lines.append, **{**OPTIONS, **options})
    weights = {name: value.clone() for name, value in run.density.state_dict().items()}
    return run, weights, lines


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_cpu_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    run, _, lines = train()
    assert run.config["training"]["compile"] == "auto" and run.config["chosen"]["compile"] is False
    assert lines == []


def test_regions_are_compiled_where_steps_save_more_than_that_takes(compiler):
    plain = train(compile=False)
    assert compiler.calls == []
    compiler.seconds.update(plain=100.0, compiled=50.0)
    run, weights, (line,) = train()
    assert run.config["chosen"]["compile"] is True and len(compiler.calls) >= 4
    assert "compiled: 5 regions in" in line and "a step takes 50000.0 ms instead of 100000.0 ms" in line
    assert same(weights, plain[1]), "choosing must change neither weights nor a batch norm's moments"


@pytest.mark.parametrize(("limit", "left"), [({"max_steps": 4}, "0 s left"), ({"max_time": 1.2}, "1 s left")])
def test_nothing_is_compiled_that_does_not_pay_within_the_limit(compiler, limit, left):
    run, _, (line,) = train(**{"max_steps": None, **limit})
    assert compiler.calls == [] and run.config["chosen"]["compile"] is False
    assert line.startswith("not compiled: 5 regions would take about 30 s to compile and save about 0 s of the ")
    assert line.endswith(left)


def test_plain_steps_are_kept_where_compiled_ones_are_no_faster(compiler):
    compiler.seconds.update(plain=100.0, compiled=99.0)
    run, weights, (line,) = train()
    tried = len(compiler.calls)
    assert line == "not compiled: a step takes 99000.0 ms compiled and 100000.0 ms without"
    assert run.config["chosen"]["compile"] is False and tried < 3 * 6 + 8
    assert same(weights, train(compile=False)[1])


@pytest.mark.parametrize("requested", ["auto", True])
def test_a_compiler_that_fails_is_one_line_and_a_plain_run(compiler, monkeypatch, requested):
    def compile(function, **options):
        def call(*args, **kwargs):
            raise RuntimeError("no compiler\nis here")

        return call

    compiler.seconds.update(plain=100.0)
    monkeypatch.setattr(torch, "compile", compile)
    run, weights, (line,) = train(compile=requested)
    assert line == "not compiled: torch.compile failed, so steps run without it (RuntimeError: no compiler is here)"
    assert run.config["chosen"]["compile"] is False
    assert same(weights, train(compile=False)[1])


def test_blocks_that_are_computed_again_and_parts_of_a_batch_run_plainly(compiler):
    compiler.seconds.update(plain=100.0, compiled=50.0)
    options = {"network": "vit", "depth": 2, "patch": 8, "stem": "none"}
    lines = train(compile=True, checkpoint=True, **options)[2]
    assert compiler.calls == [] and "not compiled: checkpoint=true computes blocks again" in lines[0]
    assert train(accumulate=2)[0].config["chosen"]["compile"] is False and compiler.calls == []


def test_a_resumed_run_takes_the_recorded_choice(compiler, tmp_path, monkeypatch):
    compiler.seconds.update(plain=100.0, compiled=50.0)
    for name in ("run", "parts"):
        train(tmp_path / name, max_steps=2)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["chosen"]["compile"] is True and config["training"]["compile"] == "auto"
    monkeypatch.setattr(compilation, "_seconds", None)
    compiler.calls.clear()
    _, weights, lines = train(tmp_path / "run", resume=True)
    assert len(compiler.calls) >= 2 and "compiled: 5 regions in 0 s" in lines
    train(tmp_path / "plain", max_steps=2, compile=False)
    assert same(weights, train(tmp_path / "plain", compile=False, resume=True)[1])
    compiler.calls.clear()
    again = train(tmp_path / "parts", resume=True, accumulate=2)[0]  # whose parts share their noise
    assert again.config["chosen"]["compile"] is False and compiler.calls == []


def test_the_choice_is_recorded_before_the_first_step(compiler, tmp_path, monkeypatch):
    compiler.seconds.update(plain=100.0, compiled=50.0)

    def stop(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr("loglik.training.step.Step.take", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["chosen"]["compile"] is True


def test_a_density_without_regions_is_compiled_as_a_whole(compiler):
    class Shift(StandardNormal):
        def __init__(self):
            super().__init__((2,))
            self.shift = nn.Parameter(torch.zeros(2))

        def log_prob(self, x, context=None, *, samples=1):
            return super().log_prob(x - self.shift)

    loglik.fit(Shift(), torch.randn(40, 2), max_steps=3, compile=True, progress=False)
    assert compiler.calls == ["loss"] * 4


def test_a_setting_that_is_no_choice_is_refused(tmp_path):
    words = ["fit", "digits", "--model", "flow", "--max-steps", 1, "--out", tmp_path / "run"]
    assert "compile must be true, false or auto, got 'yes please'" in refused(*words, "--set", "compile=yes please")
    well(*words, "--set", "compile=auto", "--set", "width=8", "--set", "depth=1")


if __name__ == "__main__":  # test_compilation.py BACKEND NETWORKS, without checks on signatures
    check_sharing(sys.argv[1], sys.argv[2:])
