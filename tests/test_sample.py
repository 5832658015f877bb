"""sample: draws in the units of the data, labels by name, a seed that fixes them."""

import numpy as np
import pytest
import torch

import loglik
from loglik.data import from_arrays
from loglik.diffusion import Diffusion

RNG = np.random.default_rng(0)
LABELS = np.array(["cat", "dog"])[RNG.integers(0, 2, 120)]
X = RNG.normal(size=(120, 2)) + 50.0 * (LABELS == "dog")[:, None]
SMALL = {"max_steps": 3, "batch_size": 32, "progress": False, "width": 8}


class Labelled(loglik.Density):
    """N(50 y, I) in two dimensions."""

    event_shape, conditional = (2,), True

    def log_prob(self, x, context=None, *, samples=1):
        return -(x - 50.0 * context[:, None]).square().sum(1) / 2

    def sample(self, n, context=None):
        return torch.randn(n, 2) + 50.0 * context[:, None]


@pytest.fixture
def conditional() -> loglik.Run:
    return loglik.Run(Labelled(), from_arrays(X, LABELS).spec)


def test_labels_are_given_by_name_or_in_turn(conditional) -> None:
    dogs, cats = (loglik.sample(conditional, 200, label=label) for label in ("dog", "cat"))
    assert dogs.shape == (200, 2)
    assert dogs.mean() > 40 and cats.mean() < 10
    turns = loglik.sample(conditional, 200)
    assert turns[1::2].mean() > 40 and turns[::2].mean() < 10
    with pytest.raises(ValueError, match="no class 'cow': the classes are cat, dog"):
        loglik.sample(conditional, 2, label="cow")


def test_a_seed_fixes_the_samples_and_the_generator_is_left_alone(conditional) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (loglik.sample(conditional, 4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_drawn_is_named() -> None:
    classifier = loglik.fit("classifier", (X, LABELS), **SMALL)
    with pytest.raises(ValueError, match=r"this run is a classifier, p\(label \| data\): it has no data to draw"):
        loglik.sample(classifier)
    plain = loglik.fit("independent", X, progress=False)
    with pytest.raises(ValueError, match="this density is not conditional"):
        loglik.sample(plain, label="dog")
    with pytest.raises(ValueError, match="this density has none"):
        loglik.sample(plain, steps=3)


def test_a_diffusion_s_sampler_is_set_for_one_call() -> None:
    run = loglik.fit("diffusion", X, **SMALL)
    usual = next(part for part in run.density.modules() if isinstance(part, Diffusion)).sampler
    quick = loglik.sample(run, 8, method="ddim", steps=2)
    assert quick.shape == (8, 2) and torch.isfinite(quick).all()
    assert not torch.equal(quick, loglik.sample(run, 8, method="ddim", steps=4))
    assert next(part for part in run.density.modules() if isinstance(part, Diffusion)).sampler == usual
