"""loglik.export: the graphs of every family, run by onnxruntime and by torch, against the densities."""

import json
import math
import sys
from dataclasses import replace
from unittest import mock

import jaxtyping
import pytest
import torch

import loglik
from helpers.commands import refused, well
from helpers.densities import CASES, SPECS, Case, ready
from loglik.data.spec import DataSpec
from loglik.density import StandardNormal
from loglik.diffusion import Diffusion, with_likelihood
from loglik.explicit_noise import ExplicitNoise, NoiseDraw
from loglik.export import export, parts_of
from loglik.export.decompositions import DECOMPOSITIONS
from loglik.export.export import difference
from loglik.export.formats import read
from loglik.runs import Run
from loglik.transforms import Scale

aten = torch.ops.aten

# each family in each format, where it is cheap; every other case is slow
FAST = [
    ("classifier-one_column", "probabilities"),
    ("autoregressive-image", "log_prob"),
    ("flow-one_column", "log_prob"),
    ("vae-real_array", "log_prob"),
    ("diffusion-image", "denoise"),
    ("mixture-one_column", "sample"),
    ("independent-mixed_table", "log_prob"),
]
TRACED = [  # and a mixture's samples, whose quantiles are compared
    ("classifier-image", "log_prob"),
    ("autoregressive-text", "logits"),
    ("flow-one_column", "sample"),
    ("vae-incomplete_table", "log_prob"),
    ("diffusion-one_column", "log_prob"),
    ("independent-table", "sample"),
]


@pytest.fixture(autouse=True)
def without_checks():
    """A size that is a symbol is no int to the checks on signatures."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


BY_NAME = {str(case): case for case in CASES}


def run_of(case: Case) -> Run:
    density, _, _ = ready(case)
    for module in density.modules():
        if isinstance(module, Diffusion):
            module.sampler = replace(module.sampler, method="ddim", steps=3)
    return Run(density, SPECS[case.spec], {"model": case.family})


def exported(name, part, to, folder):
    """Export, which checks batches of 1, 3 and 7 rows, and check a batch of another size."""
    run = run_of(BY_NAME[name])
    (done,) = export(run, to, folder, parts=[part])
    assert done.error <= 1e-5
    program, metadata = read(done.path, to)
    inputs = json.loads(metadata["loglik.inputs"])
    assert inputs.keys() == done.inputs.keys()
    assert DataSpec.from_dict(json.loads(metadata["loglik.spec"])) == run.spec
    if part == "log_prob":
        assert (metadata["loglik.unit"], metadata["loglik.bound"]) == ("nats", run.density.bound.value)
    return run, program, done


@pytest.mark.parametrize(("name", "part"), FAST)
def test_onnx_gives_the_density_s_numbers(name, part, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    exported(name, part, "onnx", tmp_path)


@pytest.mark.parametrize(("name", "part"), TRACED)
def test_torch_export_gives_the_density_s_numbers(name, part, tmp_path):
    exported(name, part, "torch.export", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch.export"])
@pytest.mark.parametrize("name", BY_NAME)
def test_every_density_is_exported(name, to, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for part in parts_of(run_of(BY_NAME[name]).density):
        if (name, part) != ("flow:continuous-table", "log_prob"):  # refused, by a test of its own
            exported(name, part, to, tmp_path)


def test_a_gaussian_has_its_own_log_density(tmp_path):
    """N(3, 2²) in one dimension, by the file alone, in a batch of a size that the check has not seen."""
    run = Run(StandardNormal((1,)), SPECS["one column"], {"model": "normal"})
    run.density = loglik.Flow([Scale(0.5, -1.5)], run.density)
    (log_prob, sample) = export(run, "torch.export", tmp_path)
    x = torch.linspace(-5, 9, 11)[:, None]
    want = -0.5 * ((x[:, 0] - 3) / 2) ** 2 - math.log(2) - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(read(log_prob.path, "torch.export")[0]({"x": x}), want, atol=1e-6)
    normal = torch.tensor([[0.0], [1.0], [-2.0]])
    drawn = read(sample.path, "torch.export")[0]({"normal": normal})
    assert torch.allclose(drawn, 3 + 2 * normal)


def test_samples_of_a_graph_have_the_density_s_quantiles(tmp_path):
    run, program, done = exported("mixture-mixed_table", "sample", "torch.export", tmp_path)
    torch.manual_seed(0)
    n, widths = 4000, {name: int(shape[4:].split(")")[0]) for name, shape in done.inputs.items()}
    draws = {"normal": torch.randn, "uniform": torch.rand}
    got = program({name: draws[name](n, width) for name, width in widths.items()})
    want = run.density.sample(n)
    for level in (0.25, 0.5, 0.75):
        at = want.quantile(level, 0)
        difference = (got <= at).double().mean(0) - (want <= at).double().mean(0)
        assert (difference.abs() < 4.5 * math.sqrt(2 * 0.25 / n)).all()


def test_monte_carlo_samples_are_in_the_graph(tmp_path):
    run = run_of(BY_NAME["vae-image"])
    (done,) = export(run, "torch.export", tmp_path, parts=["log_prob"], samples=3)
    assert done.inputs["normal"].startswith(f"(B, {3 * run.density.latent})")
    assert read(done.path, "torch.export")[1]["loglik.samples"] == "3"


def test_a_diffusion_samples_in_few_steps(tmp_path):
    run = run_of(BY_NAME["diffusion-one_column"])
    (done,) = export(run, "torch.export", tmp_path, parts=["sample"], method="ddim", steps=2)
    assert done.sampler == "ddim, 2 steps" and done.sampler in done.describe()
    with pytest.raises(ValueError, match="at most 64, got ddpm with 100"):
        export(run, "torch.export", tmp_path, parts=["sample"], method="ddpm", steps=100)


def test_the_odes_likelihood_is_refused_and_its_samples_are_not(tmp_path):
    spec = SPECS["one column"]
    rectified = loglik.recipes.build("diffusion:flow-matching", spec, width=16, depth=1, reflow="a run")
    by_ode = with_likelihood(run_of(BY_NAME["diffusion-one_column"]).density, "ode", 4)
    for density, use in ((rectified, "export part=sample"), (by_ode, "export its bound, of with_likelihood")):
        with pytest.raises(ValueError, match=f"^log_prob by the ODE has derivatives of the network.*: {use}") as error:
            export(Run(density.eval(), spec), "torch.export", tmp_path)
        assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
    (done,) = export(Run(rectified, spec), "torch.export", tmp_path, parts=["sample"])
    assert done.sampler == "euler, 4 steps"


def test_a_continuous_flow_has_no_graph_of_its_density(tmp_path):
    with pytest.raises(ValueError, match="log_prob of this density cannot be traced") as error:
        exported("flow:continuous-table", "log_prob", "torch.export", tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


# ---- explicit noise


def test_noise_is_taken_in_order_and_by_row():
    first, second = NoiseDraw("normal", (3, 2)), NoiseDraw("normal", (5, 2))
    plan = [NoiseDraw.between(first, second, (3, 5))]
    plan += [NoiseDraw.between(NoiseDraw("normal", (4, 6)), NoiseDraw("normal", (4, 10)), (3, 5))]
    noise = torch.arange(20.0).view(2, 10)
    with ExplicitNoise({"normal": noise}, plan):
        a, b = torch.randn(2, 2), torch.randn_like(torch.empty(4, 4))
    assert torch.equal(a, noise[:, :2])
    assert torch.equal(b, noise[:, 2:].view(2, 4, 2).movedim(0, 1).flatten(1))


def test_a_draw_that_rows_share_is_refused():
    with pytest.raises(ValueError, match="does not belong to single rows"):
        NoiseDraw.between(NoiseDraw("uniform", (4,)), NoiseDraw("uniform", (4,)), (3, 5))
    with ExplicitNoise(), pytest.raises(ValueError, match="randperm is a random operation"):
        torch.randperm(3)


def test_other_distributions_come_from_uniform_numbers():
    u = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0))
    plan = [NoiseDraw("uniform", (20_000,))]

    def drawn(call):
        with ExplicitNoise({"uniform": u}, plan):
            return call()

    exponential = drawn(lambda: torch.empty(20_000).exponential_())
    assert abs(exponential.mean() - 1) < 0.03 and abs(exponential.std() - 1) < 0.03 and (exponential > 0).all()
    assert drawn(lambda: torch.randint(2, 5, (20_000,))).bincount().tolist()[2:] == pytest.approx([6667] * 3, abs=250)
    weights = torch.tensor([0.2, 0.0, 0.8])
    counts = drawn(lambda: torch.multinomial(weights, 20_000, replacement=True)).bincount(minlength=3)
    assert counts[1] == 0 and counts[0] == pytest.approx(4000, abs=250)


# ---- the operations that ONNX does not have


@pytest.mark.parametrize(
    ("op", "low", "high"),
    [
        (aten.erf, -6, 6),
        (aten.erfc, -6, 6),
        (aten.special_erfcx, -6, 20),
        (aten.special_log_ndtr, -30, 8),
        (aten.lgamma, 0.01, 200),
        (aten.expm1, -40, 40),
        (aten.log1p, -0.999, 40),
        (aten.asinh, -1e3, 1e3),
        (aten.sinh, -20, 20),
        (aten.softplus, -40, 19),
        (aten.sigmoid, -40, 40),
    ],
)
def test_a_decomposition_agrees_with_torch(op, low, high):
    x = torch.cat([torch.linspace(low, high, 2001), torch.linspace(1e-9, 1e-3, 50)]).double()
    want = op(x)
    assert ((DECOMPOSITIONS[op.default](x) - want).abs() <= 1e-12 * (1e-3 + want.abs())).all()


def test_linear_algebra_agrees_with_torch():
    torch.manual_seed(0)
    a = torch.randn(3, 4, 4, dtype=torch.float64)
    a = a @ a.mT + torch.eye(4)
    b = torch.randn(3, 4, 2, dtype=torch.float64)
    factor, _ = DECOMPOSITIONS[aten.linalg_cholesky_ex.default](a)
    assert torch.allclose(factor, torch.linalg.cholesky(a))
    solve = DECOMPOSITIONS[aten.linalg_solve_triangular.default]
    for matrix, upper in ((factor, False), (factor.mT, True)):
        assert torch.allclose(solve(matrix, b, upper=upper), torch.linalg.solve_triangular(matrix, b, upper=upper))
        right = torch.linalg.solve_triangular(matrix, b.mT, upper=upper, left=False)
        assert torch.allclose(solve(matrix, b.mT, upper=upper, left=False), right)
    edges, values = torch.tensor([[0.0, 1.0, 1.0, 2.0]]), torch.tensor([[-1.0, 0.0, 1.0, 1.5, 3.0]])
    search = DECOMPOSITIONS[aten.searchsorted.Tensor]
    for side in (False, True):
        assert torch.equal(search(edges, values, right=side), torch.searchsorted(edges, values, right=side))


def test_a_difference_is_found():
    a = torch.tensor([100.0, -torch.inf])
    assert difference(a, a) == 0
    assert difference(a + 0.01, a) == pytest.approx(0.01 / 101, rel=1e-3)
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == 1


# ---- wrong use


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("runs") / "mixture"
    loglik.fit("mixture", x.numpy(), max_steps=2, out=path, progress=False)
    return path


def test_the_command_says_what_it_wrote(folder, tmp_path):
    out = well("export", folder, "--to", "torch.export", "--out", tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "log_prob.pt2").is_file() and (tmp_path / "new/folder/sample.pt2").is_file()
    assert "log_prob(x (B, 2) float32)" in out and "in batches of 1, 3, 7" in out


def test_wrong_use_is_one_line(folder, tmp_path):
    assert "unknown format 'torchscript': use onnx or torch.export" in refused("export", folder, "--to", "torchscript")
    assert "has no part 'logits' to export" in refused("export", folder, "--part", "logits")
    assert "this density has none" in refused("export", folder, "--steps", "3")
    assert "none does not exist: a run is a folder" in refused("export", folder / "none")
    assert "Invalid value for '--samples'" in refused("export", folder, "--samples", "0")
    file = folder / "config.yaml"
    assert "config.yaml is a file: choose" in refused("export", folder, "--to", "torch.export", "--out", file)
    with mock.patch.dict(sys.modules, {"onnxruntime": None}):
        assert refused("export", folder) == "error: --to onnx needs onnxruntime: pip install 'loglik[onnx]'\n"
    run = Run(StandardNormal((1,)), SPECS["one column"])
    with pytest.raises(ValueError, match="pass out, a folder"):
        export(run, "torch.export")


def test_a_text_that_is_too_long_is_exported_by_its_logits(tmp_path):
    spec = DataSpec(kind="text", event_shape=(300,), levels=256)
    density = loglik.recipes.build("autoregressive", spec, width=16, depth=1, heads=2)
    with pytest.raises(ValueError, match="each of the 300 tokens, at most 256: export part=logits"):
        export(Run(density.eval(), spec), "torch.export", tmp_path, parts=["sample"])
