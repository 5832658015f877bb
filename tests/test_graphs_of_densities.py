"""What runs as a CUDA graph gives what it gives without: captured and replayed on the CPU."""

import copy
import pickle

import pytest
import torch

from helpers.densities import Case, ready, shorten
from helpers.graphs import fake_graphs
from loglik.autoregressive import Autoregressive
from loglik.checks import data_checked
from loglik.graphs import WARMUP
from loglik.networks import CausalTransformer
from loglik.networks.transformer import BlockSettings

FLOWS = [Case("flow", "mixed table", True), Case("flow:maf", "table"), Case("flow:glow", "image"), Case("vae", "table")]


def repeat(call, times=WARMUP + 2):
    """Results of a call for different noise."""
    found = []
    for seed in range(times):
        torch.manual_seed(seed)
        found.append(call())
    return found


@pytest.mark.parametrize("case", FLOWS, ids=str)
def test_a_flow_encodes_and_decodes_by_graphs(case):
    density, event, context = ready(case)

    def calls():
        return density.log_prob(event, context), density.sample(4, None if context is None else context[:4])

    with torch.no_grad():
        plain = repeat(calls)
        with fake_graphs() as fake:
            graphed = repeat(calls)
    assert fake.captures == 2 and fake.replays == 2 * 2
    assert all(
        torch.equal(a, b) for one, other in zip(plain, graphed, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_codes_are_checked_before_a_graph():
    density, event, _ = ready(Case("flow", "mixed table"))
    wrong = event.clone()
    wrong[0, 2] = 3
    with torch.no_grad(), fake_graphs():
        repeat(lambda: density.encode(event))
        with pytest.raises(ValueError, match="column 2 must hold codes"):
            density.encode(wrong)


@pytest.mark.parametrize("conditional", [False, True])
def test_a_denoiser_is_evaluated_by_a_graph(conditional):
    density, event, context = ready(Case("diffusion", "image", conditional))
    shorten(density)
    labels = context[:4] if conditional else None

    def calls():
        return density.log_prob(event, context), density.sample(4, labels)

    with torch.no_grad():
        plain = repeat(calls)
        with fake_graphs() as fake:
            graphed = repeat(calls)
    assert fake.captures == 2  # of 16 rows and of 4
    assert all(
        torch.equal(a, b) for one, other in zip(plain, graphed, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_graphs_are_captured_anew_where_weights_have_moved_and_are_not_copied():
    density, event, _ = ready(Case("flow:maf", "table"))
    call = lambda: density.log_prob(event)  # noqa: E731
    with torch.no_grad(), fake_graphs() as fake:
        repeat(call)
        assert fake.captures == 1
        for copied in (copy.deepcopy(density), pickle.loads(pickle.dumps(density))):
            assert torch.equal(copied.log_prob(event), call()) and fake.captures == 1
        for parameter in density.parameters():
            parameter.mul_(2)  # in place: the graph reads the new values
        doubled = repeat(call)
        assert fake.captures == 1
        density.load_state_dict({name: value.clone() for name, value in density.state_dict().items()}, assign=True)
        again = repeat(call)
        assert fake.captures == 2
    assert torch.equal(doubled[0], again[0]) and not torch.equal(call(), copied.log_prob(event))


def test_training_uses_no_graph():
    density, event, _ = ready(Case("flow:maf", "table"))
    density.train()
    with fake_graphs() as fake:
        repeat(lambda: density.loss(event).backward())
    assert fake.captures == fake.aside == 0


@pytest.mark.parametrize("rotary", [False, True], ids=["learned", "rotary"])
@pytest.mark.parametrize("shared", [False, True], ids=["positions", "shared"])
def test_tokens_are_generated_by_a_graph_of_one_step(rotary, shared):
    torch.manual_seed(3)
    network = CausalTransformer(16, 2, 2, settings=BlockSettings(rotary=rotary, qk_norm=rotary))
    density = Autoregressive(network, (12,), 7, positions="none" if rotary else "learned", shared=shared).eval()
    for parameter in density.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    prompt = torch.tensor([1, 2, 3])

    def calls():
        return density.sample(3), density.generate(3, prompt=prompt, length=20), density.generate(3, length=25, stop=6)

    plain = repeat(calls, 3)
    with fake_graphs() as fake:
        graphed = repeat(calls, 3)
    assert fake.captures == 3 * 3 and fake.replays > 3 * 12
    assert all(
        torch.equal(a, b) for one, other in zip(plain, graphed, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_a_graph_in_an_evaluation_reads_nothing_on_the_host_in_an_evaluation():
    density, event, _ = ready(Case("flow", "mixed table"))
    with torch.no_grad(), data_checked(), fake_graphs() as fake:
        repeat(lambda: density.log_prob(event, samples=3))
    assert fake.captures == 1
