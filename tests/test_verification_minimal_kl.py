"""Maximum likelihood is minimal KL for a model of each recipe, and not where training maximises the loss."""

import numpy as np
import pytest

from helpers.verified import outcome, subject_of
from loglik.classification import Classifier

PLANE = np.random.default_rng(0).normal(size=(300, 2))


@pytest.mark.parametrize("model", ["independent", "classifier", "vae"])
def test_holds_on_levels_and_labels(model):
    assert outcome("minimal-kl", subject_of(model, "digits", train=2)) == "holds"


def test_holds_on_real_numbers():
    assert outcome("minimal-kl", subject_of("flow", PLANE, train=2)) == "holds"


def test_fails_where_training_goes_the_wrong_way(monkeypatch):
    subject = subject_of("classifier", "digits", train=2)
    loss = Classifier.loss
    monkeypatch.setattr(Classifier, "loss", lambda self, x, context=None: -0.1 * loss(self, x, context))
    assert outcome("minimal-kl", subject) == "fails"


def test_fails_where_log_prob_depends_on_the_other_examples(monkeypatch):
    subject = subject_of("classifier", "digits", train=2)
    log_prob = Classifier.log_prob

    def wrong(self, x, context=None, *, samples=1):
        own = log_prob(self, x, context, samples=samples)
        return own - own.mean()

    monkeypatch.setattr(Classifier, "log_prob", wrong)
    assert outcome("minimal-kl", subject) == "fails"
