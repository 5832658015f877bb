"""Likelihoods of single pixels, tokens and cells."""

import torch

from helpers.reports import IMAGES, data_of, entry, events
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
        nats, what = cell_log_probs(density, x[:5], None, IMAGES, x)
        assert nats.shape == (5, 64) and what.startswith("exact")
        torch.testing.assert_close(nats.sum(1), density.log_prob(x[:5]).double(), rtol=1e-4, atol=1e-3)


def test_cells_of_a_vae_are_its_reconstruction_and_a_flow_of_images_has_none():
    x = events(IMAGES, 30)
    vae = built("vae", IMAGES, x, width=8, latent=2, network="mlp")
    nats, what = cell_log_probs(vae, x[:5], None, IMAGES, x)
    theta = vae.parameters_of(vae.encode(x[:5]))
    torch.testing.assert_close(nats.sum(1), vae.observation.log_prob(x[:5], theta).double(), rtol=1e-4, atol=1e-3)
    assert "reconstruction" in what
    flow = built("flow", IMAGES, x, width=8, depth=1)
    assert cell_log_probs(flow, x[:5], None, IMAGES, x) is None


def test_the_least_likely_example_is_the_one_with_the_lowest_log_prob():
    data = data_of(IMAGES)
    density = built("independent", IMAGES, data.train.x)
    _, [view] = view_examples(data, [("independent", entry(density, "independent", "exact", -1.0).run)], 0, "test")
    nats = density.log_prob(data.test.x).sort().values
    assert view.least[0].key == nats[0] and view.most[0].key == nats[-1]
    assert len(view.most) == len(view.least) == 8 and all(one.heat for one in view.most)
