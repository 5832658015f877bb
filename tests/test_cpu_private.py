"""torch's private names: used in one file only, and what replaces them gives the same numbers."""

import importlib
import re
import types
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torch.utils._python_dispatch
import torch.utils._pytree
import torch.utils.flop_counter

import loglik
from loglik.cpu import private
from loglik.cpu.dispatch import is_plain
from loglik.cpu.linear import linear, linear_outputs_first
from loglik.flows import rational_quadratic_spline

PRIVATE = [
    (torch._C, "_are_functorch_transforms_active"),
    (torch.utils._python_dispatch, "is_in_torch_dispatch_mode"),
    (torch.utils._python_dispatch, "TorchDispatchMode"),
    (torch.utils._pytree, "tree_leaves"),
    (torch.utils._pytree, "tree_map"),
    (torch, "_foreach_lerp_"),
    (torch, "_foreach_copy_"),
    (torch, "_foreach_sub"),
    (torch, "_foreach_sub_"),
    (torch, "_foreach_mul_"),
    (torch, "_foreach_add_"),
]
FUNCTIONS = [name for name in private.__all__ if isinstance(getattr(private, name), types.FunctionType)]


class Without:
    """A module of torch without its private names."""

    def __init__(self, module, *missing):
        self.module, self.missing = module, missing

    def __getattr__(self, name):
        if name in self.missing:
            raise AttributeError(name)
        return getattr(self.module, name)


@pytest.fixture
def fallbacks(monkeypatch):
    """`loglik.cpu.private` as it is where torch has none of the private names; the room uses it meanwhile."""
    find = importlib.import_module

    def without(name):
        missing = {attribute for module, attribute in PRIVATE if module.__name__ == name}
        if name == "torch._functorch.config":
            raise ImportError(name)
        return Without(find(name), *missing)

    specification = importlib.util.spec_from_file_location("loglik_private_fallbacks", private.__file__)
    module = importlib.util.module_from_spec(specification)
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", without)
        patch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())
        specification.loader.exec_module(module)
    for name in private.__all__:
        monkeypatch.setattr(private, name, getattr(module, name))
    return module


def test_no_other_file_uses_a_private_name():
    pattern = re.compile(r"torch\._|torch\.utils\._|_foreach_|_functorch|mkldnn\._")
    root = Path(loglik.__file__).parent
    users = [
        path.relative_to(root).as_posix() for path in root.rglob("*.py") if pattern.search(path.read_text("utf-8"))
    ]
    assert users == ["cpu/private.py"]


def test_this_torch_has_every_private_name():
    """Otherwise the fall-backs run, which are slower."""
    assert all(hasattr(module, name) for module, name in PRIVATE)
    assert torch.utils._python_dispatch.TorchDispatchMode is private.TorchDispatchMode
    assert torch.backends.mkldnn.is_available() == private.HAS_ONEDNN


def test_the_fallbacks_are_in_use(fallbacks):
    """Every name that was looked up is missing, so that the tests below test something."""
    found = {
        name: value for name, value in vars(fallbacks).items() if name.startswith("_") and not name.startswith("__")
    }
    looked_up = {name: value for name, value in found.items() if not isinstance(value, types.FunctionType)}
    assert len(looked_up) == 11 and not any(looked_up.values())
    assert not private.HAS_ONEDNN and len(FUNCTIONS) == 14
    assert all(getattr(private, name).__module__ == "loglik_private_fallbacks" for name in FUNCTIONS)
    assert fallbacks.TorchDispatchMode is torch.utils.flop_counter.TorchDispatchMode


def test_a_dispatch_mode_counts_the_same(fallbacks):
    class Count(fallbacks.TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Count.calls += 1
            return func(*args, **(kwargs or {}))

    with Count():
        torch.ones(2) + 1
    assert Count.calls == 2


def linear_maps_and_splines():
    """Return values and gradients of large products and of a spline, the same each time."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).requires_grad_()  # noqa: E731
    x, weight, bias, numbers, raw = draw(300, 192), draw(96, 192), draw(96), draw(2, 40), draw(2, 11, 40)
    reach = [row * 2 for row in range(96)]
    stairs = weight * (torch.arange(192) < torch.tensor(reach).unsqueeze(1))
    results = []
    for inputs, outputs in (
        ((x, weight, bias), (linear(x, weight, bias),)),
        ((x, weight, bias), (linear_outputs_first(x, weight, bias),)),
        ((x, weight, bias), (linear_outputs_first(x, stairs, bias, reach),)),
        ((numbers, raw), rational_quadratic_spline(numbers, raw, bound=3.0)),
        ((numbers, raw), rational_quadratic_spline(numbers, raw, bound=3.0, inverse=True)),
    ):
        weighted = sum((output * output.detach().cos()).sum() for output in outputs)
        results += [*outputs, *torch.autograd.grad(weighted, inputs)]
    return [result.detach() for result in results]


def test_linear_maps_and_splines_fall_back_on_torch(request):
    assert is_plain(torch.zeros(2))
    quick = linear_maps_and_splines()
    request.getfixturevalue("fallbacks")
    assert private.is_observed() and private.transforms_active() and not is_plain(torch.zeros(2))
    for ours, plain in zip(quick, linear_maps_and_splines(), strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-4, rtol=2e-4)


def test_onednns_linear_map_is_torchs(request):
    x, weight, bias = torch.randn(30, 20), torch.randn(10, 20), torch.randn(10)
    quick = private.onednn_linear(x, weight, bias)
    request.getfixturevalue("fallbacks")
    plain = private.onednn_linear(x, weight, bias)
    assert torch.equal(plain, F.linear(x, weight, bias))
    torch.testing.assert_close(quick, plain)


def test_averages_and_copies_are_the_same(request):
    means, values = ([torch.randn(5, 3), torch.randn(4)] for _ in range(2))
    whole = [torch.tensor([1, 2]), torch.randn(3)]
    results = []
    for fall_back in (False, True):
        if fall_back:
            request.getfixturevalue("fallbacks")
        averaged, copies = [mean.clone() for mean in means], [torch.zeros_like(value) for value in whole]
        private.lerp_each_(averaged, values, 0.3)
        moved = [mean.clone() for mean in means]
        private.move_each_(moved, values, torch.tensor(0.3))
        private.copy_each_(copies, whole)
        less = [mean.clone() for mean in means]
        private.scale_each_(less, 0.7)
        private.subtract_each_(less, values)
        results.append([*averaged, *moved, *copies, *less])
    for quick, plain in zip(*results, strict=True):
        assert torch.equal(quick, plain)
    for mean, value, after in zip(means, values, results[0][-2:], strict=True):
        torch.testing.assert_close(after, 0.7 * mean - value)
    for by_number, by_tensor in zip(results[0][:2], results[0][2:4], strict=True):
        torch.testing.assert_close(by_number, by_tensor)


def test_trees_are_the_same(request):
    pair = namedtuple("pair", "first second")
    tree = {"b": [1, (2, None)], "a": pair(torch.ones(2), {"c": "d"}), "empty": ()}
    results = []
    for fall_back in (False, True):
        if fall_back:
            request.getfixturevalue("fallbacks")
        results.append((private.tree_leaves(tree), private.tree_map(lambda leaf: (leaf, 0), tree)))
    assert repr(results[0]) == repr(results[1])
    assert type(results[1][1]["a"]) is pair and results[1][0][:3] == [1, 2, None]


def test_saved_tensors_are_kept_where_the_compiler_would_overwrite_them(request):
    import torch._functorch.config as config

    with private.keep_saved_tensors():
        assert config.donated_buffer is False
    assert config.donated_buffer is True
    request.getfixturevalue("fallbacks")
    with private.keep_saved_tensors():
        assert config.donated_buffer is True


def test_more_shapes_are_compiled_than_torch_allows():
    import torch._dynamo.config as config

    before = config.recompile_limit
    with private.allow_compilations(before + 1):
        assert config.recompile_limit == before + 1
    assert config.recompile_limit == before


def test_writes_to_a_modules_tensors_are_counted():
    norm = torch.nn.BatchNorm1d(3)
    assert [id(t) for t in private.tensors_of(norm)] == [id(t) for t in (*norm.parameters(), *norm.buffers())]
    assert len(private.tensors_of(torch.nn.Sequential(norm, norm))) == 5
    before = private.version(norm.running_mean)
    norm.running_mean.add_(1)
    assert private.version(norm.running_mean) > before
    with torch.inference_mode():
        assert private.version(torch.ones(1)) is None
