"""A U-Net on 32×32 images against diffusers' UNet2DModel and lucidrains's Unet."""

from __future__ import annotations

from typing import Any

from harness import Side, Unavailable, count, evaluation, training_steps

TITLE = "U-Net"
SHAPES = {"image": (3, 32, 32), "batch": 32, "features": 32}
LARGE = {"batch": 256}
NOTES = (
    "The three networks are similar but not identical, with full attention at 8×8 only. A training step has 270 GFLOP "
    "for ours (64, 128, 128, three blocks per level), 276 for diffusers (64, 128, 128, two layers per block) and 289 "
    "for lucidrains (dim 64, multiples 1, 2, 4; linear attention at the other sizes), so compare them by the column "
    "GFLOP/s. The batch is 32 and the loss the mean squared error of a target, in fp32 and under bf16 autocast."
)


def _side(network: Any, call: Any, packages: list[str]) -> Side:
    import torch
    import torch.nn.functional as F

    x = torch.randn(SHAPES["batch"], *SHAPES["image"])
    target = torch.randn_like(x)

    def loss() -> torch.Tensor:
        return F.mse_loss(call(x).float(), target)

    return Side(
        operations={
            **training_steps(network.parameters(), loss, bf16=True),
            "denoise": evaluation(network, lambda: call(x)),
        },
        parameters=count(network),
        packages=packages,
    )


def ours() -> Side:
    import torch

    from loglik.networks import UNet

    features = SHAPES["features"]
    network = UNet(SHAPES["image"][0], width=64, multipliers=(1, 2, 2), blocks=3, attention=(2,), context=features)
    time = torch.rand(SHAPES["batch"], features)
    return _side(network, lambda x: network(x, time), [])


def _without_torchvision() -> Any:
    """Define the operators that torchvision, if built for another torch, fails to find."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def diffusers() -> Side:
    import torch

    library = _without_torchvision()
    try:
        from diffusers import UNet2DModel
    except (ImportError, RuntimeError) as error:
        raise Unavailable(f"diffusers: {error}") from error
    network = UNet2DModel(
        sample_size=SHAPES["image"][1],
        in_channels=SHAPES["image"][0],
        out_channels=SHAPES["image"][0],
        block_out_channels=(64, 128, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    network.library = library  # the names last as long as the network
    time = torch.randint(1000, (SHAPES["batch"],))
    return _side(network, lambda x: network(x, time).sample, ["diffusers"])


def lucidrains() -> Side:
    import torch

    library = _without_torchvision()
    try:
        from denoising_diffusion_pytorch import Unet
    except (ImportError, RuntimeError) as error:
        raise Unavailable(f"denoising-diffusion-pytorch: {error}") from error
    network = Unet(dim=64, dim_mults=(1, 2, 4), channels=SHAPES["image"][0], flash_attn=False)
    network.library = library
    time = torch.rand(SHAPES["batch"])
    return _side(network, lambda x: network(x, time), ["denoising-diffusion-pytorch"])


SIDES = {"ours": ours, "diffusers": diffusers, "lucidrains": lucidrains}
