"""Overlapping windows over a long text, and bits per byte, which tokenizers are compared in."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import loglik
from loglik.autoregressive import Autoregressive
from loglik.baselines import Independent
from loglik.data import DataSpec, TextSettings, load
from loglik.data.dataset import TextSplit
from loglik.data.tokenizers import Bytes
from loglik.data.windows import Stream, Windows
from loglik.evaluation import compress, evaluate_split, stream_scores, summary
from loglik.evaluation import text as module
from loglik.networks import CausalTransformer

TEXT = "".join(f"the {i}th cat sat on a mat – naïve.\n" for i in range(120))


def model(t: int, levels: int) -> Autoregressive:
    density = Autoregressive(CausalTransformer(8, 1, 2), (t,), levels).double().eval()
    nn.init.normal_(density.head.weight)
    nn.init.normal_(density.offset)
    return density


def stream_of(n: int, levels: int) -> Stream:
    tokens = np.random.default_rng(0).integers(levels, size=n, dtype=np.uint8)
    return Stream(tokens, "uint8", 0, n)


@pytest.mark.parametrize(("n", "t"), [(50, 8), (53, 8), (40, 7), (8, 8), (9, 8), (11, 3), (5, 1), (6, 2)])
def test_overlapping_windows_equal_a_loop(n, t, monkeypatch) -> None:
    monkeypatch.setattr(module, "BATCH_TOKENS", 3 * t)  # several batches
    density, stream = model(t, 5), stream_of(n, 5)
    tokens = torch.from_numpy(stream.tokens()).long()
    hop = max(1, t // 2)
    total, contexts, end = 0.0, [], 0
    for start in [*range(0, n - t + 1, hop), n - t]:
        with torch.no_grad():
            log_p = density.logits(tokens[None, start : start + t]).log_softmax(-1)[0]
        for place in range(end, start + t):
            total += log_p[place - start, tokens[place]].item()
            contexts.append(place - start)
        end = max(end, start + t)
    scores = stream_scores(density, stream, DataSpec(kind="text", event_shape=(t,), levels=5))
    assert len(contexts) == n == scores.tokens.sum()
    assert all(seen >= min(place, t / 2 if t > 1 else 0) for place, seen in enumerate(contexts))
    assert scores.nats.sum().item() == pytest.approx(total, abs=1e-9)
    assert scores.per_token()[0] == pytest.approx(total / n)


class Tabled(loglik.Density):
    """log p of each token from a table."""

    def __init__(self, shape: tuple[int, ...], table: torch.Tensor) -> None:
        super().__init__()
        self.event_shape, self.discrete = shape, True
        self.register_buffer("table", table)

    def log_prob(self, x, context=None, *, samples=1):
        return self.token_log_probs(x).sum(1)

    def token_log_probs(self, x, context=None):
        return self.table[x.long()]

    def sample(self, n, context=None):
        return torch.zeros(n, *self.event_shape, dtype=torch.long)


def test_bits_per_byte_agree_between_tokenizers(tmp_path) -> None:
    """A model whose bytes are uniform gives each token 256^-(its bytes): 8 bits a byte, however text is cut."""
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    tokens = set()
    for kind in ("bytes", "characters", "bpe"):
        text = TextSettings(tokenizer=kind, vocabulary=300, window=12)
        data = load(tmp_path / "a.txt", text=text, cache=tmp_path / "cache")
        table = -torch.from_numpy(data.spec.tokenizer.lengths).double() * math.log(256)
        density = Tabled((12,), table)
        row = evaluate_split(density, data.test, data.spec, model=kind)
        assert row.bits_per_byte == pytest.approx(8)
        assert row.unit == "token" and row.n == len(data.test.x.stream)
        assert row.perplexity == pytest.approx(math.exp(-row.nats))
        tokens.add(row.n)
    assert len(tokens) == 3  # and the tokens are not as many


def test_standard_error_is_that_of_the_stretches() -> None:
    """Independent tokens: the error over stretches is near the error over tokens."""
    spec = DataSpec(kind="text", event_shape=(8,), levels=5)
    stream = stream_of(20_000, 5)
    density = Independent((8,), (True,) * 8, levels=5, shared=True)
    density.log_mass.copy_(torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]).log())
    mean, error = stream_scores(density, stream, spec).per_token()
    truth = density.log_mass[0][torch.from_numpy(stream.tokens()).long()]
    assert mean == pytest.approx(truth.mean().item())
    assert error == pytest.approx(truth.std().item() / math.sqrt(len(truth)), rel=0.05)


def test_gains_are_paired_and_a_density_without_tokens_has_windows_side_by_side() -> None:
    spec = DataSpec(kind="text", event_shape=(6,), levels=256)
    tokens = np.frombuffer(TEXT.encode(), np.uint8)
    split = TextSplit(Windows(Stream(tokens, "uint8", 0, len(tokens)), 6, 6))
    density = Independent((6,), (True,) * 6, levels=256, shared=True)
    density.initialise(split.tensor())
    baseline = stream_scores(density, split.x.stream, spec)
    row = evaluate_split(density, split, spec, model="again", baseline=baseline)
    assert row.gain == 0 and row.gain_stderr is None and row.bits_per_byte == pytest.approx(row.bits_per_dim)

    class Plain(Independent):
        token_log_probs = None

    plain = Plain((6,), (True,) * 6, levels=256, shared=True)
    plain.load_state_dict(density.state_dict())
    scores = stream_scores(plain, split.x.stream, spec)
    whole = len(tokens) // 6 * 6
    assert scores.tokens.sum() == whole and scores.nats.sum() == pytest.approx(plain.log_prob(split.tensor()).sum())
    xz = compress(split, spec, baseline)[0]
    assert (
        xz.unit == "token"
        and xz.n == len(tokens)
        and xz.gain > 0
        and xz.bits_per_byte == pytest.approx(xz.bits_per_dim)
    )
    assert "nats per token" in summary(row) and "perplexity" in summary(row)


def test_another_tokenizer_s_xz_codes_the_same_bytes(tmp_path) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    sizes = set()
    for kind in ("bytes", "characters", "bpe"):
        text = TextSettings(tokenizer=kind, vocabulary=300, window=12)
        data = load(tmp_path / "a.txt", text=text, cache=tmp_path / "cache")
        sizes.add(round(compress(data.test, data.spec)[0].bits_per_byte, 9))
    assert len(sizes) == 1


def test_scores_of_bytes_are_counted_in_bytes() -> None:
    spec = DataSpec(kind="text", event_shape=(4,), levels=256)
    assert spec.tokenizer == Bytes()
    scores = stream_scores(model(4, 256), stream_of(30, 256), spec)
    assert torch.equal(scores.tokens, scores.bytes)
