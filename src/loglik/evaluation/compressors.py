"""General-purpose compressors as densities: a code of L bits is a probability of 2^-L."""

from __future__ import annotations

import io
import lzma
import math

import torch
from PIL import Image
from torch import Tensor

from loglik.data.dataset import Split
from loglik.data.spec import DataSpec
from loglik.data.tokenizers import Tokenizer
from loglik.data.windows import Stream
from loglik.evaluation.result import Result, bits_per_dim
from loglik.evaluation.scores import mean_and_stderr
from loglik.evaluation.text import StreamScores, perplexity

__all__ = ["compress"]


def compress(split: Split, spec: DataSpec, baseline: Tensor | StreamScores | None = None) -> list[Result]:
    """Return a row for xz, and for images a row for PNG: integer data of a split, coded without the training set.

    By Kraft's inequality $\\sum_x 2^{-L(x)} \\le 1$, so $-L \\ln 2$ is a log-probability. xz codes the split as one
    stream, so its mean has no standard error; PNG codes each image by itself. Levels above 255 need two bytes. For a
    text xz codes its bytes.

    Args:
        split: the data.
        spec: what is known of the data; only complete integer data can be coded.
        baseline: a density's `baseline_scores` of the same split, from which gains are counted.
    """
    if spec.levels is None or spec.incomplete or len(split) == 0:
        return []
    if split.stream is not None:
        assert not isinstance(baseline, Tensor)
        return [] if spec.tokenizer is None else [_xz_text(split.stream, spec.tokenizer, baseline)]
    assert not isinstance(baseline, StreamScores)
    rows = [_xz(split, spec, baseline)]
    if spec.kind == "image" and spec.event_shape[0] in (1, 3):
        rows.append(_png(split, spec, baseline))
    return rows


def _xz_text(stream: Stream, tokenizer: Tokenizer, baseline: StreamScores | None) -> Result:
    coder = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    size = length = 0
    for block in stream.blocks():
        text = tokenizer.decode(block)
        size, length = size + len(text), length + len(coder.compress(text))
    length += len(coder.flush())
    nats = -8 * math.log(2) * length / len(stream)
    return Result(
        model="xz",
        bound="exact",
        nats=nats,
        bits_per_dim=bits_per_dim(nats, 1),
        bits_per_byte=8 * length / size,
        gain=None if baseline is None else nats - baseline.per_token()[0],
        n=len(stream),
        unit="token",
        perplexity=perplexity(nats),
    )


def _xz(split: Split, spec: DataSpec, baseline: Tensor | None) -> Result:
    x = split.tensor().to(torch.uint8 if spec.levels is not None and spec.levels <= 256 else torch.uint16)
    bits = 8 * len(lzma.compress(x.contiguous().numpy().tobytes(), preset=9 | lzma.PRESET_EXTREME))
    nats = -bits * math.log(2) / len(split)
    gain = None if baseline is None else nats - baseline.mean().item()
    return _row("xz", spec, nats, None, len(split), gain, None)


def _png(split: Split, spec: DataSpec, baseline: Tensor | None) -> Result:
    lengths = [_png_bytes(image) for image in split.tensor().to(torch.uint8)]
    scores = -8 * math.log(2) * torch.tensor(lengths, dtype=torch.float64)
    gains = (None, None) if baseline is None else mean_and_stderr(scores - baseline)
    return _row("png", spec, *mean_and_stderr(scores), len(split), *gains)


def _png_bytes(image: Tensor) -> int:
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, format="png", optimize=True)
    return buffer.tell()


def _row(
    name: str,
    spec: DataSpec,
    nats: float,
    stderr: float | None,
    n: int,
    gain: float | None,
    gain_stderr: float | None,
) -> Result:
    bits = bits_per_dim(nats, spec.dims)
    return Result(
        model=name,
        bound="exact",
        nats=nats,
        bits_per_dim=bits,
        stderr=stderr,
        gain=gain,
        gain_stderr=gain_stderr,
        n=n,
        bits_per_byte=bits if spec.kind == "text" and not spec.padded else None,
    )
