"""A ResNet-18 on 32×32 images against timm's."""

from __future__ import annotations

from typing import Any

from harness import Side, Unavailable, count, evaluation, training_steps

TITLE = "ResNet-18"
SHAPES = {"image": (3, 32, 32), "batch": 64, "classes": 10}
LARGE = {"batch": 1024}
NOTES = (
    "Both sides have the same network, with the stem for large images (timm's default), batch 64, in fp32 and under "
    "bf16 autocast. Ours keeps its kernels in channels_last, as the classifier's recipe does."
)


def _side(network: Any, head: Any, packages: list[str]) -> Side:
    import torch
    import torch.nn.functional as F

    x, y = torch.randn(SHAPES["batch"], *SHAPES["image"]), torch.randint(SHAPES["classes"], (SHAPES["batch"],))
    parameters = [*network.parameters(), *head.parameters()]

    def loss() -> torch.Tensor:
        return F.cross_entropy(head(network(x)), y)

    return Side(
        operations={
            **training_steps(parameters, loss, bf16=True),
            "features": evaluation(network, lambda: network(x)),
        },
        parameters=count(network) + count(head),
        packages=packages,
    )


def ours() -> Side:
    import torch
    from torch import nn

    from loglik.networks import ResNet

    network = ResNet(SHAPES["image"][0], stem="large").to(memory_format=torch.channels_last)
    return _side(network, nn.Linear(network.outputs, SHAPES["classes"]), [])


def timm() -> Side:
    import torch
    from torch import nn

    # torchvision, built for another torch, asks for operators that its binary would bring: their names are registered
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        import timm
    except ImportError as error:
        raise Unavailable(f"timm: {error}") from error
    network = timm.create_model("resnet18", num_classes=0)
    network.library = library  # the names last as long as the network
    return _side(network, nn.Linear(network.num_features, SHAPES["classes"]), ["timm"])


SIDES = {"ours": ours, "timm": timm}
