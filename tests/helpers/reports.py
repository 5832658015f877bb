"""Data, densities and comparisons made up for reports."""

import math

import torch

from loglik.comparison import Row
from loglik.data.dataset import Data, Split
from loglik.data.spec import Column, DataSpec
from loglik.density import Bound, Density
from loglik.evaluation.result import Result
from loglik.recipes import build
from loglik.runs import Run

COLUMNS = (
    Column(name="age", type="integer"),
    Column(name="income <$>", type="numeric"),
    Column(name="species", type="categorical", categories=("setosa", "versicolor & co", "virginica")),
    Column(name="smoker", type="boolean", categories=("no", "yes")),
)
HISTORY = [
    {"step": 10.0 * i, "time": 0.5 * i, "train_nats": -90.0 + i, "validation_nats": -91.0 + i} for i in range(9)
] + [{"step": 100.0, "time": 5.0, "train_nats": math.nan}]


def spec_of(kind: str, *shape: int, **known) -> DataSpec:
    return DataSpec(kind=kind, event_shape=shape, **known)


IMAGES = spec_of("image", 1, 8, 8, levels=17, classes=tuple("0123456789"))
COLOURS = spec_of("image", 3, 5, 4, levels=256)
TABLE = spec_of("table", 4, columns=COLUMNS)
TEXT = spec_of("text", 24, levels=256)
VECTORS = spec_of("array", 3)
CUBES = spec_of("array", 2, 2, 2, levels=3)


def events(spec: DataSpec, n: int) -> torch.Tensor:
    """Random data of a spec."""
    if spec.columns:
        columns = [
            torch.randint(90, (n,)),
            1e4 * torch.rand(n),
            torch.randint(3, (n,)),
            torch.randint(2, (n,)),
        ]
        return torch.stack([c.float() for c in columns], 1)
    if spec.kind == "text":
        return torch.randint(32, 127, (n, *spec.event_shape))
    if spec.levels:
        return torch.randint(spec.levels, (n, *spec.event_shape), dtype=torch.uint8)
    return torch.randn(n, *spec.event_shape)


class Fake(Density):
    """Draws random events, and notes how it was asked."""

    def __init__(self, spec: DataSpec, conditional: bool = False) -> None:
        super().__init__()
        self.spec, self.event_shape, self.conditional = spec, spec.event_shape, conditional
        self.asked: list[tuple[int, bool, torch.Tensor | None]] = []

    def log_prob(self, x, context=None, *, samples=1):
        return -x.double().flatten(1).sum(1).abs()

    def sample(self, n, context=None):
        self.asked.append((n, self.training or torch.is_grad_enabled(), context))
        return events(self.spec, n)


class FakeClassifier(Fake):
    event = "y"

    @property
    def bound(self):
        return Bound.EXACT

    def probabilities(self, x):
        return torch.eye(10)[x[:, 0, 0, 0].long() % 10] * 0.9 + 0.01


def data_of(spec: DataSpec, name: str = "made up", n: int = 60) -> Data:
    def split() -> Split:
        return Split(events(spec, n), torch.randint(len(spec.classes), (n,)) if spec.classes else None)

    torch.manual_seed(0)
    return Data(name, spec, split(), split(), split())


def entry(density: Fake, model: str, bound: str, nats: float, **more) -> Row:
    spec = density.spec
    bits = -nats / (spec.dims * math.log(2)) if all(spec.discrete_dims) else None
    known = {"stderr": 0.5, "n": 60, "params": 12_345, "train_seconds": 5.0, "steps": 100} | more
    result = Result(model=model, bound=bound, nats=nats, bits_per_dim=bits, **known)
    return Row(result, Run(density, spec, history=list(HISTORY)))


def small_vae() -> Density:
    torch.manual_seed(5)
    vae = build("vae", IMAGES, width=8, latent=2, network="mlp")
    vae.initialise(events(IMAGES, 20))
    vae.spec = IMAGES
    return vae


def comparison() -> list[Row]:
    return [
        entry(Fake(IMAGES), "independent", "exact", -129.25, steps=0, samples_per_second=251_234.0),
        entry(
            small_vae(),
            "vae",
            "lower",
            -92.5,
            samples=64,
            terms={"reconstruction": -72.25, "-KL": -25.75, "tightening (K = 64)": 5.5},
            notes=("undertrained: it made 100 steps, 0.5 of an epoch",),
            gain=36.75,
            gain_stderr=0.25,
        ),
        entry(Fake(IMAGES, conditional=True), "diffusion", "estimate", -88.0, samples=8),
        entry(
            FakeClassifier(IMAGES),
            "classifier",
            "exact",
            -0.125,
            event="y",
            accuracy=0.9,
            accuracy_interval=(0.799, 0.953),
            calibration_error=0.02,
        ),
        Row(Result(model="xz", bound="exact", nats=-160.0, bits_per_dim=3.61, gain=-30.75, n=60)),
    ]
