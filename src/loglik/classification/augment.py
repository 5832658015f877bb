"""Augmentation: random changes of a batch of images that leave the label what it is, through kornia."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Augment"]


class Augment(nn.Module):
    """Random crops of the padded image, mirror images, and a patch that is erased, for images scaled to [-1, 1].

    Args:
        shift: by how many pixels at most each way an image is moved; what comes in from outside is its darkest level.
        flip: mirror left and right in half of the images.
        erase: the fraction of images in which a patch of 2 to 20 % of the area is set to zero (Zhong et al. 2020,
            "Random erasing data augmentation").

    It uses torch's global generator, as all noise in training does.
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
