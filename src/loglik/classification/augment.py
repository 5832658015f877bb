"""Augmentation: random changes of images that preserve the label, by kornia."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Augment"]


class Augment(nn.Module):
    """Random crops of padded images, mirror images and erased patches, for images scaled to [-1, 1].

    Args:
        size: (H, W) of the images.
        shift: maximal number of pixels by which an image is shifted in each direction; padding has the lowest level.
        flip: whether half of the images are mirrored left to right.
        erase: the fraction of images in which a patch of 2 to 20 % of the area is set to zero (Zhong et al. 2020,
            "Random erasing data augmentation").

    Random numbers come from torch's global generator, as all noise in training.
    """

    def __init__(self, size: tuple[int, int], *, shift: int = 0, flip: bool = False, erase: float = 0.0) -> None:
        super().__init__()
        from kornia import augmentation as kornia

        steps: list[nn.Module] = []
        if shift:
            steps.append(kornia.RandomCrop(size, padding=shift, fill=-1))
        if flip:
            steps.append(kornia.RandomHorizontalFlip(p=0.5))
        if erase:
            steps.append(kornia.RandomErasing(p=erase, scale=(0.02, 0.2), value=0.0))
        self.flip = flip
        self.steps = nn.Sequential(*steps)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return self.steps(x)
