"""Likelihoods of single pixels, tokens and cells."""

import pytest
import torch

from helpers.reports import IMAGES, TABLE, data_of, entry, events, spec_of
from loglik.evaluation.scores import evaluating
from loglik.recipes import build
from loglik.report.cells import cell_log_probs
from loglik.report.extremes import view_examples


def built(family: str, spec, x: torch.Tensor, **options):
    torch.manual_seed(0)
    density = build(family, spec, **options)
    density.initialise(x)
    density.spec = spec
    return density.eval()


def test_cells_of_a_product_sum_to_the_nats_of_the_example():
    x = events(IMAGES, 30)
    for family, options in (("independent", {}), ("autoregressive", {"width": 8, "depth": 1})):
        density = built(family, IMAGES, x, **options)
        found = cell_log_probs(density, x[:5], None, IMAGES, x)
        assert found.nats.shape == (5, 64) and found.what.startswith("exact") and found.draws == 0
        torch.testing.assert_close(found.nats.sum(1), density.log_prob(x[:5]).double(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "options", "terms", "rest"),
    [
        ("vae", {"width": 8, "latent": 2, "network": "mlp"}, ["reconstruction"], ["-KL", "tightening (K = 64)"]),
        ("flow", {"width": 8, "depth": 2}, ["base", "log-determinant"], ["tightening (K = 6)"]),
        ("diffusion", {"kind": "mlp", "width": 16, "depth": 1}, ["reconstruction", "prior", "diffusion"], []),
    ],
)
def test_cells_of_a_bound_sum_to_the_bound_of_as_many_draws(family, options, terms, rest):
    x = events(IMAGES, 30)
    density = built(family, IMAGES, x, **options)
    found = cell_log_probs(density, x[:5], None, IMAGES, x)
    assert list(found.terms) == terms and list(found.rest) == rest and found.nats.shape == (5, 64)
    with evaluating(density, 0):
        bound = density.log_prob(x[:5], samples=found.draws).double()
    torch.testing.assert_close(found.nats.sum(1) + sum(found.rest.values()), bound, rtol=1e-4, atol=1e-3)


def test_a_flow_of_many_pixels_has_no_heat_map():
    spec = spec_of("image", 1, 17, 17, levels=17)
    x = events(spec, 30)
    assert cell_log_probs(built("flow", spec, x, kind="nsf", width=8, depth=1), x[:5], None, spec, x) is None


def test_cells_of_a_mixture_with_missing_values_are_each_given_the_others():
    x = events(TABLE, 60)
    density = built("mixture", TABLE, x, components=2)
    rows = x[:5].clone()
    rows[0, 1] = torch.nan
    found = cell_log_probs(density, rows, None, TABLE, x)
    without = rows.clone()
    without[:, 0] = torch.nan
    torch.testing.assert_close(
        found.nats[:, 0], (density.log_prob(rows) - density.log_prob(without)).double(), rtol=1e-4, atol=1e-4
    )
    assert found.nats[0, 1] == 0 and found.what == "exact, each given all others"


def test_maps_of_a_flow_are_shown_beside_their_sum_with_the_nats_of_each_term():
    data = data_of(IMAGES)
    density = built("flow", IMAGES, data.train.x, width=8, depth=1)
    _, [view] = view_examples(data, [("flow", entry(density, "flow", "lower", -1.0).run)], 0, "test")
    assert [name for name, _ in view.most[0].heats] == ["sum", "base", "log-determinant"]
    assert [name for name, *_ in view.scale] == ["sum", "base", "log-determinant"]
    assert view.most[0].terms.startswith("base −") and "tightening" in view.most[0].terms


def test_the_least_likely_example_is_the_one_with_the_lowest_log_prob():
    data = data_of(IMAGES)
    density = built("independent", IMAGES, data.train.x)
    _, [view] = view_examples(data, [("independent", entry(density, "independent", "exact", -1.0).run)], 0, "test")
    nats = density.log_prob(data.test.x).sort().values
    assert view.least[0].key == nats[0] and view.most[0].key == nats[-1]
    assert len(view.most) == len(view.least) == 8 and all(len(one.heats) == 1 for one in view.most)
