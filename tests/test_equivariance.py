"""Translation errors: convolutions move with the image, dense layers do not."""

import torch
from torch import nn

from helpers.networks import VISION, resnet
from loglik.inspection import invariance_error, translation_error


def test_the_librarys_networks_move_with_the_image_as_they_should():
    x = torch.zeros(1, 1, 32, 32)
    moved = translation_error(VISION["resnet"](), x)
    assert moved is not None and moved.shift == (2, 2) and moved.inside < 1e-5
    patches = translation_error(VISION["vit"](), torch.zeros(1, 1, 96, 96))
    assert patches is not None and patches.layer == "patches" and patches.everywhere < 1e-5


def test_convolutions_move_with_the_image_and_dense_layers_do_not():
    network = resnet()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    moved = translation_error(network.double(), torch.zeros(1, 1, 32, 32, dtype=torch.float64))
    assert moved is not None and moved.layer == "4.act#2" and moved.shift == (8, 8)
    assert moved.inside < 1e-12 < moved.everywhere
    assert translation_error(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), torch.zeros(1, 1, 4, 4)) is None


def test_pooled_features_change_little():
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.randn(16, 1, 6, 6), size=24, mode="bilinear")
    conv = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    dense = nn.Sequential(nn.Flatten(), nn.Linear(576, 8))
    assert invariance_error(conv, x) < 0.5 * invariance_error(dense, x)
