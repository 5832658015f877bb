"""Models of diffusers as densities: a denoiser and its scheduler, in pixels or in the latents of an AutoencoderKL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from loglik.adapters.callables import Units, diffusion_of
from loglik.adapters.hf_folder import pickles_in
from loglik.adapters.latent import LatentDiffusion
from loglik.adapters.paths import EDM, VE, FlowMatching, Path, Steps
from loglik.data.limits import first_line
from loglik.density import Density
from loglik.runs import Run

if TYPE_CHECKING:
    from loglik.data.spec import DataSpec

__all__ = ["from_diffusers", "load"]

PREDICTIONS = {"epsilon": "noise", "sample": "data", "v_prediction": "v", "flow_prediction": "velocity"}
VARIANCES = {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large"}
VARIANCES |= {"fixed_large_log": "fixed_large", "learned_range": "learned_range"}
DENOISERS = ("unet", "transformer")


def from_diffusers(
    model: nn.Module,
    scheduler: Any,
    *,
    vae: nn.Module | None = None,
    levels: int | None = 256,
    event_shape: Sequence[int] | None = None,
    decoder_scale: float | None = None,
    variance: str | None = None,
    **units: Any,
) -> Density:
    r"""Return a denoiser of diffusers as a density: a lower bound of log p, or its estimate by the ODE.

    - DDPMScheduler, DDIMScheduler and others with `alphas_cumprod`: the bound of the chain of T timesteps, as Ho et al.
      and Nichol and Dhariwal have it. The ODE lies between the trained timesteps, whose labels are interpolated.
      `clip_sample` holds in the bound of integers; dynamic thresholding does not, since it is no part of a chain of
      Gaussians.
    - EDMEulerScheduler and EDMDPMSolverMultistepScheduler, ScoreSdeVeScheduler, FlowMatchEulerDiscreteScheduler: the
      bound in continuous time.

    Args:
        model: UNet2DModel, DiTTransformer2DModel, or any module that returns `.sample` from (sample, timestep), and
            `class_labels` where its `config` has classes.
        scheduler: that it was trained with.
        vae: an AutoencoderKL, where the model denoises its latents. The density is then a lower bound of the pixels'
            log p: see `LatentDiffusion`.
        levels: K of integers 0 ... K-1, scaled to [-1, 1]; None for real data.
        event_shape: of the data; from the model's `config` if None.
        decoder_scale: standard deviation of the pixels, in [-1, 1], that the decoder of a latent model leaves; fitted
            to data=, by maximum likelihood, if None.
        variance: of the chain: `fixed_small`, `fixed_large` or `learned_range`; if None, the scheduler's for integers
            and `fixed_large` for real data, as either suits one network.
        **units: see `loglik.adapters.Units`.

    Raises ValueError for a scheduler without a known noise or prediction, for a model whose input or output does not
    fit, and where the model does not remove noise from the data.
    """
    _check_conditions(model)
    pixels = _event_shape(model, vae, event_shape)
    path, prediction = _path(scheduler)
    shape = pixels if vae is None else _latent_shape(model, vae, pixels)
    doubled = _check_channels(model, shape)
    settings: dict[str, Any] = {"doubled": doubled, "variance": variance}
    if isinstance(path, Steps):
        own = _variance(scheduler, doubled)
        if levels is not None and vae is None and _config(scheduler, "clip_sample", False):
            settings["clip"] = float(_config(scheduler, "clip_sample_range", 1.0))
        if variance is None and (own == "learned_range" or (levels is not None and vae is None)):
            settings["variance"] = own
    units = {"classes": _classes(model)} | units
    if vae is None:
        if isinstance(path, VE) and levels is not None and type(path) is VE:
            units.setdefault("span", (0.0, 1.0))  # score_sde's images
        return diffusion_of(
            _Call(model), path, prediction, Units.of(units | {"event_shape": shape, "levels": levels}), **settings
        )
    data, labels = units.pop("data", None), units.pop("labels", None)
    prior = diffusion_of(_Call(model), path, prediction, Units.of(units | {"event_shape": shape}), **settings)
    return LatentDiffusion(vae, prior, pixels, levels=levels, scale=decoder_scale, data=data, labels=labels).eval()


def load(path: Folder, spec: DataSpec | None, **settings: Any) -> Run:
    """Read a model of diffusers from the folder that `save_pretrained` wrote; its weights from safetensors only.

    Args:
        path: of a pipeline (model_index.json), or with the folders `unet` or `transformer`, `scheduler`, and `vae` for
            a latent model.
        spec: of the data that will be scored.
        **settings: of `from_diffusers`.

    Raises ValueError for other folders, for weights in pickles, and where the model does not fit the data.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder")
    if spec is None:
        raise ValueError("pass data: a diffusion model does not say what data it was trained on")
    if spec.kind not in ("image", "array") or len(spec.event_shape) != 3:
        raise ValueError(f"a model of diffusers is of images, and the data are {spec.describe()}")
    parts = {name: path / name for name in (*DENOISERS, "vae", "scheduler") if (path / name).is_dir()}
    denoisers = [name for name in DENOISERS if name in parts]
    if len(denoisers) != 1 or "scheduler" not in parts:
        raise ValueError(
            f"{path} is not a model of diffusers: expected the folders scheduler and unet or transformer, as "
            f"pipeline.save_pretrained writes, found {', '.join(sorted(parts)) or 'none of them'}"
        )
    model = _component(parts[denoisers[0]])
    vae = _component(parts["vae"]) if "vae" in parts else None
    settings = {"levels": spec.levels, "event_shape": spec.event_shape, **settings}
    density = from_diffusers(model, _scheduler(parts["scheduler"]), vae=vae, **settings)
    return Run(density, spec, {"model": path.resolve().name})


def _library() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ValueError("this model needs the library diffusers: pip install diffusers") from error
    return diffusers


def _class(folder: Folder, file: str) -> Any:
    """Return the class of diffusers that a folder's configuration names."""
    library = _library()
    if not (folder / file).is_file():
        raise ValueError(f"{folder} has no {file}")
    try:
        name = json.loads((folder / file).read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / file} does not name a class of diffusers") from error
    found = getattr(library, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, library.ConfigMixin)):
        raise ValueError(f"{folder / file}: diffusers {library.__version__} has no class {name!r:.60}")
    return found


def _scheduler(folder: Folder) -> Any:
    return _class(folder, "scheduler_config.json").from_pretrained(str(folder), local_files_only=True)


def _component(folder: Folder) -> nn.Module:
    """Read a network; its weights from safetensors only."""
    found = _class(folder, "config.json")
    if not list(folder.glob("*.safetensors")):
        if pickles := pickles_in(folder):
            raise ValueError(
                f"{folder / pickles[0]} is a pickle, which can run code: save the model again with "
                "safe_serialization=True"
            )
        raise ValueError(f"{folder} has no weights: expected diffusion_pytorch_model.safetensors")
    try:
        model: nn.Module = found.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder}: {first_line(error)}") from error
    return model.eval()


class _Call(nn.Module):
    """A module, so that a copy of the density has a network of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, y: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        found = self.model(y, labels) if classes is None else self.model(y, labels, class_labels=classes)
        output: Tensor = found.sample if hasattr(found, "sample") else found[0]
        return output


def _config(owner: Any, name: str, default: Any = None) -> Any:
    """Return a setting of a model or a scheduler."""
    config = getattr(owner, "config", {})
    return config.get(name, default) if hasattr(config, "get") else getattr(config, name, default)


def _path(scheduler: Any) -> tuple[Path, str]:
    """Return the noise that a scheduler adds, and what its network predicts."""
    name = type(scheduler).__name__
    said = _config(scheduler, "prediction_type")
    if name.startswith("FlowMatch"):
        steps = float(_config(scheduler, "num_train_timesteps", 1000))
        return FlowMatching(0, time_scale=steps), "velocity"
    if name.startswith("EDM"):
        kind = _known(said, ("epsilon", "v_prediction"), name)
        ends = float(_config(scheduler, "sigma_min")), float(_config(scheduler, "sigma_max"))
        sign = 1.0 if kind == "epsilon" else -1.0
        return EDM(*ends, float(_config(scheduler, "sigma_data")), sign=sign), "network"
    if name == "ScoreSdeVeScheduler":
        return VE(float(_config(scheduler, "sigma_min")), float(_config(scheduler, "sigma_max"))), "score"
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        raise ValueError(
            f"{name} has no noise levels that are known here: expected alphas_cumprod, as of DDPMScheduler, or an EDM "
            "or FlowMatch scheduler"
        )
    kind = _known(said, ("epsilon", "sample", "v_prediction"), name)
    return Steps(_alpha_bar(scheduler)), PREDICTIONS[kind]


def _known(said: Any, known: Sequence[str], name: str) -> str:
    if said not in known:
        raise ValueError(f"{name} has prediction_type={said!r}, and known are {', '.join(known)}")
    return str(said)


def _alpha_bar(scheduler: Any) -> Tensor:
    """Return ᾱ in float64, from the betas where they give the scheduler's own."""
    own = scheduler.alphas_cumprod.double().cpu()
    betas = getattr(scheduler, "betas", None)
    if isinstance(betas, Tensor):
        finer = torch.cumprod(1 - betas.double().cpu(), 0)
        if finer.shape == own.shape and torch.allclose(finer, own, rtol=1e-3, atol=1e-7):
            return finer
    return own


def _variance(scheduler: Any, doubled: bool) -> str:
    """Return the variance of the chain: a doubled output is in the learned range, unless the scheduler says else."""
    said = _config(scheduler, "variance_type")
    if said is None:
        return "learned_range" if doubled else "fixed_small"
    if said not in VARIANCES:
        raise ValueError(f"variance_type={said!r} is not known here: use {', '.join(VARIANCES)}")
    if said == "learned_range" and not doubled:
        raise ValueError(
            "variance_type='learned_range' needs a model with twice the channels of its input: pass variance="
        )
    return VARIANCES[said]


def _check_conditions(model: nn.Module) -> None:
    if _config(model, "cross_attention_dim") is not None and hasattr(model, "encoder_hid_proj"):
        raise ValueError(
            f"{type(model).__name__} reads text or other sequences (cross_attention_dim): wrap a call that passes them "
            "with loglik.adapters.denoiser"
        )


def _classes(model: nn.Module) -> int | None:
    if _config(model, "class_embed_type") is not None:
        raise ValueError(
            f"class_embed_type={_config(model, 'class_embed_type')!r} reads no class numbers: wrap a call with "
            "loglik.adapters.denoiser"
        )
    own = "num_embeds_ada_norm" if _config(model, "norm_type") == "ada_norm_zero" else "num_class_embeds"
    found = _config(model, own)
    return None if found is None else int(found)


def _event_shape(model: nn.Module, vae: nn.Module | None, event_shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of the data."""
    if event_shape is not None:
        return tuple(event_shape)
    size, channels = _config(model, "sample_size"), _config(model, "in_channels")
    if size is None or channels is None:
        raise ValueError("the model's config has no sample_size: pass event_shape")
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if vae is None:
        return channels, height, width
    factor = 2 ** (len(_config(vae, "block_out_channels")) - 1)
    return _config(vae, "in_channels"), height * factor, width * factor


def _latent_shape(model: nn.Module, vae: nn.Module, pixels: tuple[int, ...]) -> tuple[int, ...]:
    channels, factor = _config(vae, "in_channels"), 2 ** (len(_config(vae, "block_out_channels")) - 1)
    if channels is not None and pixels[0] != channels:
        raise ValueError(f"the data have {pixels[0]} channels, and the autoencoder reads {channels}")
    if any(size % factor for size in pixels[1:]):
        raise ValueError(
            f"the data's height and width, {pixels[1:]}, must be multiples of {factor} for the autoencoder"
        )
    return _config(vae, "latent_channels"), *(size // factor for size in pixels[1:])


def _check_channels(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether the model's output is doubled. Raises ValueError where the model does not fit the data."""
    reads, size = _config(model, "in_channels"), _config(model, "sample_size")
    writes = _config(model, "out_channels", reads) or reads
    if reads is not None and reads != shape[0]:
        raise ValueError(f"the model reads {reads} channels, and the data have {shape[0]}, of shape {shape}")
    if reads is not None and writes not in (reads, 2 * reads):
        raise ValueError(f"the model must return {reads} channels, or {2 * reads} with variances, and returns {writes}")
    own = (size, size) if isinstance(size, int) else tuple(size or shape[1:])
    if own != tuple(shape[1:]):
        raise ValueError(
            f"the model is of {own[0]}×{own[1]} images, and the data are {'×'.join(map(str, shape[1:]))}: resize them"
        )
    return reads is not None and writes == 2 * reads
