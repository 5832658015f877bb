"""What a trained VAE is used for: latents of a VAE behind preprocessing, filling, and the commands."""

import csv
import subprocess
import sys

import pytest
import torch

import loglik
from helpers.exact import Constant
from helpers.mixed import mixed_rows, write_rows
from loglik.flows import Flow
from loglik.tasks import Latents, fill_table, write_latents
from loglik.transforms import Standardise
from loglik.vae import VAE, Gaussian


@pytest.fixture
def linear(float64):
    """x = w z + ε behind a change of units, with a posterior that is near the true one."""
    w, s = torch.tensor([[1.0], [-2.0], [0.5]]), 0.3
    precision = 1 + w.square().sum() / s**2
    gain = w.T / s**2 / precision
    log_scale = 6 * torch.atanh(-0.5 * precision.log().view(1) / 6)
    encoder = Constant(gain, torch.zeros(1), log_scale)
    decoder = Constant(w, torch.zeros(3), torch.zeros(0))
    whole = Flow([Standardise((3,))], VAE(encoder, decoder, Gaussian((3,), s), latent=1).double())
    whole.transforms[0].mean.copy_(torch.tensor([10.0, 0.0, -5.0]))
    whole.transforms[0].std.copy_(torch.tensor([1.0, 100.0, 0.01]))
    return whole.double(), w @ w.T + s**2 * torch.eye(3)


def test_filling_draws_from_the_conditional(linear):
    """The last two columns given the first: the mean and the covariance of the Gaussian's conditional."""
    density, cov = linear
    mean, unit = density.transforms[0].mean, density.transforms[0].std
    n, x1 = 4000, 1.5
    x = torch.zeros(n, 3)
    x[:, 0] = mean[0] + x1 * unit[0]
    missing = torch.tensor([False, True, True]).expand(n, 3)
    torch.manual_seed(0)
    filled = Latents(density).fill(torch.where(missing, torch.nan, x), missing, sweeps=40, draws=5)
    assert torch.equal(filled[:, 0], x[:, 0]) and filled.isfinite().all()
    v = ((filled - mean) / unit)[:, 1:]
    expected = cov[1:, 0] / cov[0, 0] * x1
    conditional = cov[1:, 1:] - cov[1:, :1] @ cov[:1, 1:] / cov[0, 0]
    assert ((v.mean(0) - expected).abs() < 5 * conditional.diag().sqrt() / n**0.5 + 0.01).all()
    assert (v.T.cov() - conditional).abs().max() < 0.08 * conditional.max()


def test_ways_between_latents(linear):
    density, _ = linear
    latents, x = Latents(density), density.sample(6)
    assert latents.encode(x).shape == (6, 1)
    way = latents.interpolate(x[:2], x[2:4], steps=5)
    assert way.shape == (2, 5, 3)
    torch.testing.assert_close(way[:, 0], latents.reconstruct(x[:2]))
    torch.testing.assert_close(way[:, 2], (way[:, 0] + way[:, 4]) / 2)
    moved = latents.traverse(x[:2], 0, [-1.0, 0.0, 1.0])
    torch.testing.assert_close(moved[0], moved[1])
    torch.testing.assert_close(moved[0, 1], density.transforms[0].mean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda it, x: it.interpolate(x, x, steps=1), "steps must be at least 2"),
        (lambda it, x: it.traverse(x, 3, [0.0]), r"dim must be 0 \.\.\. 0, a latent dimension, got 3"),
        (lambda it, x: it.fill(x, x > 0, draws=0), "sweeps and draws must be at least 1, got 30 and 0"),
    ],
)
def test_mistakes_are_one_line(linear, call, message):
    with pytest.raises(ValueError, match=message):
        call(Latents(linear[0]), torch.zeros(4, 3))


def test_what_has_no_latents_is_named():
    with pytest.raises(ValueError, match="a flow has no latents of a VAE: use a run of the family vae"):
        Latents(Flow([], loglik.StandardNormal((2,))))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("latents"), mixed_rows("big")
    table = write_rows(folder / "t.csv", rows)
    made = loglik.fit("vae", table, label="label", max_steps=60, width=16, latent=2, out=folder / "run")
    return made, folder, rows


def test_encode_writes_a_row_for_each_example(run):
    made, folder, _ = run
    assert write_latents(made, folder / "z.csv") == 200
    rows = list(csv.DictReader((folder / "z.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == [str(i + 1) for i in range(200)]
    assert list(rows[0]) == ["row", "label", "z1", "z2"] and rows[0]["label"] in ("yes", "no")
    z = Latents(made.density).encode(made.data_for().split("all").x)
    assert abs(float(rows[7]["z2"]) - z[7, 1].item()) < 1.0  # whole columns are dequantized at random


def test_fill_writes_the_gaps_and_leaves_the_rest(run):
    made, folder, rows = run
    gaps = [list(row) for row in rows[:20]]
    for i, row in enumerate(gaps):
        row[i % 3] = ""
    table = write_rows(folder / "gaps.csv", gaps)
    assert fill_table(made, table, folder / "filled.csv") == 20
    filled = list(csv.reader((folder / "filled.csv").read_text().splitlines()))[1:]
    for i, (old, new) in enumerate(zip(gaps, filled, strict=True)):
        assert all(a == b or float(a) == float(b) for a, b in zip(old, new, strict=True) if a)
        assert new[i % 3] != ""
    assert all(row[2] in ("big", "small") and float(row[1]) == int(float(row[1])) for row in filled)


def test_fill_takes_a_table(run):
    made, folder, _ = run
    with pytest.raises(ValueError, match="a table is a"):
        fill_table(made, folder, folder / "filled2.csv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        fill_table(made, folder / "none.csv", folder / "filled2.csv")


def test_the_commands(run):
    made, folder, _ = run

    def loglik_(*words):
        line = [sys.executable, "-m", "loglik", *map(str, words)]
        return subprocess.run(line, capture_output=True, text=True, timeout=100)

    done = loglik_("encode", made.path, "--split", "test", "--out", folder / "few.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20 rows of latents: ")
    done = loglik_("fill", made.path, folder / "t.csv", "--out", folder / "same.csv")
    assert done.returncode == 0 and done.stdout.startswith("0 missing values filled"), done.stderr
    bad = folder / "bad.csv"
    bad.write_text("size,count\n1.0,2\n")
    done = loglik_("fill", made.path, bad, "--out", folder / "no.csv")
    assert done.returncode == 2 and "no column 'kind', which the model needs" in done.stderr
