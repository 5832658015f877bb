"""What must hold of any density holds, and each check fails where its statement is broken."""

import numpy as np
import pytest
import torch

from helpers.verified import broken, outcome, subject_of
from loglik.autoregressive import Autoregressive
from loglik.baselines import Independent
from loglik.classification import Classifier
from loglik.flows import Flow
from loglik.transforms import Scale
from loglik.vae import VAE

PLANE = np.random.default_rng(0).normal(size=(300, 2)) @ np.array([[1.0, 0.5], [0.0, 0.3]])
BITS = np.random.default_rng(1).integers(0, 2, (300, 4)).astype(np.uint8)


@pytest.fixture(scope="module")
def flow():
    return subject_of("flow", PLANE, width=16, depth=1)


@pytest.fixture(scope="module")
def language():
    return subject_of("autoregressive", BITS, width=16, depth=1)


def shifted(method, by=0.5):
    """A `log_prob` with a wrong constant."""
    return lambda self, x, context=None, *, samples=1: method(self, x, context, samples=samples) + by


@pytest.mark.parametrize("name", ["normalised", "entropy-of-samples", "expected-score", "change-of-units"])
def test_a_flow_holds(flow, name):
    assert outcome(name, flow) == "holds"


@pytest.mark.parametrize("name", ["normalised", "entropy-of-samples", "expected-score", "causal", "normalised-recipe"])
def test_an_autoregressive_density_holds(language, name):
    assert outcome(name, language) == "holds"


@pytest.mark.parametrize(("model", "data"), [("vae", PLANE), ("vae", BITS), ("diffusion", BITS)])
def test_the_sum_of_a_bound_holds(model, data):
    assert outcome("normalised", subject_of(model, data, train=20, width=16)) == "holds"


def test_what_does_not_apply(flow, language):
    assert outcome("causal", flow) == "does not apply"
    assert outcome("change-of-units", language) == "does not apply"
    assert outcome("normalised-recipe", flow) == "does not apply"
    vae = subject_of("vae", PLANE, width=16)
    assert outcome("entropy-of-samples", vae) == outcome("expected-score", vae) == "does not apply"


def test_normalised_fails_with_a_wrong_constant(flow, language):
    assert outcome("normalised", broken(flow, log_prob=shifted(Flow.log_prob))) == "fails"
    assert outcome("normalised", broken(language, log_prob=shifted(Autoregressive.log_prob))) == "fails"


def test_normalised_fails_for_a_bound_above_the_density():
    vae = subject_of("vae", BITS, width=16)
    assert outcome("normalised", broken(vae, VAE, log_prob=shifted(VAE.log_prob))) == "fails"


def test_normalised_fails_for_a_classifier_without_a_softmax():
    classifier = subject_of("classifier", "digits")
    wrong = broken(classifier, log_prob=shifted(Classifier.log_prob, 0.01))
    assert (outcome("normalised", classifier), outcome("normalised", wrong)) == ("holds", "fails")


def test_normalised_recipe_fails_with_a_wrong_constant(monkeypatch):
    baseline = subject_of("independent", "digits")
    assert outcome("normalised-recipe", baseline) == "holds"
    monkeypatch.setattr(Independent, "log_prob", shifted(Independent.log_prob, 0.01))
    assert outcome("normalised-recipe", baseline) == "fails"


@pytest.mark.parametrize("name", ["entropy-of-samples", "expected-score"])
def test_samples_of_another_temperature_fail(flow, name):
    def sample(self, n, context=None):
        return self.decode(0.7 * self.base.sample(n), context)

    assert outcome(name, broken(flow, sample=sample)) == "fails"


@pytest.mark.parametrize("name", ["entropy-of-samples", "expected-score"])
def test_samples_that_are_not_the_models_fail(language, name):
    def sample(self, n, context=None):
        return torch.zeros(n, 4, dtype=torch.uint8)

    assert outcome(name, broken(language, sample=sample)) == "fails"


def test_change_of_units_fails_without_the_log_determinant(flow, monkeypatch):
    monkeypatch.setattr(Scale, "encode", lambda self, x, context=None: (self.scale * x, torch.zeros(len(x))))
    assert outcome("change-of-units", flow) == "fails"


def test_causal_fails_where_the_mask_leaks(language):
    def logits(self, x, context=None):
        own = Autoregressive.logits(self, x, context)
        return own + x.flatten(1).unsqueeze(-1) * torch.tensor([0.0, 1.0])

    assert outcome("causal", broken(language, logits=logits)) == "fails"


def test_samples_are_compared_with_data(flow):
    assert outcome("two-samples", flow) == "reported"
