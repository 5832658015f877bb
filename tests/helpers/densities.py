"""The shared density suite: what must hold for every family of the recipes' registry on every kind of data it models.

`CASES` is every recipe × every spec (× conditional or not) that is not listed in `REFUSED`; a new family is in it as
soon as it is registered. Each function of `CHECKS` checks a case; `test_recipes.py` runs `CHECKED`, the pairs in which
a check asserts something.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from helpers.elsewhere import DEVICE, second_device, there
from loglik.checks import data_checked
from loglik.data.spec import Column, DataSpec
from loglik.data.tokenizers import Bytes
from loglik.density import Bound, Density
from loglik.diffusion import Diffusion
from loglik.recipes import RECIPES, build, recipe

LABELS = ("a", "b", "c")
MIXED = (
    Column(name="size", type="numeric"),
    Column(name="count", type="integer"),
    Column(name="colour", type="categorical", categories=("r", "g", "b")),
    Column(name="alive", type="boolean", categories=("no", "yes")),
)

GAPPY = tuple(replace(column, missing=column.name != "alive") for column in MIXED)

SPECS = {
    "image": DataSpec(kind="image", event_shape=(1, 2, 2), levels=3, classes=LABELS),
    "image256": DataSpec(kind="image", event_shape=(1, 2, 2), levels=256, classes=LABELS),
    "large image": DataSpec(kind="image", event_shape=(1, 9, 8), levels=256, classes=LABELS),
    "table": DataSpec(kind="table", event_shape=(3,), classes=LABELS, columns=(MIXED[0],) * 3),
    "mixed table": DataSpec(kind="table", event_shape=(4,), classes=LABELS, columns=MIXED),
    "incomplete table": DataSpec(kind="table", event_shape=(4,), classes=LABELS, columns=GAPPY),
    "one column": DataSpec(kind="table", event_shape=(1,), classes=LABELS, columns=MIXED[:1]),
    "real array": DataSpec(kind="array", event_shape=(2, 2), classes=LABELS),
    "whole array": DataSpec(kind="array", event_shape=(5,), levels=300, classes=LABELS),
    "text": DataSpec(kind="text", event_shape=(6,), levels=256, classes=LABELS),
    "texts": DataSpec(kind="text", event_shape=(6,), levels=257, classes=LABELS, tokenizer=Bytes(), padded=True),
}
# the specs tried with a label as the context too
CONDITIONED = {"image", "mixed table", "incomplete table", "whole array", "text"}
TWO_PIXELS = DataSpec(kind="image", event_shape=(1, 1, 2), levels=3, classes=LABELS)

REFUSED = {(family, text) for family in ("flow", "vae", "diffusion") for text in ("text", "texts")}
REFUSED |= {
    ("mixture", spec) for spec in SPECS if spec not in ("table", "mixed table", "one column", "incomplete table")
}

TINY = {"width": 16, "depth": 2, "heads": 2, "steps": 4, "latent": 2}  # those of these that a recipe has


EXACT = {"independent", "classifier", "autoregressive", "mixture"}  # the families whose bound is exact on all data


@dataclass(frozen=True)
class Case:
    family: str
    spec: str
    conditional: bool = False

    @property
    def needs_context(self) -> bool:
        return self.conditional or self.family == "classifier"

    @property
    def exact(self) -> bool:
        """Whether `log_prob` is exact: `check_declares` asserts it."""
        family, *_ = self.family.split(":")
        if SPECS[self.spec].incomplete:
            return family in ("independent", "classifier", "mixture")
        return family in EXACT or (family == "flow" and not any(SPECS[self.spec].discrete_dims))

    def __str__(self) -> str:
        return f"{self.family}-{self.spec.replace(' ', '_')}" + "-conditional" * self.conditional


CASES = [
    Case(family, spec, conditional)
    for family, entry in RECIPES.items()
    for spec in SPECS
    for conditional in ([False, True] if "conditional" in entry.options and spec in CONDITIONED else [False])
    if (family, spec) not in REFUSED
]

CASES += [
    Case(f"{family}:{kind}", "image" if kind in ("glow", "unet", "dit") else "table")
    for family, entry in RECIPES.items()
    for kind in entry.kinds
]
CASES.append(Case("flow:glow", "large image"))  # 9×8: a side is odd


def draw(spec: DataSpec, n: int) -> tuple[Tensor, Tensor]:
    """Data and labels of a spec, dependent across dimensions, of the dtype that `loglik.data` gives.

    Where columns have missing values, some rows have NaN; the first is complete.
    """
    y = torch.randint(len(spec.classes), (n,))
    shared = torch.randn(n, 1) + y[:, None]
    rows = shared + 0.5 * torch.randn(n, spec.dims)
    if spec.levels is not None:
        x = ((rows + 3) * spec.levels / 8).floor().clamp(0, spec.levels - 1)
        return x.view(n, *spec.event_shape).to(torch.uint8 if spec.levels <= 256 else torch.int64), y
    for d, column in enumerate(spec.columns):
        if column.type == "numeric":
            rows[:, d] = 40 + 7 * rows[:, d]  # in units of its own
        else:
            rows[:, d] = rows[:, d].floor().clamp(0, (len(column.categories) or 10) - 1)
    for d, column in enumerate(spec.columns):
        if column.missing:
            rows[1:, d] = rows[1:, d].masked_fill(torch.rand(n - 1) < 0.4, torch.nan)
    return rows.view(n, *spec.event_shape), y


def perturb(density: nn.Module, scale: float = 0.1) -> None:
    """Move every parameter, so that nothing sits at a start of zeros."""
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


def tiny(family: str, spec: DataSpec, **options: Any) -> Density:
    """A family's density for a spec at the smallest size."""
    known = {name: value for name, value in TINY.items() if name in recipe(family).options}
    return build(family, spec, **known | options)


def ready(case: Case, n: int = 16, device: str | torch.device = "cpu") -> tuple[Density, Tensor, Tensor | None]:
    """A case's density, initialised and perturbed, in evaluation mode, with events and their context."""
    spec = SPECS[case.spec]
    torch.manual_seed(1)
    density = tiny(case.family, spec, **({"conditional": True} if case.conditional else {}))
    x, y = (t.to(device) for t in draw(spec, n))
    density.to(device)
    event, context = (y, x) if density.event == "y" else (x, y if density.conditional else None)
    density.initialise(event, context)
    perturb(density, 0.05)
    return density.eval(), event, context


def train(density: Density, event: Tensor, context: Tensor | None = None, *, steps: int = 60, lr: float = 1e-2) -> None:
    """A little of training, on the whole of the data at each step; ends in evaluation mode."""
    density.train()
    density.initialise(event, context)
    parameters = list(density.parameters())
    if parameters:
        optimiser = torch.optim.Adam(parameters, lr)
        for _ in range(steps):
            optimiser.zero_grad()
            density.loss(event, context).backward()
            optimiser.step()
    density.eval()


def noise(seed: int = 7) -> None:
    """The same Monte Carlo noise from here on."""
    torch.manual_seed(seed)


# ---- what every density must do


def check_declares(case: Case) -> None:
    density, event, _ = ready(case)
    spec = SPECS[case.spec]
    assert isinstance(density.bound, Bound)
    assert density.conditional == case.needs_context == (case.conditional or density.event == "y")
    assert (density.bound is Bound.EXACT) == case.exact
    assert tuple(density.event_shape) == tuple(event.shape[1:])
    if density.event == "x":
        assert density.discrete == all(spec.discrete_dims)
    if density.bound is Bound.EXACT:
        assert density.importance_weighted


def check_shapes(case: Case) -> None:
    density, event, context = ready(case)
    log_p = density.log_prob(event, context)
    assert log_p.shape == (16,) and log_p.is_floating_point() and log_p.isfinite().all()
    loss = density.loss(event, context)
    assert loss.shape == () and loss.isfinite()
    for value in density.terms(event, context).values():
        assert value.shape == (16,) and value.isfinite().all()
    one = density.log_prob(event[:1], None if context is None else context[:1])
    assert one.shape == (1,) and one.isfinite().all()


def check_refuses_no_context(case: Case) -> None:
    density, event, _ = ready(case)
    with pytest.raises((ValueError, TypeError)):
        density.log_prob(event)


def check_samples(case: Case) -> None:
    """In the units of the data: dtype, shape, levels, integers where the column holds them."""
    density, event, context = ready(case)
    spec = SPECS[case.spec]
    drawn = density.sample(16, context)
    assert drawn.shape == event.shape and drawn.dtype == event.dtype
    if density.event == "y":
        assert ((drawn >= 0) & (drawn < len(spec.classes))).all()
    elif spec.levels is not None:
        assert ((drawn.long() >= 0) & (drawn.long() < spec.levels)).all()
    else:
        assert drawn.isfinite().all()
        rows = drawn.flatten(1)
        for d, discrete in enumerate(spec.discrete_dims):
            assert torch.equal(rows[:, d], rows[:, d].floor()) == discrete
    assert density.log_prob(drawn, context).isfinite().all()  # what a density draws, it can score


def check_gradients(case: Case) -> None:
    """A training step reaches every parameter."""
    density, event, context = ready(case, n=64)
    density.train()
    loss = density.loss(event, context)
    parameters = dict(density.named_parameters())
    assert loss.requires_grad == bool(parameters)
    if parameters:
        loss.backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def check_reproducible(case: Case) -> None:
    """In evaluation mode an exact number has no noise, and a bound's comes from torch's generator alone."""
    density, event, context = ready(case)
    noise()
    first = density.log_prob(event, context)
    if density.bound is not Bound.EXACT:
        assert not torch.equal(first, density.log_prob(event, context))
        noise()
    assert torch.equal(first, density.log_prob(event, context))
    noise()
    drawn = density.sample(16, context)
    noise()
    assert torch.equal(drawn, density.sample(16, context))


def check_rows_alone(case: Case) -> None:
    """An example's number does not depend on its batch."""
    density, event, context = ready(case)
    whole = density.log_prob(event, context)
    some = density.log_prob(event[3:6], None if context is None else context[3:6])
    torch.testing.assert_close(some, whole[3:6], rtol=1e-5, atol=1e-4)


def _many(event: Tensor, context: Tensor | None, n: int) -> tuple[Tensor, Tensor | None]:
    return event.repeat(n, *[1] * (event.dim() - 1)), (
        None if context is None else context.repeat(n, *[1] * (context.dim() - 1))
    )


def check_one_objective(case: Case) -> None:
    """`loss` is what `log_prob` says up to Monte Carlo noise, and `terms` sum to it for the same noise.

    Flow matching's loss weighs the terms of the bound in its own way.
    """
    density, event, context = ready(case)
    draws = 2 if density.bound is Bound.EXACT else 200
    rows = _many(event, context, draws)
    log_p = density.log_prob(*rows).double()
    error = math.sqrt(2 * log_p.view(draws, 16).var(0).mean().item() / len(log_p)) + 1e-5 * (1 + log_p.abs().mean())
    if case.family != "diffusion:flow-matching":
        assert abs(density.loss(*rows).item() + log_p.mean().item()) < 5 * error
    for samples in (1, 3):
        noise()
        log_p = density.log_prob(event, context, samples=samples)
        noise()
        terms = density.terms(event, context, samples=samples)
        assert bool(terms) == (density.bound is not Bound.EXACT)
        if terms:
            torch.testing.assert_close(sum(terms.values()).to(log_p), log_p, rtol=1e-4, atol=1e-4)


def check_samples_of_the_bound(case: Case) -> None:
    """More Monte Carlo samples: importance weights raise the bound, other bounds keep their mean; exact ignores it."""
    density, event, context = ready(case)
    if density.bound is Bound.EXACT:
        assert torch.equal(density.log_prob(event, context, samples=3), density.log_prob(event, context))
        return
    with pytest.raises(ValueError, match="at least 1, got 0"):
        density.log_prob(event, context, samples=0)
    rows = _many(event, context, 100)
    one, more = (density.log_prob(*rows, samples=k).double().view(100, 16) for k in (1, 8))
    error = 5 * math.sqrt((one.var(0).mean() + more.var(0).mean()).item() / one.numel())
    difference = (more - one).mean().item()
    assert difference > -error
    assert density.importance_weighted or difference < error
    assert more.var(0).median() < one.var(0).median()  # of most rows: an imputer's far draw outweighs all others


def check_accepts_arrays(case: Case) -> None:
    """NumPy's arrays, lists and tensors of other dtypes give what tensors of the density's dtype give; no graph in a
    sample."""
    density, event, context = ready(case)
    noise()
    truth = density.log_prob(event, context)
    noise()
    loss = density.loss(event, context)

    def other(value: Tensor | None, form: str) -> Any:
        if value is None:
            return None
        value = value.double() if value.is_floating_point() else value.to(torch.int32)
        return {"tensor": value, "numpy": value.numpy(), "list": value.tolist()}[form]

    for form in ("tensor", "numpy", "list"):
        noise()
        assert torch.equal(density.log_prob(other(event, form), other(context, form)), truth)
        noise()
        assert torch.equal(density.loss(other(event, form), other(context, form)), loss)
        drawn = density.sample(16, other(context, form))
        assert drawn.grad_fn is None and not drawn.requires_grad
    if event.is_floating_point():
        double = copy.deepcopy(density).double()
        assert double.log_prob(event, context).dtype == torch.float64


def check_bfloat16(case: Case) -> None:
    """Under autocast the mean stays within a hundredth."""
    density, event, context = ready(case, n=512)
    noise()
    exact = density.log_prob(event, context).double()
    noise()
    with torch.autocast(event.device.type, torch.bfloat16):
        rounded = density.log_prob(event, context).double()
    assert rounded.isfinite().all()
    assert abs((rounded - exact).mean()) < 0.01 * (1 + exact.mean().abs())


def check_saves(case: Case) -> None:
    """Through safetensors into a density built anew."""
    density, event, context = ready(case)
    stored = safetensors.torch.save(density.state_dict())
    torch.manual_seed(99)
    other = tiny(case.family, SPECS[case.spec], **({"conditional": True} if case.conditional else {})).eval()
    other.load_state_dict(safetensors.torch.load(stored))
    noise()
    truth = density.log_prob(event, context)
    noise()
    assert torch.equal(other.log_prob(event, context), truth)


def check_deepcopy(case: Case) -> None:
    """A copy says the same and shares nothing."""
    density, event, context = ready(case)
    noise()
    truth = density.log_prob(event, context)
    copied = copy.deepcopy(density)
    noise()
    assert torch.equal(copied.log_prob(event, context), truth)
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.zero_()
    noise()
    assert torch.equal(density.log_prob(event, context), truth)


def check_gpu(case: Case) -> None:
    """On a GPU: the same numbers where they are exact, and samples that stay there."""
    density, event, context = ready(case, device="cuda")
    log_p = density.log_prob(event, context)
    assert log_p.is_cuda and log_p.isfinite().all()
    assert density.sample(16, context).is_cuda
    density.train()
    assert density.loss(event, context).isfinite()
    density.eval()
    if density.bound is Bound.EXACT:
        here = density.cpu().log_prob(event.cpu(), None if context is None else context.cpu())
        torch.testing.assert_close(here, log_p.cpu(), rtol=1e-3, atol=1e-3)


def shorten(density: nn.Module) -> None:
    """Let a diffusion in a density sample in few steps."""
    for part in density.modules():
        if isinstance(part, Diffusion):
            part.sampler = replace(part.sampler, steps=4)


def check_elsewhere(case: Case) -> None:
    """On another device, where mixing devices is an error: what a training and its report call, without the host."""
    with second_device() as device:
        density, event, context = ready(case, n=4, device=DEVICE)
        assert density.device == DEVICE
        shorten(density)
        density.check(event.cpu(), None if context is None else context.cpu())
        density.train()
        density.loss(event, context)  # the first step may copy constants to the device
        with data_checked(), device.unattended():
            loss = density.loss(event, context)
            parameters = [p for p in density.parameters() if p.requires_grad]
            if parameters:
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        assert not parameters or all(g is None or g.isfinite().all() for g in gradients)
        density.eval()
        with torch.no_grad():
            density.calibrate(event, context)
            assert there(density.log_prob(event.cpu(), context, samples=2))  # a user's may be on the CPU
            with data_checked(), device.unattended():
                assert there(density.log_prob(event, context, samples=2))
                assert all(there(values) for values in density.terms(event, context, samples=2).values())
                assert there(density.sample(3, None if context is None else context[:3]))


CHECKS: list[Callable[[Case], None]] = [
    check_declares,
    check_shapes,
    check_refuses_no_context,
    check_samples,
    check_gradients,
    check_reproducible,
    check_rows_alone,
    check_one_objective,
    check_samples_of_the_bound,
    check_accepts_arrays,
    check_bfloat16,
    check_saves,
    check_deepcopy,
]
ONLY: dict[Callable[[Case], None], Callable[[Case], bool]] = {  # which cases a check is for; all by default
    check_refuses_no_context: lambda case: case.needs_context,
    check_rows_alone: lambda case: case.exact,  # a bound's number depends on the noise of its batch
}
CHECKED = [
    pytest.param(case, check, id=f"{case}-{check.__name__}")
    for check in CHECKS
    for case in CASES
    if check not in ONLY or ONLY[check](case)
]


# ---- sums to one


def events_of(spec: DataSpec) -> Tensor:
    """Every value that an event of integers can take."""
    assert spec.levels is not None
    dtype = torch.uint8 if spec.levels <= 256 else torch.int64
    values = torch.cartesian_prod(*[torch.arange(spec.levels)] * spec.dims).view(-1, *spec.event_shape)
    return values.to(dtype)


@torch.no_grad()
def check_sums_to_one(
    density: Density, events: Tensor, context: Tensor | None = None, *, draws: int = 20_000
) -> Tensor:
    r"""Over all events: $\sum_x p(x) = 1$ where exact; $\sum_x \overline{w(x)} = 1$ for importance weights; for other
    lower bounds $\sum_x e^{\overline{\log p(x)}} \le 1$. Within 4 standard errors; returns what was summed."""
    if density.bound is Bound.EXACT:
        p = density.log_prob(events, context).double().exp()
        assert abs(p.sum() - 1) < 1e-5, p.sum()
        return p
    rows = _many(events, context, draws)
    log_p = density.log_prob(*rows).double().view(draws, len(events))
    if density.importance_weighted:
        weights = log_p.exp()
        p, error = weights.mean(0), math.sqrt((weights.var(0) / draws).sum().item())
        assert error < 0.01, f"the Monte Carlo error {error} is too large to tell"
        assert abs(p.sum() - 1) < 4 * error, (p.sum(), error)
        return p
    assert density.bound is Bound.LOWER
    p = log_p.mean(0).exp()
    error = math.sqrt((p.square() * log_p.var(0) / draws).sum().item())
    assert error < 0.05, f"the Monte Carlo error {error} is too large to tell"
    assert p.sum() < 1 + 4 * error, (p.sum(), error)
    return p


@torch.no_grad()
def check_draws_what_it_scores(density: Density, events: Tensor, p: Tensor, context: Tensor | None = None) -> None:
    """Each event's share of 20,000 samples is its probability; half a hundredth is for p's own Monte Carlo error."""
    n = 20_000
    drawn = density.sample(n, None if context is None else context[:1].expand(n, *context.shape[1:]))
    same = drawn.view(n, 1, -1) == events.view(1, len(events), -1)
    assert same.all(-1).sum() == n
    share = same.all(-1).double().mean(0)
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 0.005).all(), (share, p)


# ---- compilation, in a process of its own: the compiler cannot trace through the checks on signatures


def compile_case(case: Case, backend: str, *, loss: bool = False) -> None:
    """`log_prob`, and the loss's gradients, are under torch.compile what they are without."""
    import torch._inductor.config

    torch._inductor.config.fallback_random = True  # the same noise as without the compiler
    density, event, context = ready(case)
    compiled = torch.compile(density.log_prob, backend=backend, fullgraph=True)
    noise()
    truth = density.log_prob(event, context)
    noise()
    torch.testing.assert_close(compiled(event, context), truth, rtol=1e-4, atol=1e-4)
    if not loss or not truth.requires_grad:
        return
    gradients = []
    for function in (density.loss, torch.compile(density.loss, backend=backend)):
        density.zero_grad()
        noise()
        function(event, context).backward()
        gradients.append([p.grad.clone() for p in density.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3)


if __name__ == "__main__":  # densities.py BACKEND FAMILY SPEC [loss]
    compile_case(Case(sys.argv[2], sys.argv[3]), sys.argv[1], loss="loss" in sys.argv[4:])
