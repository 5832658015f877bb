r"""LayerNorm and BatchNorm (the notes, "Transformers and attention"; spring 2025, B1).

Both compute $\gamma \odot (h - \mu) / \sqrt{v + \varepsilon} + \beta$. LayerNorm takes the mean μ and variance v over
the features of one position. BatchNorm takes them over the batch in training, and their moving averages in testing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.networks.norms import batch_norm_formula, layer_norm_formula, rms_norm_formula
from loglik.verification.calls import Call, calls, rerun
from loglik.verification.check import Finding, check
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["batch_norm", "batch_norm_breaks", "layer_norm"]

SECTION = "Transformers and attention"
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ROUNDING = 1e-4
MANY = 64  # examples that small batches are compared with
MIN_CHANGE = 1e-3  # of BatchNorm's output, relative, by the rest of the batch


@check(
    "layer-norm",
    section=SECTION,
    statement=r"\text{LN}(h) = \gamma \odot \frac{h - \mu}{\sqrt{v + \varepsilon}} + \beta",
)
def layer_norm(subject: Subject) -> Iterator[Finding]:
    r"""LayerNorm takes its mean and variance over the features of one position, whatever else is in the batch.

    RMSNorm takes no mean, and the mean square in the place of the variance.
    """
    found = calls(subject, (nn.LayerNorm, nn.RMSNorm), what="LayerNorm or RMSNorm")
    formula = max(_difference(call.y, _layer_norm(call)) for call in found)
    alone = max(_difference(call.y[:1], _rerun(call, call.x[:1])) for call in found)
    size = len(found[0].x)
    yield Finding.equal(f"largest difference from the formula, {_layers(found)}", formula, 0, tolerance=ROUNDING)
    computed = f"largest change of an example's output, alone against in a batch of {size}"
    yield Finding.equal(computed, alone, 0, tolerance=ROUNDING)


@check(
    "batch-norm",
    section=SECTION,
    statement=r"\text{BN}(h) = \gamma \odot \frac{h - \mu_B}{\sqrt{\sigma_B^2 + \varepsilon}} + \beta, \quad "
    r"\bar\mu \leftarrow (1 - m)\,\bar\mu + m\,\mu_B",
)
def batch_norm(subject: Subject) -> Iterator[Finding]:
    """BatchNorm depends on the batch in training, and in testing on its moving averages only."""
    found = [call for call in calls(subject, BATCH_NORMS, what="BatchNorm") if _varies(call)]
    if not found:
        raise DoesNotApply("no BatchNorm of this model receives channels, behind the batch, that vary over it")
    size = len(found[0].x)
    trained = [_trained(call) for call in found]
    pairs = list(zip(found, trained, strict=True))
    alone = [_change(call.y[:1], _rerun(call, call.x[:1])) for call in found]
    formula = [_difference(y, _normed(call.module, call.x)) for call, (y, _) in pairs]
    few = [_change(y[:2], _trained(call, call.x[:2])[0]) for call, (y, _) in pairs]
    yield Finding.equal(
        f"in training, largest difference from the formula, {_layers(found)}", max(formula), 0, tolerance=ROUNDING
    )
    yield Finding.at_least(
        f"in training, smallest relative change of 2 examples' output, alone against in a batch of {size}",
        min(few),
        MIN_CHANGE,
    )
    yield Finding.equal(
        f"in testing, largest relative change of an example's output, alone against in a batch of {size}",
        max(alone),
        0,
        tolerance=ROUNDING,
    )
    averaged = [(call, module) for call, (_, module) in pairs if module.running_mean is not None]
    if averaged:
        test = max(_difference(call.y, _normed(call.module, call.x, _running(call.module))) for call, _ in averaged)
        moved = max(_average_error(call, module) for call, module in averaged)
        apart = max(_apart(call) for call, _ in averaged)
        yield Finding.equal(
            "in testing, largest difference from the formula with the moving averages", test, 0, tolerance=ROUNDING
        )
        computed = "largest difference of the moving averages from their formula, after one batch"
        yield Finding.equal(computed, moved, 0, tolerance=ROUNDING)
        computed = "largest distance of a moving mean from this batch's mean, in standard deviations"
        yield Finding.reported(computed, apart)


@check(
    "batch-norm-breaks",
    section=SECTION,
    statement=r"\text{BN}_B(h_i) \ne \text{BN}_{B'}(h_i), \quad \text{LN}(h_i) \text{ is one for all } B",
)
def batch_norm_breaks(subject: Subject) -> Iterator[Finding]:
    """Small batches and padded sequences change the output of BatchNorm; that of LayerNorm stays what it is.

    Two new layers without weights run on features of this model: what its first norm receives, or the data themselves.
    """
    subject.needs_layers()
    h, source = _sequences(subject)
    batch, layer = nn.BatchNorm1d(h.shape[-1], affine=False), nn.LayerNorm(h.shape[-1], elementwise_affine=False)
    batch, layer = batch.to(h.device, h.dtype), layer.to(h.device, h.dtype)

    def run(norm: nn.Module, h: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        with torch.no_grad():
            return norm(h.flatten(0, 1)).view_as(h)

    whole = run(batch, h), run(layer, h)
    errors: dict[int, float] = {}
    unmoved = 0.0
    sizes = [size for size in (32, 8, 2) if size < len(h)]
    for size in sizes:
        parts = [part for part in h.split(size) if len(part) * part.shape[1] > 1]
        rows = sum(map(len, parts))
        errors[size] = _change(whole[0][:rows], torch.cat([run(batch, part) for part in parts]))
        unmoved = max(unmoved, _change(whole[1][:rows], torch.cat([run(layer, part) for part in parts])))
        computed = f"BatchNorm's relative error in batches of {size} against one of {len(h)}, {source}"
        yield Finding.reported(computed, errors[size])
    ratio = errors[sizes[-1]] / max(errors[sizes[0]], 1e-30)
    yield Finding.at_least(f"ratio of its error in batches of {sizes[-1]} to that in batches of {sizes[0]}", ratio, 1)
    yield Finding.equal("LayerNorm's relative error in these batches", unmoved, 0, tolerance=ROUNDING)
    real = _cut(h, subject.seed)
    padded = h * real.unsqueeze(-1)
    without = nn.functional.batch_norm(h[real], None, None, training=True)
    yield Finding.at_least(
        f"BatchNorm's relative error by padding with zeros, {_percent(real)} of the positions",
        _change(without, run(batch, padded)[real]),
        MIN_CHANGE,
    )
    change = _change(layer(h[real]), run(layer, padded)[real])
    yield Finding.equal("LayerNorm's relative error by the same padding", change, 0, tolerance=ROUNDING)


def _layer_norm(call: Call) -> Tensor:
    """The formula in float64, of a LayerNorm or an RMSNorm."""
    module = call.module
    assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    x = call.x.double().flatten(-len(module.normalized_shape))
    scale, shift = _affine(module, x.shape[-1], x)
    if isinstance(module, nn.LayerNorm):
        return layer_norm_formula(x, scale, shift, module.eps).view_as(call.x)
    epsilon = torch.finfo(call.x.dtype).eps if module.eps is None else module.eps
    return rms_norm_formula(x, scale, epsilon).view_as(call.x)


def _affine(module: nn.Module, features: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's scale and shift in float64, 1 and 0 where it has none."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    scale = like.new_ones(features) if weight is None else weight.detach().double().flatten()
    return scale, like.new_zeros(features) if bias is None else bias.detach().double().flatten()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the variance of each channel over the batch and all positions."""
    rows = x.double().movedim(1, -1).flatten(0, -2)
    return rows.mean(0), rows.var(0, correction=0)


def _running(module: nn.Module) -> tuple[Tensor, Tensor]:
    mean, variance = module.running_mean, module.running_var
    assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
    return mean.double(), variance.double()


def _normed(module: nn.Module, x: Tensor, moments: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """BatchNorm's formula in float64, with the moments of the batch or these."""
    x = x.double()
    scale, shift = _affine(module, x.shape[1], x)
    return batch_norm_formula(x, scale, shift, module.eps, moments=moments)  # type: ignore[arg-type]


def _rerun(call: Call, x: Tensor, module: nn.Module | None = None) -> Tensor:
    with torch.no_grad():
        return rerun(call, x, module)


def _trained(call: Call, x: Tensor | None = None) -> tuple[Tensor, nn.Module]:
    """The output in training mode, and the copy of the layer that has seen the batch."""
    module = copy.deepcopy(call.module).train()
    return _rerun(call, call.x if x is None else x, module), module


def _average_error(call: Call, after: nn.Module) -> float:
    """How far the moving averages after one batch are from their formula."""
    module, n = call.module, call.x.numel() // call.x.shape[1]
    mean, variance = _moments(call.x)
    batches: Tensor = module.num_batches_tracked  # type: ignore[assignment]
    m: float = 1 / (int(batches) + 1) if module.momentum is None else module.momentum  # type: ignore[assignment]
    before = _running(module)
    expected = [(1 - m) * a + m * b for a, b in zip(before, (mean, variance * n / (n - 1)), strict=True)]
    return max(_difference(a, b) for a, b in zip(_running(after), expected, strict=True))


def _apart(call: Call) -> float:
    mean, variance = _running(call.module)
    return float(((mean - _moments(call.x)[0]).abs() / (variance + call.module.eps).sqrt()).max())  # type: ignore[operator]


def _varies(call: Call) -> bool:
    channels = call.x.shape[1] == call.module.num_features
    return channels and len(call.x) > 2 and bool((call.x.double().std(0) > 1e-6).any())


def _sequences(subject: Subject) -> tuple[Float[Tensor, "B T D"], str]:
    """What the first norm receives, or the data, as sequences: 8 examples are one where they have no positions."""
    try:
        found = calls(subject, (nn.LayerNorm, nn.RMSNorm, *BATCH_NORMS), examples=MANY)
    except DoesNotApply:
        found = []
    if found:
        h, source = found[0].x, f"on what {found[0].name} receives"
        if isinstance(found[0].module, BATCH_NORMS) and h.dim() > 2:
            h = h.movedim(1, -1)
    elif subject.data.spec.kind == "text":
        raise DoesNotApply("texts are tokens, not features, and this model has no LayerNorm, RMSNorm or BatchNorm")
    else:
        h, source = subject.examples.x[: 8 * MANY].flatten(1).float(), "on the data"
    h = h.flatten(1, -2) if h.dim() > 2 else h[: len(h) // 8 * 8].unflatten(0, (-1, 8))
    h = h[:, :64].double()
    h = h[..., h.flatten(0, 1).std(0) > 1e-6]
    if len(h) < 3 or h.shape[1] < 2 or h.shape[2] < 2:
        raise DoesNotApply("it needs at least 3 sequences of 2 positions with 2 features that vary")
    return h, source


def _cut(h: Float[Tensor, "B T D"], seed: int) -> Tensor:
    """Which positions are real, where sequences end at random after at least half of their length."""
    length = h.shape[1]
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint((length + 1) // 2, length, (len(h), 1), generator=generator)
    return (torch.arange(length) < ends).to(h.device)


def _percent(real: Tensor) -> str:
    return f"{100 * float((~real).double().mean()):.0f}%"


def _layers(found: list[Call]) -> str:
    return f"{len(found)} layer{'s' * (len(found) > 1)}"


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative where numbers are larger than 1."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float(((a - b).abs() / b.abs().clamp_min(1)).max())


def _change(a: Tensor, b: Tensor) -> float:
    """The relative difference of two tensors in norm."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float((a - b).norm() / a.norm().clamp_min(1e-30))
