"""The exam's answers (docs/exam): each number and identity that the pages state, computed."""

import importlib.util
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.func import jacrev, vmap

from loglik import VAE, Flow, StandardNormal
from loglik.classification import Classifier
from loglik.data import load
from loglik.flows import real_nvp
from loglik.inspection.counts import layer_counts
from loglik.inspection.equivariance import invariance_error
from loglik.inspection.permutation import permutation_error
from loglik.networks import MLP
from loglik.networks.attention import SelfAttention, attention_weights
from loglik.networks.positions import sinusoids
from loglik.transforms import Standardise
from loglik.vae import Gaussian

ROOT = Path(__file__).parents[1]


def classifier(inputs: int, width: int, classes: int, hidden: int = 5) -> Classifier:
    return Classifier(MLP(inputs, width, (hidden,)), nn.Sequential(nn.SiLU(), MLP(width, classes, (hidden,))), classes)


def gradient(loss: torch.Tensor, module: nn.Module) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


# ---- spring 2025, B1


def test_the_hypothesis_is_a_point_of_the_simplex_and_has_the_counted_parameters(float64):
    """(a): an MLP of widths n_0, ..., n_L has the sum of (n_{l-1} + 1) n_l parameters."""
    model = Classifier(MLP(64, 128, (256,)), nn.Sequential(nn.SiLU(), MLP(128, 10, (64,))), 10)
    widths = ((64, 256, 128), (128, 64, 10))
    counts = [sum((a + 1) * b for a, b in itertools.pairwise(w)) for w in widths]
    assert [sum(p.numel() for p in part.parameters()) for part in (model.features, model.head)] == counts
    assert counts == [49_536, 8_906] and sum(counts) == 58_442
    y = model.probabilities(torch.randn(50, 64))
    assert y.shape == (50, 10) and (y > 0).all()
    torch.testing.assert_close(y.sum(1), torch.ones(50))


def test_two_linear_maps_in_a_row_are_one(float64):
    """(a): an activation has to stand between the two parts."""
    first, second, x = nn.Linear(4, 6), nn.Linear(6, 3), torch.randn(20, 4)
    weight, bias = second.weight @ first.weight, second.weight @ first.bias + second.bias
    torch.testing.assert_close(second(first(x)), x @ weight.T + bias)


def test_the_gradient_of_cross_entropy_is_the_probabilities_minus_the_label(float64):
    """(b): of the logits, ŷ - e_y; the loss is the negative log-likelihood of the label."""
    logits, y = torch.randn(7, 4, requires_grad=True), torch.randint(4, (7,))
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    one_hot = F.one_hot(y, 4)
    loss = -(one_hot * log_p).sum(1)
    torch.testing.assert_close(loss, F.cross_entropy(logits, y, reduction="none"))
    found = torch.autograd.grad(loss.sum(), logits)[0]
    torch.testing.assert_close(found, logits.detach().softmax(1) - one_hot)


def test_the_mean_gradient_of_all_mini_batches_is_the_full_gradient(float64):
    """(b): all 20 batches of 3 of 6 examples; their covariance is that of one example times (N - B) / (B (N - 1))."""
    model, x, y = classifier(3, 4, 3), torch.randn(6, 3), torch.randint(3, (6,))
    full = gradient(model.loss(y, x), model)
    batches = [list(rows) for rows in itertools.combinations(range(6), 3)]
    found = torch.stack([gradient(model.loss(y[rows], x[rows]), model) for rows in batches])
    torch.testing.assert_close(found.mean(0), full)
    each = torch.stack([gradient(model.loss(y[[i]], x[[i]]), model) for i in range(6)])
    variance = (each - full).square().mean(0)
    torch.testing.assert_close((found - full).square().mean(0), variance / 3 * (6 - 3) / (6 - 1))


def test_one_step_of_sgd_is_its_formula(float64):
    """(b): θ ← θ - η ∇L, and a small step lowers the loss by η times the squared norm of the gradient."""
    model, x, y = classifier(3, 4, 3), torch.randn(8, 3), torch.randint(3, (8,))
    before, start = model.loss(y, x), nn.utils.parameters_to_vector(model.parameters()).detach()
    slope, rate = gradient(before, model), 1e-5
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    optimizer.zero_grad()
    model.loss(y, x).backward()
    optimizer.step()
    torch.testing.assert_close(nn.utils.parameters_to_vector(model.parameters()).detach(), start - rate * slope)
    fall = (before - model.loss(y, x)).item()
    assert fall == pytest.approx(rate * slope.square().sum().item(), rel=1e-3)


def test_batch_norm_in_training_and_in_testing(float64):
    """(c): the batch's moments in training, the moving averages in testing; eq. by eq."""
    norm, rho, eps = nn.BatchNorm1d(3), 0.1, 1e-5
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.0, -1.0, 3.0]))
    mean, variance = torch.zeros(3), torch.ones(3)
    for _ in range(5):
        h = 2 * torch.randn(8, 3) + 1
        mu, var = h.mean(0), h.var(0, unbiased=False)
        torch.testing.assert_close(norm(h), norm.weight * (h - mu) / (var + eps).sqrt() + norm.bias)
        mean, variance = (1 - rho) * mean + rho * mu, (1 - rho) * variance + rho * h.var(0, unbiased=True)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    norm.eval()
    h = torch.randn(8, 3)
    torch.testing.assert_close(norm(h), norm.weight * (h - mean) / (variance + eps).sqrt() + norm.bias)
    torch.testing.assert_close(norm(h[:1]), norm(h)[:1])  # one example alone, and the same example in a batch


def test_batch_norm_forgets_the_scale_before_it_and_folds_into_a_linear_map(float64):
    """(c): BN(a h + b) = BN(h) in training; in testing BN after Wx + c is one linear map."""
    norm = nn.BatchNorm1d(3, eps=1e-12)
    h = torch.randn(16, 3)
    torch.testing.assert_close(norm(5 * h - 2), norm(h))
    linear, x = nn.Linear(4, 3), torch.randn(16, 4)
    norm.eval()
    slope = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = x @ (slope[:, None] * linear.weight).T + slope * (linear.bias - norm.running_mean) + norm.bias
    torch.testing.assert_close(norm(linear(x)), folded)


def test_no_gradient_goes_along_the_mean_and_the_scale_of_a_batch(float64):
    """(c): the gradients of a batch sum to 0, and their product with the normalised values is 0."""
    h = torch.randn(16, 3, requires_grad=True)
    normalised = (h - h.mean(0)) / h.var(0, unbiased=False).sqrt()
    slope = torch.autograd.grad((normalised.sin() * torch.randn(16, 3)).sum(), h)[0]
    torch.testing.assert_close(slope.sum(0), torch.zeros(3))
    torch.testing.assert_close((slope * normalised.detach()).sum(0), torch.zeros(3))


def tent(x: torch.Tensor) -> torch.Tensor:
    return 2 * F.relu(x) - 4 * F.relu(x - 0.5)


def pieces(y: torch.Tensor) -> int:
    """Return how many linear pieces a function on a regular grid has, whose kinks are grid points."""
    slopes = y.diff()
    return 1 + int((slopes.diff().abs() > 1e-12 * slopes.abs().max()).sum())


def test_depth_doubles_the_pieces_where_width_adds_one(float64):
    """(d): L layers of 2 ReLUs make 2^L linear pieces on the line; n ReLUs in one layer make at most n + 1."""
    grid = torch.linspace(0, 1, 2**12 + 1)
    y = grid
    for depth in range(1, 9):
        y = tent(y)
        assert pieces(y) == 2**depth
    for units in (2, 16):
        kinks = torch.randint(1, 2**12, (units,)).unique() / 2**12
        one = sum(torch.randn(()) * F.relu(grid - kink) for kink in kinks)
        assert pieces(one) <= units + 1


def test_a_linear_classifier_does_no_better_than_a_coin_on_xor(float64):
    """(d): its least cross-entropy is log 2; two hidden ReLUs reach 0."""
    x, y = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]), torch.tensor([0, 1, 1, 0])
    linear = nn.Linear(2, 2)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    loss = F.cross_entropy(linear(x), y)
    assert loss.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(gradient(loss, linear), torch.zeros(6))  # convex, so this is the minimum
    difference = F.relu(x[:, 0] - x[:, 1]) + F.relu(x[:, 1] - x[:, 0])
    assert F.cross_entropy(40 * torch.stack([0.5 - difference, difference - 0.5], 1), y) < 1e-15


def test_without_activations_depth_adds_nothing(float64):
    """(d): the rank of a product of matrices is at most the least width."""
    deep = nn.Sequential(*[nn.Linear(a, b, bias=False) for a, b in ((6, 9), (9, 2), (2, 9), (9, 6))])
    assert torch.linalg.matrix_rank(deep(torch.eye(6)), rtol=1e-12) == 2


def test_weight_decay_is_a_gaussian_prior(float64):
    """(e): the gradient of λ/2 |θ|² is that of -log N(θ; 0, 1/λ)."""
    theta = torch.randn(5, requires_grad=True)
    prior = -Normal(0.0, 0.3**-0.5).log_prob(theta).sum()
    torch.testing.assert_close(torch.autograd.grad(prior, theta)[0], 0.3 * theta.detach())


def test_dropout_of_a_linear_model_is_a_ridge(float64):
    """(e): over all 2^d masks, E(y - w·(m ∘ x)/(1 - p))² = (y - w·x)² + p/(1 - p) Σ w² x²."""
    d, p = 6, 0.3
    w, x, y = torch.randn(d), torch.randn(d), torch.randn(())
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=d)))
    weights = ((1 - p) ** masks * p ** (1 - masks)).prod(1)
    outputs = (masks * x / (1 - p)) @ w
    torch.testing.assert_close((weights * outputs).sum(), w @ x)
    expected = (y - w @ x).square() + p / (1 - p) * (w * x).square().sum()
    torch.testing.assert_close((weights * (y - outputs).square()).sum(), expected)


def test_early_stopping_on_a_quadratic_shrinks_as_a_ridge(float64):
    """(e): after k steps from 0 the i-th coefficient is (1 - (1 - η λ_i)^k) of the optimum."""
    x = torch.randn(40, 3) * torch.tensor([3.0, 1.0, 0.1])
    y = x @ torch.tensor([1.0, -2.0, 3.0]) + torch.randn(40)
    hessian, best = x.T @ x / 40, torch.linalg.lstsq(x, y[:, None]).solution.squeeze(1)
    values, vectors = torch.linalg.eigh(hessian)
    theta, rate, steps = torch.zeros(3), 0.05, 60
    for _ in range(steps):
        theta = theta - rate * hessian @ (theta - best)
    kept = 1 - (1 - rate * values) ** steps
    torch.testing.assert_close(vectors.T @ theta, kept * (vectors.T @ best))
    penalty = 1 / (rate * steps)  # the ridge of the same strength keeps λ / (λ + 1/(η k)) of each
    ridge = values / (values + penalty)
    assert ((kept - ridge).abs() < 0.3).all() and (kept[0] < 0.1) and (kept[2] > 0.95)
    slow = 1 - (1 - rate * 1e-6) ** steps
    assert slow == pytest.approx(1e-6 / (1e-6 + penalty), rel=1e-4)  # equal for small λ


def test_regularisation_lowers_the_test_loss_of_an_overfitted_network():
    """(e), measured: 60 digits, an MLP; the training loss goes to 0 and the test loss rises, less when regularised."""
    data = load("digits")
    x, y = data.train.x[:60].flatten(1).float() / 16, data.train.y[:60]
    test_x, test_y = data.test.x.flatten(1).float() / 16, data.test.y
    curves = []
    for dropout, decay in ((0.0, 0.0), (0.5, 0.0), (0.0, 1.0)):
        torch.manual_seed(0)
        model = MLP(64, 10, (128,), dropout=dropout)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=decay)
        curve = []
        for step in range(200):
            model.train()
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 10 == 9:
                with torch.no_grad():
                    curve.append(F.cross_entropy(model.eval()(test_x), test_y).item())
        with torch.no_grad():
            assert F.cross_entropy(model(x), y) < 0.02
        curves.append(curve)
    plain, dropped, decayed = curves
    assert min(plain) < plain[-1] - 0.1  # early stopping keeps the weights of the minimum
    for regularised in (dropped, decayed):
        assert min(regularised) < min(plain) and regularised[-1] < plain[-1] - 0.05


# ---- autumn 2025, B1


@pytest.mark.parametrize(
    ("size", "channels", "kernel", "stride", "padding", "convolution", "dense"),
    [
        ((32, 32), (3, 16), 3, 1, 1, 448, 50_348_032),
        ((224, 224), (3, 64), 7, 2, 3, 9_472, 120_847_089_664),
        ((8, 8), (1, 8), 3, 1, 0, 80, 18_720),
    ],
)
def test_parameters_of_a_convolution_and_of_a_dense_layer(size, channels, kernel, stride, padding, convolution, dense):
    """(a): k² C_in C_out + C_out against (H W C_in + 1) H' W' C_out, by the formula and by the layers themselves."""
    (height, across), (inputs, outputs) = size, channels
    after = [(side + 2 * padding - kernel) // stride + 1 for side in size]
    assert kernel**2 * inputs * outputs + outputs == convolution
    assert (height * across * inputs + 1) * after[0] * after[1] * outputs == dense
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    assert sum(p.numel() for p in layer.parameters()) == convolution
    with torch.device("meta"):  # shapes without memory
        full = nn.Linear(height * across * inputs, after[0] * after[1] * outputs)
    assert sum(p.numel() for p in full.parameters()) == dense
    count = layer_counts(nn.Sequential(layer), lambda: layer(torch.zeros(1, inputs, height, across)))[0]
    assert (count.parameters, count.dense_parameters) == (convolution, dense)


def test_a_convolution_is_a_dense_layer_with_few_different_weights(float64):
    """(a): as a matrix it has k² C_in C_out different entries, and nearly all others are 0."""
    side, inputs, outputs, kernel = 8, 2, 3, 3
    layer = nn.Conv2d(inputs, outputs, kernel, padding=1, bias=False)
    unit = torch.eye(side * side * inputs).view(-1, inputs, side, side)
    matrix = layer(unit).flatten(1).T
    x = torch.randn(5, inputs, side, side)
    torch.testing.assert_close(layer(x).flatten(1), x.flatten(1) @ matrix.T)
    used = matrix[matrix != 0]
    assert len(used.unique()) == kernel**2 * inputs * outputs == 54
    assert matrix.numel() == 64 * 2 * 64 * 3 and used.numel() == (3 * side - 2) ** 2 * inputs * outputs == 2904


def test_attention_is_permuted_with_its_input_unless_positions_are_added(float64):
    """(b): f(PX) = P f(X), so the mean over the sequence is the same in any order; with positions it is not."""
    layer, x = SelfAttention(16, 4), torch.randn(3, 10, 16)
    order = torch.randperm(10)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])
    torch.testing.assert_close(layer(x[:, order]).mean(1), layer(x).mean(1))
    assert permutation_error(layer, x) < 1e-12
    positions = sinusoids(10, 16).double()
    assert permutation_error(layer, x, positions) > 1e-2
    assert (layer(x[:, order] + positions).mean(1) - layer(x + positions).mean(1)).abs().max() > 1e-3


def test_scores_over_the_root_of_the_width_have_variance_one():
    """(b): q·k has variance d_k; the rows of the weights sum to 1."""
    for width in (4, 64, 1024):
        q, k = torch.randn(1, 1, 400, width), torch.randn(1, 1, 400, width)
        assert (q @ k.mT).var() == pytest.approx(width, rel=0.1)
        torch.testing.assert_close(attention_weights(q, k).sum(-1), torch.ones(1, 1, 400))


def test_sinusoids_turn_with_the_position(float64):
    """(b): PE(pos + s) is PE(pos) turned by angles that depend on s alone, and products depend on the distance."""
    width, shift = 12, 5
    table = sinusoids(40, width).double()
    rates = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    cos, sin = (shift * rates).cos(), (shift * rates).sin()
    even, odd = table[:, 0::2], table[:, 1::2]
    turned = torch.stack([even * cos + odd * sin, odd * cos - even * sin], 2).flatten(1)
    torch.testing.assert_close(turned[:-shift], table[shift:], atol=1e-5, rtol=0)
    products = table @ table.T
    gaps = (torch.arange(40)[:, None] - torch.arange(40)).double()
    torch.testing.assert_close(products, (gaps[..., None] * rates).cos().sum(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(products.diagonal(), torch.full((40,), width / 2), atol=1e-5, rtol=0)


def test_pooled_features_of_a_moved_image_are_the_same(float64):
    """(c): the benefit of convolution, exactly: away from the border f(Tx) = T f(x), so the mean does not change."""
    layer = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.zeros(2, 1, 12, 12)
    x[:, :, 3:8, 3:8] = torch.randn(2, 1, 5, 5)
    torch.testing.assert_close(layer(x.roll(2, -1)), layer(x))
    assert invariance_error(layer, x, shift=2) < 1e-12
    dense = nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.ReLU())
    assert invariance_error(dense, x, shift=2) > 0.1


@pytest.fixture(scope="module")
def hybrid():
    spec = importlib.util.spec_from_file_location("hybrid_vit", ROOT / "examples" / "hybrid_vit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_hybrid_has_the_parameters_of_its_parts(hybrid):
    """(c): the count on the page, part by part."""
    network = hybrid.HybridViT((1, 8, 8))
    width = 32
    attention = 3 * width * (width + 1) + width * (width + 1)
    mlp = 4 * width * (width + 1) + width * (4 * width + 1)
    parts = {
        "stem": (9 * 1 * 32 + 32) + (9 * 32 * 32 + 32),
        "patches": 2 * 2 * 32 * width + width,
        "positions": 16 * width,
        "blocks": 2 * (2 * 2 * width + attention + mlp),
        "norm": 2 * width,
    }
    assert parts == {"stem": 9_568, "patches": 4_128, "positions": 512, "blocks": 25_408, "norm": 64}
    for name, count in parts.items():
        part = getattr(network, name)
        assert (part.numel() if name == "positions" else sum(p.numel() for p in part.parameters())) == count
    assert sum(p.numel() for p in network.parameters()) == sum(parts.values()) == 39_680


def test_one_layer_of_attention_sees_the_whole_image(hybrid):
    """(c): the benefit of self-attention; one patch of the convolutions' maps sees 6 × 6 pixels only."""
    network = hybrid.HybridViT((1, 8, 8), depth=1)
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    tokens = network.tokens(x)
    seen = torch.autograd.grad(tokens[0, 5].sum(), x, retain_graph=True)[0] != 0  # the patch at (1, 1) of 4 × 4
    assert seen.sum() == 36
    assert (torch.autograd.grad(network.blocks(tokens)[0, 5].sum(), x)[0] != 0).all()


def test_the_hybrid_trains_and_only_positions_tell_the_order_of_patches(hybrid):
    """(c): built, trained and measured at a small size."""
    data = load("digits")
    torch.manual_seed(0)
    density = hybrid.classifier(data)
    hybrid.train(density, data, 120)
    accuracy, nll = hybrid.measure(density, data)
    assert accuracy > 0.9 and nll < 0.45
    network = density.features
    x = density.prepare(data.test.x[:20])
    order = torch.randperm(16)
    with torch.no_grad():
        tokens = network.tokens(x)
        content = tokens - network.positions
        whole = network.norm(network.blocks(tokens)).mean(1)
        moved = network.norm(network.blocks(content[:, order] + network.positions)).mean(1)
        alone = [network.norm(network.blocks(c)).mean(1) for c in (content, content[:, order])]
    torch.testing.assert_close(alone[0], alone[1], atol=1e-5, rtol=1e-4)
    assert (moved - whole).norm() > 0.02 * whole.norm()


def test_the_hybrids_script_prints_every_variant(hybrid, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["hybrid_vit.py", "--steps", "3", "--seeds", "1", "--width", "8"])
    hybrid.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == list(hybrid.VARIANTS)
    assert all("test accuracy" in line and "nats" in line for line in lines)


# ---- autumn 2025, B2


def test_cross_entropy_is_entropy_and_kl(float64):
    """(a): E_p[-log q] = H(p) + KL(p | q), and both have the same gradient in q's parameters."""
    p, logits = torch.rand(6).softmax(0), torch.randn(6, requires_grad=True)
    log_q = logits.log_softmax(0)
    cross, entropy, kl = -(p * log_q).sum(), -(p * p.log()).sum(), (p * (p.log() - log_q)).sum()
    torch.testing.assert_close(cross, entropy + kl)
    assert kl > 0
    first, second = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (cross, kl))
    torch.testing.assert_close(first, second)


def test_maximum_likelihood_over_all_distributions_is_the_frequencies(float64):
    """(a): of counts 5, 3, 2 the most likely distribution is (0.5, 0.3, 0.2): the KL from the empirical one is 0."""
    counts, logits = torch.tensor([5.0, 3.0, 2.0]), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        loss = -(counts * logits.log_softmax(0)).sum() / 10
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.softmax(0), counts / 10, atol=1e-6, rtol=0)
    assert closure().item() == pytest.approx(-(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2)))


def test_the_most_likely_gaussian_has_the_datas_mean_and_variance(float64):
    """(a): for the mixture of the page, mean 0.6 and variance 2.14; both KLs by quadrature."""
    grid = torch.linspace(-12, 12, 20_001)
    dx = grid[1] - grid[0]
    p = 0.3 * Normal(-1.5, 0.5).log_prob(grid).exp() + 0.7 * Normal(1.5, 0.5).log_prob(grid).exp()
    mean = (p * grid).sum() * dx
    variance = (p * (grid - mean).square()).sum() * dx
    assert mean.item() == pytest.approx(0.6) and variance.item() == pytest.approx(2.14)
    theta = torch.tensor([0.6, 0.5 * math.log(2.14)], requires_grad=True)

    def forward(theta):
        return (p * (p.log() - Normal(theta[0], theta[1].exp()).log_prob(grid))).sum() * dx

    def reverse(theta):
        q = Normal(theta[0], theta[1].exp()).log_prob(grid)
        return (q.exp() * (q - p.log())).sum() * dx

    torch.testing.assert_close(torch.autograd.grad(forward(theta), theta)[0], torch.zeros(2), atol=1e-6, rtol=0)
    entropy = -(p * p.log()).sum() * dx
    least = 0.5 * math.log(2 * math.pi * math.e * 2.14)
    assert forward(theta).item() == pytest.approx(least - entropy.item())
    assert torch.autograd.grad(reverse(theta), theta)[0].norm() > 0.1  # the other KL has another minimum


def test_a_flows_loss_is_the_change_of_variables(float64):
    """(b): the log-determinant of the whole Jacobian is the sum over the maps, and `loss` is the objective."""
    flow = Flow(real_nvp(3, layers=4, hidden=(8,)), StandardNormal((3,))).double()
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(9, 3)
    z, log_det = flow.encode(x)
    jacobian = vmap(jacrev(lambda row: flow.encode(row[None])[0][0]))(x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet, atol=1e-6, rtol=1e-6)
    h, total = x, torch.zeros(9)
    for transform in flow.transforms:
        h, part = transform.encode(h)
        total = total + part
    torch.testing.assert_close(total, log_det)
    # by the maps f_l themselves: minus the sum of log |det ∂f_l/∂z_{l-1}|
    forward = vmap(jacrev(lambda row: flow.decode(row[None])[0]))(z)
    torch.testing.assert_close(-torch.linalg.slogdet(forward).logabsdet, log_det, atol=1e-6, rtol=1e-6)
    objective = -(Normal(0.0, 1.0).log_prob(z).sum(1) - torch.linalg.slogdet(forward).logabsdet).mean()
    torch.testing.assert_close(flow.loss(x), objective, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(flow.decode(z), x, atol=1e-6, rtol=1e-6)


def test_the_most_likely_affine_flow_standardises_the_data(float64):
    """(b): x = μ + σ z has its least loss at the data's mean and deviation: D/2 log 2πe + Σ log σ."""
    x = torch.randn(500, 3) * torch.tensor([1.0, 10.0, 0.1]) + torch.tensor([0.0, 5.0, -2.0])
    flow = Flow([Standardise((3,))], StandardNormal((3,))).double()
    flow.initialise(x)
    sigma = x.std(0, unbiased=False)
    least = 1.5 * math.log(2 * math.pi * math.e) + sigma.log().sum()
    torch.testing.assert_close(flow.loss(x), least)
    for change in (0.95, 1.05):
        flow.transforms[0].std.copy_(change * sigma)
        assert flow.loss(x) > least


W, S = 1.0, 0.5  # the linear VAE of the page: p(z) = N(0, 1), p(x | z) = N(W z, S²)


def linear_terms(x, m, v):
    """The reconstruction term and the KL of q = N(m, v), in closed form."""
    reconstruction = -0.5 * math.log(2 * math.pi * S**2) - ((x - W * m) ** 2 + W**2 * v) / (2 * S**2)
    return reconstruction, 0.5 * (m**2 + v - 1 - v.log())


def test_the_elbo_is_log_p_minus_the_kl_from_the_true_posterior(float64):
    """(c): in closed form, at the optimum and away from it."""
    x = torch.tensor([-2.0, 0.3, 1.7])
    truth = Normal(0.0, math.sqrt(W**2 + S**2)).log_prob(x)
    best_v = torch.tensor(S**2 / (W**2 + S**2))
    best_m = W * x / (W**2 + S**2)
    for m, v in ((best_m, best_v), (best_m + 0.4, 2 * best_v), (torch.zeros(3), torch.tensor(1.0))):
        reconstruction, kl = linear_terms(x, m, v)
        gap = kl_divergence(Normal(m, v.sqrt()), Normal(best_m, best_v.sqrt()))
        torch.testing.assert_close(truth - (reconstruction - kl), gap, atol=1e-12, rtol=1e-9)
    reconstruction, kl = linear_terms(x, best_m, best_v)
    torch.testing.assert_close(reconstruction - kl, truth)
    assert best_v.item() == pytest.approx(0.2)


def test_the_librarys_vae_has_these_terms(float64):
    """(c): `VAE.terms` of the same linear model, averaged over draws."""
    vae = VAE(nn.Linear(1, 2), nn.Linear(1, 1), Gaussian((1,), "shared"), latent=1).double()
    with torch.no_grad():
        vae.encoder.weight.copy_(torch.tensor([[0.5], [0.0]]))
        vae.encoder.bias.copy_(torch.tensor([0.1, -0.6]))
        vae.decoder.weight.fill_(W)
        vae.decoder.bias.zero_()
        vae.observation.log_scale.fill_(math.log(S))
    x = torch.tensor([[-2.0], [0.3], [1.7]])
    mean, log_scale = vae.posterior(x)
    scale = vae.observation._split(torch.zeros(1, 1))[1].exp().item()
    assert scale == pytest.approx(S, rel=0.05)
    terms = vae.terms(x.repeat(20_000, 1))
    m, v = mean.squeeze(1), (2 * log_scale).exp().squeeze(1)
    reconstruction = -0.5 * math.log(2 * math.pi * scale**2) - ((x[:, 0] - W * m) ** 2 + W**2 * v) / (2 * scale**2)
    kl = 0.5 * (m**2 + v - 1 - v.log())
    for name, expected in (("reconstruction", reconstruction), ("-KL", -kl)):
        draws = terms[name].view(20_000, 3)
        error = draws.std(0) / math.sqrt(20_000)
        assert ((draws.mean(0) - expected).abs() < 4.5 * error).all()


def test_reconstruction_alone_lets_the_variance_go_to_zero(float64):
    """(c): its derivative in v is -W²/(2S²) everywhere; the KL's grows without bound as v falls."""
    v = torch.tensor([1e-6, 1e-3, 0.2, 1.0], requires_grad=True)
    reconstruction, kl = linear_terms(torch.tensor(0.3), torch.tensor(0.1), v)
    slope = torch.autograd.grad(reconstruction.sum(), v)[0]
    torch.testing.assert_close(slope, torch.full((4,), -(W**2) / (2 * S**2)))
    assert torch.autograd.grad(kl.sum(), v)[0][0] < -1e5
    best = torch.tensor(S**2 / (W**2 + S**2), requires_grad=True)
    reconstruction, kl = linear_terms(torch.tensor(0.3), torch.tensor(0.24), best)
    assert torch.autograd.grad(reconstruction - kl, best)[0].item() == pytest.approx(0, abs=1e-12)


def test_the_likelihood_by_draws_from_the_prior_needs_exponentially_many(float64):
    """(c): E[p(x|z)²] / p(x)² is (w² + s²) / (s √(2w² + s²)) in one dimension at x = 0: 7.12 for w = 1, s = 0.1."""
    w, s = 1.0, 0.1
    z = torch.linspace(-10, 10, 200_001)
    dz = z[1] - z[0]
    prior, likelihood = Normal(0.0, 1.0).log_prob(z).exp(), Normal(w * z, s).log_prob(torch.zeros(())).exp()
    ratio = (prior * likelihood.square()).sum() * dz / ((prior * likelihood).sum() * dz).square()
    formula = (w**2 + s**2) / (s * math.sqrt(2 * w**2 + s**2))
    assert ratio.item() == pytest.approx(formula) and formula == pytest.approx(7.124, abs=1e-3)
    assert formula**20 == pytest.approx(1.13e17, rel=0.01)
