"""The checks of classification hold for a classifier, and each fails where its statement is broken."""

import pytest

from helpers.verified import broken, outcome, subject_of
from loglik.classification import Classifier


@pytest.fixture(scope="module")
def subject():
    return subject_of("classifier", "digits", train=60)


@pytest.mark.parametrize("name", ["two-parts", "cross-entropy", "sgd-unbiased"])
def test_holds(subject, name):
    assert outcome(name, subject) == "holds"


def test_calibration_is_reported(subject):
    assert outcome("calibration", subject) == "reported"


def test_they_do_not_apply_to_a_density_of_the_data():
    flow = subject_of("flow", "digits")
    assert {outcome(name, flow) for name in ("two-parts", "cross-entropy", "calibration")} == {"does not apply"}
    assert outcome("sgd-unbiased", flow) == "does not apply"  # its loss draws the noise of dequantization


def test_two_parts_fails_without_a_softmax(subject):
    assert outcome("two-parts", broken(subject, probabilities=lambda self, x: self.logits(x).sigmoid())) == "fails"


def test_cross_entropy_fails_with_the_wrong_sign(subject):
    def log_prob(self, x, context=None, *, samples=1):
        return -Classifier.log_prob(self, x, context)

    assert outcome("cross-entropy", broken(subject, log_prob=log_prob)) == "fails"


def test_sgd_fails_where_the_loss_is_a_sum(subject):
    def loss(self, x, context=None):
        return Classifier.loss(self, x, context) * len(x)

    assert outcome("sgd-unbiased", broken(subject, loss=loss)) == "fails"
