"""Classifiers as densities over labels, and what prepares their inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.densities import perturb
from loglik.classification import Classifier
from loglik.classification.augment import Augment
from loglik.classification.inputs import Columns, Levels
from loglik.density import Bound
from loglik.networks import MLP

CLASSES = 4


def classifier(**options) -> Classifier:
    density = Classifier(MLP(3, 8, (8,)), nn.Linear(8, CLASSES), CLASSES, **options)
    perturb(density, 0.5)
    return density


def test_cross_entropy_is_torchs(float64):
    density, x, y = classifier(), torch.randn(20, 3), torch.randint(0, CLASSES, (20,))
    logits = density.head(density.features(x))
    torch.testing.assert_close(density.log_prob(y, x), logits.log_softmax(1).gather(1, y[:, None]).squeeze(1))
    torch.testing.assert_close(density.loss(y, x), F.cross_entropy(logits, y))
    torch.testing.assert_close(density.probabilities(x), logits.softmax(1))
    assert (density.event, density.event_shape, density.bound) == ("y", (), Bound.EXACT)
    assert density.discrete and density.conditional


def test_sums_to_one_over_classes(float64):
    density, x = classifier(), torch.randn(20, 3)
    p = torch.stack([density.log_prob(torch.full((20,), c), x).exp() for c in range(CLASSES)])
    torch.testing.assert_close(p.sum(0), torch.ones(20))


def test_smoothing_is_for_the_loss_alone(float64):
    plain, x, y = classifier(), torch.randn(20, 3), torch.randint(0, CLASSES, (20,))
    smooth = classifier(smoothing=0.2)
    smooth.load_state_dict(plain.state_dict())
    torch.testing.assert_close(smooth.log_prob(y, x), plain.log_prob(y, x), rtol=0, atol=0)
    log_p = plain.logits(x).log_softmax(1)
    target = 0.8 * F.one_hot(y, CLASSES) + 0.2 / CLASSES
    torch.testing.assert_close(smooth.loss(y, x), -(target * log_p).sum(1).mean())
    assert smooth.loss(y, x) != plain.loss(y, x)


def test_samples_follow_the_probabilities():
    density, x = classifier(), torch.randn(1, 3)
    drawn = density.sample(20_000, x.expand(20_000, -1))
    p = density.probabilities(x)[0]
    share = torch.bincount(drawn, minlength=CLASSES) / 20_000
    assert drawn.dtype == torch.int64
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / 20_000).sqrt()).all()


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        Classifier(nn.Identity(), nn.Identity(), 1)


def test_a_context_is_required():
    with pytest.raises(ValueError, match=r"pass the data x as the context"):
        classifier().log_prob(torch.zeros(2, dtype=torch.long))


def test_levels_go_to_the_unit_interval_around_zero():
    x = torch.tensor([[0, 8], [16, 4]], dtype=torch.uint8)
    assert Levels(17)(x).tolist() == [[-1, 0], [1, -0.5]]


def test_columns_are_standardised_or_one_hot_in_order():
    columns = Columns([0, 3, 0, 2])
    x = torch.tensor([[1.0, 2, 10, 0], [3.0, 0, 30, 1], [5.0, 1, 50, 1]])
    columns.initialise(x)
    out = columns(x)
    assert columns.outputs == 7 and out.shape == (3, 7)
    z = [-(1.5**0.5), 0, 1.5**0.5]
    truth = torch.tensor(
        [
            [z[0], z[0], 0, 0, 1, 1, 0],
            [z[1], z[1], 1, 0, 0, 0, 1],
            [z[2], z[2], 0, 1, 0, 0, 1],
        ]
    )
    torch.testing.assert_close(out, truth)


def test_columns_of_categories_only():
    columns = Columns([2, 2])
    columns.initialise(torch.tensor([[0.0, 1.0]]))
    assert columns(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).tolist() == [[1, 0, 0, 1], [0, 1, 0, 1]]


def test_initialise_fits_the_preparation():
    density = Classifier(nn.Identity(), nn.Linear(3, 2), 2, prepare=Columns([0, 0, 0]))
    x = 50 + 9 * torch.randn(200, 3)
    density.initialise(torch.zeros(200, dtype=torch.long), x)
    prepared = density.prepare(x)
    assert prepared.mean(0).abs().max() < 1e-4 and (prepared.std(0) - 1).abs().max() < 0.01


# ---- temperature, smoothing, augmentation


class Logits(nn.Module):
    """Return a classifier whose logits are the data."""

    def forward(self, x):
        return x


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_is_that_of_the_labels(true):
    logits = 3 * torch.randn(20_000, 5)
    labels = torch.multinomial((logits / true).softmax(1), 1).squeeze(1)
    model = Classifier(Logits(), Logits(), 5)
    before = model.log_prob(labels, logits).mean()
    model.calibrate(labels, logits)
    assert model.temperature.item() == pytest.approx(true, rel=0.05)
    assert model.log_prob(labels, logits).mean() >= before
    model.calibrate(labels, logits)  # starts anew
    assert model.temperature.item() == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize("gap", [1.0, 10.0, 40.0])
def test_labels_that_are_all_right_do_not_make_the_classifier_certain(gap):
    logits = gap * torch.eye(4).repeat(5, 1)
    model = Classifier(Logits(), Logits(), 4)
    model.calibrate(torch.arange(4).repeat(5), logits)
    assert 0.3 < model.temperature.item() <= 1.001


def test_smoothing_changes_the_loss_alone():
    logits, labels = torch.randn(50, 4), torch.randint(4, (50,))
    plain, smooth = Classifier(Logits(), Logits(), 4), Classifier(Logits(), Logits(), 4, smoothing=0.2)
    torch.testing.assert_close(plain.log_prob(labels, logits), smooth.log_prob(labels, logits))
    uniform = -logits.log_softmax(1).mean()
    expected = 0.8 * plain.loss(labels, logits) + 0.2 * uniform
    torch.testing.assert_close(smooth.loss(labels, logits), expected)
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\)"):
        Classifier(Logits(), Logits(), 4, smoothing=1.0)


def test_mirror_images_have_one_probability(float64):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))
    plain, mirrored = (Classifier(nn.Identity(), network, CLASSES, mirror=mirror).eval() for mirror in (False, True))
    x = torch.randn(5, 1, 3, 4)
    assert not torch.allclose(plain.logits(x), plain.logits(x.flip(-1)))
    torch.testing.assert_close(mirrored.logits(x), mirrored.logits(x.flip(-1)))
    torch.testing.assert_close(mirrored.logits(x), (plain.logits(x) + plain.logits(x.flip(-1))) / 2)


def test_augmentation_is_for_training_only_and_follows_the_seed():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)[:, :3]

    augment = Augment((6, 6), shift=2, flip=True, erase=1.0)
    model = Classifier(Spy(), nn.Linear(3, 2), 2, augment=augment)
    x, y = torch.rand(8, 1, 6, 6), torch.randint(2, (8,))
    model.eval().loss(y, x)
    model.train()
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model.loss(y, x)
    plain, first, again, other = seen
    assert torch.equal(plain, x) and torch.equal(first, again)
    assert not torch.equal(first, x) and not torch.equal(first, other) and first.shape == x.shape


def test_a_shift_moves_an_image_by_whole_pixels():
    x = torch.full((200, 1, 5, 5), -1.0)
    x[:, 0, 2, 2] = 1
    moved = Augment((5, 5), shift=1)(x)
    assert (moved == 1).flatten(1).sum(1).eq(1).all() and ((moved == 1) | (moved == -1)).all()
    places = (moved == 1).nonzero()[:, 2:].unique(dim=0)
    assert len(places) == 9 and places.min() == 1 and places.max() == 3


def test_labels_out_of_range_are_refused():
    model = Classifier(Logits(), Logits(), 3)
    for call in (model.loss, model.log_prob):
        with pytest.raises(ValueError, match=r"labels must hold integers 0 \.\.\. 2, got 0 \.\.\. 3"):
            call(torch.tensor([0, 3]), torch.randn(2, 3))
