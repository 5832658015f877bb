"""Every density on the device meta, where tensors have no numbers: a read on the host, or a stray CPU, is an error.

So is it where a GPU would have to wait, and where a CUDA graph could not be captured. `EXCEPTIONS` names what cannot do
without numbers on the host, with the reason; `test_devices.py` runs the densities on a device that has numbers, and
inspections and pages, whose results are numbers on the host.
"""

from functools import partial
from importlib import import_module

import pytest
import torch
from torch import nn

from helpers.densities import CASES, SPECS, Case, draw, ready, shorten, tiny
from helpers.elsewhere import DEVICE, second_device, there
from loglik.autoregressive import AnyOrder, GroupedCopula
from loglik.baselines import Independent
from loglik.density import StandardNormal
from loglik.diffusion import ODE, VLB, Diffusion, Sampler
from loglik.diffusion.sampler import METHODS
from loglik.flows import Flow, LogisticMixture, autoregressions, couplings
from loglik.missing import Imputed
from loglik.mixture import Mixture
from loglik.networks import MLP
from loglik.recipes.priors import PRIORS, prior_of
from loglik.tasks import Latents, fill
from loglik.transforms import Bins
from loglik.transforms.newton import safeguarded_newton
from loglik.vae import VAE, Bernoulli, BetaBinomial, Categorical, DiscretisedLogistic, Gaussian, Integers

META = torch.device("meta")
TRIED = [case for case in CASES if case.spec not in ("image256", "large image") or ":" in case.family]


def bare(density: nn.Module) -> nn.Module:
    """The density without numbers; a diffusion in it samples in few steps."""
    shorten(density)
    return density.to(META)


def on_meta(case: Case, n: int = 4):
    density, event, context = ready(case, n)
    return bare(density), event.to(META), None if context is None else context.to(META)


def needs_numbers(density) -> bool:
    """Whether `initialise` is one of the EXCEPTIONS."""
    density = density.density if isinstance(density, Imputed) else density
    base = density.base if isinstance(density, Flow) else density
    bins = isinstance(density, Flow) and any(isinstance(transform, Bins) for transform in density.transforms)
    return bins or isinstance(base, (Independent, Diffusion, AnyOrder, GroupedCopula, Mixture))


def step(density, event, context=None):
    """A training step's forward and backward pass."""
    density.train()
    density.progress(0.5)
    loss = density.loss(event, context)
    assert loss.is_meta and loss.shape == ()
    parameters = [p for p in density.parameters() if p.requires_grad]
    if parameters:
        assert all(g is None or g.is_meta for g in torch.autograd.grad(loss, parameters, allow_unused=True))
    density.eval()


@pytest.mark.parametrize("case", TRIED, ids=str)
def test_every_density_trains_scores_and_samples_without_the_host(case):
    density, event, context = on_meta(case)
    step(density, event, context)
    with torch.no_grad():
        assert density.log_prob(event, context, samples=2).shape == (4,)
        assert all(values.is_meta for values in density.terms(event, context, samples=2).values())
        drawn = density.sample(3, None if context is None else context[:3])
        assert drawn.is_meta and drawn.shape == (3, *event.shape[1:])
        error = density.numerical_error(event, context)
        assert error is None or error.is_meta
        density.calibrate(event, context)
        if not needs_numbers(density):
            density.initialise(event, context)


# ---- what cannot do without numbers on the host


def solve_ode(device):
    density, event, _ = ready(Case("diffusion", "table"), 4)
    density.base.likelihood = ODE(2, tolerance=1e-6)
    return density.to(device).log_prob(event.to(device))


def sample_adaptively(device):
    density, _, _ = ready(Case("diffusion", "table"), 4)
    density.base.sampler = Sampler(method="adaptive", tolerance=0.5)
    return density.to(device).sample(2)


def weight_candidates(device):
    density, event, _ = ready(Case("autoregressive", "one column"), 4)
    return fill(density.to(device), event.to(device), torch.arange(4, device=device)[:, None] > 2)


def generate_until(device):
    density, _, _ = ready(Case("autoregressive", "text"), 4)
    return density.to(device).generate(2, stop=0, length=20)


def sample_beta(device):
    return BetaBinomial((3,), 4).to(device).sample(torch.zeros(2, 6, device=device))


def initialise(spec, family):
    def run(device):
        density, event, _ = ready(Case(family, spec), 4)
        density.to(device).initialise(event.to(device))
        return density.log_prob(event.to(device))

    return run


EXCEPTIONS = {
    "the ODE's likelihood": (solve_ode, "rows whose error is too large are solved again: how many, their errors say"),
    "the adaptive sampler": (sample_adaptively, "each row's steps depend on its errors, and finished rows leave"),
    "filling by weights": (weight_candidates, "marginals of a sample are fitted, and rows with gaps are selected"),
    "generation to a stop token": (generate_until, "ends when all sequences have ended: a look at every 16th token"),
    "sampling a beta distribution": (sample_beta, "torch has no meta kernel for it; it reads nothing on the host"),
    "initialise, independent": (initialise("table", "independent"), "histograms have as many bins as values ask for"),
    "initialise, bins": (
        initialise("table", "autoregressive"),
        "edges are distinct quantiles, split until enough",
    ),
    "initialise, any order": (
        initialise("table", "autoregressive:any-order"),
        "knots are distinct quantiles, and iterations end when nothing changes",
    ),
    "initialise, copulas": (initialise("table", "mixture:copulas"), "the column is that with the highest likelihood"),
    "initialise, mixture": (initialise("table", "mixture"), "each column has the map with the highest score"),
    "initialise, diffusion": (initialise("table", "diffusion"), "dimensions are grouped by their distinct values"),
}


@pytest.mark.parametrize("run", [run for run, _ in EXCEPTIONS.values()], ids=list(EXCEPTIONS))
def test_exceptions_need_numbers_and_run_on_the_second_device(run):
    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta"):
        run(META)
    with second_device():
        assert there(run(DEVICE))


# ---- variants that no recipe's default has


@pytest.mark.parametrize("method", sorted({*METHODS} - {"adaptive"}))
def test_every_sampler_runs_without_the_host(method):
    density = bare(tiny("diffusion", SPECS["image"]))
    density.sampler = Sampler(method=method, steps=6)
    states = []
    x, _ = density.draw(2, watch=lambda logsnr, x_t: states.append(x_t))
    assert x.is_meta and len(states) == 6


@pytest.mark.parametrize(
    "likelihood", [VLB(), VLB(5), VLB(5, whole=True, spacing="logsnr")], ids=["one level", "five levels", "whole"]
)
@pytest.mark.parametrize("spec", ["image", "mixed table"])
def test_every_bound_of_a_diffusion_runs_without_the_host(likelihood, spec):
    density = bare(tiny("diffusion", SPECS[spec], conditional=True, weighting="min-snr"))
    x, y = (tensor.to(META) for tensor in draw(SPECS[spec], 4))
    diffusion = density.base if isinstance(density, Flow) else density
    diffusion.likelihood = likelihood
    step(density, x, y)
    assert density.log_prob(x, y, samples=2).is_meta
    z = density.encode(x, y)[0] if isinstance(density, Flow) else x
    assert diffusion.integrand(z, torch.zeros(4, device=META), y).is_meta
    assert diffusion.inpaint(z, torch.ones_like(z, dtype=torch.bool), y, repeats=2).is_meta


@pytest.mark.parametrize(
    ("observation", "levels"),
    [
        (Bernoulli((3,)), 2),
        (Categorical((3,), 4), 4),
        (BetaBinomial((3,), 4), 4),
        (DiscretisedLogistic((3,), 4), 4),
        (Integers((3,)), None),
        (Gaussian((3,), "shared"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_observation_runs_without_the_host(observation, levels):
    vae = VAE(MLP(3, 4, (8,)), MLP(2, observation.outputs, (8,)), observation, latent=2).to(META)
    x = torch.zeros(4, 3, device=META, dtype=torch.uint8 if levels else torch.float32)
    vae.initialise(x)
    step(vae, x)
    latents = Latents(vae)
    assert latents.reconstruct(x).is_meta
    assert latents.interpolate(x[:2], x[2:], steps=3).shape == (2, 3, 3)
    assert latents.traverse(x, 0, [0.0, 1.0]).is_meta
    if not isinstance(observation, BetaBinomial):  # EXCEPTIONS
        assert vae.sample(3).is_meta and latents.fill(x, x > 0, sweeps=2).is_meta
    found = latents.diagnose(x)
    assert found.kl.is_meta and found.active.is_meta and found.gap.is_meta and found.kl_total.is_meta


@pytest.fixture
def two_newton_steps(monkeypatch):
    monkeypatch.setattr("loglik.flows.maps.safeguarded_newton", partial(safeguarded_newton, steps=2))


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_runs_without_the_host(prior, two_newton_steps):
    vae = VAE(MLP(3, 4, (8,)), MLP(2, 6, (8,)), Gaussian((3,)), prior_of(prior, 2, 8, (3,)))
    bare(vae)
    x = torch.zeros(4, 3, device=META)
    vae.initialise(x)
    step(vae, x)
    assert vae.log_prob(x, samples=2).is_meta and vae.sample(2).is_meta
    assert Latents(vae).diagnose(x).gap.is_meta


@pytest.mark.parametrize("inverse", [False, True], ids=["maf", "iaf"])
def test_every_map_is_inverted_without_the_host(inverse, two_newton_steps):
    transforms = [
        *autoregressions(2, LogisticMixture(2), layers=1, hidden=(8,), inverse=inverse),
        *couplings(2, LogisticMixture(2), layers=2, hidden=(8,)),
    ]
    flow = Flow(transforms, StandardNormal((2,))).to(META)
    x = torch.zeros(4, 2, device=META)
    flow.initialise(x)
    step(flow, x)
    assert flow.sample(2).is_meta


def test_a_text_is_continued_without_the_host():
    density = bare(tiny("autoregressive", SPECS["text"]))
    prompt = torch.zeros(2, dtype=torch.long, device=META)
    said = []
    x = density.generate(3, prompt=prompt, length=9, temperature=0.7, top_k=5, top_p=0.9, stream=said.append)
    assert x.is_meta and x.shape == (3, 11) and len(said) == 9
    assert density.generate(3, temperature=0).is_meta


@pytest.mark.parametrize("family", ["independent", "diffusion"])
def test_gaps_are_filled_without_the_host(family, monkeypatch):
    monkeypatch.setattr(import_module("loglik.tasks.fill"), "REPEATS", 2)
    density, x, _ = on_meta(Case(family, "mixed table"))
    assert fill(density, x, x > 0).is_meta
