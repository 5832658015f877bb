"""Autoregressive: causality, the chain rule, and generation."""

import pytest
import torch
from torch import nn

from helpers.densities import check_draws_what_it_scores, check_sums_to_one, events_of, perturb
from loglik.autoregressive import Autoregressive
from loglik.autoregressive.generation import Choice
from loglik.baselines import Independent
from loglik.data.spec import DataSpec
from loglik.density import Bound
from loglik.networks import BlockSettings, CausalTransformer

LEVELS, LENGTH = 5, 6


def model(shape=(LENGTH,), levels=LEVELS, classes=0, perturbed=True) -> Autoregressive:
    density = Autoregressive(
        CausalTransformer(8, 2, 2), shape, levels, context=nn.Embedding(classes, 8) if classes else None
    )
    if perturbed:
        perturb(density, 0.3)
    return density.eval()


def test_a_later_token_never_changes_an_earlier_logit():
    density = model()
    x = torch.randint(0, LEVELS, (4, LENGTH))
    logits = density.logits(x)
    for t in range(LENGTH):
        changed = x.clone()
        changed[:, t] = (changed[:, t] + 1) % LEVELS
        other = density.logits(changed)
        assert torch.equal(other[:, : t + 1], logits[:, : t + 1])  # the logits at t are of x_t given those before it
        if t + 1 < LENGTH:
            assert not torch.isclose(other[:, t + 1 :], logits[:, t + 1 :]).all(-1).any()


@pytest.mark.parametrize("bf16", [False, True])
def test_kernels_for_many_tokens_are_causal(bf16):
    density = Autoregressive(CausalTransformer(32, 2, 2), (32,), LEVELS)
    perturb(density, 0.3)
    x = torch.randint(0, LEVELS, (64, 32))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = density.logits(x)
        for t in (0, 1, 15, 16, 17, 30):
            changed = x.clone()
            changed[:, t:] = (changed[:, t:] + 1) % LEVELS
            other = density.logits(changed)
            assert torch.equal(other[:, : t + 1], logits[:, : t + 1])
            assert not torch.equal(other[:, t + 1 :], logits[:, t + 1 :])


def test_log_prob_is_the_chain_rule(float64):
    """The sum over t of log p(x_t | x_<t), each from a sequence cut off after t."""
    density = model()
    x = torch.randint(0, LEVELS, (3, LENGTH))
    total = torch.zeros(3)
    for t in range(LENGTH):
        cut = x.clone()
        cut[:, t + 1 :] = 0
        total += density.logits(cut)[:, t].log_softmax(-1).gather(1, x[:, t : t + 1]).squeeze(1)
    torch.testing.assert_close(density.log_prob(x), total)
    assert density.bound is Bound.EXACT and density.discrete


@pytest.mark.parametrize("classes", [0, 3])
def test_the_cache_draws_what_full_recomputation_draws(float64, classes):
    density = model(shape=(2, 3), classes=classes)
    n = 32
    context = torch.arange(n) % classes if classes else None
    torch.manual_seed(11)
    drawn = density.sample(n, context)
    torch.manual_seed(11)
    x = torch.zeros(n, 2, 3, dtype=torch.long)
    for t in range(LENGTH):
        probabilities = density.logits(x, context)[:, t].softmax(-1)
        x.view(n, -1)[:, t] = torch.multinomial(probabilities, 1).squeeze(1)
    assert drawn.dtype == torch.uint8 and torch.equal(drawn.long(), x)


def test_samples_follow_the_density():
    density = model(shape=(1, 1, 2), levels=3)
    events = events_of(DataSpec(kind="image", event_shape=(1, 1, 2), levels=3))
    check_draws_what_it_scores(density, events, check_sums_to_one(density, events))


def test_training_starts_from_the_independent_density(float64):
    x = torch.randint(0, LEVELS, (50, LENGTH)).clamp(max=torch.arange(LENGTH))
    density, independent = (
        model(perturbed=False).double(),
        Independent((LENGTH,), (True,) * LENGTH, levels=LEVELS),
    )
    density.initialise(x)
    independent.initialise(x)
    torch.testing.assert_close(density.log_prob(x), independent.log_prob(x))


def test_the_context_reaches_every_position():
    density = model(classes=3)
    x = torch.randint(0, LEVELS, (1, LENGTH)).expand(3, -1)
    logits = density.logits(x, torch.arange(3))
    assert density.conditional
    for a, b in ((0, 1), (1, 2)):
        assert not torch.isclose(logits[a], logits[b]).all(-1).any()


def test_many_levels_are_drawn_as_int64():
    assert model(levels=256).sample(2).dtype == torch.uint8
    assert model(levels=257).sample(2).dtype == torch.int64


@pytest.mark.parametrize("wrong", [LEVELS, -1])
def test_numbers_beyond_the_levels_are_refused(wrong):
    x = torch.zeros(3, LENGTH, dtype=torch.long)
    x[1, 2] = wrong
    with pytest.raises(ValueError, match=f"0 ... 4.*{wrong}"):
        model().initialise(x)


# ---- what every sequence sums to, and generation


def test_all_sequences_sum_to_one(float64):
    density = model(shape=(3,), levels=4)
    events = torch.cartesian_prod(*[torch.arange(4)] * 3)
    assert abs(density.log_prob(events).exp().sum() - 1) < 1e-6


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "none"])
@pytest.mark.parametrize("shared", [False, True])
def test_token_log_probs_are_the_logits_of_the_tokens(float64, positions, shared):
    density = Autoregressive(CausalTransformer(8, 2, 2), (LENGTH,), LEVELS, positions=positions, shared=shared)
    x = torch.randint(0, LEVELS, (7, LENGTH))
    density.initialise(x)
    if shared:
        start = density.token_log_probs(x)
        for k in range(LEVELS):
            assert start[x == k].unique().numel() <= 1
    perturb(density, 0.3)
    truth = density.logits(x).log_softmax(-1).gather(2, x[:, :, None]).squeeze(2)
    torch.testing.assert_close(density.token_log_probs(x), truth)
    torch.testing.assert_close(density.log_prob(x), truth.sum(1))


def test_many_levels_are_scored_by_the_levels_of_each_position(float64):
    """The log-probability and gradients of softmaxes over all levels; other positions' levels have probability 0."""
    allowed = torch.zeros(3, 1200, dtype=torch.bool)
    allowed[0, :3] = allowed[1, 3:1190] = allowed[2, 1190:] = True
    density = Autoregressive(CausalTransformer(8, 1, 2), (3,), 1200, allowed=allowed)
    nn.init.normal_(density.head.weight)
    x = torch.tensor([[2, 700, 1195], [0, 3, 1199], [1, 2, 1190]])
    own = density.log_prob(x)
    whole = density.logits(x).log_softmax(-1).gather(2, x[:, :, None]).sum((1, 2))
    torch.testing.assert_close(own, whole)
    assert own[2] == -torch.inf
    grads = [torch.autograd.grad(p[:2].sum(), density.head.weight)[0] for p in (own, whole)]
    torch.testing.assert_close(*grads)


def test_levels_that_are_not_allowed_have_probability_zero(float64):
    allowed = torch.tensor([[True, True, False, False], [False, True, True, True]])
    density = Autoregressive(CausalTransformer(8, 1, 2), (2,), 4, allowed=allowed)
    perturb(density, 0.3)
    for _ in range(2):
        p = density.log_prob(torch.cartesian_prod(torch.arange(4), torch.arange(4))).exp().view(4, 4)
        assert torch.equal(p > 0, allowed[0][:, None] & allowed[1])
        assert abs(p.sum() - 1) < 1e-6
        density.initialise(torch.tensor([[0, 1], [1, 3], [1, 3]]))


def recomputed(density, prompt, length, choice, context=None):
    """Generate without a cache: read the window again for each token, and keep its second half when it is full."""
    tokens, first, window = prompt, 0, density.length
    for _ in range(length):
        t = tokens.shape[1]
        if t - first == window:
            first = t - window // 2
        x = torch.zeros(len(tokens), window, dtype=torch.long)
        x[:, : t - first] = tokens[:, first:]
        logits = density.logits(x, context)[:, t - first]
        tokens = torch.cat([tokens, choice.draw(logits)[:, None]], 1)
    return tokens


@pytest.mark.parametrize("settings", [BlockSettings(), BlockSettings(rotary=True, qk_norm=True, mlp="swiglu")])
@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.6}, {"temperature": 2.0, "top_p": 0.9}],
    ids=str,
)
def test_generation_with_the_cache_is_generation_without_it(float64, settings, options):
    """Tokens are equal within the window and beyond it, with and without prompt and context."""
    positions = "none" if settings.rotary else "learned"
    for window, classes, many in ((LENGTH, 0, 1), (LENGTH, 3, 5), (5, 0, 5), (1, 0, 4)):
        density = Autoregressive(
            CausalTransformer(8, 2, 2, settings=settings),
            (window,),
            LEVELS,
            context=nn.Embedding(classes, 8) if classes else None,
            positions=positions,
        )
        perturb(density, 0.3)
        context = torch.arange(many) % classes if classes else None
        for prompt in (torch.empty(many, 0, dtype=torch.long), torch.randint(0, LEVELS, (many, window))):
            torch.manual_seed(5)
            drawn = density.generate(many, prompt=prompt, length=17, context=context, **options)
            torch.manual_seed(5)
            with torch.no_grad():
                truth = recomputed(density, prompt, 17, Choice(**options), context)
            assert torch.equal(drawn, truth)


def test_sample_is_generation_at_temperature_one():
    density = model(shape=(2, 3))
    torch.manual_seed(3)
    drawn = density.sample(9)
    torch.manual_seed(3)
    assert torch.equal(drawn.long(), density.generate(9).view(9, 2, 3))


def test_a_prompt_is_followed_by_probable_tokens():
    density = model(levels=3, shape=(3,))
    prompt = torch.tensor([2, 0])
    drawn = density.generate(20_000, prompt=prompt)
    assert drawn.shape == (20_000, 3) and torch.equal(drawn[:, :2], prompt.expand(20_000, 2))
    truth = density.logits(drawn[:1])[0, 2].softmax(-1)
    share = torch.bincount(drawn[:, 2], minlength=3) / 20_000
    assert (share - truth).abs().max() < 0.015
    assert density.generate(2, prompt=torch.zeros(2, 3, dtype=torch.long)).shape == (2, 3)


def test_top_k_and_top_p_are_their_definitions():
    logits = torch.tensor([[0.5, 0.2, 0.25, 0.05], [0.1, 0.1, 0.1, 0.7]]).log()
    torch.testing.assert_close(Choice(top_k=2).probabilities(logits)[0], torch.tensor([0.5, 0.0, 0.25, 0.0]) / 0.75)
    torch.testing.assert_close(
        Choice(top_p=0.74).probabilities(logits),
        torch.tensor([[0.5 / 0.75, 0.0, 0.25 / 0.75, 0.0], [0.125, 0, 0, 0.875]]),
    )
    assert (Choice(top_p=1e-6).probabilities(logits) > 0).sum(1).tolist() == [1, 1]
    for choice in (Choice(top_k=9), Choice(top_p=1.0), Choice()):
        torch.testing.assert_close(choice.probabilities(logits), logits.softmax(-1))
    torch.testing.assert_close(Choice(temperature=0.5).probabilities(logits), (2 * logits).softmax(-1))
    assert Choice(temperature=1e-30).probabilities(logits)[0].tolist() == [1, 0, 0, 0]


def test_a_stop_token_ends_a_sequence_and_stream_receives_each_token():
    density = model(shape=(LENGTH,), levels=3)
    torch.manual_seed(1)
    free = density.generate(6, length=40)
    brought = []
    torch.manual_seed(1)
    drawn = density.generate(6, length=40, stop=2, stream=brought.append)
    ended = (drawn == 2).int().cumsum(1) > 0
    assert drawn.shape == (6, 40) and (drawn[ended] == 2).all() and ended[:, -1].all()
    first = int(ended.any(0).int().argmax())
    assert torch.equal(drawn[:, : first + 1], free[:, : first + 1])
    length = len(brought)
    assert length < 40 and ended[:, length - 1].all() and not ended[:, length - 2].all()
    assert torch.equal(torch.stack(brought, 1), drawn[:, :length])


def test_wrong_arguments_are_refused():
    density = model()
    for options, message in (
        ({"prompt": torch.zeros(LENGTH + 1, dtype=torch.long)}, "at most the 6 tokens of the window, got 7"),
        ({"prompt": torch.tensor([0, LEVELS])}, r"a prompt must hold integers 0 ... 4, got 0 ... 5"),
        ({"prompt": torch.zeros(3, 2, dtype=torch.long)}, r"shape \(P,\) or \(2, P\), got torch.int64 of \(3, 2\)"),
        ({"temperature": -1.0}, "temperature must be at least 0, got -1"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"length": -1}, "length must be at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message) as refusal:
            density.generate(2, **options)
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="unknown positions 'rotary'"):
        Autoregressive(CausalTransformer(8, 1, 2), (3,), 2, positions="rotary")
