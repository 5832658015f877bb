"""Compressors by hand: xz and PNG."""

import io
import lzma
import math

import pytest
import torch
from PIL import Image

from helpers.densities import SPECS, draw
from loglik.data.dataset import Split
from loglik.data.spec import DataSpec
from loglik.evaluation import compress

IMAGE = SPECS["image"]


def grey(n: int = 6, levels: int = 256) -> tuple[Split, DataSpec]:
    spec = DataSpec(kind="image", event_shape=(1, 4, 5), levels=levels)
    return Split(torch.randint(0, levels, (n, 1, 4, 5)).to(torch.uint8 if levels <= 256 else torch.int64)), spec


def xz_nats(raw: bytes, n: int) -> float:
    return -8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) * math.log(2) / n


def test_xz_by_hand():
    split, spec = grey()
    row = compress(split, spec)[0]
    assert (row.model, row.bound, row.n, row.stderr) == ("xz", "exact", 6, None)
    assert row.nats == pytest.approx(xz_nats(bytes(split.x.flatten().tolist()), 6))
    assert row.bits_per_dim == pytest.approx(-row.nats / (20 * math.log(2)))
    assert row.bits_per_dim > 8  # noise does not compress


def test_large_numbers_take_two_bytes():
    split, spec = grey(levels=1000)
    raw = b"".join(value.to_bytes(2, "little") for value in split.x.flatten().tolist())
    assert compress(split, spec)[0].nats == pytest.approx(xz_nats(raw, 6))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_by_hand(channels):
    spec = DataSpec(kind="image", event_shape=(channels, 9, 7), levels=256)
    split = Split(torch.randint(0, 256, (5, channels, 9, 7), dtype=torch.uint8))
    split.x[0] = 0  # noise all takes as many bytes
    row = compress(split, spec)[1]
    lengths = []
    for image in split.x:
        pixels = image[0].numpy() if channels == 1 else image.permute(1, 2, 0).contiguous().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="png", optimize=True)
        lengths.append(len(buffer.getvalue()))
    scores = -8 * math.log(2) * torch.tensor(lengths, dtype=torch.float64)
    assert row.model == "png" and row.nats == pytest.approx(scores.mean().item())
    assert row.stderr == pytest.approx(scores.std().item() / math.sqrt(5))


def test_png_is_for_images_and_nothing_for_real_numbers():
    rows = {name: [row.model for row in compress(Split(draw(spec, 5)[0]), spec)] for name, spec in SPECS.items()}
    assert rows["image"] == rows["large image"] == ["xz", "png"]
    assert rows["text"] == rows["whole array"] == ["xz"]
    assert rows["table"] == rows["mixed table"] == rows["real array"] == []
    split, spec = grey()
    assert compress(Split(split.x[:0]), spec) == []


def test_compressors_gain_over_the_baseline():
    split, spec = grey()
    baseline = torch.randn(6, dtype=torch.float64) - 100
    xz, png = compress(split, spec, baseline)
    assert xz.gain == pytest.approx(xz.nats - baseline.mean().item()) and xz.gain_stderr is None
    assert png.gain == pytest.approx(png.nats - baseline.mean().item()) and png.gain_stderr > 0


def test_text_is_compressed_in_bits_per_byte():
    spec = SPECS["text"]
    text = torch.tensor(list(b"abcabc" * 50), dtype=torch.uint8).view(-1, 6)
    row = compress(Split(text), spec)[0]
    assert row.bits_per_byte == row.bits_per_dim < 8
