"""Autoregressive: causality, the chain rule, and generation."""

import pytest
import torch
from torch import nn

from densities import check_draws_what_it_scores, check_sums_to_one, events_of, perturb
from loglik.autoregressive import Autoregressive
from loglik.baselines import Independent
from loglik.data.spec import DataSpec
from loglik.density import Bound
from loglik.networks import CausalTransformer

LEVELS, LENGTH = 5, 6


def model(shape=(LENGTH,), levels=LEVELS, classes=0, perturbed=True) -> Autoregressive:
    density = Autoregressive(
        CausalTransformer(8, 2, 2), shape, levels, context=nn.Embedding(classes, 8) if classes else None
    )
    if perturbed:
        perturb(density, 0.3)
    return density.eval()


def test_a_later_token_never_changes_an_earlier_logit():
    density = model()
    x = torch.randint(0, LEVELS, (4, LENGTH))
    logits = density.logits(x)
    for t in range(LENGTH):
        changed = x.clone()
        changed[:, t] = (changed[:, t] + 1) % LEVELS
        other = density.logits(changed)
        assert torch.equal(other[:, : t + 1], logits[:, : t + 1])  # the logits at t are of x_t given those before it
        if t + 1 < LENGTH:
            assert not torch.isclose(other[:, t + 1 :], logits[:, t + 1 :]).all(-1).any()


def test_log_prob_is_the_chain_rule(float64):
    """The sum over t of log p(x_t | x_<t), each from a sequence cut off after t."""
    density = model()
    x = torch.randint(0, LEVELS, (3, LENGTH))
    total = torch.zeros(3)
    for t in range(LENGTH):
        cut = x.clone()
        cut[:, t + 1 :] = 0
        total += density.logits(cut)[:, t].log_softmax(-1).gather(1, x[:, t : t + 1]).squeeze(1)
    torch.testing.assert_close(density.log_prob(x), total)
    assert density.bound is Bound.EXACT and density.discrete


@pytest.mark.parametrize("classes", [0, 3])
def test_the_cache_draws_what_full_recomputation_draws(float64, classes):
    density = model(shape=(2, 3), classes=classes)
    n = 32
    context = torch.arange(n) % classes if classes else None
    torch.manual_seed(11)
    drawn = density.sample(n, context)
    torch.manual_seed(11)
    x = torch.zeros(n, 2, 3, dtype=torch.long)
    for t in range(LENGTH):
        probabilities = density.logits(x, context)[:, t].softmax(-1)
        x.view(n, -1)[:, t] = torch.multinomial(probabilities, 1).squeeze(1)
    assert drawn.dtype == torch.uint8 and torch.equal(drawn.long(), x)


def test_it_draws_what_it_scores():
    density = model(shape=(1, 1, 2), levels=3)
    events = events_of(DataSpec(kind="image", event_shape=(1, 1, 2), levels=3))
    check_draws_what_it_scores(density, events, check_sums_to_one(density, events))


def test_training_starts_from_the_independent_density(float64):
    x = torch.randint(0, LEVELS, (50, LENGTH)).clamp(max=torch.arange(LENGTH))
    density, independent = (
        model(perturbed=False).double(),
        Independent((LENGTH,), (True,) * LENGTH, levels=LEVELS),
    )
    density.initialise(x)
    independent.initialise(x)
    torch.testing.assert_close(density.log_prob(x), independent.log_prob(x))


def test_the_context_reaches_every_position():
    density = model(classes=3)
    x = torch.randint(0, LEVELS, (1, LENGTH)).expand(3, -1)
    logits = density.logits(x, torch.arange(3))
    assert density.conditional
    for a, b in ((0, 1), (1, 2)):
        assert not torch.isclose(logits[a], logits[b]).all(-1).any()


def test_many_levels_are_drawn_as_int64():
    assert model(levels=256).sample(2).dtype == torch.uint8
    assert model(levels=257).sample(2).dtype == torch.int64


@pytest.mark.parametrize("wrong", [LEVELS, -1])
def test_numbers_beyond_the_levels_are_refused(wrong):
    x = torch.zeros(3, LENGTH, dtype=torch.long)
    x[1, 2] = wrong
    with pytest.raises(ValueError, match=f"0 ... 4.*{wrong}"):
        model().initialise(x)
