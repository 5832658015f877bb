"""Evaluation: units, standard errors that cover, reproducible noise, and compressors by hand."""

import io
import json
import lzma
import math

import pytest
import torch
from PIL import Image
from torch import nn

from helpers import densities
from helpers.densities import SPECS, draw, tiny
from loglik.classification import Classifier
from loglik.data.dataset import Split
from loglik.data.spec import DataSpec
from loglik.density import StandardNormal
from loglik.diffusion import ODE, Diffusion
from loglik.evaluation import (
    Result,
    bits_per_dim,
    compress,
    evaluate_split,
    labels_in_turn,
    log_probs,
    mean_and_stderr,
    row_scores,
)
from loglik.evaluation.scores import default_samples, unseen_error

IMAGE = SPECS["image"]


def scored(family: str, spec: DataSpec = IMAGE, n: int = 100, **options):
    """A density and a split of a spec."""
    density = tiny(family, spec, **options)
    x, y = draw(spec, n)
    density.initialise(*((y, x) if density.event == "y" else (x, y)))
    densities.perturb(density)
    return density.eval(), Split(x, y)


# ---- numbers


def test_bits_per_dim():
    assert bits_per_dim(-6 * math.log(2), 3) == pytest.approx(2)
    assert f"{bits_per_dim(0.0, 3):.1f}" == "0.0"
    assert bits_per_dim(-64 * math.log(17), 64) == pytest.approx(math.log2(17))  # a uniform density over 17 levels


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


# ---- evaluate_split


def evaluated(family: str, spec: DataSpec = IMAGE, **options) -> tuple[Result, Split]:
    density, split = scored(family, spec)
    return evaluate_split(density, split, spec, model=family, **options), split


def test_a_row_of_whole_numbers_has_bits():
    density, split = scored("autoregressive")
    scores = density.eval().log_prob(split.x).double()
    row = evaluate_split(density, split, IMAGE, model="ar", train_seconds=1.5, steps=7)
    assert (row.model, row.bound, row.n, row.samples, row.event) == ("ar", "exact", 100, 1, "x")
    assert (row.train_seconds, row.steps) == (1.5, 7)
    assert row.nats == pytest.approx(scores.mean().item())
    assert row.stderr == pytest.approx(scores.std().item() / 10)
    assert row.bits_per_dim == pytest.approx(-row.nats / (4 * math.log(2)))
    assert row.params == sum(p.numel() for p in density.parameters())
    assert row.bits_per_byte is None and row.accuracy is None and row.gain is None and row.terms == {}
    assert row.samples_per_second > 0
    assert json.loads(json.dumps(row.to_dict()))["nats"] == row.nats


@pytest.mark.parametrize("spec", ["table", "mixed table", "real array"])
def test_real_numbers_have_no_bits(spec):
    row, _ = evaluated("flow", SPECS[spec])
    assert row.bits_per_dim is None and math.isfinite(row.nats)


def test_text_has_bits_per_byte():
    row, _ = evaluated("independent", SPECS["text"])
    assert row.bits_per_byte == row.bits_per_dim > 0 and row.params == 0


def test_gain_is_paired():
    density, split = scored("autoregressive")
    baseline = torch.randn(100, dtype=torch.float64)
    row = evaluate_split(density, split, IMAGE, model="ar", baseline=baseline)
    differences = density.log_prob(split.x).double() - baseline
    assert row.gain == pytest.approx(differences.mean().item())
    assert row.gain_stderr == pytest.approx(differences.std().item() / 10)


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize(
    ("family", "spec", "names"),
    [
        ("vae", "image", {"reconstruction", "-KL"}),
        ("vae", "mixed table", {"reconstruction", "-KL", "log-determinant"}),
        ("vae:hierarchical", "image", {"reconstruction", "-KL"}),
        ("vae:diffusion", "image", {"reconstruction", "-KL"}),
        ("flow", "image", {"base", "log-determinant"}),
        ("diffusion", "image", {"reconstruction", "prior", "diffusion"}),
        ("diffusion:ode", "image", {"dequantization", "prior", "log-determinant"}),
        ("diffusion:ode", "table", {"prior", "log-determinant"}),
    ],
)
def test_terms_sum_to_the_number(family, spec, names, samples):
    """Of all rows and the same draws; K importance weights add a term of their own, which is positive."""
    density, split = scored(family.removesuffix(":ode"), SPECS[spec], n=8 if family.endswith(":ode") else 30)
    for diffusion in density.modules() if family.endswith(":ode") else []:
        if isinstance(diffusion, Diffusion):
            diffusion.likelihood = ODE(5, tolerance=100.0)
    row = evaluate_split(density, split, SPECS[spec], model=family, samples=samples, seed=4)
    assert row.nats == pytest.approx(log_probs(density, split, samples=samples, seed=4).mean().item(), rel=1e-5)
    assert sum(row.terms.values()) == pytest.approx(row.nats, rel=1e-6)
    added = set(row.terms) - names
    assert names <= set(row.terms) and added == (
        {f"tightening (K = {samples})"} if samples > 1 and density.importance_weighted else set()
    )
    assert all(row.terms[name] > 0 for name in added)


def test_terms_of_many_batches_sum_to_the_number():
    density, split = scored("vae", n=2000)  # eight batches
    row = evaluate_split(density, split, IMAGE, model="vae", samples=2, seed=1)
    assert row.nats == pytest.approx(log_probs(density, split, samples=2, seed=1).mean().item(), rel=1e-6)
    assert sum(row.terms.values()) == pytest.approx(row.nats, rel=1e-6)


def test_rows_that_are_given_are_the_number_and_have_no_terms():
    density, split = scored("vae")
    rows = row_scores(density, split, seed=1)
    row = evaluate_split(density, split, IMAGE, model="vae", seed=1, rows=rows)
    assert row.nats == rows.nats.mean().item() and row.terms == {}
    assert row.samples == round(rows.draws.double().mean().item())


def test_a_seed_fixes_a_row():
    density, split = scored("flow")
    rows = [evaluate_split(density, split, IMAGE, model="flow", samples=3, seed=seed) for seed in (1, 1, 2)]
    assert rows[0].nats == rows[1].nats != rows[2].nats


def test_a_classifier_is_scored_on_labels():
    """Three of four labels right, always with the same confidence."""
    spec = DataSpec(kind="array", event_shape=(2,), classes=("a", "b"))

    class First(nn.Module):
        def forward(self, x):
            return torch.tensor([math.log(0.9), math.log(0.1)]).expand(len(x), -1)

    density = Classifier(nn.Identity(), First(), 2)
    split = Split(torch.randn(8, 2), torch.tensor([0, 0, 0, 1] * 2))
    row = evaluate_split(density, split, spec, model="c", baseline=torch.zeros(8, dtype=torch.float64))
    assert row.event == "y" and row.accuracy == 0.75
    assert row.calibration_error == pytest.approx(0.15, abs=1e-6)
    assert row.nats == pytest.approx(0.75 * math.log(0.9) + 0.25 * math.log(0.1))
    assert row.gain is None and row.bits_per_dim is None  # a label's nats are not the data's
    assert row.accuracy_interval == pytest.approx((0.409, 0.929), abs=1e-3)
    assert row.stderr == pytest.approx((math.log(0.9) - math.log(0.1)) * math.sqrt(0.75 * 0.25 / 7))

    easy = Split(split.x, torch.zeros(8, dtype=torch.long))  # all right, and the same score: no spread
    row = evaluate_split(density, easy, spec, model="c")
    assert row.accuracy == 1 and row.accuracy_interval == pytest.approx((0.676, 1), abs=1e-3)
    assert row.stderr == pytest.approx(math.log(9) / 9)
    assert row.calibration_interval[0] < row.calibration_error < row.calibration_interval[1]
    assert json.loads(json.dumps(row.to_dict()))["accuracy_interval"] == list(row.accuracy_interval)


def test_an_empty_split_is_refused():
    density, split = scored("independent")
    with pytest.raises(ValueError, match="the split is empty"):
        evaluate_split(density, Split(split.x[:0], split.y[:0]), IMAGE, model="i")


# ---- compressors


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
