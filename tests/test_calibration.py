"""Calibration against values by hand and scikit-learn."""

import math

import pytest
import torch
from sklearn import metrics

from loglik.classification.calibration import (
    calibration_error,
    confusion_matrix,
    per_class,
    reliability,
    wilson_interval,
)


def predictions(n: int = 500, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(n, classes, generator=generator)).softmax(1)
    return probabilities, torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def test_confusion_matrix_is_sklearns():
    probabilities, labels = predictions()
    truth = metrics.confusion_matrix(labels.numpy(), probabilities.argmax(1).numpy(), labels=range(4))
    assert confusion_matrix(probabilities, labels).tolist() == truth.tolist()


def test_confusion_matrix_keeps_classes_that_never_occur():
    matrix = confusion_matrix(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([1]))
    assert matrix.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_reliability_by_hand():
    # bins (0, .5] and (.5, 1]; .5 falls in the lower one
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.3, 0.7], [0.2, 0.8]], dtype=torch.float64)
    table = reliability(p, torch.tensor([0, 0, 0, 1]), bins=2)
    assert table.count.tolist() == [1, 3]
    torch.testing.assert_close(table.confidence, torch.tensor([0.5, 0.8], dtype=torch.float64))
    torch.testing.assert_close(table.accuracy, torch.tensor([1.0, 2 / 3], dtype=torch.float64))
    assert table.error == pytest.approx((0.5 + 3 * (0.8 - 2 / 3)) / 4)


@pytest.mark.parametrize(("successes", "n"), [(0, 16), (3, 16), (16, 16), (177, 180), (1, 1)])
def test_the_ends_of_wilsons_interval_are_z_of_their_own_errors_away(successes, n):
    low, high = wilson_interval(successes, n)
    assert 0 <= low < high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(end - successes / n) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n))


def test_wilsons_interval_covers_a_share_near_1():
    """Of 2000 samples of 16, about 95 % cover 0.97, where p ± 1.96 standard errors covers less than half."""
    right = torch.distributions.Binomial(16, torch.tensor(0.97)).sample((2000,)).int().tolist()
    covered = sum(low <= 0.97 <= high for low, high in (wilson_interval(k, 16) for k in right)) / 2000
    plain = sum(abs(k / 16 - 0.97) <= 1.96 * math.sqrt(k / 16 * (1 - k / 16) / 16) for k in right) / 2000
    assert covered > 0.9 and plain < 0.5


def test_the_interval_of_no_examples_is_0_to_1():
    assert wilson_interval(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="successes must be between 0 and n = 3, got 4"):
        wilson_interval(4, 3)


def test_calibration_error_has_an_interval_that_does_not_vanish():
    """With 16 rows, all correct and certain, accuracy is known to about 0.2 only."""
    certain = torch.eye(2)[torch.zeros(16, dtype=torch.long)]
    table = reliability(certain, torch.zeros(16, dtype=torch.long))
    assert table.error == 0 and table.error_interval == pytest.approx((0, 1 - wilson_interval(16, 16)[0]))
    wrong = reliability(certain, torch.ones(16, dtype=torch.long))
    assert wrong.error_interval == pytest.approx((1 - wilson_interval(0, 16)[1], 1))


def test_calibration_error_of_extremes():
    certain = torch.eye(2)[torch.tensor([0, 0, 1, 1])]
    assert calibration_error(certain, torch.tensor([0, 0, 1, 1])) == 0.0
    assert calibration_error(certain, torch.tensor([1, 1, 0, 0])) == 1.0
    assert calibration_error(certain, torch.tensor([0, 1, 1, 0])) == 0.5


def test_calibration_error_is_small_where_labels_follow_the_probabilities():
    probabilities, labels = predictions(20_000)
    assert calibration_error(probabilities, labels) < 0.015
    assert calibration_error(probabilities**3 / (probabilities**3).sum(1, keepdim=True), labels) > 0.05


@pytest.mark.parametrize(
    ("probabilities", "labels", "bins", "message"),
    [
        ([[0.5, 0.6]], [0], 15, "row 0 sums to 1.1"),
        ([[0.5, 0.5], [-0.1, 1.1]], [0, 0], 15, "at least 0"),
        ([[float("nan"), 1.0]], [0], 15, "sum to 1"),
        ([[0.5, 0.5]], [2], 15, "labels must lie in 0 ... 1, got 2 ... 2"),
        ([[0.5, 0.5]], [0], 0, "bins must be at least 1"),
    ],
)
def test_bad_input_is_one_clear_line(probabilities, labels, bins, message):
    with pytest.raises(ValueError, match=message) as error:
        reliability(torch.tensor(probabilities), torch.tensor(labels), bins=bins)
    assert "\n" not in str(error.value)


def test_no_examples():
    with pytest.raises(ValueError, match="at least one example"):
        calibration_error(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


def test_scores_of_a_class_are_scikit_learns():
    from sklearn.metrics import precision_recall_fscore_support

    labels, probabilities = torch.randint(4, (200,)), torch.rand(200, 4).softmax(1)
    probabilities[:, 3] = 0  # never predicted
    probabilities = probabilities / probabilities.sum(1, keepdim=True)
    scores = per_class(confusion_matrix(probabilities, labels))
    expected = precision_recall_fscore_support(labels, probabilities.argmax(1), labels=range(4), zero_division=0)
    for column, name in zip(expected, ("precision", "recall", "f1", "count"), strict=True):
        assert [getattr(score, name) for score in scores] == pytest.approx(column.tolist())
    for score in scores:
        assert score.precision_interval[0] <= score.precision <= score.precision_interval[1]
        assert score.recall_interval == wilson_interval(round(score.recall * score.count), score.count)
