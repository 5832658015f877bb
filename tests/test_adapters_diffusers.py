"""Models of diffusers: Gaussians through its schedulers, our U-Net as its model, folders, latents, wrong input."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from loglik.adapters import from_diffusers, load
from loglik.adapters.ddpm_bound import DDPMBound
from loglik.adapters.diffusers import _path
from loglik.data.spec import DataSpec
from loglik.density import Bound
from loglik.diffusion import ODE, VLB, Denoiser, Diffusion, with_likelihood, with_sampler
from loglik.evaluation import evaluate
from loglik.networks import UNet

diffusers = pytest.importorskip("diffusers")

MEAN, SCALE, SHAPE = 0.1, 0.4, (1, 4, 4)


class Output(SimpleNamespace):
    sample: torch.Tensor


class Gaussian(nn.Module):
    """The exact network of N(m, s² I) with the interface of UNet2DModel, for what a scheduler says."""

    def __init__(self, scheduler, kind):
        super().__init__()
        self.scheduler, self.kind = scheduler, kind
        self.config = {"in_channels": 1, "out_channels": 1, "sample_size": 4}

    def factors(self, t):
        if self.kind == "flow":
            return 1 - t / 1000, t / 1000
        if self.kind.startswith("edm"):
            s = torch.exp(4 * t)
            return torch.ones_like(s), s
        if self.kind == "ve":
            return torch.ones_like(t), t
        a = torch.cumprod(1 - self.scheduler.betas.double(), 0).clamp_min(2**-24).log()
        a = torch.exp(torch.lerp(a[t.long()], a[t.ceil().long()], t.double() % 1))
        return a.sqrt(), (1 - a).sqrt()

    def forward(self, sample, timestep, class_labels=None):
        a, b = (value.view(-1, 1, 1, 1) for value in self.factors(timestep))
        y, data = sample, self.scheduler.config.get("sigma_data", 0.5)
        if self.kind.startswith("edm"):
            y = sample * (b**2 + data**2).sqrt()
        w = MEAN + a * SCALE**2 / (a**2 * SCALE**2 + b**2) * (y - a * MEAN)
        noise = (y - a * w) / b
        skip, out = data**2 / (b**2 + data**2), b * data / (b**2 + data**2).sqrt()
        found = {
            "epsilon": noise,
            "sample": w,
            "v_prediction": a * noise - b * w,
            "flow": noise - w,
            "ve": -noise / b,
            "edm": (w - skip * y) / out,
            "edm v": -(w - skip * y) / out,
        }
        return Output(sample=found[self.kind])


CASES = {
    "DDPM": (lambda: diffusers.DDPMScheduler(), "epsilon"),
    "DDPM sample": (lambda: diffusers.DDPMScheduler(prediction_type="sample"), "sample"),
    "DDPM cosine": (lambda: diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False), "epsilon"),
    "DDIM zero SNR": (
        lambda: diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
        "v_prediction",
    ),
    "DPM-Solver": (lambda: diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear"), "epsilon"),
    "EDM": (lambda: diffusers.EDMEulerScheduler(), "edm"),
    "EDM v": (lambda: diffusers.EDMDPMSolverMultistepScheduler(prediction_type="v_prediction"), "edm v"),
    "flow": (lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "flow"),
    "VE": (lambda: diffusers.ScoreSdeVeScheduler(), "ve"),
}


QUICK = ("DDPM", "DDIM zero SNR", "EDM v", "flow")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
@torch.no_grad()
def test_a_gaussian_through_each_scheduler(name, float64):
    make, kind = CASES[name]
    scheduler, truth = make(), Normal(MEAN, SCALE)
    x = truth.sample((64, *SHAPE))
    density = from_diffusers(Gaussian(scheduler, kind), scheduler, levels=None, data=x)
    exact = truth.log_prob(x).flatten(1).sum(1)
    assert density.bound is Bound.LOWER and density.event_shape == SHAPE
    gap = (density.log_prob(x, samples=16) - exact) / 16
    error = gap.std() / 8
    assert -4 * error - 0.01 < gap.mean() < 4 * error and error < 0.03
    solved = with_likelihood(density, "ode")
    found = (solved.log_prob(x[:8]) - exact[:8]) / 16
    # N(0, I) takes the place of the noisiest variable, whose mean a single x shows
    assert found.abs().max() < 5e-3 and solved.numerical_error(x[:8]).max() < 16e-3


@torch.no_grad()
def test_our_unet_as_a_model_of_diffusers_has_our_nats(float64):
    """With the same noise, to 1e-5: the same x_t, the same network, the same ε̂."""
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=20, beta_end=0.5)
    path = _path(scheduler)[0]
    network = UNet(1, width=8, multipliers=(1,), blocks=1, attention=(), context=32, groups=4)
    own = Diffusion(Denoiser(network, prediction="noise"), SHAPE, levels=16, schedule=path.schedule(1.0))

    class Like(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = {"in_channels": 1, "sample_size": 4}
            self.network = own.denoiser

        def forward(self, sample, timestep):
            logsnr = path.grid.logsnr(timestep / 19)
            return Output(sample=self.network._predict(sample, logsnr, None))

    theirs = from_diffusers(Like(), scheduler, levels=16, checked=False)
    theirs.prepared = True
    x = torch.randint(16, (2, *SHAPE), dtype=torch.uint8)
    own.eval()
    for likelihood in (VLB(), VLB(20), ODE(4, tolerance=1e9, probes=1)):
        numbers = []
        for density in (own, theirs):
            density.likelihood = likelihood
            torch.manual_seed(1)
            numbers.append(density.log_prob(x))
        assert (numbers[0] - numbers[1]).abs().max() < 1e-5, likelihood
    # and DDPM's own bound of the chain is that of `VLB` but for the last step, which it decodes from x̂
    theirs.likelihood = DDPMBound(theirs.wrapped, whole=True)
    own.likelihood = VLB(20, whole=True)
    torch.manual_seed(1)
    ours = own.terms(x)
    torch.manual_seed(1)
    chain = theirs.terms(x)
    assert torch.allclose(ours["prior"], chain["prior"], rtol=1e-9)
    assert torch.allclose(ours["diffusion"], chain["diffusion"], rtol=1e-9)


# ---- folders


def unet(**settings):
    torch.manual_seed(0)
    size = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    return diffusers.UNet2DModel(**size | blocks | settings)


SPEC = DataSpec(kind="image", event_shape=(1, 8, 8), levels=17, classes=tuple("abc"))
X = torch.randint(17, (9, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def saved(folder, model, scheduler=None, **parts):
    """Save as `save_pretrained` does, without a pipeline's index."""
    model.save_pretrained(folder / ("transformer" if "DiT" in type(model).__name__ else "unet"))
    (scheduler or diffusers.DDPMScheduler()).save_pretrained(folder / "scheduler")
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    return folder


def test_a_saved_pipeline_is_a_run(tmp_path):
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler(num_train_timesteps=20)).save_pretrained(tmp_path / "ddpm")
    run = load("diffusers", tmp_path / "ddpm", SPEC, checked=False)
    run.density.prepared = True
    result = evaluate(run, X, samples=1)
    assert run.model == "diffusers:ddpm" and result.bound == "lower" and result.bits_per_dim > 0
    assert result.params == sum(p.numel() for p in run.density.parameters())
    run.density.likelihood = ODE(4, tolerance=1e9)
    assert evaluate(run, X, samples=1).bound == "estimate"
    with torch.no_grad():
        drawn = with_sampler(run.density, steps=4).sample(2)
    assert drawn.dtype is torch.uint8 and drawn.shape == (2, 1, 8, 8) and drawn.max() < 17


def test_an_untrained_model_is_not_believed(tmp_path):
    run = load("diffusers", saved(tmp_path, unet()), SPEC)
    with pytest.raises(ValueError, match=r"does not denoise at σ=.*is it trained"):
        evaluate(run, X)


def test_classes_and_learned_variances(tmp_path):
    """A class-conditional U-Net, and a DiT whose second half of channels is for the variances."""
    run = load("diffusers", saved(tmp_path / "a", unet(num_class_embeds=3)), SPEC, checked=False)
    labels, run.density.prepared = torch.arange(9) % 3, True
    assert run.density.conditional and evaluate(run, (X, labels), samples=1).n == 9
    with pytest.raises(ValueError, match="labels must hold integers"):
        run.density.check(X, labels + 1)
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 1, "out_channels": 2, "num_layers": 1}
    dit = diffusers.DiTTransformer2DModel(**shape, sample_size=8, patch_size=2, num_embeds_ada_norm=3)
    run = load("diffusers", saved(tmp_path / "b", dit, diffusers.DDIMScheduler()), SPEC, checked=False)
    run.density.prepared = True
    assert run.density.likelihood.variance == "learned_range" and run.density.wrapped.classes == 3
    assert evaluate(run, (X, labels), samples=1).terms["diffusion"] < 0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda at: at, "is not a model of diffusers: expected the folders scheduler and unet"),
        (lambda at: saved(at, unet(in_channels=3, out_channels=3)), "reads 3 channels, and the data have 1"),
        (lambda at: saved(at, unet(sample_size=16)), "is of 16×16 images, and the data are 8×8: resize"),
        (lambda at: saved(at, unet(out_channels=3)), "must return 1 channels, or 2 with variances, and returns 3"),
        (lambda at: saved(at, unet(class_embed_type="identity")), "class_embed_type='identity' reads no class numbers"),
        (
            lambda at: saved(at, unet(), diffusers.DDPMScheduler(prediction_type="flow")),
            "prediction_type='flow', and known are epsilon, sample, v_prediction",
        ),
        (
            lambda at: saved(at, unet(), diffusers.DDPMScheduler(variance_type="learned_range")),
            "'learned_range' needs a model with twice the channels",
        ),
        (
            lambda at: saved(at, unet(), diffusers.CMStochasticIterativeScheduler()),
            "CMStochasticIterativeScheduler has no noise levels that are known here",
        ),
    ],
)
def test_wrong_folders_are_one_line(make, match, tmp_path):
    with pytest.raises(ValueError, match=match) as raised:
        load("diffusers", make(tmp_path), SPEC)
    assert "\n" not in str(raised.value)


def test_pickles_are_refused(tmp_path):
    saved(tmp_path, unet())
    weights = next((tmp_path / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="is a pickle, which can run code: save the model again"):
        load("diffusers", tmp_path, SPEC)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(ValueError, match="has no weights"):
        load("diffusers", tmp_path, SPEC)
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "os"}')
    with pytest.raises(ValueError, match="has no class 'os'"):
        load("diffusers", tmp_path, SPEC)


def test_data_that_are_no_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is of images, and the data are table 3"):
        load("diffusers", tmp_path, DataSpec(kind="table", event_shape=(3,)))
    with pytest.raises(ValueError, match="pass data"):
        load("diffusers", tmp_path)
    with pytest.raises(ValueError, match="sample_size: pass event_shape"):
        from_diffusers(unet(sample_size=None), diffusers.DDPMScheduler())


# ---- latents


class Linear(nn.Module):
    """An autoencoder x = W z + noise with z from N(0, I), and the exact q(z | x): an isotropic one, as Wᵀ W = c I."""

    def __init__(self, scale, factor):
        super().__init__()
        self.weight = nn.Parameter(0.6 * torch.linalg.qr(torch.randn(16, 4))[0])
        self.noise, self.config = (
            scale,
            SimpleNamespace(
                in_channels=1, latent_channels=1, block_out_channels=(1, 1), scaling_factor=factor, shift_factor=0.2
            ),
        )

    def encode(self, x):
        variance = 1 / (1 + 0.36 / self.noise**2)
        mean = (variance / self.noise**2 * x.flatten(1) @ self.weight).view(-1, 1, 2, 2)
        logvar = torch.full_like(mean, math.log(variance))
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, logvar=logvar))

    def decode(self, z):
        return SimpleNamespace(sample=(z.flatten(1) @ self.weight.T).view(-1, 1, 4, 4))


@torch.no_grad()
def test_a_latent_gaussian_has_its_nats(float64):
    """The bound of probabilistic principal components is tight: the decoder's scale is fitted, the factor counted."""
    factor, scheduler = 2.5, diffusers.DDPMScheduler()
    vae = Linear(0.1, factor)
    truth = torch.distributions.MultivariateNormal(torch.zeros(16), vae.weight @ vae.weight.T + 0.01 * torch.eye(16))
    x = truth.sample((256,))
    prior = Gaussian(scheduler, "epsilon")
    prior.config = {"in_channels": 1, "sample_size": 2}
    # (z - 0.2) · 2.5 has the mean -0.5 and the standard deviation 2.5
    prior.forward = lambda sample, t: Output(sample=exact_noise(prior, sample, t, -0.5, factor))
    density = from_diffusers(prior, scheduler, vae=vae, levels=None, event_shape=(1, 4, 4), data=x.view(-1, 1, 4, 4))
    assert abs(density.scale.item() / 0.1 - 1) < 0.1 and density.bound is Bound.LOWER
    gap = density.log_prob(x.view(-1, 1, 4, 4), samples=8) - truth.log_prob(x)
    error = gap.std() / 16
    assert -4 * error - 0.1 < gap.mean() < 4 * error and error < 0.1
    assert with_likelihood(density, "ode").bound is Bound.ESTIMATE
    drawn = density.sample(2000).flatten(1)
    assert (drawn.T.cov() - truth.covariance_matrix).abs().max() < 0.06


def exact_noise(network, y, t, mean, scale):
    a, b = (value.view(-1, 1, 1, 1) for value in network.factors(t))
    return b * (y - a * mean) / (a**2 * scale**2 + b**2)


def test_an_autoencoder_of_diffusers_bounds_integers(tmp_path):
    """A folder with a `vae`: its latents are half as large, and its decoder's scale is given or fitted."""
    vae = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(4, 4), norm_num_groups=2, latent_channels=1, sample_size=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    folder = saved(tmp_path, unet(sample_size=4), vae=vae)
    with pytest.raises(ValueError, match="no standard deviation of its own: pass decoder_scale"):
        load("diffusers", folder, SPEC)
    run = load("diffusers", folder, SPEC, decoder_scale=0.3, checked=False)
    run.density.prior.prepared = True
    result = evaluate(run, X, samples=1)
    assert result.bound == "lower" and set(result.terms) == {"reconstruction", "-KL"} and result.bits_per_dim > 0
    fitted = load("diffusers", folder, SPEC, data=X, checked=False)
    assert evaluate(fitted, X, samples=1).terms["reconstruction"] > result.terms["reconstruction"]
    assert with_sampler(fitted.density, steps=4).sample(2).dtype is torch.uint8
    with pytest.raises(ValueError, match="must be multiples of 2"):
        load("diffusers", folder, DataSpec(kind="image", event_shape=(1, 7, 7), levels=17), decoder_scale=0.3)
    with pytest.raises(ValueError, match="decoder_scale must be above 0"):
        load("diffusers", folder, SPEC, decoder_scale=-1.0)
