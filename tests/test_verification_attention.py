"""The checks of attention hold for Transformers, and each fails where its statement is broken."""

import pytest
import torch
from torch import nn

import loglik.networks.attention
from helpers.verified import outcome, subject_of
from helpers.verified_networks import built, changed, running
from loglik.networks import ViT
from loglik.networks.attention import SelfAttention, attention_weights

NAMES = ["softmax-rows", "permutation", "attention-cost", "heads-differ"]


@pytest.fixture(scope="module")
def vit():
    return subject_of("classifier", "digits", network="vit", width=64, train=2)


@pytest.fixture(scope="module")
def causal():
    return subject_of("autoregressive", "digits", train=1, width=32)


@pytest.mark.parametrize("name", NAMES)
def test_holds_for_a_vision_transformer(vit, name):
    assert outcome(name, vit) == "holds"


@pytest.mark.parametrize("name", ["softmax-rows", "permutation", "heads-differ"])
def test_holds_for_a_causal_transformer(causal, name):
    assert outcome(name, causal) == "holds"


@pytest.mark.parametrize("name", ["softmax-rows", "permutation", "heads-differ"])
def test_holds_for_torchs_own_layers(name):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    subject = built(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    assert outcome(name, subject) == "holds"


@pytest.mark.parametrize("name", NAMES)
def test_does_not_apply_without_attention(name):
    assert outcome(name, built(nn.LSTM(16, 16, batch_first=True))) == "does not apply"


def test_holds_under_a_mask_of_torchs_own_layers():
    class Causal(nn.TransformerEncoder):
        def forward(self, x):
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            return super().forward(x, mask=mask, is_causal=True)

    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    subject = built(Causal(layer, 2, enable_nested_tensor=False))
    assert [outcome(name, subject) for name in ("softmax-rows", "permutation")] == ["holds", "holds"]


def test_holds_for_padded_texts(tmp_path):
    words = ["good", "bad", "a film", "plot", "the end was not"]
    lines = [f'"{" ".join(words[(i + j) % 5] for j in range(1 + i % 7))}",{"ab"[i % 2]}' for i in range(40)]
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    subject = subject_of("classifier", str(path), label="label")
    assert [outcome(name, subject) for name in ("softmax-rows", "permutation")] == ["holds", "holds"]


def test_softmax_rows_fails_with_a_softmax_over_the_queries(vit, monkeypatch):
    def over_queries(q, k, v, mask=None, *, causal=False):
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-2) @ v

    monkeypatch.setattr(loglik.networks.attention, "attention", over_queries)
    assert outcome("softmax-rows", vit) == "fails"


def test_softmax_rows_fails_where_a_causal_layer_sees_what_comes_later(causal, monkeypatch):
    def leaks(q, k, v, mask=None, *, causal=False):
        return attention_weights(q, k) @ v

    monkeypatch.setattr(loglik.networks.attention, "attention", leaks)
    assert outcome("softmax-rows", causal) == "fails"


def test_permutation_fails_with_positions_switched_off(vit):
    assert outcome("permutation", changed(vit, ViT, lambda m: m.positions.zero_())) == "fails"


def test_permutation_fails_with_positions_hidden_in_attention(vit):
    def with_positions(self, x, *args, **kwargs):
        return SelfAttention.forward(self, x + torch.arange(x.shape[1])[:, None], *args, **kwargs)

    assert outcome("permutation", changed(vit, SelfAttention, running(with_positions))) == "fails"


def test_attention_cost_fails_for_linear_attention(vit):
    def linear(self, x, *args, **kwargs):
        q, k, v = self._project(x, None)
        y = q.softmax(-1) @ (k.softmax(-2).mT @ v)
        return self.output(y.transpose(1, 2).reshape(x.shape))

    assert outcome("attention-cost", changed(vit, SelfAttention, running(linear))) == "fails"


def test_heads_differ_fails_where_all_heads_have_the_same_weights(vit):
    def same(layer):
        q, k, _ = layer.qkv.weight.view(3, layer.heads, -1, layer.qkv.weight.shape[1])
        q.copy_(q[:1].clone().expand_as(q))
        k.copy_(k[:1].clone().expand_as(k))
        layer.qkv.bias.zero_()

    assert outcome("heads-differ", changed(vit, SelfAttention, same)) == "fails"
