"""The noise of a part of a batch is its slice of the whole batch's, whatever draws it."""

import pytest
import torch
import torch.nn.functional as F

from loglik.noise import BatchParts, draw_rows, is_first_part, mean_over_ranks, shared_noise, whole_batch

B = 12
DRAWS = {
    "rand": lambda x: torch.rand(len(x), 3),
    "randn of a tuple": lambda x: torch.randn((len(x), 2, 2), dtype=torch.float64),
    "rand of a shape": lambda x: torch.rand(x.shape),
    "randint": lambda x: torch.randint(0, 7, (len(x), 3)),
    "randint by name": lambda x: torch.randint(5, size=(len(x),)),
    "rand_like": torch.rand_like,
    "randn_like of a permuted tensor": lambda x: torch.randn_like(x[:, :, None].transpose(1, 2).expand(-1, 5, -1)),
    "randn_like in channels-last order": lambda x: torch.randn_like(
        x.reshape(-1, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    ),
    "rand_like of several rows each": lambda x: torch.rand_like(x.repeat_interleave(3, 0)),
    "normal_": lambda x: torch.empty_like(x).normal_(1.0, 2.0),
    "uniform_": lambda x: torch.empty_like(x).uniform_(-1, 1),
    "exponential_": lambda x: torch.empty_like(x).exponential_(),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli_": lambda x: torch.empty_like(x).bernoulli_(0.3),
    "bernoulli_ of a tensor": lambda x: torch.empty_like(x).bernoulli_(x.sigmoid()),
    "multinomial": lambda x: torch.multinomial(x.softmax(1), 2, replacement=True),
    "multinomial without replacement": lambda x: torch.multinomial(x.softmax(1), 1),
    "normal": lambda x: torch.normal(x, 2.0),
    "normal of tensors": lambda x: torch.normal(x, x.exp()),
    "dropout": lambda x: F.dropout(x, 0.4),
    "a module's dropout": torch.nn.Dropout(0.2),
    "dropout in place": lambda x: F.dropout(x.clone(), 0.4, inplace=True),
    "dropout2d": lambda x: F.dropout2d(x.reshape(-1, 3, 2, 2), 0.4),
    "no dropout": lambda x: F.dropout(x, 0.4, training=False),
    "attention": lambda x: F.scaled_dot_product_attention(*x.reshape(-1, 3, 4)[:, None].chunk(3, 2), dropout_p=0.5),
    "causal attention": lambda x: F.scaled_dot_product_attention(
        *[x.reshape(-1, 1, 3, 4)] * 3, dropout_p=0.5, is_causal=True
    ),
    "one number for all": lambda x: x + torch.rand(()),
    "shuffled": lambda x: draw_rows(lambda n: torch.randperm(n), len(x)),
    "drawn together": lambda x: draw_rows(lambda n: torch.rand(2, n).argsort(1).T, len(x)),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("ranks", "parts"), [(1, 3), (2, 1), (2, 3)])
def test_the_parts_together_have_the_whole_batchs_noise(name, ranks, parts) -> None:
    draw = DRAWS[name]
    x = torch.randn(B, 12, generator=torch.Generator().manual_seed(1))

    def together(x):
        return draw(x), draw(x)  # the second shows that as much was drawn

    torch.manual_seed(0)
    whole = together(x)
    pieces = []
    for number, rows in enumerate(x.chunk(ranks * parts)):
        mode = BatchParts(ranks, number // parts, parts, gather=lambda value: value)
        torch.manual_seed(0)
        with mode.part(number % parts, len(rows)):
            pieces.append(together(rows))
    for result, part in zip(whole, zip(*pieces, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(part), result, rtol=1e-6, atol=1e-7)


def test_statistics_are_those_of_the_whole_batch() -> None:
    x = torch.randn(B, requires_grad=True)
    first, second = x.chunk(2)
    mode = BatchParts(2, 0, 3, gather=lambda mine: torch.stack([mine, mine / first.detach() * second.detach()]))
    for number, rows in enumerate(first.chunk(3)):
        with mode.part(number, len(rows)):
            assert is_first_part() == (number == 0)
            seen = whole_batch("sums", rows, 2 * rows)
            assert (seen is None) == (number < 2)
    assert seen is not None and not seen[0].requires_grad
    torch.testing.assert_close(seen, (x.detach(), 2 * x.detach()))
    mode = BatchParts(2, 0, 1, gather=lambda value: torch.stack([value, value + 2]))
    with mode.part(0, B):
        assert mean_over_ranks(torch.zeros(2)).tolist() == [1.0, 1.0]


def test_shared_noise_is_that_of_the_whole_batch_in_each_part() -> None:
    torch.manual_seed(0)
    whole = torch.randn(6, 2)
    mode = BatchParts(1, 0, 2, gather=lambda value: value)
    for number in range(2):
        torch.manual_seed(0)
        with mode.part(number, 6):
            with shared_noise():
                assert torch.equal(torch.randn(6, 2), whole)
            assert torch.rand(6).shape == (6,)
            assert not torch.equal(torch.randn(6, 2), whole)


def test_without_parts_all_is_plain() -> None:
    x = torch.randn(4)
    assert is_first_part() and torch.equal(mean_over_ranks(x), x)
    assert torch.equal(whole_batch("key", x)[0], x)
    torch.manual_seed(0)
    a = draw_rows(torch.randperm, 5)
    torch.manual_seed(0)
    assert torch.equal(a, torch.randperm(5))
