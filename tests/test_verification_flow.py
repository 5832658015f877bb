"""A flow's log-determinants and inverses hold, and each check fails where its statement is broken."""

import numpy as np
import pytest
import torch

from helpers.verified import broken, outcome, subject_of
from loglik.data import from_arrays
from loglik.density import StandardNormal
from loglik.flows import Continuous, Coupling, Elementwise, Flow, LULinear, glow
from loglik.transforms import Dequantize, Logit, Reshape, Scale
from loglik.verification import CHECKS, Subject
from loglik.verification.verify import run_check

TABLE = np.random.default_rng(0).normal(size=(200, 3)) @ np.array([[1.0, 0.5, 0.1], [0.0, 0.3, 2.0], [0.0, 0.0, 7.0]])
IMAGES = np.random.default_rng(1).integers(0, 4, (60, 1, 4, 4)).astype(np.uint8)
CHECKED = ["log-determinant", "composed-log-determinant", "inverse"]


@pytest.fixture(scope="module")
def table():
    return subject_of("flow", TABLE, width=16, depth=2)


@pytest.fixture(scope="module")
def images():
    return subject_of("flow:glow", IMAGES, width=8, depth=1)


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("model", ["flow:realnvp", "flow:nsf", "flow:maf", "flow:iaf", "flow:continuous"])
def test_every_kind_holds(model, name):
    assert outcome(name, subject_of(model, TABLE, train=3, width=16)) == "holds"


@pytest.mark.parametrize("name", CHECKED)
def test_tables_and_images_hold(table, images, name):
    assert outcome(name, table) == outcome(name, images) == "holds"


@pytest.mark.parametrize("name", CHECKED)
def test_a_table_of_integers_and_categories_holds(tmp_path, name):
    rng = np.random.default_rng(0)
    lines = [f"{rng.normal():.4f},{rng.integers(30)},{'xyz'[rng.integers(3)]}" for _ in range(120)]
    (tmp_path / "mixed.csv").write_text("a,b,c\n" + "\n".join(lines) + "\n")
    assert outcome(name, subject_of("flow", str(tmp_path / "mixed.csv"), width=16, depth=1)) == "holds"


@pytest.mark.parametrize("name", CHECKED)
def test_a_vaes_flow_prior_holds(name):
    subject = subject_of("vae:flow", IMAGES, width=16, latent=4)
    assert outcome(name, subject) == "holds"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Coupling, "encode", lambda self, x, context=None: (x, torch.ones(len(x))))
        assert outcome(name, subject) == "fails"


def test_an_estimated_trace_is_compared_by_its_mean(monkeypatch):
    subject = subject_of("flow:continuous", IMAGES[:, :, :, :3], train=30, width=16)
    row = run_check(CHECKS["log-determinant"], subject)
    assert row.outcome == "holds" and any("estimates" in finding.computed for finding in row.findings)
    encode = Continuous.encode

    def doubled(self, x, context=None):
        z, log_det = encode(self, x, context)
        return z, log_det + 1

    monkeypatch.setattr(Continuous, "encode", doubled)
    assert outcome("log-determinant", subject) == "fails"


def test_log_determinant_fails_where_a_factor_is_missing(table, images, monkeypatch):
    encode = Elementwise.encode
    monkeypatch.setattr(Elementwise, "encode", lambda self, x, c=None: (encode(self, x, c)[0], torch.zeros(len(x))))
    assert outcome("log-determinant", table) == outcome("composed-log-determinant", table) == "fails"

    def of_one_position(self, x, context=None):
        z, log_det = linear(self, x, context)
        return z, log_det / 4 + 0.1

    linear = LULinear.encode
    monkeypatch.setattr(LULinear, "encode", of_one_position)
    assert outcome("log-determinant", images) == outcome("composed-log-determinant", images) == "fails"


def test_log_determinant_names_the_layer(table, monkeypatch):
    encode = Elementwise.encode
    monkeypatch.setattr(Elementwise, "encode", lambda self, x, c=None: (encode(self, x, c)[0], torch.zeros(len(x))))
    row = run_check(CHECKS["log-determinant"], table)
    assert row.findings[0].holds is False and "(Elementwise)" in row.findings[0].computed


def test_log_determinant_fails_for_a_map_that_drops_a_dimension(monkeypatch):
    subject = subject_of("flow:realnvp", TABLE, width=16)
    monkeypatch.setattr(Coupling, "encode", lambda self, x, context=None: (0 * x, torch.zeros(len(x))))
    assert outcome("log-determinant", subject) == "fails"


def test_composed_fails_where_the_sum_lacks_a_layer(table, images):
    def encode(self, x, context=None):
        total = torch.zeros(len(x))
        for number, transform in enumerate(self.transforms):
            x, log_det = transform.encode(x, context)
            total = total + (0 if number == 4 else log_det)
        return x, total

    for subject in (table, images):
        wrong = broken(subject, Flow, encode=encode)
        assert outcome("log-determinant", wrong) == "holds"
        assert outcome("composed-log-determinant", wrong) == "fails"


def test_inverse_fails_where_decode_is_another_map(table, images, monkeypatch):
    decode = Coupling.decode
    monkeypatch.setattr(Coupling, "decode", lambda self, z, context=None: 1.001 * decode(self, z, context))
    assert outcome("inverse", images) == "fails"
    linear = LULinear.decode
    monkeypatch.setattr(LULinear, "decode", lambda self, z, context=None: linear(self, z, context) + 0.001)
    assert outcome("inverse", table) == "fails"


def test_inverse_fails_where_a_dequantization_rounds(images, monkeypatch):
    monkeypatch.setattr(Dequantize, "decode", lambda self, z, context=None: z.round().clamp(0, 3).to(torch.uint8))
    assert outcome("inverse", images) == "fails"


def test_inverse_fails_where_the_order_is_not_turned_round(table):
    def decode(self, z, context=None):
        for transform in self.transforms:
            z = transform.decode(z, context)
        return z

    assert outcome("inverse", broken(table, Flow, decode=decode)) == "fails"


def test_large_images_are_checked_where_a_jacobian_fits():
    x = np.random.default_rng(2).integers(0, 256, (40, 3, 16, 16)).astype(np.uint8)
    transforms = [Dequantize(256), Scale(1 / 256), Logit(), *glow((3, 16, 16), steps=1, width=8)]
    data = from_arrays(x)
    subject = Subject(Flow(transforms, StandardNormal((768,))).eval(), data, split=data.scored_split)
    row = run_check(CHECKS["log-determinant"], subject)
    assert row.outcome == "holds" and "LULinear: 768 dimensions" not in row.findings[-1].computed
    assert outcome("inverse", subject) == "holds"
    flat = Flow([Reshape((3, 400), (1200,))], StandardNormal((1200,)))
    data = from_arrays(np.random.default_rng(0).normal(size=(20, 3, 400)))
    subject = Subject(flat.eval(), data, split=data.scored_split)
    assert outcome("log-determinant", subject) == outcome("composed-log-determinant", subject) == "does not apply"
    assert outcome("inverse", subject) == "holds"


@pytest.mark.parametrize("name", CHECKED)
def test_what_has_no_transform(name):
    data = from_arrays(TABLE)
    assert outcome(name, Subject(StandardNormal((3,)), data)) == "does not apply"
    assert outcome(name, subject_of("vae", IMAGES, width=8)) == "does not apply"
    language = subject_of("autoregressive", TABLE, width=16, depth=1)  # over bins, which are codes
    assert outcome(name, language) == "does not apply"
