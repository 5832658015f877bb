"""Scores: units, standard errors that cover, and reproducible noise."""

import math

import numpy as np
import pytest
import torch

from helpers.densities import SPECS, draw, tiny
from helpers.scored import scored
from loglik.data.dataset import Split, TextSplit
from loglik.data.spec import DataSpec
from loglik.data.windows import Stream, Windows
from loglik.density import StandardNormal
from loglik.evaluation import bits_per_dim, labels_in_turn, log_probs, mean_and_stderr
from loglik.evaluation import scores as scores_module
from loglik.evaluation.scores import check_split, default_samples, unseen_error

IMAGE = SPECS["image"]


def test_bits_per_dim():
    assert bits_per_dim(-6 * math.log(2), 3) == pytest.approx(2)
    assert f"{bits_per_dim(0.0, 3):.1f}" == "0.0"
    assert bits_per_dim(-64 * math.log(17), 64) == pytest.approx(math.log2(17))  # a uniform density over 17 levels


def test_a_split_is_checked_to_its_last_row(monkeypatch):
    monkeypatch.setattr(scores_module, "MAX_CHECKED_VALUES", 12)  # three images
    density, x = tiny("vae", IMAGE), draw(IMAGE, 7)[0]
    check_split(density, Split(x))
    x[6, 0, 1, 1] = 3
    for check in (check_split, log_probs):
        with pytest.raises(ValueError, match=r"data must hold integers 0 \.\.\. 2, got . \.\.\. 3"):
            check(density, Split(x))
    classifier = tiny("classifier", IMAGE)
    with pytest.raises(ValueError, match=r"labels must hold integers 0 \.\.\. 2, got 3 \.\.\. 3"):
        check_split(classifier, Split(draw(IMAGE, 7)[0], torch.tensor([0, 1, 2, 0, 0, 0, 3])))


@pytest.mark.parametrize("wrong", [0, 5, 6, 19, 22])
def test_each_token_of_a_text_is_checked(wrong):
    spec = DataSpec(kind="text", event_shape=(6,), levels=100)
    tokens = np.zeros(23, np.uint8)
    density = tiny("autoregressive", spec)
    check_split(density, TextSplit(Windows(Stream(tokens, "uint8", 0, 23), 6, 1)))
    tokens[wrong] = 100
    with pytest.raises(ValueError, match=r"data must hold integers 0 \.\.\. 99, got 0 \.\.\. 100"):
        check_split(density, TextSplit(Windows(Stream(tokens, "uint8", 0, 23), 6, 1)))


def test_mean_and_standard_error_by_hand():
    mean, stderr = mean_and_stderr(torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
    assert mean == 3 and stderr == pytest.approx(math.sqrt((4 + 1 + 9) / (3 * 2)))
    assert mean_and_stderr(torch.tensor([5.0], dtype=torch.float64)) == (5, None)
    assert mean_and_stderr(torch.full((9,), 0.1, dtype=torch.float64))[1] is None  # equal scores show no spread


def test_an_outcome_that_was_not_seen_leaves_an_error():
    """A miss of probability 1/(n+1) costs log p - log(1 - p); float32 knows no p above 1 - 2^-24."""
    assert unseen_error(math.log(0.9), 16) == pytest.approx(math.log(9) / 17)
    assert unseen_error(0.0, 16) == pytest.approx(24 * math.log(2) / 17) == unseen_error(1e-9, 16)
    assert unseen_error(math.log(0.5), 16) == 0 == unseen_error(-math.inf, 16)
    assert unseen_error(-0.01, 16) > 10 * unseen_error(-0.01, 1600)


def test_the_interval_covers_the_truth_at_its_rate():
    """Of 1000 data sets, 95 % have the known mean, minus the entropy, within 1.96 standard errors."""
    density, truth, covered, repeats = StandardNormal((2,)), -(1 + math.log(2 * math.pi)), 0, 1000
    for _ in range(repeats):
        mean, stderr = mean_and_stderr(log_probs(density, Split(torch.randn(200, 2))))
        covered += abs(mean - truth) < 1.96 * stderr
    assert abs(covered / repeats - 0.95) < 3.5 * math.sqrt(0.95 * 0.05 / repeats)


def test_the_interval_covers_the_truth_with_monte_carlo_noise():
    """The same where each number is itself one noisy draw."""

    class Noisy(StandardNormal):
        def log_prob(self, x, context=None, *, samples=1):
            return super().log_prob(x) + 2 * torch.randn(len(x))

    density, truth, covered, repeats = Noisy((2,)), -(1 + math.log(2 * math.pi)), 0, 1000
    for seed in range(repeats):
        mean, stderr = mean_and_stderr(log_probs(density, Split(torch.randn(200, 2)), seed=seed))
        covered += abs(mean - truth) < 1.96 * stderr
    assert abs(covered / repeats - 0.95) < 3.5 * math.sqrt(0.95 * 0.05 / repeats)


@pytest.mark.parametrize(
    ("family", "n", "samples"), [("independent", 10, 1), ("vae", 10, 32), ("vae", 4096, 16), ("diffusion", 10**6, 4)]
)
def test_larger_splits_take_fewer_samples(family, n, samples):
    assert default_samples(tiny(family, IMAGE), n) == samples


# ---- log_probs of a split


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_log_probs_are_the_densitys_in_order(batch_size):
    density, split = scored("autoregressive")
    truth = density.eval().log_prob(split.x).double()
    scores = log_probs(density, split, batch_size=batch_size)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, truth, rtol=1e-5, atol=1e-5)


def test_noise_is_the_seeds_and_the_generator_is_left_alone():
    density, split = scored("vae")
    before = torch.get_rng_state()
    first, again, other = (log_probs(density, split, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.isclose(first, other).any()
    assert torch.equal(torch.get_rng_state(), before)


def test_each_batch_has_noise_of_its_own():
    density, _ = scored("vae")
    same = Split(draw(IMAGE, 1)[0].expand(20, -1, -1, -1))
    scores = log_probs(density, same, batch_size=10)
    assert not torch.isclose(scores[:10], scores[10:]).any()


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_is_kept(training):
    density, split = scored("autoregressive")
    density.train(training)
    assert torch.equal(log_probs(density, split), log_probs(density, split)) and density.training == training


def test_labels_are_the_context_or_the_event():
    density, split = scored("vae", conditional=True)
    assert log_probs(density, split).shape == (100,)
    with pytest.raises(ValueError, match="this density needs labels"):
        log_probs(density, Split(split.x))
    classifier, split = scored("classifier")
    truth = classifier.eval().log_prob(split.y, split.x).double()
    torch.testing.assert_close(log_probs(classifier, split), truth)


class Rank:
    """One rank of several, as Fabric shows it; `all_reduce` keeps what this rank would send."""

    def __init__(self, rank: int, world: int) -> None:
        self.global_rank, self.world_size = rank, world

    def all_reduce(self, scores, reduce_op):
        assert reduce_op == "sum"
        return scores


@pytest.mark.parametrize("world", [2, 3])
def test_many_ranks_give_what_one_gives(world):
    """Each example is scored by one rank, with the noise that it has on one rank."""
    density, split = scored("vae")
    alone = log_probs(density, split, batch_size=16)
    calls = [_unchecked(log_probs)(density, split, batch_size=16, fabric=Rank(rank, world)) for rank in range(world)]
    assert torch.equal(sum(calls), alone)


def _unchecked(function):
    """The function without its signature's checks, for a stand-in argument."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def test_labels_in_turn():
    assert labels_in_turn(IMAGE, 5).tolist() == [0, 1, 2, 0, 1]
